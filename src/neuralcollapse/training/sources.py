"""Readers of data sets, from files and from the Hugging Face hub, by the name in `TrainConfig.data`."""

from __future__ import annotations

import gzip
import io
import logging
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neuralcollapse._errors import InputError, listed, nearest

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


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
_CHUNK = 4096  # images resized at a time


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Source:
    """A data set as it was read: the test split may be empty, both have the same channels and size."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


def read(name: str, size: int | None = None) -> Source:
    """The data set that `name` stands for (see `TrainConfig.data`), resized to `size` x `size` pixels if given.

    Raises:
        InputError: an unknown name (the nearest is offered), missing or damaged files, labels that are none of the
            training set's classes, a class without training samples, a hub that cannot be reached.
    """
    head, colon, folder = name.partition(":")
    if head in _READERS:
        if colon and not folder:
            raise InputError(f"expected a folder after the colon, as in '{head}:FOLDER', got {name!r}")
        source = _READERS[head](Path(folder).expanduser() if colon else None, size)
    elif head == "hf" and folder:
        source = _hub(folder, size)
    elif "/" in name and not colon:
        source = _hub(name, size)
    else:
        raise InputError(
            f"no data set {name!r}{nearest(head, _READERS)}; there are: {', '.join(_READERS)} (all but digits as "
            "'NAME:FOLDER' too), and ids of the Hugging Face hub such as 'uoft-cs/cifar10'"
        )
    return _checked(name, source, size)


def check_classes(labels: Tensor, class_names: Sequence[str], source: str) -> None:
    """Raise unless every class has a training sample.

    Raises:
        InputError: naming the classes that have none.
    """
    counts = labels.bincount(minlength=len(class_names))
    if empty := [class_names[label] for label in (counts == 0).nonzero()[:, 0].tolist()]:
        raise InputError(
            f"{source}: expected training samples of all {len(class_names)} classes, got none of {listed(empty)}: "
            "number the classes that there are from 0 without gaps, or keep more samples"
        )


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) uint8 at `size` x `size` pixels: bilinear, antialiased."""
    if images.shape[2:] == (size, size):
        return images
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        resized[part] = functional.interpolate(images[part], size=(size, size), mode="bilinear", antialias=True)
    return resized


def _checked(name: str, source: Source, size: int | None) -> Source:
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
    train, test = (Split(_repeated(split.images, channels), split.labels) for split in (train, test))
    if len(test.labels) and train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{name}: expected test images like the training images, {_shape(train)}, got {_shape(test)}: give an "
            "image_size to resize both"
        )
    if not len(test.labels):
        test = Split(train.images[:0], test.labels)
    return Source(train, test, source.class_names)


def _repeated(images: Tensor, channels: int) -> Tensor:
    grey = images.shape[1] == 1 and channels == 3
    return images.repeat(1, 3, 1, 1) if grey else images


def _shape(split: Split) -> str:
    channels, height, width = split.images.shape[1:]
    return f"{channels} x {height} x {width}"


def _empty() -> Split:
    return Split(torch.empty((0, 1, 1, 1), dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


# Files


def _digits(folder: Path | None, size: int | None) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels; a fixed stratified fifth is the test set."""
    if folder is not None:
        raise InputError(f"digits come with scikit-learn, without a folder, got {str(folder)!r}: leave it out")
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
    return Source(splits[0], splits[1], _DIGITS)


def _mnist(folder: Path | None, size: int | None) -> Source:
    if folder is None:
        return _hub(HUB["mnist"], size, _DIGITS)
    return _idx_folder(folder, _DIGITS)


def _fashion_mnist(folder: Path | None, size: int | None) -> Source:
    if folder is None and DEBIAN_FASHION_MNIST.is_dir():
        folder = DEBIAN_FASHION_MNIST
    if folder is None:
        return _hub(HUB["fashion-mnist"], size, _CLOTHES)
    return _idx_folder(folder, _CLOTHES)


def _any_idx(folder: Path | None, size: int | None) -> Source:
    return _idx_folder(_given(folder, "idx"), None)


def _given(folder: Path | None, kind: str) -> Path:
    if folder is None:
        raise InputError(f"expected a folder, as in '{kind}:FOLDER', got {kind!r}")
    return folder


def _idx_folder(folder: Path, names: Sequence[str] | None) -> Source:
    """Four IDX files. Without `names` the classes are the training labels' numbers, and the test files may lack."""
    there = _entries(folder)
    found, missing = {}, []
    for split in ("train", "t10k"):
        for kind, dimensions in (("images", "34" if names is None else "3"), ("labels", "1")):
            spellings = [
                f"{split}-{kind}{mark}idx{dimension}-ubyte{suffix}"
                for dimension in dimensions
                for mark in "-."
                for suffix in ("", ".gz")
            ]
            present = next((spelling for spelling in spellings if spelling in there), None)
            if present is None:
                missing.append(spellings[0])
            else:
                found[split, kind] = folder / present
    no_test = names is None and not any(split == "t10k" for split, _ in found)
    if missing and not (no_test and len(missing) == 2):
        raise _lacking(folder, there, missing, "each may end in .gz")
    train = _idx_split(found["train", "images"], found["train", "labels"])
    test = _empty() if no_test else _idx_split(found["t10k", "images"], found["t10k", "labels"])
    if names is None:
        names = [str(label) for label in range(int(train.labels.max()) + 1)]
    return Source(train, test, tuple(names))


def _idx_split(image_file: Path, label_file: Path) -> Split:
    images, labels = _idx(image_file, (3, 4)), _idx(label_file, (1,))
    if len(images) != len(labels):
        raise InputError(
            f"expected a label for each image, got {len(images)} images in {image_file} and {len(labels)} labels in "
            f"{label_file}"
        )
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, labels.long())


def _idx(file: Path, dimensions: tuple[int, ...]) -> Tensor:
    """An IDX file: 0, 0, 8 for uint8, the number of dimensions; each dimension as a big-endian uint32; the values."""
    content = _content(file)
    kinds = [bytes((0, 0, 8, dimension)) for dimension in dimensions]
    if bytes(content[:4]) not in kinds:
        wanted = " or ".join(kind.hex(" ") for kind in kinds)
        raise InputError(f"{file}: expected an IDX file that begins with {wanted}, got {content[:4].hex(' ')!r}")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header]) if len(content) >= header else ()
    expected = header + math.prod(shape) if shape else header
    if len(content) != expected:
        raise InputError(f"{file}: expected {expected} bytes by its header, got {len(content)}: get the file anew")
    if expected == header:
        raise InputError(f"{file}: expected samples, got none (its header says {' x '.join(map(str, shape))})")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def _cifar10(folder: Path | None, size: int | None) -> Source:
    if folder is None:
        return _hub(HUB["cifar10"], size, _CIFAR10)
    files = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar_folder(folder, "cifar-10-batches-bin", [*files, "test_batch.bin"], 1, _CIFAR10)


def _cifar100(folder: Path | None, size: int | None) -> Source:
    if folder is None:
        return _hub(HUB["cifar100"], size, _CIFAR100, "fine_label")
    return _cifar_folder(folder, "cifar-100-binary", ["train.bin", "test.bin"], 2, _CIFAR100)


def _cifar_folder(folder: Path, inner: str, files: list[str], label_bytes: int, names: Sequence[str]) -> Source:
    """CIFAR's binary version, in the folder or in its subfolder `inner`; the last of the files is the test set."""
    there = _entries(folder)
    if inner in there:
        folder = folder / inner
        there = _entries(folder)
    archive = f"cifar-{len(names)}-binary.tar.gz"
    if missing := [file for file in files if file not in there]:
        pickled = {f"cifar-{len(names)}-python", "cifar-10-batches-py", *(file.removesuffix(".bin") for file in files)}
        if not pickled.isdisjoint(there):
            raise InputError(
                f"{folder} holds CIFAR's python version, which is pickled and never opened: get the binary version, "
                f"{archive}"
            )
        raise _lacking(folder, there, missing, f"they come in {archive}")
    parts = [_cifar(folder / file, label_bytes, len(names)) for file in files]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    return Source(Split(images, labels), Split(*parts[-1]), tuple(names))


def _cifar(file: Path, label_bytes: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Records of `label_bytes` bytes, the last of which is the label, and an image of 3 x 32 x 32."""
    record = label_bytes + 3 * 32 * 32
    content = _content(file)
    if not content or len(content) % record:
        raise InputError(
            f"{file}: expected a multiple of {record} bytes, a record each, got {len(content)}: get the file anew"
        )
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, record)
    labels = records[:, label_bytes - 1].long()
    if int(labels.max()) >= num_classes:
        raise InputError(f"{file}: expected labels below {num_classes}, got {int(labels.max())}: get the file anew")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _content(file: Path) -> bytearray:
    content = bytearray()
    try:
        opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rb") as opened:
            while chunk := opened.read(1 << 20):
                content += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} is damaged or cannot be read ({_first_line(error)}): get the file anew") from None
    return content


def _entries(folder: Path) -> list[str]:
    """Names of what lies in a folder, but for hidden files, sorted."""
    if not folder.is_dir():
        raise InputError(f"expected a folder of the data set's files, got {str(folder)!r}, which is none")
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _lacking(folder: Path, there: Sequence[str], missing: Sequence[str], hint: str) -> InputError:
    holds = listed(there) if there else "nothing"
    return InputError(f"{folder} lacks {listed(missing)} ({hint}); it holds {holds}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Folders of images


def _image_folder(folder: Path | None, size: int | None) -> Source:
    folder = _given(folder, "imagefolder")
    there = [name for name in _entries(folder) if (folder / name).is_dir()]
    held_out = next((name for name in ("test", "val", "validation") if name in there), None)
    if "train" not in there:
        if held_out is not None:
            raise InputError(f"{folder} holds {held_out}/ and no train/: name the training images' folder train")
        return Source(*_class_folders(folder, there, size))
    names = [name for name in _entries(folder / "train") if (folder / "train" / name).is_dir()]
    source = Source(*_class_folders(folder / "train", names, size))
    if held_out is None:
        return source
    tested = [name for name in _entries(folder / held_out) if (folder / held_out / name).is_dir()]
    if foreign := [name for name in tested if name not in names]:
        raise InputError(f"{folder / held_out}: expected classes that train/ has, got {listed(foreign)} besides")
    return Source(source.train, _class_folders(folder / held_out, names, size)[0], source.class_names)


def _class_folders(folder: Path, names: Sequence[str], size: int | None) -> tuple[Split, Split, tuple[str, ...]]:
    """FOLDER/CLASS/* as a split, no second split, and the names."""
    files, labels = [], []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        for file in _entries(folder / name):
            path = folder / name / file
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise InputError(f"{path}: expected images ({', '.join(SUFFIXES)}) in a class's folder: take it away")
            files.append(path)
            labels.append(label)
    if not files:
        raise InputError(f"{folder}: expected a folder of images for each class, got no images")
    images = _stacked(((str(file), file) for file in files), len(files), size)
    return Split(images, torch.tensor(labels)), _empty(), tuple(names)


def _stacked(pictures: Iterable[tuple[str, Path | IO[bytes]]], count: int, size: int | None) -> Tensor:
    """Encoded pictures with their titles as (count, C, H, W) uint8: 3 channels if any picture has colour."""
    images = torch.empty(0)
    first = ""
    for index, (title, file) in enumerate(pictures):
        picture = _decoded(title, file)
        if size is not None:
            picture = resize(picture[None], size)[0]
        if index == 0:
            first, images = title, torch.empty((count, *picture.shape), dtype=torch.uint8)
        if picture.shape[1:] != images.shape[2:]:
            sizes = [" x ".join(map(str, shape)) for shape in (images.shape[2:], picture.shape[1:])]
            raise InputError(
                f"expected images of one size, got {sizes[0]} ({first}) and {sizes[1]} ({title}): give an image_size"
            )
        if len(picture) > images.shape[1]:
            images = images.repeat(1, 3, 1, 1)
        images[index] = picture
    return images


def _decoded(title: str, file: Path | IO[bytes]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{title}: expected an image of 8 bits, got Pillow's mode {image.mode}: convert it")
            grey = image.mode in ("1", "L", "LA")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except InputError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{title}: expected an image, got a damaged file ({_first_line(error)})") from None
    tensor = torch.from_numpy(pixels)
    return tensor[None] if grey else tensor.permute(2, 0, 1)


# The Hugging Face hub


def _hub(
    name: str, size: int | None, class_names: Sequence[str] | None = None, label_column: str | None = None
) -> Source:
    """A data set of the hub, or a local folder in one of its layouts, such as parquet files."""
    import datasets

    if name.startswith(("/", ".", "~")):
        name = str(Path(name).expanduser())
        _entries(Path(name))
    with _quiet():
        try:
            found: Any = datasets.load_dataset(name)
        except ConnectionError:
            raise InputError(_unreachable(name)) from None
        except datasets.exceptions.DatasetNotFoundError:
            raise InputError(
                f"the Hugging Face hub has no data set {name!r}, or it is private: expected an id such as "
                "'uoft-cs/cifar10'"
            ) from None
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"cannot load {name!r} with the datasets library: {_first_line(error)}") from None
    if "train" not in found:
        raise InputError(f"{name}: expected a split 'train', got {listed(list(found))}")
    image_column, label_column, own_names = _columns(name, found["train"].features, label_column)
    train = _hub_split(f"{name}, train", found["train"], image_column, label_column, size)
    test = _empty()
    for title in ("test", "validation", "valid"):
        # some test sets come without labels: no such column, or -1 throughout
        if title in found and label_column in found[title].features and set(found[title][label_column][:]) != {-1}:
            test = _hub_split(f"{name}, {title}", found[title], image_column, label_column, size)
            break
    names = class_names or own_names or [str(label) for label in range(int(train.labels.max()) + 1)]
    return Source(train, test, tuple(names))


def _columns(name: str, features: Any, label_column: str | None) -> tuple[str, str, list[str] | None]:
    """The names of the image and label columns, and those of the classes where they have names."""
    import datasets

    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    got = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    image = next((column for column, feature in features.items() if isinstance(feature, datasets.Image)), None)
    if image is None:
        raise InputError(f"{name}: expected a column of type Image, got {got}")
    integers = [column for column, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    wanted = [label_column] if label_column else [*classes, "label", "labels", "fine_label"]
    label = next((column for column in wanted if column in [*classes, *integers]), None)
    if label is None:
        expected = repr(label_column) if label_column else "of type ClassLabel, or of integers named label"
        raise InputError(f"{name}: expected a label column {expected}, got {got}")
    return image, label, features[label].names if label in classes else None


def _hub_split(title: str, rows: Any, image_column: str, label_column: str, size: int | None) -> Split:
    import datasets

    labels = rows[label_column][:]
    if not labels:
        raise InputError(f"{title}: expected samples, got none")
    if None in labels:
        raise InputError(f"{title}: expected a label for each image, got none for image {labels.index(None)}")
    encoded = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))

    def pictures() -> Iterator[tuple[str, Path | IO[bytes]]]:
        for index, row in enumerate(encoded):
            value = row[image_column]
            if value is None:
                raise InputError(f"{title}: expected an image for each label, got none for label {index}")
            content = value["bytes"]
            yield f"{title}, image {index}", Path(value["path"]) if content is None else io.BytesIO(content)

    return Split(_stacked(pictures(), len(labels), size), torch.tensor(labels))


def _unreachable(name: str) -> str:
    known = next((short for short, hub_id in HUB.items() if hub_id == name), None)
    local = f"'{known}:FOLDER' with the standard files" if known else "'imagefolder:FOLDER'"
    return f"the Hugging Face hub cannot be reached for {name!r}; from files on this machine: {local}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of datasets and the hub's notes of each try; both come back as they were."""
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    logger = logging.getLogger("huggingface_hub")
    shown, level = is_progress_bar_enabled(), logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            enable_progress_bars()


_READERS: dict[str, Callable[[Path | None, int | None], Source]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "idx": _any_idx,
    "imagefolder": _image_folder,
}
