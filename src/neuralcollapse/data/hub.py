"""Data sets of the Hugging Face hub, or of local folders in its layouts."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from neuralcollapse.data.image_folder import stack_pictures
from neuralcollapse.data.splits import ImageSet, Split, empty_split, list_folder
from neuralcollapse.errors import InputError, listed, one_line
from neuralcollapse.extras import needed_by

HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}


def from_hub(
    name: str, size: int | None, class_names: Sequence[str] | None = None, label_column: str | None = None
) -> ImageSet:
    """A data set of the hub, or a local folder in one of its layouts, such as parquet files."""
    with needed_by("the Hugging Face hub"):
        import datasets

    if name.startswith(("/", ".", "~")):
        name = str(Path(name).expanduser())
        list_folder(Path(name))
    with _quiet():
        try:
            found: Any = datasets.load_dataset(name)
        except ConnectionError:
            known = next((short for short, hub_id in HUB.items() if hub_id == name), None)
            local = f"'{known}:FOLDER' with the standard files" if known else "'imagefolder:FOLDER'"
            raise InputError(
                f"the Hugging Face hub cannot be reached for {name!r}; from files on this machine: {local}"
            ) from None
        except datasets.exceptions.DatasetNotFoundError:
            raise InputError(
                f"the Hugging Face hub has no data set {name!r}, or it is private: expected an id such as "
                "'uoft-cs/cifar10'"
            ) from None
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"cannot load {name!r} with the datasets library: {one_line(error)}") from None
    if "train" not in found:
        raise InputError(f"{name}: expected a split 'train', got {listed(list(found))}")
    image_column, label_column, own_names = _columns(name, found["train"].features, label_column)
    train = _hub_split(f"{name}, train", found["train"], image_column, label_column, size)
    test = empty_split()
    for title in ("test", "validation", "valid"):
        # some test sets come without labels: no such column, or -1 throughout
        if title in found and label_column in found[title].features and set(found[title][label_column][:]) != {-1}:
            test = _hub_split(f"{name}, {title}", found[title], image_column, label_column, size)
            break
    names = class_names or own_names or [str(label) for label in range(int(train.labels.max()) + 1)]
    return ImageSet(train, test, tuple(names))


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

    return Split(stack_pictures(pictures(), len(labels), size), torch.tensor(labels))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of datasets and the hub's warnings about each attempt; both are restored."""
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
