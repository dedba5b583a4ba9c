"""Classes split over real processes: every measure is that of one process, and a wrong call ends all of them alike."""

import json
import warnings

import pytest
import torch
import torch.distributed as dist

import neuralcollapse as nc
from neuralcollapse.geometry import matrix
from tests.processes import on_ranks

# K, d, classes without samples: many classes, a simplex, K = d+1, and few of many with samples
SHAPES = [(40, 8, ()), (40, 8, (1, 3, 39)), (6, 8, ()), (9, 8, (2,)), (30, 8, tuple(range(5, 30)))]


def data(count, dim, without=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([k for k in range(count) if k not in without])
    labels = classes[torch.randint(len(classes), (8 * len(classes),), generator=generator)]
    labels[: len(classes)] = classes
    centres = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    weight = centres + 0.3 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(count, generator=generator, dtype=torch.float64)
    return (2 * centres[labels] + 1 + noise).to(dtype), labels, weight.to(dtype), bias.to(dtype)


def measured(moments, weight, bias, pairwise):
    """The measures, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        values = nc.measures(moments, weight, bias, pairwise=pairwise)
    return values, [str(warning.message) for warning in said]


def rows_of(shard, *tensors):
    return [tensor[shard.classes.start : shard.classes.stop] for tensor in tensors]


def sharded(case, rank, world):
    """The measures of a case; samples are given to all ranks, or the last rank has none and the first the fewest."""
    shape, dtype, cuts, split, pairwise = case
    features, labels, weight, bias = data(*shape, dtype=getattr(torch, dtype))
    classes = None if cuts is None else range(*[min(cut, shape[0]) for cut in cuts[rank : rank + 2]])
    shard = nc.ClassShard.zeros(*shape[:2], classes=classes, split_samples=split)
    if split:
        cut = len(labels) // 5
        mine = [slice(0, cut), slice(cut, None), slice(0, 0)][rank]
        features, labels = features[mine], labels[mine]
    for part in range(3):
        shard.update(features[part::3], labels[part::3])
    return measured(shard, *rows_of(shard, weight, bias), pairwise)


def all_cases(rank, world, cases):
    return [sharded(case, rank, world) for case in cases]


def check(cases, found):
    for each in found[1:]:
        assert json.dumps(each) == json.dumps(found[0])  # the same bits on every rank
    for case, (values, said) in zip(cases, found[0], strict=True):
        shape, dtype, _, _, pairwise = case
        features, labels, weight, bias = data(*shape, dtype=getattr(torch, dtype))
        one, warned = measured(nc.ClassMoments.from_batch(features, labels, shape[0]), weight, bias, pairwise)
        assert values == pytest.approx(one, rel=1e-9 if dtype == "float64" else 1e-6, nan_ok=True), case
        assert said == warned


def wrong_calls(rank, world):
    """The message of each call of which one rank makes another than the others."""
    last, said = rank == world - 1, []
    features, labels, weight, bias = data(12, 4)
    shard = nc.ClassShard.zeros(12, 4).update(features, labels)
    own_weight, own_bias = rows_of(shard, weight, bias)
    spoilt = features.clone()
    spoilt[0, 0] = torch.nan
    apart = nc.ClassShard.zeros(12, 4, split_samples=True)
    calls = [
        lambda: nc.ClassShard.zeros(13 if last else 12, 4),
        lambda: nc.ClassShard.zeros(12, "four" if last else 4),
        lambda: nc.ClassShard.zeros(12, 4, split_samples=last),
        lambda: nc.ClassShard.zeros(12, 4, means_dtype=torch.float16 if last else torch.float64),
        lambda: nc.ClassShard.zeros(12, 4, classes=range(2) if last else None),
        lambda: nc.ClassShard.zeros(12, 4, classes=[1, 2] if last else None),
        lambda: nc.ClassShard.zeros(12, 4, device="nowhere" if last else None),
        lambda: shard.update(spoilt if last else features, labels),
        lambda: shard.update(features[:, :3] if last else features, labels),
        lambda: shard.update(features, labels + 12 if last else labels),
        lambda: shard.update(features[:9] if last else features, labels[:9] if last else labels),
        lambda: shard.update(2 * features if last else features, labels),
        lambda: apart.update(spoilt if last else features, labels),
        lambda: shard.update(features, labels, ignore_index=0 if last else None),
        lambda: nc.measures(shard, weight if last else own_weight, own_bias),
        lambda: nc.measures(shard, None if last else own_weight, None if last else own_bias),
        lambda: nc.measures(shard, own_weight, own_bias, pairwise=last),
        lambda: nc.measures(shard, own_weight, own_bias, pairwise=1.5),
        lambda: shard.gather() if last else nc.measures(shard),
        lambda: shard.update(features, labels) if last else nc.measures(shard),
        lambda: shard.predictions(features @ weight.T if last else features @ own_weight.T),
        lambda: shard.nearest_means(labels if last else features),
    ]
    for call in calls:
        with pytest.raises(nc.InputError) as error:
            call()
        said.append(str(error.value))
    # nothing of a wrong batch was added, and the ranks are still in step
    values, _ = measured(shard, own_weight, own_bias, True)
    one = nc.ClassMoments.from_batch(features, labels, 12)
    assert values == pytest.approx(measured(one, weight, bias, True)[0], rel=1e-9)
    return said


def test_two_processes_measure_what_one_does(tmp_path):
    cases = [
        ((40, 8, ()), "float64", None, False, True),
        ((40, 8, (1, 3, 39)), "float32", (0, 3, 40), True, 20),
        ((9, 8, (2,)), "float64", None, True, True),
    ]
    check(cases, on_ranks(2, tmp_path, all_cases, cases))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_whatever_the_shares_of_classes_and_samples_all_ranks_measure_what_one_process_does(world, tmp_path):
    cuts = [None, (0, 40, 40, 40)[: world + 1] if world == 2 else (0, 7, 7, 40)]
    cases = [
        (shape, dtype, cut, split, pairwise)
        for shape in SHAPES
        for dtype in ("float64", "float32")
        for cut in cuts
        for split in (False, True)
        for pairwise in (True, 20)
    ]
    check(cases, on_ranks(world, tmp_path, all_cases, cases))


@pytest.mark.slow
def test_a_wrong_call_on_one_rank_ends_all_with_the_same_line(tmp_path):
    world = 3
    found = on_ranks(world, tmp_path, wrong_calls)
    assert all(each == found[0] for each in found)
    last = f"rank {world - 1}"
    for message in found[0]:
        assert message.count("\n") == 0
        assert "expected" in message
    assert f"got 12 on rank 0 and 13 on {last}" in found[0][0]
    assert "weight[" in found[0][14]
    assert f"got measures on rank 0 and ClassShard.update on {last}" in found[0][19]


@pytest.fixture
def alone():
    """A group of this process alone, in which the code of many runs."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def one_and_shard(features, labels, count):
    return nc.ClassMoments.from_batch(features, labels, count), nc.ClassShard.zeros(count, features.shape[1]).update(
        features, labels
    )


@pytest.mark.parametrize("exact_svd", [512, 2])
@pytest.mark.parametrize("scales", [1.0, 1e-6])
def test_directions_are_found_in_each_of_the_ways_of_one_process(alone, monkeypatch, exact_svd, scales):
    monkeypatch.setattr(matrix, "_EXACT_SVD", exact_svd)
    monkeypatch.setattr(matrix, "_TILE", 7)
    features, labels, weight, bias = data(40, 8)
    features = features * torch.tensor([1, scales] * 4)
    one, shard = one_and_shard(features, labels, 40)
    for pairwise in (True, 20):
        assert measured(shard, weight, bias, pairwise)[0] == pytest.approx(
            measured(one, weight, bias, pairwise)[0], rel=1e-9
        )


def test_what_is_undefined_in_one_process_is_undefined_for_the_same_reasons(alone):
    features, labels, weight, bias = data(40, 8)
    same = torch.where((labels == 7)[:, None], 0.0, features)
    same = torch.where((labels == 4)[:, None], 0.0, same)
    for rows, head in ((same, weight), (features, 0 * weight), (0 * features, weight), (features * 1e160, weight)):
        one, shard = one_and_shard(rows, labels, 40)
        for pairwise in (True, 2_000):
            ours, theirs = (measured(each, head, bias, pairwise) for each in (shard, one))
            assert ours[0] == pytest.approx(theirs[0], rel=1e-9, nan_ok=True)
            assert ours[1] == theirs[1]
    empty = nc.ClassShard.zeros(40, 8)
    assert measured(empty, weight, bias, True)[1] == measured(nc.ClassMoments.zeros(40, 8), weight, bias, True)[1]


def test_gathered_moments_are_those_of_one_process(alone):
    features, labels, _, _ = data(40, 8, dtype=torch.float32)
    one, shard = one_and_shard(features, labels, 40)
    assert torch.allclose(shard.gather().packed, one.packed, rtol=1e-12)
    weight = torch.ones(40, 8)
    for measure in (
        *(nc.worst_pairs, nc.more_measures, nc.spectra, nc.per_class, nc.uniformity, nc.directional_cdnv, one.merge),
        lambda moments: nc.gnc(moments, weight),
        lambda moments: nc.uniform_duality(moments, weight),
        lambda moments: nc.few_shot_error(moments, 5),
        lambda moments: nc.nc5(one, moments),
        lambda moments: nc.standard_errors([one, moments]),
        lambda moments: nc.OODScorer.from_moments(moments, weight),
        lambda moments: nc.ufm.certify_head_moments(moments, 0.5, weight, None, 0.01),
    ):
        with pytest.raises(nc.InputError, match=r"got ClassShard: call its gather\(\) on all ranks"):
            measure(shard)


def test_nearest_means_and_predictions_give_nc4(alone):
    from neuralcollapse.geometry.formulas import nc4_disagreements

    features, labels, weight, bias = data(40, 8, without=(3,))
    one, shard = one_and_shard(features, labels, 40)
    predicted = shard.predictions(features @ weight.T + bias)
    assert torch.equal(predicted, (features @ weight.T + bias).argmax(1))
    assert int((shard.nearest_means(features) != predicted).sum()) == nc4_disagreements(features, predicted, one)


def test_ignored_labels_and_dtensors_of_rows(alone):
    features, labels, weight, bias = data(40, 8)
    marked = torch.where(labels == 5, -100, labels)
    shard = nc.ClassShard.zeros(40, 8).update(features, marked, ignore_index=-100)
    one = nc.ClassMoments.from_batch(features, marked, 40, ignore_index=-100)
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (1,))
    split = [distribute_tensor(each, mesh, [Shard(0)]) for each in (weight, bias)]
    assert measured(shard, *split, True)[0] == pytest.approx(measured(one, weight, bias, True)[0], rel=1e-9)
    assert nc.ClassShard.zeros(40, 8, group=mesh).classes == range(40)


def test_the_default_device_does_not_matter(alone):
    features, labels, weight, bias = data(40, 8)
    one, shard = one_and_shard(features, labels, 40)
    with torch.device("meta"):
        shard = nc.ClassShard.zeros(40, 8).update(features, labels)
        assert shard.nearest_means(features).device.type == "cpu"
        ours, theirs = (measured(each, weight, bias, 20)[0] for each in (shard, one))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_without_processes_the_error_says_what_to_call():
    with pytest.raises(nc.InputError, match="init_process_group first"):
        nc.ClassShard.zeros(4, 3)
