"""What `architectures.py` knows of a model: its data, its head, and how the logits that it returns come about.

The models are in `zoo_images.py` (timm, torchvision), `zoo_texts.py` (transformers), `zoo_heads.py` (heads and wrappers
that people make) and `zoo_layers.py` (inner layers).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
Calls = dict[str, tuple[Tensor, Tensor]]  # name of a layer -> what it received and gave in one batch


@dataclass
class Reading:
    """One way to read a model as W h + b.

    Attributes:
        name: in words.
        rows: from the calls in one batch, and the batch, to the features (n, d) in the order of the returned logits.
        weight: W and b, from the model after a pass.
        quiet: the model's logits are W h + b, so that it may be measured without a word. Otherwise it needs a warning
            that has every one of `mentions`.
        mentions: words that the warning must have.
        tolerance: relative, where W had to be found from what the model computes.
        shared: the logits may be off by a term that all classes of a sample share, which no prediction sees.
    """

    name: str
    rows: Callable[[Calls, Any], Tensor]
    weight: Callable[[nn.Module], tuple[Tensor, Tensor | None]]
    quiet: bool = True
    mentions: tuple[str, ...] = ()
    tolerance: float = 1e-6
    shared: bool = False


@dataclass
class Case:
    """A model, its data, the layer that is named as its classifier, and how it may be read.

    Attributes:
        name: library and model.
        build: makes the model; raises ImportError where its library is missing.
        batches: makes the data.
        head: the layer given to `nc.measure`; None where only the search for it is tried.
        readings: the best first; none where the logits are no linear function of any one vector.
        watch: layers whose calls the readings need; the head when empty.
        options: of `nc.measure`.
        prepare: give the head random rows and the norms the statistics of the data. Without it each pass has a model of
            its own, as one pass may bring up to date what the next one reads.
        may_refuse: words are as good as numbers.
        searched: measure without a name too, where this version finds the head.
        layer: an inner layer to measure too, with `layer_rows` from its raw output and the batch to (n, C).
    """

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    head: str
    readings: list[Reading]
    watch: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    layer_rows: Callable[[Any, Any], Tensor] | None = None
    prepare: bool = True
    may_refuse: bool = False
    searched: bool = True

    @property
    def must_agree(self) -> bool:
        """That it is a linear head of one vector, or a layer whose axes can be known: a refusal would be too much."""
        return not self.may_refuse and len(self.readings) == 1 and self.readings[0].quiet


CLASSES, SAMPLES, SIZE = 7, 60, 64
PAD, END, WORDS = 1, 2, 60


# Data: random, with something of the class in it.


@functools.lru_cache(maxsize=4)
def images(size: int = SIZE, batch: int = 20) -> list[tuple[Tensor, Tensor]]:
    """A smooth pattern for each class, and noise; fewer of the large ones."""
    made = torch.Generator().manual_seed(1)
    samples, batch = (SAMPLES, batch) if size <= SIZE else (3 * CLASSES, CLASSES)
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
        found.append(
            (clip, labels) if first == "channels" else {"pixel_values": clip.transpose(1, 2), "labels": labels}
        )
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
    """Logits that are a weighted sum of heads: all inputs side by side, or one head where the others are named."""

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
