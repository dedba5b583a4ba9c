import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture import sums
from neuralcollapse.capture.collect import collect
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, FEATURE_MEASURES, PAIRWISE_MEASURES

K, D, N, INPUTS = 3, 5, 25, 4  # batches of 8 leave one sample for the last


class Network(nn.Module):
    """Batch norm, dropout and a classifier with a bias; counts its forward calls."""

    def __init__(self, head=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(INPUTS, D), nn.BatchNorm1d(D), nn.Dropout(0.5), nn.Tanh())
        self.fc = nn.Linear(D, K) if head is None else head
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.fc(self.body(x))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network()
    network.train()
    network(torch.randn(64, INPUTS) * 2 + 1)  # batch norm statistics of its own
    network.calls = 0
    return network


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % K
    return torch.randn(N, INPUTS, generator=generator) + labels[:, None], labels


@pytest.fixture
def loader(data):
    return DataLoader(TensorDataset(*data), batch_size=8)


@torch.no_grad()
def by_hand(network, inputs, labels, **options):
    """What `measure` gives, from the definitions."""
    modes = [module.training for module in network.modules()]
    network.eval()
    features = network.body(inputs)
    logits = network.fc(features)
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    moments = nc.ClassMoments.from_batch(features, labels, logits.shape[1])
    nearest = torch.cdist(features.double(), moments.means).argmin(1)
    return {
        **nc.measures(moments, network.fc.weight, network.fc.bias, **options),
        "nc4": float((logits.argmax(1) != nearest).double().mean()),
        "ncc_accuracy": float((labels == nearest).double().mean()),
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "num_samples": len(labels),
    }


def nearest_mean(features, labels, logits, moments):
    """NC4 and the accuracy of the nearest mean of some layer, from the definitions."""
    nearest = torch.cdist(features.double(), moments.means).argmin(1)
    wrong, right = nearest != logits.argmax(1), nearest == labels
    return {"nc4": float(wrong.double().mean()), "ncc_accuracy": float(right.double().mean())}


def assert_same(got, want, rel=1e-5):
    assert got.keys() == want.keys()
    assert got == pytest.approx(want, rel=rel)


# What it gives


def test_it_gives_what_the_definitions_give(network, loader, data):
    got = nc.measure(network, loader)
    assert {*FEATURE_MEASURES, *CLASSIFIER_MEASURES} < set(got)
    assert 0 < got["nc4"] < 1  # else nc4 would be tested against a trivial value
    assert_same(got, by_hand(network, *data))


def test_the_number_of_batches_makes_no_difference(network, data):
    whole = nc.measure(network, [data])
    assert_same(nc.measure(network, DataLoader(TensorDataset(*data), batch_size=1)), whole)


def test_a_fixed_classifier_is_measured_like_a_dense_one(data, loader):
    torch.manual_seed(0)
    network = Network(nc.ETFClassifier(D, K, scale=2.0, rotation="fast"))
    got = nc.measure(network, loader)
    assert got["nc2"] == pytest.approx(0, abs=1e-6)
    got.pop("nc2")
    want = by_hand(network, *data)
    want.pop("nc2")
    assert got == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_without_nc4_or_pairs_their_keys_are_left_out(network, loader, data):
    got = nc.measure(network, loader, nc4=False, pairwise=False)
    want = by_hand(network, *data, pairwise=False)
    want.pop("nc4")
    want.pop("ncc_accuracy")
    assert not set(PAIRWISE_MEASURES) & set(got)
    assert_same(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_in_other_precisions_are_measured(network, data, dtype):
    inputs, labels = data
    network.to(dtype)
    got = nc.measure(network, [(inputs[:20].to(dtype), labels[:20]), (inputs[20:].to(dtype), labels[20:])])
    # Where a batch ends changes the rounding of low-precision products, hence the wide tolerance.
    assert_same(got, by_hand(network, inputs.to(dtype), labels), rel=1e-5 if dtype == torch.float64 else 0.02)


def test_ignored_samples_are_left_out_everywhere(network, data):
    inputs, labels = data
    dropped = labels.clone()
    dropped[::4] = -100
    got = nc.measure(network, [(inputs[:12], dropped[:12]), (inputs[12:], dropped[12:])], ignore_index=-100)
    assert_same(got, by_hand(network, inputs[dropped >= 0], labels[dropped >= 0]))


def test_a_batch_of_ignored_samples_alone_adds_nothing(network, data):
    inputs, labels = data
    loader = [(inputs[:4], torch.full((4,), -100)), (inputs, labels)]
    assert_same(nc.measure(network, loader, ignore_index=-100), by_hand(network, inputs, labels))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, D)
        self.fc = nn.Linear(D, K)

    def forward(self, ids, mask=None):
        return {"logits": self.fc(self.embed(ids))}


def test_it_is_known_whether_every_measured_feature_is_at_least_zero(network, data):
    inputs, labels = data
    network.body.append(nn.ReLU())
    batches = list(zip(inputs.split(8), labels.split(8), strict=True))
    assert collect(network, batches, progress=False).nonnegative
    network.body[-1] = nn.Identity()
    with torch.no_grad():
        network.eval()
        lowest = int(network.body(inputs).amin(1).argmin())
    shift = nn.Identity()
    network.body.append(shift)
    least = network.body(inputs).detach().amin(1).sort().values
    shift.register_forward_hook(lambda module, given, output: output - (least[0] + least[1]) / 2)
    assert not collect(network, batches, progress=False).nonnegative  # one feature of one sample is below zero
    ignored = labels.clone()
    ignored[lowest] = -100
    batches = list(zip(inputs.split(8), ignored.split(8), strict=True))
    assert collect(network, batches, ignore_index=-100, progress=False).nonnegative


def test_token_features_are_measured_one_by_one():
    torch.manual_seed(0)
    network, ids = Tokens(), torch.randint(0, 11, (6, 7))
    labels = ids % K
    labels[:, -2:] = -100
    got = nc.measure(network, [(ids[:4], labels[:4]), (ids[4:], labels[4:])], layers=["embed"], ignore_index=-100)
    kept = labels != -100
    features = network.embed(ids)[kept].detach()
    moments = nc.ClassMoments.from_batch(features, labels[kept], K)
    assert got["num_samples"] == 30
    loss = F.cross_entropy(network.fc(features), labels[kept]).item()
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    assert got["nc1"] == pytest.approx(nc.measures(moments)["nc1"], rel=1e-8)
    want = nc.measures(moments) | nearest_mean(features, labels[kept], network.fc(features), moments)
    assert got["layers"]["embed"] == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_a_dict_batch_gives_its_other_entries_as_keywords(key):
    torch.manual_seed(0)
    network, ids = Tokens(), torch.randint(0, 11, (6, 7))
    labels = ids % K
    got = nc.measure(network, [{"ids": ids, key: labels, "mask": torch.ones(6)}])
    assert_same(got, nc.measure(network, [(ids, labels)]))


def test_more_in_a_tuple_than_inputs_and_labels_is_left_alone(network, data):
    inputs, labels = data
    assert_same(nc.measure(network, [(inputs, labels, "weights", None)]), by_hand(network, inputs, labels))


def test_labels_may_be_a_list(network, data):
    inputs, labels = data
    assert_same(nc.measure(network, [[inputs, labels.tolist()]]), by_hand(network, inputs, labels))


def test_a_dotted_name_finds_a_nested_classifier(network, loader, data):
    nested = nn.Sequential(nn.Identity(), nn.ModuleDict({"net": network}))
    nested.forward = network.forward
    assert_same(nc.measure(nested, loader, classifier="1.net.fc"), by_hand(network, *data))


def test_a_classifier_called_by_keyword_is_caught(network, loader, data):
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = network.body, network.fc

        def forward(self, x):
            return self.fc(input=self.body(x))

    assert_same(nc.measure(ByKeyword(), loader), by_hand(network, *data))


def test_a_compiled_wrapper_is_looked_through(network, loader, data):
    assert_same(nc.measure(torch.compile(network, backend="eager"), loader), by_hand(network, *data))


# The network is left as it was


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


class Stop(Exception):
    pass


def stopping(loader):
    yield next(iter(loader))
    raise Stop


@pytest.fixture
def mixed(network):
    """A network with some modules in train and some in eval mode."""
    network.train()
    network.body[1].eval()
    network.fc.eval()
    return network


def assert_untouched(network, before_modes, before_state):
    assert modes(network) == before_modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, before_state[name]) for name, value in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_modes_hooks_and_statistics_are_as_before(mixed, loader):
    before = modes(mixed), {name: value.clone() for name, value in mixed.state_dict().items()}
    assert len(set(before[0].values())) == 2
    nc.measure(mixed, loader, layers=["body.0"])
    assert_untouched(mixed, *before)


def test_modes_hooks_and_statistics_are_as_before_after_an_error(mixed, loader, data):
    before = modes(mixed), {name: value.clone() for name, value in mixed.state_dict().items()}
    with pytest.raises(Stop):
        nc.measure(mixed, stopping(loader), layers=["body.0"])
    assert_untouched(mixed, *before)
    with pytest.raises(nc.InputError, match=r"batch 1: .* got float32 \(2, 5\), .*RuntimeError: .*shape") as refused:
        nc.measure(mixed, [(torch.zeros(2, INPUTS + 1), torch.zeros(2, dtype=torch.long))], layers=["body.0"])
    assert type(refused.value.__cause__) is RuntimeError  # the network's own error, not hidden
    assert_untouched(mixed, *before)
    with pytest.raises(nc.InputError):
        nc.measure(mixed, [(data[0], data[1] + 1)], layers=["body.0"])
    assert_untouched(mixed, *before)


def test_dropout_is_off_so_that_two_runs_agree(network, loader):
    assert nc.measure(network, loader) == nc.measure(network, loader)


def test_gradients_are_neither_made_nor_touched(network, loader):
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    seen = []
    network.body[0].register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    nc.measure(network, loader)
    assert seen == [False] * 4
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in network.parameters())


# Inner layers


class Mixed(nn.Module):
    """Image, token and vector features, one after the other."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.act = nn.ReLU(inplace=inplace)
        self.mix = nn.Linear(4, 6)
        self.vector = nn.Linear(6, D)
        self.fc = nn.Linear(D, K)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        tokens = self.mix(self.act(self.conv(x)).flatten(2).transpose(1, 2))
        return self.fc(self.vector(tokens.mean(1)))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(17, 1, 5, 5, generator=generator), torch.arange(17) % K


@pytest.mark.parametrize("inplace", [False, True])
def test_inner_layers_of_every_kind_are_measured_in_the_same_pass(images, inplace):
    torch.manual_seed(0)
    model, (inputs, labels) = Mixed(inplace), images
    got = nc.measure(model, DataLoader(TensorDataset(inputs, labels), batch_size=8), layers=["conv", "mix", "vector"])
    assert model.calls == 3
    with torch.no_grad():
        conv = model.conv(inputs)
        tokens = model.mix(conv.relu().flatten(2).transpose(1, 2))
    outputs = {"conv": conv.mean((2, 3)), "mix": tokens.mean(1), "vector": model.vector(tokens.mean(1)).detach()}
    assert set(got["layers"]) == set(outputs)
    for name, features in outputs.items():
        moments = nc.ClassMoments.from_batch(features, labels, K)
        want = nc.measures(moments) | nearest_mean(features, labels, model(inputs), moments)
        assert got["layers"][name] == pytest.approx(want, rel=1e-4), name
    assert got["nc1"] == pytest.approx(got["layers"]["vector"]["nc1"], rel=1e-10)


def test_without_layers_there_is_no_such_key(network, loader):
    assert "layers" not in nc.measure(network, loader)


def test_an_inner_layer_that_is_missing_silent_or_too_small_is_named(network, loader):
    network.spare = nn.Linear(2, 2)
    with pytest.raises(nc.InputError, match=r"no layer 'body\.9'"):
        nc.measure(network, loader, layers=["body.9"])
    with pytest.raises(nc.InputError, match=r"batch 1: .*'spare'.*called in forward"):
        nc.measure(network, loader, layers=["spare"])
    network.body.append(nn.Flatten(0))
    network.body.append(nn.Unflatten(0, (-1, D)))
    with pytest.raises(nc.InputError, match=r"batch 1: .*'body\.4' to give one output for each of 8 samples"):
        nc.measure(network, loader, layers=["body.4"])


# NC4


def test_a_second_pass_gives_the_same_nc4(network, loader, monkeypatch):
    want = nc.measure(network, loader)
    assert network.calls == 4
    monkeypatch.setattr(sums, "_KEEP_BYTES", 0)
    network.calls = 0
    assert nc.measure(network, loader) == want
    assert network.calls == 8
    network.calls = 0
    nc.measure(network, loader, nc4=False)
    assert network.calls == 4


def test_the_second_pass_may_come_in_another_order(network, data, monkeypatch):
    loader = DataLoader(TensorDataset(*data), batch_size=8, shuffle=True)
    want = nc.measure(network, loader)["nc4"]
    monkeypatch.setattr(sums, "_KEEP_BYTES", 0)
    assert nc.measure(network, loader)["nc4"] == want


def test_an_iterator_too_large_to_keep_has_no_nc4_and_says_so(network, loader, data, monkeypatch):
    assert_same(nc.measure(network, iter(loader)), by_hand(network, *data))
    monkeypatch.setattr(sums, "_KEEP_BYTES", 0)
    with pytest.warns(nc.NeuralCollapseWarning, match="second pass over the loader, which gave 0 samples.*DataLoader"):
        got = nc.measure(network, iter(loader))
    assert math.isnan(got.pop("nc4"))
    assert math.isnan(got.pop("ncc_accuracy"))
    want = by_hand(network, *data)
    want.pop("nc4")
    want.pop("ncc_accuracy")
    assert_same(got, want)


def test_features_kept_for_nc4_do_not_hold_on_to_what_they_were_cut_from(data):
    inputs, labels = data
    wholes = []

    class FirstToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(INPUTS, K)

        def forward(self, x):
            assert all(whole() is None for whole in wholes[:-1]), "the tokens of an earlier batch are in memory"
            tokens = x[:, None].repeat(1, 100, 1)
            wholes.append(weakref.ref(tokens.untyped_storage()))
            return self.fc(tokens[:, 0])

    nc.measure(FirstToken(), DataLoader(TensorDataset(inputs, labels), batch_size=8))
    assert len(wholes) == 4


# Errors


def test_a_classifier_called_twice_or_never_is_refused(network, loader):
    class Calling(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.times, self.body, self.fc = times, network.body, network.fc

        def forward(self, x):
            return sum(self.fc(self.body(x) * (i + 1)) for i in range(self.times))

    with pytest.raises(nc.InputError, match=r"batch 1: .*once a batch, got 0 calls"):
        nc.measure(Calling(0), loader)
    with pytest.raises(nc.InputError, match=r"batch 1: .*once a batch, got 2 calls"):
        nc.measure(Calling(2), loader)


def test_a_classifier_without_a_matrix_is_refused(network, loader):
    with pytest.raises(nc.InputError, match=r"an nn\.Linear or a 1x1 convolution, got Tanh"):
        nc.measure(network, loader, classifier="body.3")
    with pytest.raises(nc.InputError, match="got BatchNorm1d"):
        nc.measure(network, loader, classifier="body.1")


def test_a_missing_name_lists_those_that_exist(network, loader):
    with pytest.raises(nc.InputError, match=r"no layer 'fcc' \(did you mean 'fc'\?\).*body\.0, fc"):
        nc.measure(network, loader, classifier="fcc")
    assert network.calls == 0


@pytest.mark.parametrize("empty", [[], iter([]), [(torch.zeros(0, INPUTS), torch.zeros(0, dtype=torch.long))]])
def test_an_empty_loader_is_refused(network, empty):
    with pytest.raises(nc.InputError, match="gave no samples"):
        nc.measure(network, empty)


def test_a_loader_of_ignored_samples_alone_is_refused(network, data):
    with pytest.raises(nc.InputError, match=r"gave no samples.*ignore_index"):
        nc.measure(network, [(data[0], torch.full((N,), -1))], ignore_index=-1)


X, Y = torch.zeros(2, INPUTS), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.full((2, INPUTS), torch.nan), Y), "finite features, got 10 NaN"),
        ((X, torch.tensor([0, K])), r"labels from 0 to 2 .*got 0 to 3"),
        ((X, torch.tensor([-1, 0])), "ignore_index"),
        ((X, Y.float()), "integer labels, got torch.float32"),
        ((X, Y[:, None]), r"\(2, 1\).*squeeze"),
        ((X, torch.eye(K).long()[Y]), "one-hot"),
        ((X, Y[:1]), "1 labels for 2 rows"),
        (X, "got Tensor"),
        ((X,), "got tuple"),
        ({"x": X}, r"labels under one of .*got the keys \['x'\]"),
        (3, "got int"),
    ],
)
def test_a_bad_batch_is_refused_by_its_number(network, data, batch, message):
    with pytest.raises(nc.InputError, match=f"^batch 2: .*{message}"):
        nc.measure(network, [data, batch])


def test_features_with_positions_need_labels_with_positions():
    with pytest.raises(nc.InputError, match=r"batch 1: .*\(N, d\), got \(2, 7, 5\).*pool"):
        nc.measure(Tokens(), [(torch.zeros(2, 7, dtype=torch.long), Y)])


@pytest.mark.parametrize("num_classes", [K - 1, K + 1, 0])
def test_a_number_of_classes_that_is_not_the_classifiers_is_refused(network, loader, num_classes):
    with pytest.raises(nc.InputError, match="expected"):
        nc.measure(network, loader, num_classes=num_classes)
    assert network.calls == 0


def test_a_class_never_seen_is_named_in_a_warning(network, data):
    inputs, labels = data
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 1: measured over the 2 classes seen"):
        got = nc.measure(network, [(inputs[labels != 1], labels[labels != 1])])
    assert all(math.isfinite(value) for value in got.values())


def test_what_the_labels_alone_say_is_said_once_whatever_else_is_measured(network, data):
    inputs, labels = data
    batch, tested = [(each[labels != 1], labels[labels != 1]) for each in (inputs, inputs + 1)]
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        nc.measure(network, [batch], layers=["body.0", "body.1"], more=True, errors=True, test_loader=[tested])
    said = [str(each.message).split("class")[0] for each in caught if "no samples of" in str(each.message)]
    assert said == ["no samples of ", "test set: no samples of "]
    first = [labels.tolist().index(k) for k in range(K)]
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        nc.measure(network, [(inputs[first], labels[first])], layers=["body.0", "body.1"], more=True)
    assert sum("every class has one sample" in str(each.message) for each in caught) == 1


def test_what_is_said_of_an_inner_layer_names_it(network, data):
    with torch.no_grad():
        network.body[0].weight.zero_()
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        nc.measure(network, [data], layers=["body.0"], more=True, test_loader=[data])
    said = [str(each.message) for each in caught]
    assert any(each.startswith("layer 'body.0': undefined (NaN): all class means coincide") for each in said)
    assert any(each.startswith("test set: layer 'body.0': undefined (NaN)") for each in said)
    assert any(each.startswith("undefined (NaN)") for each in said)  # the features behind it


# measure_features


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % K
    features = nc.simplex_etf(K, D)[labels] + 0.5 * torch.randn(N, D, generator=generator)
    return features, labels, torch.randn(K, D, generator=generator), torch.randn(K, generator=generator)


def features_by_hand(features, labels, weight, bias):
    moments = nc.ClassMoments.from_batch(features, labels, K)
    predicted = F.linear(features, weight, bias).argmax(1)
    return {
        **nc.measures(moments, weight, bias),
        "num_samples": N,
        "nc4": float((predicted != torch.cdist(features.double(), moments.means).argmin(1)).double().mean()),
        "ncc_accuracy": float((labels == torch.cdist(features.double(), moments.means).argmin(1)).double().mean()),
        "accuracy": float((predicted == labels).double().mean()),
    }


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_features_in_memory_are_measured(arrays, kind):
    given = arrays if kind == "tensors" else [part.numpy() for part in arrays]
    assert_same(nc.measure_features(*given), features_by_hand(*arrays), rel=1e-12)


def test_features_alone_give_the_measures_of_features(arrays):
    features, labels = arrays[:2]
    got = nc.measure_features(features, labels)
    moments = nc.ClassMoments.from_batch(features, labels, K)
    right = float((torch.cdist(features.double(), moments.means).argmin(1) == labels).double().mean())
    assert_same(got, {**nc.measures(moments), "num_samples": N, "ncc_accuracy": right}, rel=1e-12)


def test_accuracy_and_nc4_use_the_bias(arrays):
    features, labels, weight, _ = arrays
    got = nc.measure_features(features, labels, weight, torch.tensor([100.0, 0, 0]))  # always class 0
    nearest = torch.cdist(features.double(), nc.ClassMoments.from_batch(features, labels, K).means).argmin(1)
    assert got["accuracy"] == pytest.approx(float((labels == 0).double().mean()))
    assert got["nc4"] == pytest.approx(float((nearest != 0).double().mean()))


def test_many_features_give_the_nc4_of_one_block(arrays):
    features, labels, weight, bias = arrays
    blocks = 2**22 // K // N + 2  # one more than fits in a block of predictions
    many = features.repeat(blocks, 1), labels.repeat(blocks)
    got = nc.measure_features(*many, weight, bias)
    want = nc.measure_features(features, labels, weight, bias)
    assert (got["nc4"], got["accuracy"]) == pytest.approx((want["nc4"], want["accuracy"]))


def test_features_and_a_head_that_are_trained_need_no_detach(arrays):
    features, labels, weight, bias = arrays
    trained = [torch.nn.Parameter(each.clone()) for each in (features, weight, bias)]
    torch.set_warn_always(True)  # torch says it once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = nc.measure_features(trained[0], labels, *trained[1:])
    finally:
        torch.set_warn_always(False)
    assert got == nc.measure_features(features, labels, weight, bias)


def test_the_number_of_classes_comes_from_the_weight_or_the_largest_label(arrays):
    features, labels, weight, _ = arrays
    without_last = labels % 2
    assert nc.measure_features(features, without_last) == nc.measure_features(features, without_last, num_classes=2)
    for options in ({"num_classes": K}, {"weight": weight}):
        with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 2"):
            nc.measure_features(features, without_last, **options)


def test_ignored_features_are_left_out(arrays):
    features, labels, weight, bias = arrays
    dropped = torch.cat([labels, torch.tensor([-100, -100])])
    more = torch.cat([features, torch.full((2, D), 50.0)])
    for given in ((weight, bias), ()):
        got = nc.measure_features(more, dropped, *given, ignore_index=-100)
        assert_same(got, nc.measure_features(features, labels, *given), rel=1e-12)


def test_features_without_pairs(arrays):
    assert not set(PAIRWISE_MEASURES) & set(nc.measure_features(*arrays, pairwise=False))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_integer_labels_of_any_width_do(arrays, dtype):
    features, labels = arrays[:2]
    got = nc.measure_features(features.numpy(), labels.numpy().astype(dtype))
    assert got == nc.measure_features(features, labels)


H = torch.randn(6, D, generator=torch.Generator().manual_seed(4))
L = torch.arange(6) % K


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0, D), torch.zeros(0, dtype=torch.long)), "no samples"),
        ((H, L[:5]), "5 labels for 6 rows"),
        ((H[:, None], L), r"\(N, d\), got \(6, 1, 5\)"),
        ((np.zeros((6, D), dtype=int), L), "floating-point"),
        ((H, L.double()), "integer labels"),
        ((H, L[:, None]), "squeeze"),
        ((H, L - 1), "got -1 to 1"),
        ((H * torch.nan, L), "finite features"),
        ((H, L, torch.zeros(K, D + 1)), r"\(3, 5\), got \(3, 6\)"),
        ((H, L, torch.zeros(D, K)), r"expected weight .*got \(5, 3\)"),
        ((H, L, torch.zeros(D)), r"expected weight .*got \(5,\)"),
        ((H, L, torch.zeros(D, K), None, K), "transpose"),
        ((H, L, torch.zeros(2, D)), "labels from 0 to 1.*got 0 to 2"),
        ((H, L, torch.zeros(K, D), torch.zeros(K + 1)), "bias of shape"),
        ((H, L, torch.full((K, D), torch.inf)), "finite weight"),
        ((H, L, None, torch.zeros(K)), "expected a weight beside the bias"),
        ((H, L, torch.zeros(K, D), None, K + 1), r"\(4, 5\), got \(3, 5\)"),
        ((H, L, None, None, 2), "labels from 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(nc.InputError, match=message):
        nc.measure_features(*arguments)


def test_features_that_are_all_ignored_are_refused():
    with pytest.raises(nc.InputError, match="no samples"):
        nc.measure_features(H, L * 0 - 1, ignore_index=-1)


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.body = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU())
    model.fc = torch.nn.Linear(8, 3)
    return model


BATCH = (torch.randn(12, 5), torch.arange(12) % 3)


def test_the_classifier_may_be_given_itself_and_layers_as_one_name():
    model = small_model()
    values = nc.measure(model, [BATCH], model.fc, layers="body.0")
    assert values == nc.measure(model, [BATCH], "fc", layers=("body.0",))
    with pytest.raises(nc.InputError, match="outside the model"):
        nc.measure(model, [BATCH], torch.nn.Linear(8, 3))
    with pytest.raises(nc.InputError, match="layer's name"):
        nc.measure(model, [BATCH], 3)


def test_a_layer_that_does_not_make_the_models_output_is_pointed_out():
    with pytest.warns(nc.NeuralCollapseWarning) as record:
        nc.measure(small_model(), [BATCH], "body.0")
    assert any("gives 8 outputs and the model 3" in str(warning.message) for warning in record)


def test_a_data_set_or_keys_that_do_not_fit_say_what_to_do():
    with pytest.raises(nc.InputError, match=r"wrap it in torch\.utils\.data\.DataLoader"):
        nc.measure(small_model(), torch.utils.data.TensorDataset(*BATCH))
    with pytest.raises(nc.InputError, match=r"batch 1: the batch's keys \['image'\] do not fit"):
        nc.measure(small_model(), [{"image": BATCH[0], "labels": BATCH[1]}])
    with pytest.raises(nc.InputError, match="batch 1: expected labels"):
        nc.measure(small_model(), [(BATCH[0], ["cat"] * 12)])


def test_a_stray_large_label_is_refused_and_rows_keep_their_numbers():
    with pytest.raises(nc.InputError, match="3 different ones up to 1000000000"):
        nc.measure_features(torch.randn(3, 2), torch.tensor([0, 1, 10**9]))
    features, labels = torch.randn(12, 4), torch.arange(12) % 3
    features[10], labels[:5] = torch.nan, -1
    with pytest.raises(nc.InputError, match=r"\(rows 10\)"):
        nc.measure_features(features, labels, ignore_index=-1)


class Sentences(nn.Module):
    """A causal language model in small: each position sees its token alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embedding(input_ids))


@pytest.fixture
def sentences():
    tokens = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(2))
    labels = tokens.clone()
    labels[2:5, 6:] = -100  # padding
    return [{"input_ids": tokens[i : i + 3], "labels": labels[i : i + 3]} for i in range(0, 8, 3)]


def shifted_by_hand(model, sentences):
    features, labels = [], []
    for batch in sentences:
        for row, wanted in zip(batch["input_ids"], batch["labels"], strict=True):
            for position in range(len(row) - 1):
                if wanted[position + 1] != -100:
                    features.append(model.embedding.weight[row[position]].detach())
                    labels.append(int(wanted[position + 1]))
    return torch.stack(features), torch.tensor(labels)


@pytest.mark.parametrize("options", [{}, {"classes": [1, 3, 4, 9, 10]}, {"min_count": 5}], ids=str)
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_the_class_of_a_position_is_the_next_token(sentences, options, monkeypatch):
    monkeypatch.setattr("neuralcollapse.capture.captured._LOGITS", 33)  # the loss in parts of three positions
    model = Sentences()
    features, labels = shifted_by_hand(model, sentences)
    weight = model.head.weight.detach()
    expected = nc.measure_features(features, labels, weight, **options)
    found = nc.measure(model, sentences, "head", next_token=True, **options)
    kept = torch.ones_like(labels, dtype=torch.bool)
    if options:
        counts = labels.bincount(minlength=11)
        classes = options.get("classes", (counts >= 5).nonzero().flatten().tolist())
        kept = torch.isin(labels, torch.tensor(classes))
    logits = features[kept] @ weight.T
    assert found.pop("loss") == pytest.approx(float(F.cross_entropy(logits, labels[kept])), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name


def test_labels_of_whole_sentences_have_no_next_token(sentences):
    batches = [{**batch, "labels": batch["labels"][:, 0]} for batch in sentences]
    with pytest.raises(nc.InputError, match=r"batch 1: .*labels \(N, T\) of T tokens with next_token, got \(3,\)"):
        nc.measure(Sentences(), batches, "head", next_token=True)


def test_float32_means_are_measured_to_their_precision(network, loader):
    exact, small = nc.measure(network, loader), nc.measure(network, loader, means_dtype=torch.float32)
    for name, value in exact.items():
        assert small[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert small["nc1"] != exact["nc1"]


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_averaged_in_float32_of_a_half_precision_model_are_those_of_their_type(dtype):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.fc = nn.LayerNorm(16).to(dtype), nn.Linear(16, 40)

        def forward(self, x):
            return self.fc(self.norm(x.to(dtype)).float().mean(1))

    labels = torch.arange(40).repeat(20)
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(40, 1, 16, generator=generator)
    inputs = centres[labels] + 0.05 * torch.randn(800, 4, 16, generator=generator)
    model = Pooled()
    got = nc.measure(model, [(inputs, labels)])["nc1"]
    exact = F.layer_norm(inputs.double(), (16,)).mean(1)
    want = nc.measure_features(exact, labels)["nc1"]
    assert got == pytest.approx(want, rel=0.03)


def test_warnings_name_the_classes_of_a_subset_by_their_own_numbers():
    inputs, labels = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
    inputs[(labels == 5) | (labels == 7)] = 1.0
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 10))
    weight, bias, kept = model[1].weight, model[1].bias, labels == 7
    with torch.no_grad():
        features = model[0](inputs)
    metric = nc.NeuralCollapse(10, 4, classes=[5, 7, 9])
    metric.update(features, labels)

    def said(function, *arguments, **options):
        with pytest.warns(nc.NeuralCollapseWarning) as caught:
            function(*arguments, **options)
        return "\n".join(str(each.message) for each in caught)

    every, one = {"classes": [5, 7, 9], "errors": True}, {"classes": [5, 7, 9], "progress": False}
    for text in (
        said(nc.measure_features, features, labels, weight, bias, more=True, **every),
        said(nc.measure, model, [(inputs, labels)], **every, progress=False),
        said(metric.compute),
    ):
        assert "classes 5 and 7 have the same mean: nc1_cdnv" in text
        assert "classes 0 and 1" not in text
    text = said(nc.measure, model, [(inputs[kept], labels[kept])], test_loader=[(inputs, labels)], **one)
    assert "no samples of classes 5, 9: measured over the 1 class" in text
    assert "only class 7 has samples" in text
    assert "test set: undefined (NaN): classes 5 and 7 have the same mean" in text
