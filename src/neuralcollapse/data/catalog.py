"""Data sets by name: which reader each has, and what is checked of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from neuralcollapse.data.hub import HUB, from_hub
from neuralcollapse.data.idx_cifar import cifar_folder, idx_folder
from neuralcollapse.data.image_folder import image_folder
from neuralcollapse.data.splits import ImageSet, Split, resize
from neuralcollapse.errors import InputError, did_you_mean, listed
from neuralcollapse.extras import needed_by

DATA_FOLDER = "NEURALCOLLAPSE_DATA"  # the environment variable that names a folder of data sets
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = _words("0 1 2 3 4 5 6 7 8 9")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = _words("airplane automobile bird cat deer dog frog horse ship truck")
_CIFAR100 = _words("""
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
""")


def read_image_set(name: str, size: int | None = None) -> ImageSet:
    """The data set called `name` (see `load_data`), resized to `size` x `size` pixels if given."""
    head, colon, folder = name.partition(":")
    if head in _READERS:
        if colon and not folder:
            raise InputError(f"expected a folder after the colon, as in '{head}:FOLDER', got {name!r}")
        source = _READERS[head](Path(folder).expanduser() if colon else _kept(head), size)
    elif head == "hf" and folder:
        source = from_hub(folder, size)
    elif "/" in name and not colon:
        source = from_hub(name, size)
    else:
        raise InputError(
            f"no data set {name!r}{did_you_mean(head, _READERS)}: expected one of {', '.join(_READERS)} (or, but "
            "for digits, 'NAME:FOLDER'), or an id of the Hugging Face hub such as 'uoft-cs/cifar10'"
        )
    return _checked(name, source, size)


def _kept(name: str) -> Path | None:
    """The data set's folder in `$NEURALCOLLAPSE_DATA`, if there is one."""
    root = os.environ.get(DATA_FOLDER)
    folder = Path(root).expanduser() / name if root and name in HUB else None
    return folder if folder is not None and folder.is_dir() else None


def check_classes(labels: Tensor, class_names: Sequence[str], source: str) -> None:
    """Raise unless every class has a training sample."""
    counts = labels.bincount(minlength=len(class_names))
    if empty := [class_names[label] for label in (counts == 0).nonzero()[:, 0].tolist()]:
        raise InputError(
            f"{source}: expected training samples of all {len(class_names)} classes, got none of {listed(empty)}: "
            "number the classes from 0 without gaps, or keep more samples"
        )


def _checked(name: str, source: ImageSet, size: int | None) -> ImageSet:
    train, test = source.train, source.test
    classes = len(source.class_names)
    for split, title in ((train, "training"), (test, "test")):
        wrong = split.labels[(split.labels < 0) | (split.labels >= classes)]
        if len(wrong):
            raise InputError(
                f"{name}: expected labels of the {title} images from 0 to {classes - 1}, the classes of the training "
                f"set, got {listed(wrong.unique().tolist())}"
            )
    check_classes(train.labels, source.class_names, name)
    if size is not None:
        train, test = (Split(resize(split.images, size), split.labels) for split in (train, test))
    channels = max(split.images.shape[1] for split in (train, test) if len(split.labels))
    train, test = (Split(_with_channels(split.images, channels), split.labels) for split in (train, test))
    if len(test.labels) and train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{name}: expected test images like the training images, {_shape(train)}, got {_shape(test)}: give an "
            "image_size to resize both"
        )
    if not len(test.labels):
        test = Split(train.images[:0], test.labels)
    return ImageSet(train, test, source.class_names)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    grey = images.shape[1] == 1 and channels == 3
    return images.repeat(1, 3, 1, 1) if grey else images


def _shape(split: Split) -> str:
    channels, height, width = split.images.shape[1:]
    return f"{channels} x {height} x {width}"


def _digits(folder: Path | None, size: int | None) -> ImageSet:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels; a fixed stratified fifth is the test set."""
    if folder is not None:
        raise InputError(f"digits come with scikit-learn, without a folder, got {str(folder)!r}: leave it out")
    with needed_by("digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        pixels.astype("uint8"), labels.astype("int64"), test_size=360, random_state=0, stratify=labels
    )
    splits = [
        Split(torch.from_numpy(images).view(-1, 1, 8, 8), torch.from_numpy(classes))
        for images, classes in ((train, train_labels), (test, test_labels))
    ]
    return ImageSet(splits[0], splits[1], _DIGITS)


def _mnist(folder: Path | None, size: int | None) -> ImageSet:
    if folder is None:
        return from_hub(HUB["mnist"], size, _DIGITS)
    return idx_folder(folder, _DIGITS)


def _fashion_mnist(folder: Path | None, size: int | None) -> ImageSet:
    if folder is None and DEBIAN_FASHION_MNIST.is_dir():
        folder = DEBIAN_FASHION_MNIST
    if folder is None:
        return from_hub(HUB["fashion-mnist"], size, _CLOTHES)
    return idx_folder(folder, _CLOTHES)


def _required(folder: Path | None, kind: str) -> Path:
    if folder is None:
        raise InputError(f"expected a folder, as in '{kind}:FOLDER', got {kind!r}")
    return folder


def _cifar10(folder: Path | None, size: int | None) -> ImageSet:
    if folder is None:
        return from_hub(HUB["cifar10"], size, _CIFAR10)
    files = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return cifar_folder(folder, "cifar-10-batches-bin", [*files, "test_batch.bin"], 1, _CIFAR10)


def _cifar100(folder: Path | None, size: int | None) -> ImageSet:
    if folder is None:
        return from_hub(HUB["cifar100"], size, _CIFAR100, "fine_label")
    return cifar_folder(folder, "cifar-100-binary", ["train.bin", "test.bin"], 2, _CIFAR100)


_READERS: dict[str, Callable[[Path | None, int | None], ImageSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "idx": lambda folder, size: idx_folder(_required(folder, "idx"), None),
    "imagefolder": lambda folder, size: image_folder(_required(folder, "imagefolder"), size),
}
