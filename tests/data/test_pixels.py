import pytest
import torch
from torch.nn import functional

from neuralcollapse.data.pixels import Pixels, augmentation


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_normalise_each_channel(images):
    mean, std = torch.tensor([10.0, 100.0, 200.0]), torch.tensor([3.0, 60.0, 1.0])
    seen = Pixels(mean.tolist(), std.tolist(), 3)(images)
    expected = (images.double() - mean[:, None, None]) / std[:, None, None]
    assert seen.dtype == torch.float32
    assert (seen - expected).abs().max() < 1e-4
    assert images.dtype == torch.uint8


def test_grey_pixels_are_repeated(images):
    seen = Pixels((50.0,), (20.0,), 3)(images[:, :1])
    assert seen.shape == (6, 3, 5, 7)
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert torch.equal(seen[:, :1], Pixels((50.0,), (20.0,), 1)(images[:, :1]))
    seen.add_(1)  # memory of its own for each channel
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_pixels_leave_no_trace_in_the_weights_and_follow_a_cast(images):
    module = Pixels((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), 3)
    assert module.state_dict() == {}
    assert module.double()(images).dtype == torch.float64


def test_no_augmentation_is_none():
    assert augmentation("none", (32, 32)) is None


def variants(image, kind, padding):
    """Every image that `kind` may make of one image (C, H, W)."""
    _, height, width = image.shape
    down, right = padding
    padded = functional.pad(image, (right, right, down, down))
    mirrored = [padded, padded.flip(-1)] if "flip" in kind else [padded]
    return [
        each[:, row : row + height, column : column + width]
        for each in mirrored
        for row in range(2 * down + 1)
        for column in range(2 * right + 1)
    ]


@pytest.mark.parametrize("kind", ["crop", "flip", "crop+flip"])
@pytest.mark.parametrize("size", [(8, 8), (16, 8), (9, 25), (4, 4)])
def test_each_image_is_exactly_one_of_the_shifts_and_mirrors(kind, size):
    torch.manual_seed(0)
    padding = (size[0] // 8, size[1] // 8) if "crop" in kind else (0, 0)
    image = torch.randn(2, *size)
    possible = variants(image, kind, padding)
    made = augmentation(kind, size)(image.expand(400, -1, -1, -1).contiguous())
    hits = [sum(torch.equal(each, candidate) for each in made) for candidate in possible]
    assert sum(hits) == 400
    mean = 400 / len(possible)
    assert all(abs(hit - mean) < 5 * mean**0.5 for hit in hits)  # all equally often: five standard deviations


def test_augmentation_follows_torchs_global_generator():
    change, images = augmentation("crop+flip", (32, 32)), torch.randn(16, 3, 32, 32)
    torch.manual_seed(3)
    first, second = change(images), change(images)
    torch.manual_seed(3)
    assert torch.equal(first, change(images))
    assert not torch.equal(first, second)


def test_the_padding_is_four_pixels_at_32():
    torch.manual_seed(0)
    made = augmentation("crop", (32, 32))(torch.ones(500, 1, 32, 32))
    lost = [int((made.sum(other) == 0).sum(-1).max()) for other in (2, 3)]
    assert lost == [4, 4]


def test_channels_last_images_and_the_ones_given_stay_what_they_are():
    change, images = augmentation("crop+flip", (16, 16)), torch.randn(8, 3, 16, 16)
    before = images.clone()
    torch.manual_seed(0)
    made = change(images)
    assert torch.equal(images, before)
    torch.manual_seed(0)
    assert torch.equal(made, change(images.to(memory_format=torch.channels_last)))
