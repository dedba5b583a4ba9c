"""A simplex that follows the class means: the stated rule in float64 by hand, its state, and what it is good for."""

import copy
import pickle

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import neuralcollapse as nc
from neuralcollapse.heads.nearest_simplex import NearestSimplex
from tests.helpers import Dispatched

F64 = torch.float64
K, D = 4, 6


def layer(**options):
    return nc.ETFClassifier(D, K, rotation="nearest", dtype=F64, **options)


def batches(count, missing=()):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(K, D, generator=generator, dtype=F64)
    for step in range(count):
        labels = torch.arange(12) % K
        if step in missing:
            labels = labels[labels != 2]
        yield centres[labels] + 0.1 * torch.randn(len(labels), D, generator=generator, dtype=F64), labels


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("update_every", [1, 3])
def test_the_rule_is_the_stated_one(momentum, update_every):
    own = layer(momentum=momentum, update_every=update_every)
    means, rows = {}, nc.simplex_etf(K, D, dtype=F64)
    for call, (features, labels) in enumerate(batches(8, missing=(0, 1, 5)), start=1):
        own(features)
        own.follow(labels)
        for k in labels.unique().tolist():
            batch = features[labels == k].mean(0)
            means[k] = batch if k not in means else (1 - momentum) * means[k] + momentum * batch
        if call % update_every == 0 and len(means) == K:
            stacked = torch.stack([means[k] for k in range(K)])
            rows, _ = nc.nearest_simplex_etf(stacked - stacked.mean(0))
        assert torch.allclose(own.weight, rows, atol=1e-12), call
    assert not torch.allclose(rows, nc.simplex_etf(K, D, dtype=F64), atol=0.1)


def test_eval_mode_keeps_nothing_and_other_features_can_be_given():
    own = layer().eval()
    features, labels = next(iter(batches(1)))
    own(features)
    with pytest.raises(nc.InputError, match="a forward pass in training mode before follow"):
        own.follow(labels)
    other = layer()
    other(features)
    other.follow(labels)
    own.follow(labels, features)
    assert torch.equal(own.weight, other.weight)
    with pytest.raises(nc.InputError, match="before follow"):
        other.follow(labels)  # the features were used up


def test_tokens_and_ignored_labels():
    features, labels = next(iter(batches(1)))
    flat, tokens = layer(), layer()
    flat(features[:8])
    flat.follow(labels[:8])
    labels = labels.clone()
    labels[8:] = -100
    tokens(features.view(3, 4, D))
    tokens.follow(labels.view(3, 4), ignore_index=-100)
    assert torch.allclose(flat.weight, tokens.weight, atol=1e-12)


def test_a_resumed_layer_goes_on_the_same():
    whole, first = layer(update_every=2), layer(update_every=2)
    given = list(batches(7))
    for features, labels in given:
        whole(features)
        whole.follow(labels)
    for features, labels in given[:3]:
        first(features)
        first.follow(labels)
    copies = [layer(update_every=2), copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    copies[0].load_state_dict(first.state_dict())
    for own in copies:
        for features, labels in given[3:]:
            own(features)
            own.follow(labels)
        assert torch.equal(own.weight, whole.weight)


def test_half_precision_keeps_its_means_in_float32():
    own = nc.ETFClassifier(D, K, rotation="nearest", dtype=torch.bfloat16)
    for features, labels in batches(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = own(features.to(torch.bfloat16))
        assert logits.dtype == torch.bfloat16
        own.follow(labels)
    assert own.nearest.means.dtype == torch.float32
    exact = layer()
    for features, labels in batches(4):
        exact(features)
        exact.follow(labels)
    assert torch.allclose(own.weight.double(), exact.weight, atol=0.05)


def test_a_whole_network_cast_to_half_keeps_its_means_and_frame():
    own = nc.ETFClassifier(D, K, rotation="nearest")
    features, labels = next(iter(batches(1)))
    own.follow(labels, features)
    before = own.nearest.means.clone(), own.nearest.rows.clone()
    own.to(torch.bfloat16)
    assert own.scale.dtype == own.weight.dtype == torch.bfloat16
    assert torch.equal(own.nearest.means, before[0])
    assert torch.equal(own.nearest.rows, before[1])
    assert own.double().nearest.means.dtype == F64
    assert own.to("meta").nearest.means.device.type == "meta"


def test_the_frame_may_turn_between_the_forward_and_the_backward_pass():
    own, (features, labels) = layer(momentum=1.0), next(iter(batches(1)))
    features.requires_grad_()
    pull, rows = torch.randn(12, K, dtype=F64), own.weight
    logits = own(features)
    own.follow(labels)
    logits.backward(pull)
    assert torch.allclose(features.grad, pull @ rows)
    assert not torch.allclose(own.weight, rows, atol=0.1)


def test_d_one_less_than_k_and_fix_classifier():
    own = nc.fix_classifier(nn.Linear(3, 4, dtype=F64), rotation="nearest", momentum=0.5)
    features = torch.randn(8, 3, dtype=F64)
    own(features)
    own.follow(torch.arange(8) % 4)
    assert torch.allclose(own.weight @ own.weight.T, torch.full((4, 4), -1 / 3).double().fill_diagonal_(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.0}, "momentum above 0 and up to 1, got 0.0"),
        ({"momentum": 1.5}, "momentum above 0"),
        ({"update_every": 0}, "update_every to be an integer of at least 1"),
        ({"rotation": "fast", "momentum": 0.5}, "momentum and update_every are for rotation='nearest'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(nc.InputError, match=message):
        nc.ETFClassifier(D, K, **({"rotation": "nearest"} | options))


def test_wrong_labels_are_refused_and_a_fixed_layer_follows_nothing():
    own = layer()
    own(torch.ones(3, D, dtype=F64))
    with pytest.raises(nc.InputError, match="labels from 0 to 3"):
        own.follow(torch.tensor([0, 1, K]))
    with pytest.raises(nc.InputError, match="ignore_index as an integer"):
        own.follow(torch.tensor([0, 1, 2]), torch.ones(3, D, dtype=F64), ignore_index="pad")
    with pytest.raises(nc.InputError, match="rotation='nearest'"):
        nc.ETFClassifier(D, K).follow(torch.tensor([0]))


def test_a_refused_batch_leaves_the_state_as_it_was():
    own = layer()
    features, labels = next(iter(batches(1)))
    own.follow(labels, features)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    broken = features.clone()
    broken[0, 0] = torch.nan
    for wrong in ((labels, broken), (labels + 1, features)):
        with pytest.raises(nc.InputError, match=r"expected finite features|labels from 0 to 3"):
            own.follow(*wrong)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def train(head, follow):
    """Training accuracy of a ReLU network without normalisation on the digits."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.ReLU())
    network = nn.Sequential(body, head)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(25):
        for batch in torch.randperm(len(labels)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            if follow:
                head.follow(labels[batch])
    return float((network(images).argmax(1) == labels).double().mean())


def test_following_the_means_saves_a_relu_network_that_the_plain_frame_cannot_train():
    following = train(nc.ETFClassifier(10, 10, rotation="nearest"), True)
    plain = train(nc.ETFClassifier(10, 10), False)
    assert following > 0.97
    assert plain < 0.95


def test_a_saved_layer_holds_no_batch():
    own = layer()
    own(torch.ones(3, D, dtype=F64))
    again = pickle.loads(pickle.dumps(own))
    assert again._kept is None
    assert own._kept is not None


def test_on_maps_it_follows_as_on_rows():
    torch.manual_seed(0)
    rows, maps = (nc.ETFClassifier(6, 3, rotation="nearest", axis=axis) for axis in (-1, -3))
    features, labels = torch.randn(8, 6, 2, 2), torch.arange(32).reshape(8, 2, 2) % 3
    for layer, seen in ((rows, features.movedim(1, -1)), (maps, features)):
        layer(seen)
        layer.follow(labels)
    torch.testing.assert_close(maps.weight, rows.weight)
    assert not torch.allclose(maps.weight, nc.simplex_etf(3, 6), atol=1e-2)


# An accelerator, played by the CPU


@pytest.fixture
def waitless(monkeypatch):
    """CPU tensors take the way of an accelerator's."""
    monkeypatch.setattr(NearestSimplex, "_follow_at_once", NearestSimplex._follow_without_waiting)


@pytest.mark.parametrize("ignore_index", [None, 1, -100])
def test_without_waiting_the_means_are_the_same(monkeypatch, ignore_index):
    at_once, waitless = layer(update_every=2), layer(update_every=2)
    monkeypatch.setattr(waitless.nearest, "_follow_at_once", waitless.nearest._follow_without_waiting)
    for features, labels in batches(6, missing=(0, 3)):
        labels[:2] = 3 if ignore_index is None else ignore_index
        for own in (at_once, waitless):
            own.follow(labels, features, ignore_index=ignore_index)
        torch.testing.assert_close(waitless.nearest.means, at_once.nearest.means)
        assert torch.equal(waitless.nearest.seen, at_once.nearest.seen)
        torch.testing.assert_close(waitless.weight, at_once.weight)


@pytest.mark.usefixtures("waitless")
def test_only_an_update_of_the_frame_waits_for_the_device():
    own = layer(update_every=3)
    for call, (features, labels) in enumerate(batches(6), start=1):
        with Dispatched() as dispatched:
            own.follow(labels, features, ignore_index=-100)
        assert bool(dispatched.waits) == (call % 3 == 0)


@pytest.mark.usefixtures("waitless")
@pytest.mark.parametrize("wrong", ["label", "nan"])
def test_a_wrong_batch_is_left_out_without_waiting_and_raised_at_the_update(wrong):
    own = layer(update_every=2)
    (features, labels), *_ = batches(1)
    own.follow(labels, features)
    before = own.nearest.means.clone()
    features, labels = features.clone(), labels.clone()
    if wrong == "label":
        labels[1] = K
    else:
        features[1, 1] = torch.nan
    with pytest.raises(nc.InputError, match="finite features and labels from 0 to 3, got others since the last update"):
        own.follow(labels, features)
    assert torch.equal(own.nearest.means, before)


def test_on_a_device_without_values_nothing_is_read():
    own = layer(update_every=100).to("meta")
    own(torch.ones(3, D, dtype=F64, device="meta"))
    own.follow(torch.zeros(3, dtype=torch.int64, device="meta"))


def test_made_in_inference_mode_it_counts_its_calls():
    labels, features = torch.arange(K), torch.randn(K, D, dtype=F64)
    with torch.inference_mode():
        own = layer(update_every=2)
        first = own.nearest.rows
        for _ in range(2):
            own.follow(labels, features)
        own.to(torch.float32)
        own.follow(labels, features)
    assert int(own.nearest.calls) == 3
    assert not torch.equal(own.nearest.rows, first)
