"""Models of timm and torchvision, with a hand-written account of their heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from zoo import CLASSES, SIZE, Case, Reading, images, linear, plain, received, several, videos

# timm.


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return build


def timm_cases() -> Iterator[Case]:
    sized = {"img_size": SIZE}
    plain_heads: list[tuple[str, str, int, dict[str, Any]]] = [
        ("resnet10t", "fc", SIZE, {}),
        ("skresnet18", "fc", SIZE, {}),
        ("vit_tiny_patch16_224", "head", SIZE, sized),
        ("deit3_small_patch16_224", "head", SIZE, sized),
        ("beit_base_patch16_224", "head", SIZE, sized | {"depth": 2}),
        ("eva02_tiny_patch14_224", "head", SIZE, sized),
        ("cait_xxs24_224", "head", SIZE, sized),
        ("xcit_nano_12_p16_224", "head", SIZE, sized),
        ("pvt_v2_b0", "head", SIZE, {}),
        ("coat_tiny", "head", SIZE, sized),
        ("tnt_s_legacy_patch16_224", "head", SIZE, sized),
        ("twins_svt_small", "head", SIZE, sized),
        ("mixer_s32_224", "head", SIZE, sized),
        ("convit_tiny", "head", SIZE, sized),
        ("visformer_tiny", "head", SIZE, sized),
        ("nest_tiny", "head", SIZE, sized),
        ("swin_tiny_patch4_window7_224", "head.fc", SIZE, sized),
        ("convnext_atto", "head.fc", SIZE, {}),
        ("maxvit_pico_rw_256", "head.fc", SIZE, sized),
        ("caformer_s18", "head.fc.fc2", SIZE, {}),
        ("poolformer_s12", "head.fc", SIZE, {}),
        ("edgenext_xx_small", "head.fc", SIZE, {}),
        ("mobilevit_xxs", "head.fc", SIZE, {}),
        ("fastvit_t8", "head.fc", SIZE, {}),
        ("hiera_tiny_224", "head.fc", SIZE, sized),
        ("sequencer2d_s", "head.fc", SIZE, {}),
        ("focalnet_tiny_srf", "head.fc", SIZE, {}),
        ("mambaout_femto", "head.fc", SIZE, {}),
        ("inception_next_atto", "head.fc2", SIZE, {}),
        ("efficientvit_b0", "head.classifier.4", SIZE, {}),
        ("efficientvit_m0", "head.linear", SIZE, {}),
        ("shvit_s1", "head.l", SIZE, {}),
        ("nf_regnet_b0", "head.fc", SIZE, {}),
        ("test_nfnet", "head.fc", SIZE, {}),
        ("mobilenetv3_small_050", "classifier", SIZE, {}),
        ("mobilenetv4_conv_small_050", "classifier", SIZE, {}),
        ("ghostnet_050", "classifier", SIZE, {}),
        ("hrnet_w18_small", "classifier", SIZE, {}),
        ("efficientnet_b0", "classifier", SIZE, {}),
        ("inception_v4", "last_linear", 80, {}),
    ]
    for name, head, size, options in plain_heads:
        yield Case(f"timm {name}", timm_model(name, **options), functools.partial(images, size), head, plain(head))
    for name, head in [("dla46_c", "fc"), ("dpn48b", "classifier"), ("resnetv2_50", "head.fc")]:
        yield Case(f"timm {name} (1x1 convolution)", timm_model(name), images, head, plain(head))

    fused = lambda model: [0.5, 0.5]  # noqa: E731
    for name, heads, size, options in [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), SIZE, sized),
        ("pit_ti_distilled_224", ("head", "head_dist"), 224, {}),
        ("levit_128s", ("head.linear", "head_dist.linear"), 224, {}),
        ("repvit_m1", ("head.head.l", "head.head_dist.l"), SIZE, {}),
        ("efficientformer_l1", ("head", "head_dist"), 224, {}),
        ("efficientformerv2_s0", ("head", "head_dist"), SIZE, sized),
        ("swiftformer_xs", ("head", "head_dist"), SIZE, {}),
        ("crossvit_9_240", ("head.0", "head.1"), 240, {}),
    ]:
        data = functools.partial(images, size)
        readings = several(heads, fused)
        if name.startswith(("deit", "pit")):  # the two heads see different tokens
            readings = [one for one in readings if one.name != "the mean head"]
        for number, head in enumerate(heads):
            if number == 0 or size == SIZE:
                words = "several heads" if number == 0 else "several heads, the other"
                yield Case(f"timm {name} ({words})", timm_model(name, **options), data, head, readings, heads)
    heads = tuple(f"heads.{number}" for number in range(4))
    yield Case(
        "timm efficientvim_m1 (several heads, learnt shares)",
        efficientvim,
        functools.partial(images, 224),
        "heads.3",
        several(heads, lambda model: list(model.weights.detach().double().softmax(-1))),
        heads,
    )
    alone = Reading("head alone", received("head"), linear("head"), quiet=False, mentions=("aux_head",))
    for head in ("head", "aux_head"):
        yield Case(f"timm volo_d1_224, {head} (maximum of a second head)", timm_model("volo_d1_224", **sized), images,
                   head, [alone], ("head", "aux_head"))  # fmt: skip


def efficientvim() -> nn.Module:
    model = timm_model("efficientvim_m1")()
    with torch.no_grad():
        model.weights.copy_(torch.tensor([0.3, -0.2, 0.5, 1.0]))
    return model


# torchvision.


def vision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return build


def torchvision_cases() -> Iterator[Case]:
    for name, head, size, options in [
        ("alexnet", "classifier.6", SIZE, {}),
        ("vgg11", "classifier.6", SIZE, {}),
        ("resnet18", "fc", SIZE, {}),
        ("googlenet", "fc", SIZE, {"init_weights": False}),
        ("inception_v3", "fc", 80, {"init_weights": False}),
        ("densenet121", "classifier", SIZE, {}),
        ("mobilenet_v2", "classifier.1", SIZE, {}),
        ("mobilenet_v3_small", "classifier.3", SIZE, {}),
        ("shufflenet_v2_x0_5", "fc", SIZE, {}),
        ("mnasnet0_5", "classifier.1", SIZE, {}),
        ("efficientnet_b0", "classifier.1", SIZE, {}),
        ("regnet_x_400mf", "fc", SIZE, {}),
        ("convnext_tiny", "classifier.2", SIZE, {}),
        ("swin_t", "head", SIZE, {}),
        ("vit_b_16", "heads.head", SIZE, {"image_size": SIZE}),
    ]:
        build, data = vision_model(name, **options), functools.partial(images, size)
        yield Case(f"torchvision {name}", build, data, head, plain(head))
    yield Case("torchvision r3d_18", vision_model("r3d_18"), videos, "fc", plain("fc"))
    yield Case(
        "torchvision squeezenet1_1 (1x1 convolution, ReLU, mean)",
        vision_model("squeezenet1_1"),
        images,
        "classifier.1",
        # ReLU stands between the convolution and the mean over positions: W mean(h) + b are not the logits
        plain("classifier.1", words="mean over positions", quiet=False, mentions=("classifier.1",)),
    )
