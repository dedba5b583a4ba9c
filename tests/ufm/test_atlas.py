import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse import InputError, NeuralCollapseWarning
from neuralcollapse.ufm import Point, UnconstrainedFeatureModel
from neuralcollapse.ufm import atlas as atlas_module
from neuralcollapse.ufm.atlas import coverage, integer_partitions, set_partitions
from tests.ufm import oracles
from tests.ufm.sweep import critical_values

Model = UnconstrainedFeatureModel


@pytest.fixture(scope="module")
def theorys():
    model = Model(4, 6, 3, 0.005, 0.005, bias=False)
    return model, model.atlas(ranks=())


def test_theorys_atlas(theorys):
    _, entries = theorys
    assert [entry.name for entry in entries] == ["4", "3+1", "2+2", "2+1+1", "1+1+1+1"]
    expected = [1.386294, 0.895061, 0.780566, 0.466133, 0.149023]
    assert [round(entry.objective, 6) for entry in entries] == expected
    assert [entry.index for entry in entries] == [18, 12, 12, 6, 0]
    assert [entry.rank for entry in entries] == [0, 1, 1, 2, 3]
    assert [entry.certificate.verdict for entry in entries] == 4 * ["strict_saddle"] + ["global_minimum"]
    for entry in entries[:-1]:
        assert entry.least_eigenvalue == pytest.approx(-0.1393, abs=5e-5)
    assert entries[-1].certificate.gap < 1e-12


def test_indices_are_those_of_the_full_matrix(theorys):
    model, entries = theorys
    for entry in entries:
        spectrum = torch.linalg.eigvalsh(model.hessian(entry.point).dense())
        assert int((spectrum < -1e-8).sum()) == entry.index
        assert float(spectrum[0]) == pytest.approx(entry.least_eigenvalue, abs=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        Model(4, 6, 3, 0.005, 0.005, bias=False),
        Model(4, 6, 3, 0.005, 0.001),
        Model(5, 5, 2, 0.01, 0.002, 0.01),
        Model(4, 3, 2, 0.01, 0.002, loss="label_smoothing"),
        Model(4, 5, 2, 0.01, 0.002, loss="focal"),
        Model(3, 4, 2, 0.01, 0.002, loss="mse"),
        Model(4, 5, [5, 3, 3, 1], 0.01, 0.004),
        Model(3, 4, [6, 2, 1], 0.01, 0.004, 0.01, bias=True),
    ],
    ids=["theory", "bias", "bias_decay", "smoothing", "focal", "mse", "unequal", "unequal_bias_decay"],
)
def test_every_entry_is_critical_in_the_full_model_and_so_described(model):
    entries = model.atlas(ranks=[1, 2], starts=40)
    assert entries == sorted(entries, key=lambda entry: -entry.objective)
    for entry in entries:
        assert model.gradient(entry.point).norm() <= 1e-9
        assert model.spread(entry.point) < 1e-12 or entry.rank == 0
        assert oracles.imbalance(model, entry.point) < 1e-8
        assert entry.objective == pytest.approx(model.objective(entry.point), abs=1e-13)
        assert entry.rank == np.linalg.matrix_rank(entry.point.W.numpy(), tol=1e-6)
        spectrum = torch.linalg.eigvalsh(model.hessian(entry.point).dense())
        assert entry.index == int((spectrum < -1e-8).sum())
        assert entry.least_eigenvalue == pytest.approx(float(spectrum[0]), abs=1e-9)


@pytest.mark.parametrize(("K", "sizes"), [(4, (1, 2, 4)), (6, (1, 2, 3, 6))])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_groups_have_a_closed_form(K, sizes, bias):
    n, decay = 4, 0.004
    c = math.sqrt(n) * decay
    model = Model(K, K + 1, n, decay, decay, bias=bias)
    for s in sizes:
        partition = tuple(tuple(range(i, i + s)) for i in range(0, K, s))
        (entry,) = model.atlas([partition])
        M = math.log((1 / c - K + s) / s) if s < K else 0.0
        expected = math.log(s + (K - s) * math.exp(-M)) + c * (K - s) * M
        assert entry.objective == pytest.approx(expected, abs=1e-10)
        assert entry.rank == K // s - 1
        norm = float(torch.linalg.svdvals(model.slopes(entry.point))[0])
        expected_norm = model.mu if s == 1 else 1 / (K * math.sqrt(n))
        assert norm == pytest.approx(expected_norm, abs=1e-8)


def test_all_entries_but_the_global_one_have_the_same_spectral_norm(theorys):
    model, entries = theorys
    for entry in entries[:-1]:
        norm = float(torch.linalg.svdvals(model.slopes(entry.point))[0])
        assert norm == pytest.approx(1 / (4 * math.sqrt(3)), abs=1e-9)
        assert entry.certificate.spectral_ratio == pytest.approx(norm / model.mu, rel=1e-8)


def test_classes_of_a_group_share_their_row(theorys):
    _, entries = theorys
    for entry in entries:
        W = entry.point.W
        for group in entry.partition:
            for k in group[1:]:
                torch.testing.assert_close(W[k], W[group[0]], rtol=0, atol=1e-9)
        heads = W[[group[0] for group in entry.partition]]
        apart = torch.cdist(heads, heads) + torch.eye(len(heads)).double()
        assert float(apart.min()) > 0.1


@pytest.mark.parametrize(("bias", "bias_decay"), [(True, 0.0), (True, 0.02), (False, 0.0)])
@pytest.mark.parametrize("counts", [(5, 2, 1), (4, 4, 1), (5, 3, 2, 1)])
def test_unequal_counts_give_distinct_critical_points_down_to_the_minimum(counts, bias, bias_decay):
    model = Model(len(counts), len(counts) + 1, counts, 0.01, 0.004, bias_decay, bias)
    entries = model.atlas(ranks=[1], starts=30)
    assert len(entries) >= len(counts)
    logits = [model.logits(entry.point) for entry in entries]
    for i, entry in enumerate(entries):
        assert model.gradient(entry.point).norm() <= 1e-9
        assert entry.labelled
        assert all(float((logits[i] - other).abs().max()) > 1e-6 for other in logits[:i])
    assert entries[-1].objective == pytest.approx(model.global_minimum(), abs=1e-9)
    assert entries[-1].certificate.verdict == "global_minimum"
    assert all(entry.certificate.verdict == "strict_saddle" for entry in entries[:-1])


def test_names_tell_sizes_or_classes():
    balanced = Model(4, 5, 2, 0.01, 0.01).atlas([((3,), (0, 2, 1))])
    assert balanced[0].name == "3+1"
    assert balanced[0].sizes == (3, 1)
    unequal = Model(3, 4, [4, 1, 4], 0.01, 0.004, bias=False).atlas([((2, 0), (1,))])
    assert [entry.name for entry in unequal] == ["0,2 | 1"]


def test_only_the_partitions_asked_for_are_made():
    model = Model(8, 9, 2, 0.004, 0.004)
    entries = model.atlas([(tuple(range(8)),), (tuple(range(4)), tuple(range(4, 8)))])
    assert [entry.name for entry in entries] == ["8", "4+4"]


def values(entries):
    return [(round(entry.objective, 6), entry.rank, entry.index) for entry in entries]


def test_the_low_rank_points_of_the_theory_are_listed():
    entries = Model(4, 6, 5, 0.005, 0.005).atlas()
    assert [entry.name for entry in entries if entry.family == "partition"] == ["4", "3+1", "2+2", "2+1+1", "1+1+1+1"]
    by_partition = [entry.objective for entry in entries if entry.family == "partition"]
    assert by_partition == pytest.approx([1.386294, 0.906688, 0.800237, 0.491964, 0.183692], abs=1e-6)
    assert {(0.214179, 2, 4), (0.393125, 1, 10)} <= set(values(entries))
    square = next(entry for entry in entries if round(entry.objective, 6) == 0.214179)
    assert (square.family, square.name) == ("low rank", "rank 2: cosines -1, 0")
    assert square.certificate.verdict == "strict_saddle"
    assert square.partition == ((0,), (1,), (2,), (3,))
    assert square.record()["family"] == "low rank"
    without_bias = Model(4, 6, 5, 0.005, 0.005, bias=False).atlas()
    assert (0.214179, 2, 4) in values(without_bias)
    line = Model(3, 3, 2, 0.02, 0.02, bias=False).atlas()
    assert values(line)[2][:2] == (0.564326, 1)
    assert line[2].name == "rank 1: line at -1, 0, 1"


SWEPT = [
    ((3, 4, 1, 0.02, 0.02, 0.0, False), 80),
    ((3, 4, 1, 0.003, 0.01), 80),
    ((3, 3, [7, 2, 1], 0.01, 0.01, 0.05), 80),
    ((4, 5, 2, 0.005, 0.005), 100),
    ((4, 4, 3, 0.002, 0.02, 0.01), 100),
    ((4, 6, 1, 0.05, 0.02, 0.0, False), 100),
]


def missing(shape, count, seed):
    listed = [entry.objective for entry in Model(*shape).atlas()]
    found = critical_values(Model(*shape).collapsed(), count, seed)
    assert len(found) > count / 3
    return [value for value in found if min(abs(value - other) for other in listed) > 1e-7]


@pytest.mark.parametrize(
    ("shape", "count"), [*SWEPT[:3], *(pytest.param(*each, marks=pytest.mark.slow) for each in SWEPT[3:])]
)
def test_a_sweep_finds_no_critical_value_that_the_atlas_lacks(shape, count):
    assert missing(shape, count, seed=5) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        *(shape for shape, _ in SWEPT),
        (5, 6, 2, 0.005, 0.005),
        (5, 5, 3, 0.002, 0.001, 0.0, False),
        (5, 7, 5, 0.02, 0.005, 0.1),
        (4, 5, [3, 3, 3, 1], 0.01, 0.005),
    ],
)
def test_a_long_sweep_finds_no_critical_value_that_the_atlas_lacks(shape):
    assert missing(shape, 100, seed=6) == []


def test_points_of_low_rank_are_critical_points_of_fewer_dimensions_and_count_once():
    model = Model(4, 6, 2, 0.004, 0.02)
    entries = model.atlas()
    low = [entry for entry in entries if entry.family == "low rank"]
    assert len(low) == 6
    assert len({entry.objective for entry in entries}) == len(entries)
    for entry in low:
        assert model.gradient(entry.point).norm() < 1e-9
        basis = torch.linalg.svd(entry.point.W, full_matrices=False).Vh[: entry.rank]
        fewer = Model(4, entry.rank, 2, 0.004, 0.02)
        inner = Point(entry.point.W @ basis.T, basis @ entry.point.H, entry.point.b)
        assert fewer.objective(inner) == pytest.approx(entry.objective, abs=1e-12)
        assert fewer.gradient(inner).norm() < 1e-9


def test_ranks_and_starts_choose_the_search():
    model = Model(7, 8, 2, 0.004, 0.004)
    assert {entry.family for entry in model.atlas()} == {"partition"}
    pairs = [(tuple(range(7)),)]
    searched = model.atlas(pairs, ranks=[1], starts=40)
    assert {entry.rank for entry in searched if entry.family == "low rank"} == {1}
    for options in ({"ranks": [0]}, {"ranks": [7]}, {"ranks": [1.5]}, {"starts": 0}):
        with pytest.raises(InputError):
            model.atlas(pairs, **options)


def test_coverage_says_what_was_searched():
    assert "ranks 1 and 2" in coverage(Model(4, 5, 2, 0.01, 0.01))
    assert "No proof" in coverage(Model(4, 5, 2, 0.01, 0.01))
    assert "every partition" in coverage(Model(3, 4, [3, 2, 1], 0.01, 0.01))
    assert "rank 1 " in coverage(Model(3, 4, 2, 0.01, 0.01))
    assert "a part of" in coverage(Model(6, 7, 2, 0.01, 0.01))
    assert "Not searched" in coverage(Model(10, 12, 2, 0.01, 0.01))
    assert "rank" not in coverage(Model(2, 3, 2, 0.01, 0.01))


@pytest.mark.parametrize(("total", "count"), [(1, 1), (2, 2), (3, 3), (4, 5), (5, 7), (6, 11), (10, 42)])
def test_integer_partitions_are_counted(total, count):
    found = list(integer_partitions(total))
    assert len(set(found)) == len(found) == count
    assert all(sum(parts) == total and list(parts) == sorted(parts, reverse=True) for parts in found)


@pytest.mark.parametrize(("total", "bell"), [(1, 1), (2, 2), (3, 5), (4, 15), (5, 52), (6, 203)])
def test_set_partitions_are_counted_by_bell_numbers(total, bell):
    found = list(set_partitions(tuple(range(total))))
    assert len({frozenset(frozenset(group) for group in partition) for partition in found}) == len(found) == bell
    assert all(sorted(k for group in partition for k in group) == list(range(total)) for partition in found)


@settings(deadline=None, max_examples=8)
@given(data=st.data(), K=st.integers(3, 5))
def test_any_labelling_of_a_partition_has_the_same_objective(data, K):
    model = Model(K, K, 2, 0.01, 0.004)
    order = data.draw(st.permutations(range(K)))
    cut = data.draw(st.integers(1, K - 1))
    (plain,) = model.atlas([(tuple(range(cut)), tuple(range(cut, K)))])
    (mixed,) = model.atlas([(tuple(order[:cut]), tuple(order[cut:]))])
    assert mixed.objective == pytest.approx(plain.objective, abs=1e-10)
    assert (mixed.index, mixed.rank) == (plain.index, plain.rank)


@pytest.mark.parametrize(
    "partition",
    [((0, 1), (2,)), ((0, 1), (1, 2), (3,)), ((0, 1, 2, 3, 4),), ((1, 2), (3, 4)), (), ((0, 0, 1), (2, 3))],
)
def test_groups_that_are_no_partition_are_refused(partition):
    with pytest.raises(InputError, match="partition of the classes 0 to 3"):
        Model(4, 5, 2, 0.01, 0.01).atlas([partition])


def test_many_unequal_classes_get_the_partitions_of_the_sorted_classes():
    model = Model(7, 8, [1, 4, 3, 2, 2, 2, 1], 0.01, 0.004)
    entries = model.atlas()
    assert 2 <= len(entries) <= 15
    assert entries[-1].objective == pytest.approx(model.global_minimum(), abs=1e-9)
    assert all(model.gradient(entry.point).norm() < 1e-9 for entry in entries)
    with pytest.raises(InputError, match="choose some with partitions="):
        Model(21, 22, 2, 0.01, 0.004).atlas()


def test_points_that_several_partitions_give_count_once():
    (entry,) = Model(3, 4, 2, 1.0, 1.0).atlas()
    assert (entry.name, entry.rank, entry.certificate.verdict) == ("3", 0, "global_minimum")


@pytest.mark.parametrize("balance", [1.0, 1e6, 1e-6])
def test_the_balance_of_the_decays_changes_no_index_rank_or_objective(balance):
    plain = Model(4, 6, 5, 0.005, 0.005).atlas(ranks=[2], starts=100)
    turned = Model(4, 6, 5, 0.005 * balance, 0.005 / balance).atlas(ranks=[2], starts=100)
    assert [(e.name, e.index, e.rank) for e in turned] == [(e.name, e.index, e.rank) for e in plain]
    assert [e.objective for e in turned] == pytest.approx([e.objective for e in plain], abs=1e-12)


def test_a_partition_that_polishes_nowhere_is_named(monkeypatch):
    monkeypatch.setattr(atlas_module, "_critical_point", lambda units, partition: None)
    with pytest.warns(NeuralCollapseWarning, match="no critical point"):
        assert Model(3, 4, 2, 0.01, 0.01).atlas(ranks=()) == []
