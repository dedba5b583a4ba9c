"""Inner layers, with the axes of their outputs written down by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo import CLASSES, Case, Reading, images, last_word, pictures, plain, sounds, texts, videos
from zoo_images import timm_model, vision_model
from zoo_texts import AUDIO, transformers_model

# Inner layers: the mean over positions of each sample, written down by hand.


def tokens(raw: Tensor, _: Any) -> Tensor:
    """(N, T, C)"""
    return raw.mean(1)


def channels_first(raw: Tensor, _: Any) -> Tensor:
    """(N, C, ...)"""
    return raw.flatten(2).mean(2)


def channels_last(raw: Tensor, _: Any) -> Tensor:
    """(N, ..., C)"""
    return raw.flatten(1, -2).mean(1)


def sequence_first(raw: Any, _: Any) -> Tensor:
    """(T, N, C)"""
    return raw.mean(0)


def without_padding(raw: Tensor, batch: Any) -> Tensor:
    mask = batch["attention_mask"].to(raw.dtype)[..., None]
    return (raw * mask).sum(1) / mask.sum(1)


class Sequence(nn.Module):
    """20 rows of an image as a sequence through a layer that wants (T, N, C); batches have 20 images."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(width, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        rows = pixels.mean(1)[:, :20].transpose(0, 1)
        output = self.layer(rows)
        return self.fc((output[0] if isinstance(output, tuple) else output).mean(0))


class Wave(nn.Module):
    """Convolutions along one axis: (N, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(3, 20, 9, 8), nn.Linear(20, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.conv(pixels.flatten(2)).relu().mean(2))


class Cube(nn.Module):
    """Maps whose three sides are alike, channels first and then last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(pixels).permute(0, 2, 3, 1)).relu().mean((1, 2)))


def frames(raw: Tensor, batch: Any) -> Tensor:
    """The frames that lie wholly within the sound: strides 5 and 4, kernels 10 and 8."""
    lengths = batch["attention_mask"].sum(1)
    for kernel, stride in ((10, 5), (8, 4)):
        lengths = (lengths - kernel) // stride + 1
    mask = (torch.arange(raw.shape[1]) < lengths[:, None]).to(raw.dtype)[..., None]
    return (raw * mask).sum(1) / mask.sum(1)


def layer_cases() -> Iterator[Case]:
    def case(
        name: str, build: Callable[[], nn.Module], head: str, layer: str, rows: Callable[[Any, Any], Tensor],
        data: Callable[[], list[Any]] = images, may_refuse: bool = False, readings: list[Reading] | None = None,
    ) -> Case:  # fmt: skip
        return Case(f"layer: {name}", build, data, head, readings or plain(head), layer=layer, layer_rows=rows,
                    may_refuse=may_refuse)  # fmt: skip

    sized = {"img_size": 64}
    yield case("torchvision resnet18 layer3 (N, C, H, W)", vision_model("resnet18"), "fc", "layer3", channels_first)
    swin = timm_model("swin_tiny_patch4_window7_224", **sized)
    for layer in ("norm", "layers.0", "layers.0.blocks.0", "patch_embed"):
        yield case(f"timm swin {layer} (N, H, W, C)", swin, "head.fc", layer, channels_last)
    yield case(
        "torchvision swin_t features.1 (N, H, W, C)", vision_model("swin_t"), "head", "features.1", channels_last
    )
    yield case("torchvision swin_t permute (N, C, H, W)", vision_model("swin_t"), "head", "permute", channels_first)
    convnext = vision_model("convnext_tiny")
    yield case("torchvision convnext features.1 (N, C, H, W)", convnext, "classifier.2", "features.1", channels_first)
    yield case("torchvision convnext LayerNorm (N, H, W, C)", convnext, "classifier.2", "features.1.0.block.2",
               channels_last)  # fmt: skip
    atto = timm_model("convnext_atto")
    yield case("timm convnext LayerNorm2d (N, C, H, W)", atto, "head.fc", "stages.0.blocks.0.norm", channels_first)
    maxvit = timm_model("maxvit_pico_rw_256", **sized)
    yield case("timm maxvit stage (N, C, H, W)", maxvit, "head.fc", "stages.0", channels_first)
    yield case("timm maxvit attention (N, H, W, C)", maxvit, "head.fc", "stages.0.blocks.0.attn_block", channels_last)
    yield case("timm mambaout stage (N, H, W, C)", timm_model("mambaout_femto"), "head.fc", "stages.3", channels_last)
    yield case("timm pvt_v2 stage (N, C, H, W) of blocks (N, T, C)", timm_model("pvt_v2_b0"), "head", "stages.3",
               channels_first)  # fmt: skip
    yield case("timm vit block (N, T, C)", timm_model("vit_tiny_patch16_224", **sized), "head", "blocks.3", tokens)
    mixer = timm_model("mixer_s32_224", **sized)
    yield case("timm mixer mlp_tokens (N, C, T)", mixer, "head", "blocks.0.mlp_tokens", channels_first, may_refuse=True)
    resmlp = timm_model("resmlp_12_224", **sized)
    yield case("timm resmlp linear_tokens (N, C, T)", resmlp, "head", "blocks.0.linear_tokens", channels_first,
               may_refuse=True)  # fmt: skip
    yield case("timm nest stage (N, C, H, W) of blocks (N, blocks, T, C)", timm_model("nest_tiny", **sized), "head",
               "levels.0", channels_first)  # fmt: skip
    gpt2 = transformers_model("GPT2ForSequenceClassification")
    yield case("transformers GPT2 layer, padded", gpt2, "score", "transformer.h.0", without_padding, texts,
               readings=last_word("score"))  # fmt: skip
    yield case("Conv1d (N, C, L)", Wave, "fc", "conv", channels_first)
    encoder = lambda: Sequence(nn.TransformerEncoderLayer(64, 4, 32), 64)  # noqa: E731
    yield case("TransformerEncoderLayer (T, N, C), T = N", encoder, "fc", "layer", sequence_first, may_refuse=True)
    lstm = lambda: Sequence(nn.LSTM(64, 16), 16)  # noqa: E731
    yield case("LSTM (T, N, C), T = N", lstm, "fc", "layer", lambda raw, _: raw[0].mean(0), may_refuse=True)
    bert = transformers_model("BertForSequenceClassification")
    for size in (1, 4, 15):
        data = functools.partial(texts, size)
        yield case(f"transformers Bert layer, padded, batches of {size}", bert, "classifier", "bert.encoder.layer.0",
                   without_padding, data)  # fmt: skip
    left = functools.partial(texts, left=True)
    yield case("transformers Bert layer, padded on the left", bert, "classifier", "bert.encoder.layer.0",
               without_padding, left)  # fmt: skip
    xlnet = transformers_model("XLNetForSequenceClassification", max_position_embeddings=None)
    yield case("transformers XLNet layer (T, N, C), padded", xlnet, "logits_proj", "transformer.layer.0",
               lambda raw, batch: without_padding(raw[0].transpose(0, 1), batch), left, may_refuse=True)  # fmt: skip
    deberta = transformers_model("DebertaV2ForSequenceClassification")
    yield case("transformers DebertaV2 layer, a tuple, padded", deberta, "classifier", "deberta.encoder.layer.0",
               lambda raw, batch: without_padding(raw[0], batch), texts)  # fmt: skip
    wave2vec = transformers_model("Wav2Vec2ForSequenceClassification", **AUDIO)
    yield case("transformers Wav2Vec2 layer, fewer frames than the mask has samples", wave2vec, "classifier",
               "wav2vec2.encoder.layers.0", frames, sounds, may_refuse=True)  # fmt: skip
    yield case(
        "torchvision r3d_18 layer2 (N, C, T, H, W)", vision_model("r3d_18"), "fc", "layer2", channels_first, videos
    )
    yield case("torchvision swin3d_t norm (N, T, H, W, C)", vision_model("swin3d_t"), "head", "norm", channels_last,
               functools.partial(videos, 4, 64))  # fmt: skip
    yield case("timm swin attention (windows, T, C)", swin, "head.fc", "layers.0.blocks.0.attn",
               lambda raw, batch: raw.reshape(len(batch[1]), -1, raw.shape[-1]).mean(1), may_refuse=True)  # fmt: skip
    yield case("(N, H, W, C) with H = W = C", Cube, "fc", "norm", channels_last)
    yield case("(N, C, H, W) with H = W = C", Cube, "fc", "conv", channels_first, may_refuse=True)
    yield case("transformers ViT layer (N, T, C)", transformers_model("ViTForImageClassification"), "classifier",
               "vit.layers.0", tokens, pictures)  # fmt: skip
