"""Heads that are not W h + b as they stand: the map that made their outputs is measured, or they are refused."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import neuralcollapse as nc

K, D, N, INPUTS = 5, 12, 60, 8


class Net(nn.Module):
    """A body, a head `fc`, and what comes after it."""

    def __init__(self, fc, after=lambda logits, features: logits):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh())
        self.fc = fc
        self.after = after

    def forward(self, x):
        features = self.body(x)
        return self.after(self.fc(features), features)


class Cosine(nn.Module):
    def __init__(self, unit_features=True, unit_rows=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, D))
        self.scale = nn.Parameter(torch.tensor(7.0))
        self.unit_features, self.unit_rows = unit_features, unit_rows

    def forward(self, h):
        h = F.normalize(h, dim=1) if self.unit_features else h
        return self.scale * F.linear(h, F.normalize(self.weight, dim=1) if self.unit_rows else self.weight)


class Adapter(nn.Linear):
    """What LoRA makes of a layer: another product beside that of its own weight."""

    def __init__(self):
        super().__init__(D, K)
        self.down, self.up = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(K, 2))

    def forward(self, h):
        return super().forward(h) + h @ self.down.T @ self.up.T


class WithoutBias(nn.Linear):
    def forward(self, h):
        return F.linear(h, self.weight)


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, D))

    def forward(self, h):
        return -torch.cdist(h, self.weight, compute_mode="donot_use_mm_for_euclid_dist").square()


class Squared(nn.Linear):
    def forward(self, h):
        return super().forward(h) ** 2


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    return torch.randn(N, INPUTS, generator=generator) + labels[:, None], labels


def batches(data, size=16, dtype=torch.float32):
    inputs, labels = data
    return [(inputs[i : i + size].to(dtype), labels[i : i + size]) for i in range(0, N, size)]


@torch.no_grad()
def right(net, data, weight, bias=None, unit=False):
    """The measures of the features with another weight and bias; features of unit length for some."""
    features = net.eval().body(data[0])
    features = F.normalize(features, dim=1) if unit else features
    return nc.measure_features(features, data[1], weight.detach(), None if bias is None else bias.detach())


def measured(net, loader, **options):
    """What `measure` gives, and the words of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = nc.measure(net, loader, **options)
    return values, " | ".join(str(warning.message) for warning in caught)


def assert_agree(got, want, rel=1e-4):
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=rel, abs=1e-6), name


@pytest.mark.parametrize("size", [1, 16, 60], ids="batches of {}".format)
@pytest.mark.parametrize("unit_features", [True, False])
@pytest.mark.parametrize("unit_rows", [True, False])
def test_a_cosine_head_is_measured_with_what_it_compares(data, size, unit_features, unit_rows):
    torch.manual_seed(0)
    net = Net(Cosine(unit_features, unit_rows))
    got, words = measured(net, batches(data, size))
    rows = net.fc.scale * (F.normalize(net.fc.weight, dim=1) if unit_rows else net.fc.weight)
    assert_agree(got, right(net, data, rows, unit=unit_features))
    assert "a scale of 7" in words
    assert ("features" in words, "rows" in words) == (unit_features, unit_rows)


def test_an_adapter_is_measured_by_the_matrix_that_it_amounts_to(data):
    torch.manual_seed(0)
    net = Net(Adapter())
    got, words = measured(net, batches(data))
    assert_agree(got, right(net, data, net.fc.weight + net.fc.up @ net.fc.down, net.fc.bias))
    assert "adapter" in words
    few = [batches(data, 7)[0]]  # the layer tells its matrix whatever the data are
    assert measured(net, few)[0]["nc2"] == pytest.approx(got["nc2"], rel=1e-4)


def test_an_adapter_beside_the_head_is_found_by_least_squares(data):
    torch.manual_seed(0)
    extra = torch.randn(K, D)
    net = Net(nn.Linear(D, K), lambda logits, features: logits + features @ extra.T)
    got, words = measured(net, batches(data))
    assert_agree(got, right(net, data, net.fc.weight + extra, net.fc.bias))
    assert "least squares" in words
    with pytest.raises(nc.InputError, match=r"linear map of its input, got logits that are .* % off"):
        nc.measure(net, [batches(data, D)[0]])  # too few samples to determine it


def test_a_bias_that_is_never_added_is_none(data):
    torch.manual_seed(0)
    net = Net(WithoutBias(D, K))
    got, words = measured(net, batches(data))
    assert_agree(got, right(net, data, net.fc.weight))
    assert "bias" in words


def test_squared_distances_to_prototypes_are_linear_but_for_a_shift_of_each_sample(data):
    torch.manual_seed(0)
    net = Net(Prototypes())
    got, _ = measured(net, batches(data))
    assert_agree(got, right(net, data, 2 * net.fc.weight, -net.fc.weight.square().sum(1)), rel=1e-3)


@pytest.mark.parametrize("fc", [Squared(D, K)], ids=["squared"])
def test_a_head_that_is_no_linear_map_is_refused(data, fc):
    with pytest.raises(nc.InputError, match=r"batch 1: expected the layer 'fc' to give weight times input.*differ by"):
        nc.measure(Net(fc), batches(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", [lambda: nn.Linear(D, K), lambda: nc.ETFClassifier(D, K)], ids=["linear", "etf"])
def test_rounding_is_no_difference(data, dtype, head):
    torch.manual_seed(0)
    net = Net(head()).to(dtype)
    assert measured(net, batches(data, dtype=dtype))[1] == ""


def test_large_logits_and_unlike_scales_are_no_difference(data):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K))
    with torch.no_grad():
        net.fc.weight.mul_(torch.logspace(-4, 4, D))
        net.fc.bias.fill_(1e4)
    assert measured(net, batches(data))[1] == ""


def changed(layer):
    """A layer whose state was loaded or changed since its weight was last made."""
    state = {name: value + 0.3 * torch.rand_like(value) for name, value in layer.state_dict().items()}
    if "weight_mask" in state:
        state["weight_mask"] = layer.state_dict()["weight_mask"]
    layer.load_state_dict(state)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: layer,
    ],
    ids=["weight_norm", "spectral_norm", "pruned", "parametrized weight_norm", "parametrized spectral_norm", "plain"],
)
def test_the_weight_is_the_one_of_the_pass(data, make):
    torch.manual_seed(0)
    net = Net(changed(make(nn.Linear(D, K))))
    got, words = measured(net, batches(data))
    with torch.no_grad():
        unit = net.eval().fc(torch.cat([torch.zeros(1, D), torch.eye(D)]))
    assert_agree(got, right(net, data, (unit[1:] - unit[0]).T, unit[0]))
    assert words == ""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_each_checkpoint_is_measured_with_its_own_weight(tmp_path, data):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = Net(nn.utils.weight_norm(nn.Linear(D, K)))
    want = []
    for epoch in (1, 2):
        later = copy.deepcopy(net.state_dict())
        later = {name: value + 0.3 * epoch * torch.rand_like(value) for name, value in later.items()}
        save_file(later, tmp_path / f"epoch-{epoch}.safetensors")
        fresh = Net(nn.utils.weight_norm(nn.Linear(D, K)))
        fresh.load_state_dict(later)
        with torch.no_grad():
            rows = torch._weight_norm(fresh.fc.weight_v, fresh.fc.weight_g, 0)
        want.append(right(fresh, data, rows, fresh.fc.bias)["nc2"])
    records = nc.measure_checkpoints(net, str(tmp_path / "*.safetensors"), batches(data), progress=False)
    assert [record.measures["nc2"] for record in records] == pytest.approx(want, rel=1e-5)
    assert want[0] != pytest.approx(want[1], rel=1e-3)


class Changed(nn.Linear):
    """A head whose outputs are those of another weight: a share of it, at random, from some batch on."""

    def __init__(self, dim, classes, share, first=1, only=None):
        super().__init__(dim, classes)
        self.register_buffer(
            "extra", share * self.weight.detach().norm() * F.normalize(torch.randn(classes * dim), dim=0)
        )
        if only is not None:
            mask = torch.zeros(classes, 1)
            mask[only] = 1
            self.extra.mul_((mask.expand(classes, dim)).flatten())
        self.first, self.calls = first, 0

    def forward(self, h):
        if len(h) > 1:
            self.calls += 1
        extra = self.extra.view_as(self.weight) if self.calls >= self.first else torch.zeros_like(self.weight)
        return F.linear(h, self.weight + extra, self.bias)


class Bare(nn.Module):
    def __init__(self, fc):
        super().__init__()
        self.fc = fc

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("dim", [64, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_tenth_of_the_weight_is_seen_in_every_type_and_rounding_in_none(dim, dtype, share):
    torch.manual_seed(0)
    fc = Changed(dim, 10, share).to(dtype)
    features = F.layer_norm(torch.randn(40, dim), (dim,)).to(dtype)
    got, words = measured(Bare(fc), [(features, torch.arange(40) % 10)])
    assert bool(words) == bool(share)
    weight = (fc.weight + fc.extra.view_as(fc.weight)).float().detach()
    want = nc.measure_features(features.float(), torch.arange(40) % 10, weight, fc.bias.float().detach())
    assert got["nc2"] == pytest.approx(want["nc2"], rel=0.02 if dtype != torch.float32 else 1e-4)


def test_a_change_of_some_classes_among_many_is_seen():
    torch.manual_seed(0)
    fc = Changed(32, 700, 1.0, only=[3, 301])
    features, labels = torch.randn(1400, 32), torch.arange(1400) % 700
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = nc.measure(Bare(fc), [(features[i : i + 100], labels[i : i + 100]) for i in range(0, 1400, 100)])
    weight = (fc.weight + fc.extra.view_as(fc.weight)).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = nc.measure_features(features, labels, weight, fc.bias.detach())
    assert got["nc2"] == pytest.approx(want["nc2"], rel=1e-4)


def test_a_map_that_is_another_in_a_later_batch_is_refused(data):
    torch.manual_seed(0)
    net = Net(Changed(D, K, 1.0, first=3))
    with pytest.raises(nc.InputError, match="batch 3: expected the layer 'fc' to give"):
        nc.measure(net, batches(data))


def test_features_that_tell_nothing_at_first_do_no_harm(data):
    torch.manual_seed(0)
    net = Net(Adapter())
    first = (torch.zeros(4, INPUTS), torch.arange(4))
    net.body = nn.Sequential(nn.Linear(INPUTS, D, bias=False), nn.Tanh())
    got, words = measured(net, [first, *batches(data)])
    assert "adapter" in words
    assert got["nc2"] == pytest.approx(measured(net, batches(data))[0]["nc2"], rel=1e-4)


def test_masked_outputs_are_not_compared(data):
    class Masked(nn.Linear):
        def forward(self, h):
            return super().forward(h).index_fill(1, torch.tensor([2]), -torch.inf)

    torch.manual_seed(0)
    net = Net(Masked(D, K))
    labels = torch.where(data[1] == 2, 1, data[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = nc.measure(net, batches((data[0], labels)))
        want = right(net, (data[0], labels), net.fc.weight, net.fc.bias)
    assert got["nc2"] == pytest.approx(want["nc2"], rel=1e-5)


class Merging(nn.Linear):
    """As loralib: an adapter is merged into the weight in eval mode, and taken out in training mode."""

    def __init__(self):
        super().__init__(D, K)
        self.extra = nn.Parameter(torch.randn(K, D))
        self.merged = False

    def train(self, mode=True):
        if mode == self.merged:
            with torch.no_grad():
                self.weight.add_(self.extra, alpha=-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, h):
        return super().forward(h) if self.merged else super().forward(h) + h @ self.extra.T


def test_layers_that_change_with_the_mode_are_as_before(data):
    torch.manual_seed(0)
    net = Net(Merging()).train()
    before = net.fc.weight.detach().clone()
    assert measured(net, batches(data))[1] == ""
    assert not net.fc.merged
    assert torch.allclose(net.fc.weight, before, atol=1e-6)


def test_a_spectral_norm_in_training_mode_is_not_moved_on(data):
    torch.manual_seed(0)
    net = Net(parametrizations.spectral_norm(nn.Linear(D, K))).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    nc.measure(net, batches(data))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_dropout_of_several_samples_is_one_call_in_eval_mode(data):
    class Several(Net):
        def forward(self, x):
            features = self.body(x)
            return sum(self.fc(F.dropout(features, 0.5, self.training)) for _ in range(5)) / 5

    torch.manual_seed(0)
    net = Several(nn.Linear(D, K))
    assert_agree(nc.measure(net, batches(data)), right(net, data, net.fc.weight, net.fc.bias))


def test_heads_are_called_by_keyword_flatten_and_compute_in_half_precision(data):
    class Keyword(Net):
        def forward(self, x):
            return self.fc(label=None, h=self.body(x))

    class Head(nn.Linear):
        def forward(self, label, h):
            return super().forward(h)

    class Half(nn.Linear):
        def forward(self, h):
            return F.linear(h.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()

    class WithDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.weight = nn.Dropout(), nn.Parameter(torch.randn(K, D))

        def forward(self, h):
            return F.linear(self.dropout(h), self.weight)

    torch.manual_seed(0)
    for net in (Keyword(Head(D, K)), Net(Half(D, K)), Net(WithDropout())):
        got, words = measured(net, batches(data), classifier="fc")
        assert_agree({"nc2": got["nc2"]}, {"nc2": right(net, data, net.fc.weight)["nc2"]})
        assert words == ""


@pytest.mark.parametrize("where", ["around", "inside"])
def test_inference_mode_does_no_harm(data, where):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K))
    want = nc.measure(net, batches(data))
    if where == "inside":
        net.forward = torch.inference_mode()(net.forward)
        assert nc.measure(net, batches(data)) == want
    else:
        with torch.inference_mode():
            assert nc.measure(net, batches(data)) == want


@pytest.mark.filterwarnings("ignore:K=10 classes in d=6 dimensions hold no simplex ETF")
@pytest.mark.parametrize("make", [nc.ETFClassifier, nc.OrthoplexClassifier])
@pytest.mark.parametrize("sizes", [(6, 10), (7, 5), (10, 10), (33, 34), (64, 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_rotated_frame_is_read_where_few_features_are_not_zero(make, sizes, dtype):
    """Behind a ReLU most features are zero; the rotation rounds each output by the length of all of them."""
    dim, count = sizes
    if make is nc.ETFClassifier and dim < count - 1:
        pytest.skip("no simplex has so many classes")
    torch.manual_seed(0)
    labels = torch.arange(20 * count) % count
    for seed in range(6):
        layer = make(dim, count, rotation="fast", seed=seed).to(dtype)
        inputs = torch.zeros(len(labels), dim).scatter_(1, torch.randint(dim, (len(labels), 1)), 1.5) * torch.rand(1)
        values = nc.measure(nn.Sequential(layer), [(inputs.to(dtype), labels)], "0", pairwise=False)
        expected = nc.measure_features(inputs.to(dtype), labels, layer.weight, layer.bias, pairwise=False)
        assert values["nc3"] == pytest.approx(expected["nc3"], abs=1e-9)


@pytest.mark.parametrize("error", [1e-3, 1e-5])
def test_a_rotated_frame_whose_outputs_are_changed_is_noticed(error):
    class Changed(nc.ETFClassifier):
        def forward(self, features):
            return super().forward(features) + error * features.square().sum(1, keepdim=True) * torch.arange(5)

    torch.manual_seed(0)
    labels = torch.arange(100) % 5
    with pytest.raises(nc.InputError, match="expected the layer '0' to give weight times input plus bias"):
        nc.measure(nn.Sequential(Changed(7, 5, rotation="fast")), [(torch.rand(100, 7), labels)], "0")
