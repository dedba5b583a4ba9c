import logging
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from neuralcollapse import InputError
from neuralcollapse.data import splits
from neuralcollapse.data.catalog import DEBIAN_FASHION_MNIST, read_image_set
from neuralcollapse.data.load import load_data
from neuralcollapse.data.splits import resize
from tests.helpers import write_idx

RANDOM = np.random.default_rng(0)


def fails(name, *parts, size=None):
    """Reading fails with one line that holds the parts (regular expressions) in this order."""
    with pytest.raises(InputError, match=".*".join(parts)) as caught:
        read_image_set(str(name), size)
    assert "\n" not in str(caught.value)


# Names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fashion_mnist", ["did you mean 'fashion-mnist'", "expected one of digits, mnist", "hub"]),
        ("mnits:/tmp/x", ["no data set 'mnits:/tmp/x'", "did you mean 'mnist'"]),
        ("mnist:", ["a folder after the colon, as in 'mnist:FOLDER'"]),
        ("digits:/tmp", ["digits come with scikit-learn, without a folder, got '/tmp'"]),
        ("idx", ["expected a folder, as in 'idx:FOLDER', got 'idx'"]),
        ("imagefolder", ["as in 'imagefolder:FOLDER'"]),
        ("hf:", ["no data set 'hf:'"]),
        ("/no/such", ["expected a folder of the data set's files, got '/no/such'"]),
        ("hf:~/no/such", ["got '/.*/no/such', which is not a folder"]),
        ("cifar10:/no/such", ["expected a folder of the data set's files, got '/no/such'"]),
    ],
)
def test_a_wrong_name_says_what_there_is(name, parts):
    fails(name, *parts)


# IDX


def some(count, *shape):
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_folder(folder, *, mark="-", suffix="", shape=(4, 3), classes=10):
    """A folder of four IDX files, and the arrays: train images and labels, test images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [some(25, *shape), np.arange(25) % classes, some(6, *shape), np.arange(6) % classes]
    names = [
        f"{split}-{kind}{mark}idx{dims}-ubyte{suffix}"
        for split in ("train", "t10k")
        for kind, dims in (("images", 1 + len(shape)), ("labels", 1))
    ]
    for name, array in zip(names, arrays, strict=True):
        write_idx(folder / name, array)
    return arrays


def same(source, arrays):
    images, labels, test_images, test_labels = arrays
    for split, pixels, classes in ((source.train, images, labels), (source.test, test_images, test_labels)):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        expected = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        assert np.array_equal(split.images.numpy(), expected)
        assert np.array_equal(split.labels.numpy(), classes)
    return True


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "idx"])
def test_idx_files_come_back_as_they_were(tmp_path, name, mark, suffix):
    arrays = idx_folder(tmp_path, mark=mark, suffix=suffix)
    source = read_image_set(f"{name}:{tmp_path}")
    assert same(source, arrays)
    assert source.class_names[0] == ("T-shirt/top" if name == "fashion-mnist" else "0")
    assert len(source.class_names) == 10


def test_idx_reads_colour_and_takes_the_classes_from_the_labels(tmp_path):
    arrays = idx_folder(tmp_path, shape=(4, 3, 3), classes=3)
    source = read_image_set(f"idx:{tmp_path}")
    assert same(source, arrays)
    assert source.class_names == ("0", "1", "2")


def test_idx_may_lack_both_test_files_and_mnist_may_not(tmp_path):
    idx_folder(tmp_path)
    for file in tmp_path.glob("t10k*"):
        file.unlink()
    source = read_image_set(f"idx:{tmp_path}")
    assert (len(source.test.labels), source.test.images.shape) == (0, (0, 1, 4, 3))
    fails(f"mnist:{tmp_path}", "is missing t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte")


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch):
    idx_folder(tmp_path / "mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_image_set("mnist:~/mnist").train.labels) == 25


def test_a_name_without_a_folder_is_looked_for_in_the_folder_of_data_sets(tmp_path, monkeypatch):
    idx_folder(tmp_path / "mnist")
    monkeypatch.setenv("NEURALCOLLAPSE_DATA", str(tmp_path))
    assert len(read_image_set("mnist").train.labels) == 25
    assert len(read_image_set("digits").train.labels) == 1437  # has no folder
    fails("idx", "expected a folder")


def test_missing_files_are_all_listed_and_what_lies_there(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").rename(tmp_path / "train-labels.zip")
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    parts = ["is missing train-labels-idx1-ubyte, t10k-images-idx3-ubyte", r"\.gz", "it holds .*train-labels.zip"]
    fails(f"mnist:{tmp_path}", *parts)
    fails(f"idx:{tmp_path}", *parts)
    (tmp_path / "empty").mkdir()
    fails(f"mnist:{tmp_path / 'empty'}", "is missing train-images", "it holds nothing")


@pytest.fixture
def idx(tmp_path):
    idx_folder(tmp_path)
    return tmp_path


def test_a_truncated_or_too_long_file_says_expected_and_actual_bytes(idx):
    file = idx / "train-images-idx3-ubyte"
    content = file.read_bytes()
    for wrong in (content[:-7], content + b"x", content[:9], content[:5]):
        file.write_bytes(wrong)
        expected = len(content) if len(wrong) >= 16 else 16
        fails(f"mnist:{idx}", f"expected {expected} bytes by its header, got {len(wrong)}")


def test_a_header_of_a_huge_size_costs_no_memory(idx):
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    write_idx(idx / "train-images-idx3-ubyte", some(1, 2, 2), header=header)
    fails(f"mnist:{idx}", "bytes by its header, got 20")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"kind": 13}, ["begins with 00 00 08 03", "got '00 00 0d 03'"]),
        ({"header": b"<htm"}, ["expected an IDX file", "got '3c 68 74 6d'"]),
        ({"header": bytes((0, 0, 8, 1)) + struct.pack(">I", 300)}, ["got '00 00 08 01'"]),
    ],
)
def test_a_wrong_magic_is_shown(idx, change, parts):
    write_idx(idx / "train-images-idx3-ubyte", some(25, 4, 3), **change)
    fails(f"mnist:{idx}", "train-images-idx3-ubyte", *parts)


def test_an_idx_file_without_samples(idx):
    write_idx(idx / "train-images-idx3-ubyte", some(0, 4, 3))
    fails(f"mnist:{idx}", "expected samples, got none")


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped"])
def test_a_damaged_gzip_file(tmp_path, damage):
    idx_folder(tmp_path, suffix=".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes({"cut": file.read_bytes()[:-20], "no gzip": b"not a gzip file", "flipped": content}[damage])
    fails(f"mnist:{tmp_path}", "train-images-idx3-ubyte.gz is damaged")


def test_as_many_labels_as_images(idx):
    write_idx(idx / "t10k-labels-idx1-ubyte", np.arange(5))
    fails(f"mnist:{idx}", "expected a label for each image, got 6 images in .*t10k-images", "5 labels in .*t10k-labels")


def test_labels_outside_the_classes(idx):
    write_idx(idx / "t10k-labels-idx1-ubyte", np.full(6, 17))
    fails(f"idx:{idx}", "labels of the test images from 0 to 9", "got 17")
    write_idx(idx / "train-labels-idx1-ubyte", np.full(25, 10))
    fails(f"mnist:{idx}", "labels of the training images from 0 to 9", "got 10")


def test_classes_without_training_samples(idx):
    write_idx(idx / "train-labels-idx1-ubyte", np.where(np.arange(25) % 10 == 3, 4, np.arange(25) % 10))
    fails(f"idx:{idx}", "training samples of all 10 classes, got none of 3: number")
    fails(f"fashion-mnist:{idx}", "got none of Dress")


def test_test_images_of_another_shape(idx):
    write_idx(idx / "t10k-images-idx3-ubyte", some(6, 5, 5))
    fails(f"idx:{idx}", "test images like the training images, 1 x 4 x 3, got 1 x 5 x 5: give an image_size")
    source = read_image_set(f"idx:{idx}", 6)
    assert source.train.images.shape[1:] == source.test.images.shape[1:] == (1, 6, 6)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason=f"needs {DEBIAN_FASHION_MNIST} (dataset-fashion-mnist)")
def test_fashion_mnist_of_debian():
    data = load_data("fashion-mnist")
    assert (len(data.train.labels), len(data.test.labels), data.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.mean == pytest.approx([0.2860 * 255], abs=0.02)
    assert data.std == pytest.approx([0.3530 * 255], abs=0.02)


def test_fashion_mnist_looks_into_debians_folder_first(idx, monkeypatch):
    monkeypatch.setattr("neuralcollapse.data.catalog.DEBIAN_FASHION_MNIST", idx)
    assert len(read_image_set("fashion-mnist").train.labels) == 25


# CIFAR


def write_cifar(file, count, label_bytes, classes):
    """Records of CIFAR's binary version; the images and the labels that count."""
    images, labels = some(count, 3, 32, 32), np.arange(count, dtype=np.uint8) % classes
    coarse = [np.full((count, 1), 255, dtype=np.uint8)] * (label_bytes - 1)
    file.write_bytes(np.concatenate([*coarse, labels[:, None], images.reshape(count, -1)], axis=1).tobytes())
    return images, labels


def cifar_folder(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    if name == "cifar10":
        parts = [write_cifar(folder / f"data_batch_{number}.bin", 10 + number, 1, 10) for number in range(1, 6)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] + [
            *write_cifar(folder / "test_batch.bin", 4, 1, 10)
        ]
    return [*write_cifar(folder / "train.bin", 120, 2, 100), *write_cifar(folder / "test.bin", 5, 2, 100)]


@pytest.mark.parametrize(
    ("name", "inner"),
    [("cifar10", "."), ("cifar10", "cifar-10-batches-bin"), ("cifar100", "."), ("cifar100", "cifar-100-binary")],
)
def test_cifar_files_come_back_as_they_were(tmp_path, name, inner):
    images, labels, test_images, test_labels = cifar_folder(tmp_path / inner, name)
    source = read_image_set(f"{name}:{tmp_path}")
    arrays = [images.transpose(0, 2, 3, 1), labels, test_images.transpose(0, 2, 3, 1), test_labels]
    assert same(source, arrays)
    assert len(set(source.class_names)) == (10 if name == "cifar10" else 100)
    assert (source.class_names[0], source.class_names[-1]) in [("airplane", "truck"), ("apple", "worm")]


def test_cifar_files_are_checked(tmp_path):
    cifar_folder(tmp_path, "cifar10")
    file = tmp_path / "data_batch_3.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    fails(f"cifar10:{tmp_path}", "data_batch_3.bin: expected a multiple of 3073 bytes", f"got {len(content) - 1}")
    file.write_bytes(b"")
    fails(f"cifar10:{tmp_path}", "got 0")
    file.write_bytes(b"\x0a" + content[1:])
    fails(f"cifar10:{tmp_path}", "expected labels below 10, got 10")
    file.unlink()
    fails(f"cifar10:{tmp_path}", r"is missing data_batch_3\.bin", r"cifar-10-binary\.tar\.gz", "it holds data_batch_1")


@pytest.mark.parametrize(
    ("name", "files", "archive"),
    [
        ("cifar10", ["data_batch_1", "batches.meta", "test_batch"], "cifar-10-binary.tar.gz"),
        ("cifar10", ["cifar-10-batches-py"], "cifar-10-binary.tar.gz"),
        ("cifar100", ["train", "test", "meta"], "cifar-100-binary.tar.gz"),
        ("cifar100", ["cifar-100-python"], "cifar-100-binary.tar.gz"),
    ],
)
def test_cifars_pickles_are_never_opened(tmp_path, name, files, archive):
    for file in files:
        (tmp_path / file).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    fails(f"{name}:{tmp_path}", "python version, which is pickled and never opened", re.escape(archive))


# Folders of images


def write_picture(file, array, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file)
    return array


def test_an_image_folder_comes_back_as_it_was(tmp_path):
    train = [write_picture(tmp_path / "train" / name / f"{n}.png", some(4, 3)) for name in ("b", "a") for n in (1, 0)]
    test = write_picture(tmp_path / "val" / "b" / "x.BMP", some(4, 3))
    (tmp_path / "train" / ".DS_Store").write_text("")
    (tmp_path / "train" / "a" / ".hidden").write_text("")
    (tmp_path / "README.txt").write_text("")
    source = read_image_set(f"imagefolder:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert same(source, [np.stack([train[i] for i in (3, 2, 1, 0)]), [0, 0, 1, 1], test[None], [1]])


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "testing", "eval", "dev", "Valid", "TEST"])
def test_names_of_the_folder_held_out(tmp_path, train, name):
    expected = write_picture(tmp_path / name / "a" / "0.png", some(4, 4))
    write_picture(tmp_path / train / "a" / "0.png", some(4, 4))
    source = read_image_set(f"imagefolder:{tmp_path}")
    assert np.array_equal(source.test.images[:, 0].numpy(), expected[None])
    assert source.class_names == ("a",)


def test_of_several_folders_held_out_the_test_set_is_taken(tmp_path):
    for count, split in enumerate(("train", "test", "val", "valid"), start=1):
        for index in range(count):
            write_picture(tmp_path / split / "a" / f"{index}.png", some(4, 4))
    assert len(read_image_set(f"imagefolder:{tmp_path}").test.labels) == 2
    for index in range(2):
        (tmp_path / "test" / "a" / f"{index}.png").rename(tmp_path / "test" / f"{index}.png")  # without labels
    (tmp_path / "test" / "a").rmdir()
    assert len(read_image_set(f"imagefolder:{tmp_path}").test.labels) == 3


def test_classes_may_be_called_like_parts_of_a_data_set(tmp_path):
    for name in ("valid", "invalid", "test"):
        write_picture(tmp_path / name / "0.png", some(4, 4))
    source = read_image_set(f"imagefolder:{tmp_path}")
    assert (source.class_names, source.train.labels.tolist()) == (("invalid", "test", "valid"), [0, 1, 2])
    write_picture(tmp_path / "train" / "0.png", some(4, 4))
    fails(f"imagefolder:{tmp_path}", "expected a folder of images for each class, got no images")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        write_picture(tmp_path / name / "0.png", some(4, 4))
    assert read_image_set(f"imagefolder:{tmp_path}").class_names == ("bus", "train")


def test_what_systems_leave_behind_is_no_image(tmp_path):
    for place in ("train", "valid"):
        write_picture(tmp_path / place / "a" / "0.JPEG", some(8, 8, 3))
        (tmp_path / place / "a" / "Thumbs.db").write_text("")
        (tmp_path / place / "a" / "desktop.ini").write_text("")
        (tmp_path / place / "__MACOSX").mkdir()
    source = read_image_set(f"imagefolder:{tmp_path}")
    assert (source.class_names, len(source.train.labels), len(source.test.labels)) == (("a",), 1, 1)


def test_classes_without_images_are_named(tmp_path):
    for place in ("train", "valid"):
        write_picture(tmp_path / place / "a" / "0.png", some(4, 4))
    for name in ("b", "c"):
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "train" / "c" / ".hidden").write_text("")
    fails(f"imagefolder:{tmp_path}", r"train: expected images of all 3 classes, got none of b, c: fill these folders")
    for name in ("b", "c"):
        write_picture(tmp_path / "train" / name / "0.png", some(4, 4))
    (tmp_path / "valid" / "b").mkdir()
    assert read_image_set(f"imagefolder:{tmp_path}").test.labels.tolist() == [0]


def test_a_folder_of_classes_is_the_training_set(tmp_path):
    write_picture(tmp_path / "a" / "0.png", some(4, 4))
    write_picture(tmp_path / "b" / "0.png", some(4, 4))
    source = read_image_set(f"imagefolder:{tmp_path}")
    assert (source.class_names, len(source.train.labels), len(source.test.labels)) == (("a", "b"), 2, 0)


def test_any_colour_makes_all_images_rgb(tmp_path):
    grey = write_picture(tmp_path / "train" / "a" / "0.png", some(4, 4))
    rgba = write_picture(tmp_path / "train" / "a" / "1.png", some(4, 4, 4))
    colour = write_picture(tmp_path / "train" / "a" / "2.png", some(4, 4, 3))
    held_out = write_picture(tmp_path / "test" / "a" / "0.png", some(4, 4))
    images = read_image_set(f"imagefolder:{tmp_path}").train.images.numpy()
    assert np.array_equal(images[0], np.stack([grey] * 3))
    assert np.array_equal(images[1], rgba[:, :, :3].transpose(2, 0, 1))
    assert np.array_equal(images[2], colour.transpose(2, 0, 1))
    assert np.array_equal(read_image_set(f"imagefolder:{tmp_path}").test.images[0].numpy(), np.stack([held_out] * 3))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_modes_become_grey_or_rgb(tmp_path, mode, channels):
    pixels = np.full((4, 4, 3), 255, dtype=np.uint8)
    write_picture(tmp_path / "a" / "0.png", pixels, mode)
    images = read_image_set(f"imagefolder:{tmp_path}").train.images
    assert images.shape == (1, channels, 4, 4)
    assert (images == 255).all()


def test_an_image_of_16_bits_is_not_cut_to_8(tmp_path):
    write_picture(tmp_path / "a" / "0.png", np.full((4, 4), 40_000, dtype=np.uint16))
    fails(f"imagefolder:{tmp_path}", "0.png: expected an image of 8 bits, got Pillow's mode I")


def test_images_of_different_sizes_need_an_image_size(tmp_path):
    first = write_picture(tmp_path / "a" / "0.png", some(4, 4))
    second = write_picture(tmp_path / "a" / "1.png", some(6, 9))
    fails(f"imagefolder:{tmp_path}", r"one size, got 4 x 4 \(.*0.png\) and 6 x 9 \(.*1.png\): give an image_size")
    images = read_image_set(f"imagefolder:{tmp_path}", 5).train.images
    for image, pixels in zip(images, (first, second), strict=True):
        assert torch.equal(image, resize(torch.from_numpy(pixels)[None, None], 5)[0])


def test_a_test_class_that_training_lacks(tmp_path):
    write_picture(tmp_path / "train" / "a" / "0.png", some(4, 4))
    write_picture(tmp_path / "test" / "b" / "0.png", some(4, 4))
    fails(f"imagefolder:{tmp_path}", r"test: expected only classes that train/ has, got also b")


def test_foreign_and_damaged_files_are_named(tmp_path):
    write_picture(tmp_path / "a" / "0.png", some(40, 40))
    notes = tmp_path / "a" / "notes.txt"
    notes.write_text("hello")
    fails(f"imagefolder:{tmp_path}", r"notes.txt: expected images \(.png, .jpg")
    notes.unlink()
    (tmp_path / "a" / "inner").mkdir()
    fails(f"imagefolder:{tmp_path}", r"inner: expected images in a class's folder, got a folder: move its images up")
    (tmp_path / "a" / "inner").rmdir()
    whole = (tmp_path / "a" / "0.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image", whole[:60] + bytes(200) + whole[260:]):
        (tmp_path / "a" / "1.png").write_bytes(content)
        fails(f"imagefolder:{tmp_path}", "1.png: expected an image, got a damaged file")


def test_image_folders_without_images(tmp_path):
    fails(f"imagefolder:{tmp_path}", "expected a folder of images for each class, got no images")
    write_picture(tmp_path / "a" / "0.png", some(4, 4))
    (tmp_path / "b").mkdir()
    fails(f"imagefolder:{tmp_path}", "all 2 classes, got none of b: fill these folders, or remove them")
    write_picture(tmp_path / "test" / "a" / "0.png", some(4, 4))
    fails(f"imagefolder:{tmp_path}", "holds test/ but no train/")


# Resizing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [3, 8, 20])
def test_resizing_is_bilinear_and_antialiased(channels, size, monkeypatch):
    monkeypatch.setattr(splits, "_CHUNK", 4)
    images = torch.from_numpy(some(11, channels, 8, 10))
    expected = functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    resized = resize(images, size)
    assert resized.dtype == torch.uint8
    assert (resized - expected).abs().max() < 1.01  # rounded twice, once a direction
    assert resize(images[:0], size).shape == (0, channels, size, size)


def test_images_of_the_size_already_are_left_alone():
    images = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    assert resize(images, 5) is images


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The datasets library with a cache of its own; a function that makes a folder of parquet files."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "local"

    def write(features, **splits):
        folder.mkdir(exist_ok=True)
        for split, columns in splits.items():
            rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            rows.to_parquet(folder / f"{split}.parquet")
        return folder

    return datasets, write


def pictures(count, *shape):
    arrays = some(count, *shape)
    return arrays, [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("held_out", ["test", "validation"])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_a_local_folder_of_parquet_files_comes_back_as_it_was(hub, held_out, shape, capfd):
    datasets, write = hub
    (images, encoded), (test_images, test_encoded) = pictures(7, *shape), pictures(3, *shape)
    labels, test_labels = [0, 1, 2, 0, 1, 2, 0], [2, 2, 0]
    folder = write(
        {"index": datasets.Value("int64"), "img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y", "z"])},
        train={"index": list(range(7)), "img": encoded, "kind": labels},
        **{held_out: {"index": [0] * 3, "img": test_encoded, "kind": test_labels}},
    )
    capfd.readouterr()
    for name in (folder, f"hf:{folder}"):
        source = read_image_set(str(name))
        assert same(source, [images, labels, test_images, test_labels])
        assert source.class_names == ("x", "y", "z")
    assert capfd.readouterr() == ("", "")
    assert datasets.utils.is_progress_bar_enabled()
    assert read_image_set(str(folder), 6).train.images.shape[2:] == (6, 6)


def test_an_integer_column_named_label_and_a_test_set_without_labels(hub):
    datasets, write = hub
    _, encoded = pictures(4, 5, 5)
    folder = write(
        {"image": datasets.Image(), "label": datasets.Value("int32")},
        train={"image": encoded, "label": [0, 1, 2, 0]},
        test={"image": encoded[:1], "label": [-1]},
    )
    source = read_image_set(str(folder))
    assert source.class_names == ("0", "1", "2")
    assert len(source.test.labels) == 0


def test_columns_that_are_not_there_are_said(hub):
    datasets, write = hub
    folder = write({"text": datasets.Value("string")}, train={"text": ["a"]})
    fails(folder, r"expected a column of type Image, got text \(Value\)")


def test_a_label_column_that_is_not_there(hub):
    datasets, write = hub
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    folder = write(features, train={"image": pictures(1, 4, 4)[1], "label": ["a"]})
    fails(folder, r"expected a label column of type ClassLabel, or of integers named label, got image .*Value")


def test_a_sample_without_label(hub):
    datasets, write = hub
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    folder = write(features, train={"image": pictures(2, 4, 4)[1], "label": [0, None]})
    fails(folder, "train: expected a label for each image, got none for image 1")


def test_a_sample_without_image(hub):
    datasets, write = hub
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    folder = write(features, train={"image": [*pictures(1, 4, 4)[1], None], "label": [0, 1]})
    fails(folder, "train: expected an image for each label, got none for label 1")


def test_a_data_set_without_training_split(hub):
    datasets, write = hub
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    folder = write(features, test={"image": pictures(1, 4, 4)[1], "label": [0]})
    fails(folder, "expected a split 'train', got test")


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("fashion-mnist", "'fashion-mnist:FOLDER' with the standard files"),
        ("mnist", "'mnist:FOLDER' with the standard files"),
        ("cifar10", "'cifar10:FOLDER' with the standard files"),
        ("cifar100", "'cifar100:FOLDER' with the standard files"),
        ("uoft-cs/cifar10", "'cifar10:FOLDER'"),
        ("some/where", "'imagefolder:FOLDER'"),
    ],
)
def test_a_hub_out_of_reach_says_the_local_way(hub, monkeypatch, name, local, tmp_path):
    def load_dataset(name):
        raise ConnectionError("Couldn't reach")

    monkeypatch.setattr("neuralcollapse.data.catalog.DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(hub[0], "load_dataset", load_dataset)
    fails(name, "the Hugging Face hub cannot be reached for '.*/", re.escape(local))


def test_an_id_that_the_hub_does_not_have(hub, monkeypatch):
    def load_dataset(name):
        raise hub[0].exceptions.DatasetNotFoundError("no")

    monkeypatch.setattr(hub[0], "load_dataset", load_dataset)
    fails("no/such", "the Hugging Face hub has no data set 'no/such'")


def test_what_else_the_library_says_comes_in_one_line(hub, monkeypatch):
    def load_dataset(name):
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(hub[0], "load_dataset", load_dataset)
    level = logging.getLogger("huggingface_hub").level
    fails("a/b", r"cannot load 'a/b' with the datasets library: Config name is missing\.")
    assert logging.getLogger("huggingface_hub").level == level


def test_named_data_sets_of_the_hub_have_their_known_names_and_the_fine_labels(hub, monkeypatch):
    datasets, write = hub
    _, encoded = pictures(100, 4, 4, 3)
    coarse = datasets.ClassLabel(names=["fish", "fruit"])
    folder = write(
        {"img": datasets.Image(), "coarse_label": coarse, "fine_label": datasets.ClassLabel(num_classes=100)},
        train={"img": encoded, "coarse_label": [0, 1] * 50, "fine_label": list(range(100))},
    )
    load = datasets.load_dataset
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or load(str(folder)))
    source = read_image_set("cifar100")
    assert asked == ["uoft-cs/cifar100"]
    assert source.train.labels.tolist() == list(range(100))
    assert source.class_names[:2] == ("apple", "aquarium_fish")
