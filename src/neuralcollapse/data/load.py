"""Data sets by name, loaded into memory as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.data import label_changes
from neuralcollapse.data.catalog import check_classes, read_image_set
from neuralcollapse.data.splits import Split
from neuralcollapse.errors import InputError, one_line

_CHUNK = 4096  # images whose pixel values are counted at a time


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Args:
        train: the training images (N, C, H, W) uint8 and labels (N,) int64.
        test: the test images and labels, possibly none.
        class_names: of the K classes.
        mean: of each of the C channels over the training images, in units of the uint8 values.
        std: standard deviation, likewise; 1 for a channel that is constant.
        channels: that the network sees: 3 where grey images are repeated, else C.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, H, W) of the images that the network sees."""
        _, _, height, width = self.train.images.shape
        return self.channels, height, width


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    samples_per_class: int | None = None,
    imbalance: str | None = None,
    random_labels: bool = False,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Data:
    """Load a data set by name, resize its images and change its training samples and labels where asked to.

    The training set is changed in the order samples_per_class, imbalance, random_labels, label_noise; the test set
    stays as it is.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", one of these with its folder as in
            "mnist:FOLDER", "idx:FOLDER", "imagefolder:FOLDER", or the id of a data set of the Hugging Face hub.
        image_size: resize images to this height and width.
        channels: 3 repeats grey images to three channels.
        samples_per_class: keep this number of training samples of each class.
        imbalance: "exponential:R" or "step:R": the first class keeps R times the samples of the last.
        random_labels: give the training samples random labels, each class as often as any other.
        label_noise: share of training samples whose label is replaced by another class.
        seed: of the choice of samples and labels.

    Raises:
        InputError: an unknown data set, missing or damaged files, an unreachable hub, too few samples of a class, or
            options that do not fit the images.
    """
    if not isinstance(name, str):
        raise InputError(f"expected the name of a data set, such as 'digits', got {name!r:.80}")
    for option, value in (("image_size", image_size), ("samples_per_class", samples_per_class)):
        if value is not None:
            check_count(value, option, 1)
    if channels not in (None, 1, 3):
        raise InputError(f"expected channels to be 1 or 3, got {channels!r}")
    if not isinstance(imbalance, str | None):
        raise InputError(f"expected imbalance as 'exponential:R' or 'step:R', got {imbalance!r}")
    if not isinstance(random_labels, bool):
        raise InputError(f"expected random_labels to be True or False, got {random_labels!r}")
    if check_real(label_noise, "label_noise", zero=True) > 1:
        raise InputError(f"expected label_noise to be a share from 0 to 1, got {label_noise!r}")
    if check_count(seed, "seed", 0) >= 2**32:
        raise InputError(f"expected seed to be from 0 to 2^32 - 1, got {seed!r}")
    try:
        source = read_image_set(name, image_size)
    except (MemoryError, OverflowError, RuntimeError) as error:
        why = one_line(error, 120)
        if isinstance(error, RuntimeError) and not any(
            word in why for word in ("alloc", "memory", "verflow", "too large")
        ):
            raise
        what = f"the images of {name} at image_size={image_size}"
        raise InputError(f"{what} are too large for this machine ({why})") from None
    stored = source.train.images.shape[1]
    if channels not in (None, stored) and stored != 1:
        raise InputError(
            f"channels={channels} is for grey images, and those of {name} have {stored} channels: leave it out"
        )
    (images, labels), names = (source.train.images, source.train.labels), source.class_names
    if samples_per_class is not None:
        chosen = label_changes.samples_per_class(labels, samples_per_class, names, seed)
        images, labels = images[chosen], labels[chosen]
    if imbalance is not None:
        chosen = label_changes.imbalance(labels, imbalance, len(names), seed)
        images, labels = images[chosen], labels[chosen]
    if random_labels:
        labels = label_changes.random_labels(len(labels), len(names), seed)
    if label_noise:
        labels = label_changes.label_noise(labels, label_noise, len(names), seed)
    check_classes(labels, names, name)
    mean, std = _statistics(images)
    return Data(Split(images, labels), source.test, names, mean, std, channels or stored)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exactly, from counts of the 256 values."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(_CHUNK):
        for channel, row in enumerate(counts):
            row += part[:, channel].flatten().bincount(minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).double()
    means = shares @ values
    variances = (shares * (values - means[:, None]).square()).sum(1)
    return tuple(means.tolist()), tuple(math.sqrt(variance) or 1.0 for variance in variances.tolist())
