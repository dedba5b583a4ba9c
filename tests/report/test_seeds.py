import pytest

from neuralcollapse.report.seeds import differing, seed_groups
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record


def run(name, labels=None, **config):
    return Run(name, config, {}, [Record(0, 0.0, 0.1, {})], labels=labels or {})


def grouped(*runs):
    return {group.name: [run.name for run in group.runs] for group in seed_groups(runs)}


def test_runs_that_differ_in_the_seed_alone_are_one_group_in_the_order_of_their_first():
    runs = [run("b-seed0", seed=0, lr=1), run("a-seed0", seed=0, lr=2), run("b-seed1", seed=1, lr=1, loggers=["csv"])]
    assert grouped(*runs, run("a-seed1", seed=1, lr=2)) == {"b": ["b-seed0", "b-seed1"], "a": ["a-seed0", "a-seed1"]}


def test_the_same_seed_twice_or_no_seed_is_no_group_of_seeds():
    assert grouped(run("a", seed=0), run("b", seed=0)) == {"a": ["a"], "b": ["b"]}
    assert grouped(run("a"), run("b")) == {"a": ["a"], "b": ["b"]}
    assert grouped(run("a", seed=0), run("b")) == {"a": ["a"], "b": ["b"]}


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("mlp-32-seed0", "mlp-32-seed1"), "mlp-32"),
        (("mlp_s10", "mlp_s11"), "mlp"),
        (("nets-1", "nets-2"), "nets"),
        (("nets10", "nets11"), "nets"),
        (("etf/seed0", "etf/seed1"), "etf"),
        (("seed0", "seed1"), "seed0 and 1 more"),
        (("plain", "other"), "plain and 1 more"),
        (("run", "run-2"), "run and 1 more"),  # "run" is one of them
    ],
)
def test_a_group_is_named_by_what_its_names_begin_with(names, name):
    assert list(grouped(*(run(each, seed=i) for i, each in enumerate(names)))) == [name]


def test_groups_of_the_same_beginning_are_told_apart():
    found = grouped(*(run(f"r{i}", seed=i % 2, lr=i // 2) for i in range(4)))
    assert found == {"r0 and 1 more": ["r0", "r1"], "r2 and 1 more": ["r2", "r3"]}
    assert len(grouped(run("r", seed=0, lr=1), run("r1", seed=0), run("r2", seed=1))) == 2


def test_labels_decide_where_there_are_any():
    assert grouped(run("a", {"x": "p"}, lr=1), run("b", {"x": "p"}, lr=2)) == {"p": ["a", "b"]}


def test_what_differs_leaves_out_the_seed_and_what_changes_no_network():
    assert differing([run("a", seed=0, lr=1, measure_every=1, net="m"), run("b", seed=1, lr=2, net="m")]) == ["lr"]
    assert differing([run("a", lr=1), run("b")]) == ["lr"]
