import contextlib
import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

import neuralcollapse as nc
from neuralcollapse.geometry import intake
from neuralcollapse.geometry.formulas import nc1
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, FEATURE_MEASURES, PAIRWISE_MEASURES

K, D, N = 4, 6, 40


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    features = nc.simplex_etf(K, D)[labels] * 3 + torch.randn(N, D, generator=generator)
    return features, labels


@pytest.fixture
def head():
    torch.manual_seed(1)
    return nn.Linear(D, K)


def filled(data, classifier=None, **options):
    metric = nc.NeuralCollapse(K, D, classifier, **options)
    metric.update(*data)
    return metric


def expected(data, classifier=None, **options):
    weight, bias = (None, None) if classifier is None else (classifier.weight, classifier.bias)
    return nc.measures(nc.ClassMoments.from_batch(*data, K), weight, bias, **options)


def assert_same(got, want, rel=1e-10):
    assert got.keys() == want.keys()
    assert {name: float(value) for name, value in got.items()} == pytest.approx(
        {name: float(value) for name, value in want.items()}, rel=rel, nan_ok=True
    )


# What it computes


@pytest.mark.parametrize("sizes", [[N], [1] * N, [7, 1, 32], [0, N], [N - 1, 0, 1]])
def test_any_split_into_batches_gives_the_measures_of_all_samples(data, head, sizes):
    metric = nc.NeuralCollapse(K, D, head)
    for features, labels in zip(data[0].split(sizes), data[1].split(sizes), strict=True):
        metric.update(features, labels)
    got = metric.compute()
    assert set(got) == {*FEATURE_MEASURES, *CLASSIFIER_MEASURES}
    assert all(value.dtype == torch.float64 and value.shape == () for value in got.values())
    assert_same(got, expected(data, head))


def test_forward_gives_the_value_of_its_batch_and_accumulates(data, head):
    features, labels = data
    metric = nc.NeuralCollapse(K, D, head)
    for part in (slice(0, 24), slice(24, N)):
        batch = features[part], labels[part]
        assert_same(metric(*batch), expected(batch, head))
    assert_same(metric.compute(), expected(data, head))


def test_reset_forgets_everything_seen(data):
    features, labels = data
    metric = filled((features + 5, labels.flip(0)))
    metric.reset()
    metric.update(features, labels)
    assert_same(metric.compute(), expected(data))


def test_samples_with_the_ignored_label_are_left_out(data):
    features, labels = data
    padded = torch.cat([features, torch.full((3, D), 99.0)]), torch.cat([labels, torch.full((3,), -100)])
    assert_same(filled(padded, ignore_index=-100).compute(), expected(data))


def test_without_pairwise_the_measures_over_pairs_are_left_out(data, head):
    got = filled(data, head, pairwise=False).compute()
    assert not set(PAIRWISE_MEASURES) & set(got)
    assert_same(got, expected(data, head, pairwise=False))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@pytest.mark.parametrize("with_head", [False, True])
def test_before_any_update_everything_is_nan_for_one_stated_reason(head, with_head):
    metric = nc.NeuralCollapse(K, D, head if with_head else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", nc.NeuralCollapseWarning)
        values = metric.compute()
    assert len(values) == len(FEATURE_MEASURES) + with_head * len(CLASSIFIER_MEASURES)
    assert all(math.isnan(value) for value in values.values())
    reasons = [str(warning.message) for warning in caught if warning.category is nc.NeuralCollapseWarning]
    assert len(reasons) == 1
    assert "no samples were seen" in reasons[0]


# Its classifier


def test_the_classifier_is_no_part_of_the_metric(head):
    metric = nc.NeuralCollapse(K, D, head)
    assert list(metric.parameters()) == []
    assert list(metric.state_dict()) == ["moments"]


def test_compute_reads_the_weight_of_the_moment(data, head):
    metric = filled(data, head)
    metric.compute()
    with torch.no_grad():
        head.weight.copy_(nc.simplex_etf(K, D))
    assert float(metric.compute()["nc2"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda metric: metric.clone(), lambda metric: MetricCollection([metric]).clone()["NeuralCollapse"]],
    ids=["deepcopy", "clone", "collection"],
)
def test_a_copy_shares_the_classifier_and_sees_it_change(data, head, copied):
    metric = copied(nc.NeuralCollapse(K, D, head))
    with torch.no_grad():
        head.weight.copy_(nc.simplex_etf(K, D))
    metric.update(*data)
    assert_same(metric.compute(), expected(data, head))


def test_a_copy_does_not_share_the_samples(data):
    metric = filled(data)
    copy.deepcopy(metric).update(*data)
    assert_same(metric.compute(), expected(data))


@pytest.mark.parametrize("order", [("fc", "metric"), ("metric", "fc")])
def test_copying_a_module_that_holds_both_gives_the_metric_the_copied_classifier(data, head, order):
    parts = {"fc": head, "metric": nc.NeuralCollapse(K, D, head)}
    copied = copy.deepcopy(nn.ModuleDict({name: parts[name] for name in order}))
    with torch.no_grad():
        copied["fc"].weight.copy_(nc.simplex_etf(K, D))
    copied["metric"].update(*data)
    assert_same(copied["metric"].compute(), expected(data, copied["fc"]))


def test_pickle_keeps_samples_and_classifier(data, head):
    metric = filled(data, head)
    back = pickle.loads(pickle.dumps(metric))
    assert_same(back.compute(), expected(data, head))
    back.update(*data)
    assert float(back.moments[:K].sum()) == 2 * N
    assert float(metric.moments[:K].sum()) == N


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (nn.Linear(D + 1, K), r"\(4, 6\), got \(4, 7\)"),
        (nn.Linear(K, D), "transpose"),
        (nn.ReLU(), "got ReLU"),
        (nn.BatchNorm1d(D), "got BatchNorm1d"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_at_construction(classifier, message):
    with pytest.raises(nc.InputError, match=message):
        nc.NeuralCollapse(K, D, classifier)


@pytest.mark.parametrize("sizes", [(0, D), (K, 0), (2.0, D), (True, D)])
def test_counts_that_make_no_sense_are_refused(sizes):
    with pytest.raises(nc.InputError, match="integer of at least 1"):
        nc.NeuralCollapse(*sizes)


# Wrong input


def test_an_ignored_label_that_is_no_integer_is_refused():
    with pytest.raises(nc.InputError, match="ignore_index as an integer, got 'pad'"):
        nc.NeuralCollapse(K, D, ignore_index="pad")


BAD = [
    (torch.zeros(2, D + 1), torch.tensor([0, 1]), "dimension 6, got 7"),
    (torch.zeros(2, D), torch.tensor([0, K]), "0 to 3"),
    (torch.zeros(2, D), torch.tensor([0.0, 1.0]), "integer labels"),
    (torch.zeros(2, D), torch.tensor([0]), "1 labels for 2 rows"),
    (torch.full((2, D), torch.nan), torch.tensor([0, 1]), "finite features"),
    (torch.zeros(2, D, dtype=torch.int64), torch.tensor([0, 1]), "floating-point"),
]


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize(("features", "labels", "message"), BAD)
def test_a_bad_batch_is_named_and_changes_nothing(data, head, call, features, labels, message):
    metric = filled(data, head)
    with pytest.raises(nc.InputError, match=f"^batch 2: .*{message}"):
        getattr(metric, call)(features, labels)
    assert_same(metric.compute(), expected(data, head))
    metric.update(*data)
    assert float(metric.moments[:K].sum()) == 2 * N


def test_a_weight_that_is_nan_at_compute_does_not_end_the_metric(data, head):
    metric = filled(data, head, distributed_available_fn=lambda: True, dist_sync_fn=lambda state, group: [state])
    weight = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.fill_(torch.nan)
    with contextlib.suppress(nc.InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
        metric.compute()
    with torch.no_grad():
        head.weight.copy_(weight)
    metric.update(*data)
    assert_same(metric.compute(), expected([torch.cat([part, part]) for part in data], head))


# Saving and loading


def test_the_state_dict_round_trip_goes_on_where_it_stopped(data, head):
    features, labels = data
    saved = filled((features[:17], labels[:17])).state_dict()
    back = nc.NeuralCollapse(K, D, head)
    back.load_state_dict(saved)
    back.update(features[17:], labels[17:])
    assert_same(back.compute(), expected(data, head))


def test_loading_drops_a_cached_value(data):
    metric = filled((data[0] + torch.randn(N, D), data[1]))
    metric.compute()
    metric.load_state_dict(filled(data).state_dict())
    assert_same(metric.compute(), expected(data))


def test_the_state_dict_is_not_tied_to_the_metric(data):
    metric = filled(data)
    saved = metric.state_dict()
    before = saved["moments"].clone()
    metric.update(*data)
    other = nc.NeuralCollapse(K, D)
    other.load_state_dict(saved)
    other.update(*data)
    assert torch.equal(saved["moments"], before)


@pytest.mark.parametrize("state", [torch.zeros(3, dtype=torch.float64), None])
def test_a_state_of_the_wrong_shape_or_dtype_is_refused(data, state):
    metric = filled(data)
    state = metric.moments.float() if state is None else state
    with pytest.raises(nc.InputError, match="expected a float64 state"):
        metric.load_state_dict({"moments": state})
    assert_same(metric.compute(), expected(data))


# Merging


@pytest.mark.parametrize("as_dict", [False, True])
def test_merging_adds_the_partners_samples_and_leaves_it_alone(data, head, as_dict):
    features, labels = data
    metric = filled((features[:13], labels[:13]), head)
    partner = filled((features[13:], labels[13:]), head)
    theirs = partner.moments.clone()
    metric.compute()  # a cached value, to be dropped
    metric.merge_state(partner.metric_state if as_dict else partner)
    assert_same(metric.compute(), expected(data, head))
    metric.update(*data)
    assert torch.equal(partner.moments, theirs)


def test_merging_into_an_empty_metric_gives_the_partner(data):
    metric, partner = nc.NeuralCollapse(K, D), filled(data)
    metric.merge_state(partner)
    assert_same(metric.compute(), expected(data))
    metric.update(*data)
    assert_same(partner.compute(), expected(data))


def test_merging_an_empty_partner_changes_nothing(data):
    metric = filled(data)
    metric.merge_state(nc.NeuralCollapse(K, D))
    assert_same(metric.compute(), expected(data))


@pytest.mark.parametrize(
    "partner",
    [
        nc.NeuralCollapse(K, D + 1),
        {"moments": torch.zeros(5, dtype=torch.float64)},
        {"counts": torch.zeros(5)},
        torch.zeros(5),
        nn.Linear(2, 2),
        MetricCollection([nc.NeuralCollapse(K, D)]),
    ],
)
def test_merging_what_does_not_fit_is_refused(data, partner):
    metric = filled(data)
    with pytest.raises(nc.InputError, match="expected"):
        metric.merge_state(partner)
    assert_same(metric.compute(), expected(data))


def test_merging_another_shape_with_a_state_of_the_same_length_is_refused():
    metric, partner = nc.NeuralCollapse(5, 2), nc.NeuralCollapse(3, 3)
    assert metric.moments.shape == partner.moments.shape
    with pytest.raises(nc.InputError, match="same num_classes, feature_dim"):
        metric.merge_state(partner)


# Collections


def test_two_metrics_in_a_collection_share_one_state_and_keep_their_own_measures(data, head):
    features, labels = data
    collection = MetricCollection(
        {"plain": nc.NeuralCollapse(K, D), "head": nc.NeuralCollapse(K, D, head)}, prefix="train_"
    )
    collection.update(features[:9], labels[:9])
    collection.update(features[9:], labels[9:])
    assert list(map(len, collection.compute_groups.values())) == [2]
    got = collection.compute()
    plain, both = expected(data), expected(data, head)
    assert set(got) == {f"train_plain_{name}" for name in plain} | {f"train_head_{name}" for name in both}
    for name, value in both.items():
        assert float(got[f"train_head_{name}"]) == pytest.approx(value, rel=1e-10)
    for name, value in plain.items():
        assert float(got[f"train_plain_{name}"]) == pytest.approx(value, rel=1e-10)


def test_one_metric_in_a_prefixed_collection_works_by_forward_too(data):
    features, labels = data
    collection = MetricCollection([nc.NeuralCollapse(K, D)], prefix="val_")
    collection(features[:20], labels[:20])
    collection(features[20:], labels[20:])
    assert_same(collection.compute(), {f"val_{name}": value for name, value in expected(data).items()})


def test_metrics_that_ignore_different_labels_do_not_share_a_state(data):
    features, labels = data
    collection = MetricCollection({"all": nc.NeuralCollapse(K, D), "some": nc.NeuralCollapse(K, D, ignore_index=0)})
    collection.update(features[labels > 0], labels[labels > 0])  # here both states are equal
    collection.update(features, labels)
    assert float(collection["all"].moments[0]) == (labels == 0).sum()
    assert float(collection["some"].moments[0]) == 0


# Dtypes

CASTS = {
    "half": lambda module: module.half(),
    "to_float16": lambda module: module.to(torch.float16),
    "to_float64": lambda module: module.to(torch.float64),
    "set_dtype": lambda module: module.set_dtype(torch.float16),
    "float": lambda module: module.float(),
    "inside_a_halved_model": lambda module: nn.ModuleDict({"metric": module}).half()["metric"],
}


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_a_cast_leaves_the_state_float64_and_the_values_as_they_were(data, cast, computed):
    features, labels = data
    metric = filled((features[:21], labels[:21]))
    if computed:
        metric.compute()
    metric = cast(metric)
    assert metric.moments.dtype == torch.float64
    assert_same(metric.compute(), expected((features[:21], labels[:21])), rel=1e-12)
    metric.update(features[21:], labels[21:])
    assert_same(metric.compute(), expected(data))
    metric.reset()
    assert metric.moments.dtype == torch.float64


def test_a_metric_reset_in_inference_mode_can_be_updated_outside():
    metric = nc.NeuralCollapse(2, 3)
    with torch.inference_mode():
        metric.reset()
        metric.update(torch.randn(4, 3), torch.arange(4) % 2)
    metric.update(torch.randn(4, 3), torch.arange(4) % 2)
    assert metric.metric_state["moments"][:2].tolist() == [4, 4]


def normalised(dtype):
    """Features from a LayerNorm with more classes than dimensions, and their NC1 in float64 without the row mean."""
    torch.manual_seed(0)
    labels = torch.arange(40).repeat(30)
    features = torch.randn(40, 20)[labels] + 0.03 * torch.randn(1200, 20)
    truth = nn.functional.layer_norm(features.double(), (20,))
    right = nc1(nc.ClassMoments.from_batch(truth - truth.mean(1, keepdim=True), labels, 40))
    return nn.functional.layer_norm(features, (20,)).to(dtype), labels, right


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_metric_remembers_the_type_of_its_features_however_it_is_filled_and_kept(dtype):
    features, labels, right = normalised(dtype)

    def metric(*batches, forward=False):
        made = nc.NeuralCollapse(40, 20)
        for batch in batches:
            (made if forward else made.update)(features[batch], labels[batch])
        return made

    halves = torch.randperm(1200).split(600)
    whole = metric(slice(None))
    merged = metric(halves[0])
    merged.merge_state(metric(halves[1]))
    by_state = metric(halves[0])
    by_state.merge_state(metric(halves[1]).metric_state)
    loaded = nc.NeuralCollapse(40, 20)
    loaded.load_state_dict(whole.state_dict())
    kept = [metric(*halves), metric(*halves, forward=True), merged, by_state, loaded, pickle.loads(pickle.dumps(whole))]
    for made in [whole, *kept]:
        assert float(made.compute()["nc1"]) == pytest.approx(right, rel=0.01)
    whole.reset()
    assert not whole.moments.any()


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_states_and_pickles_of_version_0_1_0_are_read(tmp_path):
    features, labels, right = normalised(torch.float32)
    metric = nc.NeuralCollapse(40, 20)
    metric.update(features, labels)
    old = metric.moments[:-1].clone()
    loaded = nc.NeuralCollapse(40, 20)
    loaded.load_state_dict(metric.state_dict() | {"moments": old})
    unpickled = nc.NeuralCollapse(40, 20)
    unpickled.moments = old.clone()
    unpickled._update_count = 1
    merged = nc.NeuralCollapse(40, 20)
    merged.merge_state({"moments": old})
    for made in (loaded, unpickled, merged):
        assert float(made.compute()["nc1"]) == pytest.approx(right, rel=0.01)
        made.update(features, labels)
        assert nc.ClassMoments(made.moments, 40, 20).num_samples == 2400
    for wrong in (old[:-1], torch.cat([metric.moments, old[:1]]), metric.moments.float()):
        with pytest.raises(nc.InputError, match="load it into the same metric"):
            nc.NeuralCollapse(40, 20).load_state_dict(metric.state_dict() | {"moments": wrong})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8])
@pytest.mark.parametrize("classes", [None, [0, 156]])
def test_an_ignored_label_does_not_wrap_in_small_integers(dtype, classes):
    features, ignored = torch.randn(6, 4), -100
    labels = torch.tensor([0, 100, 0, 100, 0, 100] if dtype == torch.int8 else [0, 156, 0, 156, 0, 156])
    metric = nc.NeuralCollapse(157, 4, ignore_index=ignored, classes=classes)
    metric.update(features, labels.to(dtype))
    counts = metric.moments[: 2 if classes else 157]
    assert int(counts.sum()) == (3 if classes and dtype == torch.int8 else 6)


@pytest.fixture
def accelerator(monkeypatch):
    """CPU tensors are treated as those of an accelerator."""
    monkeypatch.setattr(intake, "waits_for_nothing", lambda device: False)


@pytest.mark.parametrize("forward", [False, True])
def test_on_an_accelerator_a_wrong_batch_is_named_as_the_metric_counts_it(accelerator, forward):
    metric = nc.NeuralCollapse(2, 3)
    features, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    metric(features, labels)
    metric.update(features, labels)
    metric(features, labels)
    with pytest.raises(nc.InputError, match=r"^batch 4: expected finite features"):  # noqa: PT012
        if forward:
            metric(features / 0, labels)
        else:
            metric.update(features / 0, labels)
            metric.update(features, labels)
            metric.compute()
    assert metric.compute()["nc1_quotient"] > 0
    assert nc.ClassMoments(metric.moments, 2, 3).num_samples == 24 + 8 * (not forward)


def test_walking_through_the_modules_of_a_model_is_no_look_at_the_metric(accelerator):
    model = torch.nn.Sequential(nc.NeuralCollapse(2, 3))
    model[0].update(torch.full((4, 3), torch.nan), torch.arange(4) % 2)
    model.eval()
    assert len(list(model.named_modules())) == 2
    with pytest.raises(nc.InputError, match=r"^batch 1: "):
        model[0].compute()
