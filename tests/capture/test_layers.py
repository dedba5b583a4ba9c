"""Inner layers: the axis of the channels and that of the samples are found, said by the user, or asked for."""

import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.capture.layers import average

K, N = 4, 24


class Chain(nn.Module):
    """Layers one after the other; the head takes the mean over all axes but the first and that of `channels`."""

    def __init__(self, width, *layers, channels=-1):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(width, K)
        self.channels = channels

    def forward(self, x):
        out = self.layers(x)
        out = out[0] if isinstance(out, tuple) else out
        return self.fc(out.movedim(self.channels, -1).flatten(1, -2).mean(1))


class Permute(nn.Module):
    def __init__(self, *order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(self.order)


class LayerNorm2d(nn.LayerNorm):
    """Of (N, C, H, W) maps, as in timm and torchvision: a subclass that works along another axis."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def images(size=6, channels=3):
    return torch.randn(N, channels, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(N) % K


def of_layer(model, data, name, **options):
    """NC1 of a layer, with batches of several sizes, all of which must agree."""
    inputs, labels = data
    layers = options.pop("layers", [name])
    found = [
        nc.measure(model, [(inputs[i : i + size], labels[i : i + size]) for i in range(0, N, size)], layers=layers)
        for size in (7, 24)
    ]
    first, second = (each["layers"][name]["nc1"] for each in found)
    assert first == pytest.approx(second, rel=1e-4)
    return first


@torch.no_grad()
def by_hand(model, data, name, reduce):
    caught = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, __, out: caught.append(out))
    model.eval()(data[0])
    hook.remove()
    out = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    return nc.measure_features(reduce(out), data[1], num_classes=K)["nc1"]


def first(maps):
    return maps.flatten(2).mean(2)


def last(maps):
    return maps.flatten(1, -2).mean(1)


CONV = (nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())


@pytest.mark.parametrize(
    ("layers", "channels", "name", "reduce"),
    [
        (CONV, 1, "layers.0", first),
        (CONV, 1, "layers.1", first),
        (CONV, 1, "layers.2", first),
        (CONV, 1, "layers", first),
        ((*CONV, nn.AdaptiveAvgPool2d(1)), 1, "layers.3", first),
        ((*CONV, nn.MaxPool2d(2)), 1, "layers.3", first),
        ((*CONV, LayerNorm2d(10)), 1, "layers.3", first),
        ((*CONV, nn.GroupNorm(2, 10)), 1, "layers.3", first),
        ((*CONV, Permute(0, 2, 3, 1), nn.LayerNorm(10)), -1, "layers.4", last),
        ((*CONV, Permute(0, 2, 3, 1), nn.LayerNorm(10)), -1, "layers.3", last),
        ((*CONV, Permute(0, 2, 3, 1), nn.LayerNorm(10), nn.GELU()), -1, "layers.5", last),
        ((*CONV, Permute(0, 2, 3, 1), nn.Linear(10, 10)), -1, "layers.4", last),
        ((*CONV, nn.Sequential(Permute(0, 2, 3, 1), nn.LayerNorm(10), Permute(0, 3, 1, 2))), 1, "layers.3", first),
        ((nn.Flatten(2), nn.Conv1d(3, 10, 5)), 1, "layers.1", first),
        ((nn.Flatten(2), nn.Conv1d(3, 10, 5), nn.BatchNorm1d(10), nn.ReLU()), 1, "layers.3", first),
        ((nn.Flatten(2), Permute(0, 2, 1), nn.Linear(3, 10), nn.LayerNorm(10)), -1, "layers.3", last),
        ((nn.Flatten(2), Permute(0, 2, 1), nn.Linear(3, 10), nn.Dropout()), -1, "layers.3", last),
        ((nn.Flatten(2), Permute(0, 2, 1), nn.LSTM(3, 10, batch_first=True)), -1, "layers.2", last),
        ((nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 10, (1, 3, 3))), 1, "layers.1", first),
    ],
)
def test_the_channels_are_found(layers, channels, name, reduce):
    model, data = Chain(10, *layers, channels=channels), images()
    assert of_layer(model, data, name) == pytest.approx(by_hand(model, data, name, reduce), rel=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.LSTM(6, 6), nn.TransformerEncoderLayer(6, 2, 12), nn.Sequential(nn.Linear(6, 6))], ids=range(3)
)
@pytest.mark.parametrize("length", [24, 7, 5])
def test_samples_on_the_second_axis_are_found_whatever_the_length(layer, length):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.fc = layer, nn.Linear(6, K)

        def forward(self, x):
            out = self.layer(x.transpose(0, 1))
            return self.fc((out[0] if isinstance(out, tuple) else out).mean(0))

    data = torch.randn(N, length, 6, generator=torch.Generator().manual_seed(1)), torch.arange(N) % K
    model = Sequence()
    expected = by_hand(model, data, "layer", lambda out: out.mean(0))
    assert of_layer(model, data, "layer") == pytest.approx(expected, rel=1e-4)
    assert of_layer(model, data, "layer", layers={"layer": "TNC"}) == pytest.approx(expected, rel=1e-4)


def test_a_length_that_follows_the_batch_is_asked_for():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.Linear(6, 6), nn.Linear(6, K)

        def forward(self, x):
            return self.fc(self.layer(x[:, : len(x)].transpose(0, 1)).mean(0))

    data = torch.randn(N, N, 6), torch.arange(N) % K
    with pytest.raises(
        nc.InputError, match=r"cannot tell which axis of .* holds the 24 samples in layer 'layer'.*'TNC'"
    ):
        nc.measure(Growing(), [data], layers=["layer"])
    assert "layer" in nc.measure(Growing(), [data], layers={"layer": "TNC"})["layers"]


def test_axes_that_cannot_be_told_apart_are_asked_for():
    model = Chain(6, nn.Conv2d(3, 6, 1), Permute(0, 2, 3, 1), nn.Linear(6, 6), nn.Identity())
    data = images()
    with pytest.raises(nc.InputError, match=r"batch 1: cannot tell which axis of \(24, 6, 6, 6\) holds the channels"):
        nc.measure(model, [data], layers=["layers.3"])
    expected = by_hand(model, data, "layers.3", last)
    assert of_layer(model, data, "layers.3", layers={"layers.3": "NHWC"}) == pytest.approx(expected, rel=1e-4)
    function = {"layers.3": lambda out: out.mean((1, 2))}
    assert of_layer(model, data, "layers.3", layers=function) == pytest.approx(expected, rel=1e-4)
    assert of_layer(model, data, "layers.2") == pytest.approx(expected, rel=1e-4)  # a linear layer tells


def test_a_linear_layer_over_positions_is_asked_for():
    tokens = (nn.Flatten(2), Permute(0, 2, 1), nn.Linear(3, 10), nn.LayerNorm(10))
    model = Chain(10, *tokens, Permute(0, 2, 1), nn.Linear(36, 36), channels=1)
    with pytest.raises(nc.InputError, match="cannot tell which axis"):
        nc.measure(model, [images()], layers=["layers.5"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"layers.0": "NHW"}, "one N .* and one C"),
        ({"layers.0": "CC"}, "one N .* and one C"),
        ({"layers.0": 3}, "one N .* and one C"),
        ({"layers.0": "NTC"}, "a letter for each of 4 axes"),
        ({"layers.0": lambda out: out}, r"to give \(24, C\) values, got \(24, 10, 6, 6\)"),
        ({"layers.0": lambda out: None}, r"to give \(24, C\) values, got NoneType"),
        ({"layer.0": None}, "no layer 'layer.0'"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(nc.InputError, match=message):
        nc.measure(Chain(10, *CONV, channels=1), [images()], layers=layers)


class Padded(nn.Module):
    """An encoder of sentences: its layer sees padding, its head the mean of the real tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 6)
        self.layer = nn.Linear(6, 6)
        self.fc = nn.Linear(6, K)

    def forward(self, input_ids, attention_mask):
        out = self.layer(self.embed(input_ids))
        return self.fc((out * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_padding_is_not_averaged_in(left, dtype):
    generator = torch.Generator().manual_seed(1)
    sentences = [torch.randint(1, 20, (int(n),), generator=generator) for n in torch.randint(2, 12, (N,))]
    labels = torch.arange(N) % K

    def batches(size):
        for start in range(0, N, size):
            part = sentences[start : start + size]
            length = max(map(len, part))
            ids, mask = torch.zeros(len(part), length, dtype=torch.long), torch.zeros(len(part), length, dtype=dtype)
            for row, sentence in enumerate(part):
                place = slice(length - len(sentence), None) if left else slice(len(sentence))
                ids[row, place], mask[row, place] = sentence, True
            yield {"input_ids": ids, "attention_mask": mask, "labels": labels[start : start + size]}

    model = Padded()
    with torch.no_grad():
        rows = torch.stack([model.layer(model.embed(sentence)).mean(0) for sentence in sentences])
    expected = nc.measure_features(rows, labels)["nc1"]
    for size in (1, 4, 8, N):
        found = nc.measure(model, list(batches(size)), layers=["layer", "embed"])
        assert found["layers"]["layer"]["nc1"] == pytest.approx(expected, rel=1e-4)
        assert found["nc1"] == pytest.approx(expected, rel=1e-4)


def test_a_mask_of_another_length_is_asked_about():
    class Frames(Padded):
        def forward(self, input_ids, attention_mask):
            return self.fc(self.layer(self.embed(input_ids[:, ::2])).mean(1))

    ids, mask = torch.randint(1, 20, (N, 8)), torch.ones(N, 8, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(N) % K}
    assert "layer" in nc.measure(Frames(), [batch], layers=["layer"])["layers"]  # no padding in it
    mask[0, 6:] = 0
    with pytest.raises(nc.InputError, match=r"attention_mask of shape \(24, 8\) does not say.*4 positions.*'layer'"):
        nc.measure(Frames(), [batch], layers=["layer"])


def test_averages_in_half_precision_count_exactly():
    values = torch.ones(1, 300, 2, dtype=torch.bfloat16)
    mask = torch.ones(1, 300, dtype=torch.bool)
    assert average(values, mask).tolist() == [[1.0, 1.0]]
    values[0, 299] = torch.inf  # what padding holds does not matter
    mask[0, 299] = False
    assert average(values, mask).tolist() == [[1.0, 1.0]]
