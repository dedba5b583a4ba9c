"""The models of `architectures.py` that come from libraries, each with a hand-written account of its head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from architectures import IGNORED, Calls, Case, Reading

CLASSES, SAMPLES, SIZE = 7, 60, 64
PAD, END, WORDS = 1, 2, 60


# Data: random, with something of the class in it.


@functools.lru_cache(maxsize=4)
def images(size: int = SIZE, batch: int = 20) -> list[tuple[Tensor, Tensor]]:
    """A smooth pattern for each class, and noise; fewer of the large ones."""
    made = torch.Generator().manual_seed(1)
    samples = SAMPLES if size <= SIZE else 3 * CLASSES
    labels = torch.arange(samples) % CLASSES
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=made)
    patterns = nn.functional.interpolate(patterns, size=(size, size), mode="bilinear")
    pixels = patterns[labels] + 0.5 * torch.randn(samples, 3, size, size, generator=made)
    return list(zip(pixels.split(batch), labels.split(batch), strict=True))


def pictures(size: int = 32) -> list[dict[str, Tensor]]:
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in images(size)]


def videos(frames: int = 4, size: int = 32, first: str = "channels") -> list[Any]:
    """(N, C, T, H, W), or dicts with (N, T, C, H, W)."""
    found = []
    for pixels, labels in images(size, 15):
        clip = torch.stack([pixels.roll(step, -1) for step in range(frames)], 2)
        found.append((clip, labels) if first == "channels" else {"pixel_values": clip.transpose(1, 2), "labels": labels})
    return found


def texts(batch: int = 15, *, left: bool = False, tokens: bool = False, longest: int = 12) -> list[dict[str, Tensor]]:
    """Sentences of different lengths, padded to the longest of their batch; words hint at the class."""
    made = torch.Generator().manual_seed(2)
    sentences, labels = [], torch.arange(SAMPLES) % CLASSES
    for label in labels:
        length = int(torch.randint(4, longest, (1,), generator=made))
        words = torch.randint(3, WORDS, (length,), generator=made)
        hint = torch.rand(length, generator=made) < 0.6
        words = torch.where(hint, 3 + 7 * label + words % 7, words)
        words[-1] = END
        sentences.append(words)
    found = []
    for start in range(0, SAMPLES, batch):
        part = sentences[start : start + batch]
        width = max(map(len, part))
        ids, mask = torch.full((len(part), width), PAD), torch.zeros(len(part), width, dtype=torch.long)
        for row, words in enumerate(part):
            where = slice(width - len(words), width) if left else slice(0, len(words))
            ids[row, where], mask[row, where] = words, 1
        marks = torch.where(mask.bool(), (ids // 9) % CLASSES, IGNORED) if tokens else labels[start : start + batch]
        found.append({"input_ids": ids, "attention_mask": mask, "labels": marks})
    return found


def sentences(batch: int = 15) -> list[dict[str, Tensor]]:
    """For causal language models: the labels are the tokens, of K = 7 words, so that all classes come often."""
    made = torch.Generator().manual_seed(3)
    ids = torch.randint(0, CLASSES, (SAMPLES, 8), generator=made)
    return [{"input_ids": part, "labels": part.clone()} for part in ids.split(batch)]


def sounds(length: int = 2000) -> list[dict[str, Tensor]]:
    made = torch.Generator().manual_seed(4)
    labels = torch.arange(SAMPLES) % CLASSES
    time = torch.arange(length) / length
    waves = torch.sin(2 * torch.pi * 20 * (labels[:, None] + 1) * time) + torch.randn(SAMPLES, length, generator=made)
    lengths = torch.randint(length // 2, length + 1, (SAMPLES,), generator=made)
    mask = (torch.arange(length) < lengths[:, None]).long()
    waves = waves * mask
    return [
        {"input_values": wave, "attention_mask": one, "labels": label}
        for wave, one, label in zip(waves.split(15), mask.split(15), labels.split(15), strict=True)
    ]


# Readings.


def linear(name: str) -> Callable[[nn.Module], tuple[Tensor, Tensor | None]]:
    def of(model: nn.Module) -> tuple[Tensor, Tensor | None]:
        layer = model.get_submodule(name)
        return layer.weight.flatten(1), layer.bias

    return of


def received(name: str) -> Callable[[Calls, Any], Tensor]:
    """What the layer received, a row for each position; maps (N, d, H, W) averaged."""

    def rows(calls: Calls, _: Any) -> Tensor:
        value = calls[name][0]
        return value.mean((2, 3)) if value.dim() == 4 else value.reshape(-1, value.shape[-1])

    return rows


def plain(name: str, **options: Any) -> list[Reading]:
    words = options.pop("words", "h, W, b of the head")
    return [Reading(words, received(name), linear(name), **options)]


def last_word(name: str) -> list[Reading]:
    """The rightmost position that is no padding."""

    def rows(calls: Calls, batch: Any) -> Tensor:
        ids = batch["input_ids"]
        position = torch.tensor([max(t for t in range(ids.shape[1]) if row[t] != PAD) for row in ids])
        return calls[name][0][torch.arange(len(ids)), position]

    return [Reading("the position that is classified", rows, linear(name))]


def several(names: tuple[str, ...], shares: Callable[[nn.Module], list[Any]] | None = None) -> list[Reading]:
    """Logits that are a weighted sum of heads: all their inputs side by side, or one head where the others are named."""

    def weights(model: nn.Module) -> list[Any]:
        return [1 / len(names)] * len(names) if shares is None else shares(model)

    def side_by_side(model: nn.Module) -> tuple[Tensor, Tensor]:
        layers = [model.get_submodule(name) for name in names]
        rows = torch.cat([share * one.weight.double() for share, one in zip(weights(model), layers, strict=True)], 1)
        return rows, sum(share * one.bias.double() for share, one in zip(weights(model), layers, strict=True))

    def summed(model: nn.Module) -> tuple[Tensor, Tensor]:
        layers = [model.get_submodule(name) for name in names]
        rows = sum(share * one.weight.double() for share, one in zip(weights(model), layers, strict=True))
        return rows, sum(share * one.bias.double() for share, one in zip(weights(model), layers, strict=True))

    all_rows = lambda calls, batch: torch.cat([calls[name][0] for name in names], 1)  # noqa: E731
    found = [Reading("all heads, side by side", all_rows, side_by_side, tolerance=1e-5)]
    if names in SAME_INPUT:
        found.append(Reading("the mean head", received(names[0]), summed, tolerance=1e-5))
    for name in names:
        others = tuple(other for other in names if other != name)
        found.append(Reading(f"{name} alone", received(name), linear(name), quiet=False, mentions=others))
    return found


SAME_INPUT = {("head", "head_dist"), ("head", "dist_head")}


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


# transformers, with tiny configurations.

TINY = {
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "emb_dim": 16, "embedding_size": 16,
    "word_embed_proj_dim": 16, "intermediate_size": 24, "ffn_dim": 24, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "d_inner": 24, "hidden_dim": 24, "d_ff": 24, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 2, "n_head": 2,
    "n_heads": 2, "num_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_key_value_heads": 2, "d_head": 8, "d_kv": 8, "head_dim": 8, "max_position_embeddings": 40,
    "n_positions": 40, "image_size": 32, "patch_size": 8, "vocab_size": WORDS,
}  # fmt: skip
AUDIO: dict[str, Any] = {
    "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 12,
}  # fmt: skip
ALWAYS = {"num_labels": CLASSES, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 0}


def transformers_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of that class whose widths and depths are those of TINY where its configuration has them."""

    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        made = getattr(transformers, name)
        defaults = made.config_class()
        kept = {key: value for key, value in TINY.items() if hasattr(defaults, key)} | ALWAYS | options
        model = made(made.config_class(**{key: value for key, value in kept.items() if value is not None}))
        with torch.no_grad():  # the weights of a language model start so small that all its features are alike
            for value in model.parameters():
                if value.dim() >= 2:
                        value.mul_(5)
                    if not value.any():  # tokens and positions that would all be alike
                        nn.init.normal_(value, std=0.1)
        return model

    return build


def transformers_cases() -> Iterator[Case]:
    pooled: list[tuple[str, str, dict[str, Any]]] = [
        ("Bert", "classifier", {}),
        ("Roberta", "classifier.out_proj", {}),
        ("DistilBert", "classifier", {}),
        ("Electra", "classifier.out_proj", {}),
        ("DebertaV2", "classifier", {}),
        ("Albert", "classifier", {}),
        ("ModernBert", "classifier", {"cls_token_id": 0, "sep_token_id": END}),
        ("MPNet", "classifier.out_proj", {}),
        ("XLM", "sequence_summary.summary", {}),
        ("XLNet", "logits_proj", {"max_position_embeddings": None}),
        ("Bart", "classification_head.out_proj", {}),
        ("T5", "classification_head.out_proj", {"decoder_start_token_id": 0}),
    ]
    for name, head, options in pooled:
        build = transformers_model(f"{name}ForSequenceClassification", **options)
        yield Case(f"transformers {name}ForSequenceClassification", build, texts, head, plain(head))
    for name in ("GPT2", "Llama", "Qwen2", "Mistral", "OPT", "GPTNeoX", "Gemma2", "CTRL"):
        head = "classifier" if name == "CTRL" else "score"
        build = transformers_model(f"{name}ForSequenceClassification")
        yield Case(f"transformers {name}ForSequenceClassification", build, texts, head, last_word(head))
    left = functools.partial(texts, left=True)
    build = transformers_model("LlamaForSequenceClassification")
    yield Case("transformers LlamaForSequenceClassification, padded on the left", build, left, "score",
               last_word("score"))  # fmt: skip
    words = functools.partial(texts, tokens=True)
    build = transformers_model("BertForTokenClassification")
    yield Case("transformers BertForTokenClassification", build, words, "classifier", plain("classifier"),
               options={"ignore_index": IGNORED})  # fmt: skip
    for name in ("GPT2LMHeadModel", "LlamaForCausalLM"):
        build = transformers_model(name, vocab_size=CLASSES)
        yield Case(f"transformers {name}, next_token", build, sentences, "lm_head", plain("lm_head"),
                   options={"next_token": True})  # fmt: skip
    gpt2 = transformers_model("GPT2LMHeadModel", vocab_size=CLASSES)
    yield Case("transformers GPT2LMHeadModel, its own tokens as labels", gpt2, sentences, "lm_head",
               plain("lm_head", words="each token its own class", quiet=False, mentions=("next_token",)))  # fmt: skip
    bart = transformers_model("BartForCausalLM", vocab_size=CLASSES)
    yield Case("transformers BartForCausalLM, next_token", bart, sentences, "lm_head", plain("lm_head"),
               options={"next_token": True})  # fmt: skip
    for name, after, options in [
        ("GraniteForCausalLM", lambda model: 1 / model.config.logits_scaling, {"logits_scaling": 4.0}),
        ("CohereForCausalLM", lambda model: model.logit_scale, {"logit_scale": 0.25}),
    ]:
        build = transformers_model(name, vocab_size=CLASSES, **options)
        yield Case(f"transformers {name}, next_token (scaled logits)", build, sentences, "lm_head",
                   [Reading("W times the scale", received("lm_head"), scaled("lm_head", after), tolerance=1e-4)],
                   options={"next_token": True})  # fmt: skip
    build = transformers_model("Gemma2ForCausalLM", vocab_size=CLASSES, final_logit_softcapping=2.0)
    yield Case("transformers Gemma2ForCausalLM, next_token (capped logits)", build, sentences, "lm_head",
               plain("lm_head", quiet=False, words="h, W before tanh"), options={"next_token": True})  # fmt: skip
    build = transformers_model("Wav2Vec2ForSequenceClassification", **AUDIO)
    yield Case("transformers Wav2Vec2ForSequenceClassification", build, sounds, "classifier", plain("classifier"))

    deep = {"depths": [1, 1], "hidden_size": None, "embedding_size": 8, "hidden_sizes": [8, 16]}
    for name, head, size, options in [
        ("ViTForImageClassification", "classifier", 32, {}),
        ("SwinForImageClassification", "classifier", 32,
         {"num_attention_heads": None, "hidden_size": None, "num_hidden_layers": None, "num_layers": None,
          "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}),
        ("ConvNextForImageClassification", "classifier", 32,
         {"num_hidden_layers": None, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 4}),
        ("ResNetForImageClassification", "classifier.1", 32, deep),
        ("RegNetForImageClassification", "classifier.1", 32, deep | {"groups_width": 8}),
        ("MobileViTForImageClassification", "classifier", 64,
         {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "image_size": 64, "patch_size": 2}),
        ("Dinov2ForImageClassification", "classifier", 32, {}),
        ("ImageGPTForImageClassification", "score", 32, {}),
        ("CLIPForImageClassification", "classifier", 32,
         {"vision_config": {key: value for key, value in TINY.items() if key in CLIP}, "text_config": {}}),
    ]:  # fmt: skip
        data = functools.partial(pictures, size)
        if name.startswith("ImageGPT"):
            data = texts_as_pixels
        yield Case(f"transformers {name}", transformers_model(name, **options), data, head, plain(head))
    pair = ("cls_classifier", "distillation_classifier")
    build = transformers_model("DeiTForImageClassificationWithTeacher")
    for head in pair:
        yield Case(f"transformers DeiTForImageClassificationWithTeacher, {head} (several heads)", build, pictures, head,
                   several(pair), pair)  # fmt: skip


CLIP = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"}


def texts_as_pixels() -> list[dict[str, Tensor]]:
    """ImageGPT reads colours as words, all sentences of one length."""
    return [{"input_ids": part["input_ids"], "labels": part["labels"]} for part in texts()]


def scaled(name: str, factor: Callable[[Any], Any]) -> Callable[[nn.Module], tuple[Tensor, Tensor | None]]:
    return lambda model: (model.get_submodule(name).weight.double() * factor(model), None)


def cases() -> Iterator[Case]:
    from zoo_heads import head_cases, layer_cases

    yield from head_cases()
    yield from layer_cases()
    yield from torchvision_cases()
    yield from timm_cases()
    yield from transformers_cases()
