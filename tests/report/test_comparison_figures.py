import json
import math

import numpy as np
import pytest
from neuralcollapse.report.comparison_figures import along, by_depth, cost, curve, geometry_figures, minority

from neuralcollapse.report.paper import draw
from neuralcollapse.runs.reading import Run, group_runs
from neuralcollapse.runs.records import Geometry, Record

NAN = math.nan


def run(name, values, layers=(), geometry=False, **labels):
    def record(epoch, x):
        inner = {f"l{i}": {"nc1": y} for i, y in enumerate(layers)}
        return Record(epoch, 1.0, 0.1, {"accuracy": 1.0}, {"accuracy": 0.5}, {"nc1": x}, {}, inner)

    rows = np.eye(3, dtype=np.float32)
    seen = [Geometry(i, rows + i, rows.mean(0), rows, rows[0]) for i in range(2)] if geometry else []
    config = {"layers": [f"l{i}" for i in range(len(layers))]}
    return Run(name, config, {}, [record(i, x) for i, x in enumerate(values)], seen, labels)


def traces(figure):
    json.dumps([figure.data, figure.layout], allow_nan=False)
    draw(figure)
    return figure.data


def test_a_curve_is_the_mean_over_seeds_in_their_range():
    low, high, mean = traces(curve(group_runs([run("a", [4, 1], x="p"), run("b", [8, 3], x="p")]), "nc1", log=True))
    assert (low["y"], high["y"], mean["y"]) == ([4, 1], [8, 3], [6, 2])
    assert high["fill"] == "tonexty"
    assert mean["name"] == "p"


def test_what_is_undefined_is_left_out_of_the_mean_whatever_the_order():
    for values in ([NAN, 3], [3, NAN]):
        runs = [run(str(i), [x, NAN], x="p") for i, x in enumerate(values)]
        low, high, mean = traces(curve(group_runs(runs), "nc1"))
        assert low["y"] == high["y"] == mean["y"] == [3, None]


def test_epochs_that_a_seed_has_not_are_left_out():
    *_, mean = traces(curve(group_runs([run("a", [4, 1], x="p"), run("b", [8], x="p")]), "nc1"))
    assert (mean["x"], mean["y"]) == ([0], [6])


def test_an_axis_is_sorted_by_number():
    runs = [run(w, [x], width=w, net="n") for w, x in (("16", 3), ("2", 1), ("128", 5))]
    figure = along(group_runs(runs), "width", "nc1")
    (trace,) = traces(figure)
    assert (trace["x"], trace["y"]) == ([2, 16, 128], [1, 3, 5])
    assert figure.layout["xaxis"]["type"] == "log"
    assert "2: 1, 16: 3, 128: 5" in figure.alt


def test_an_axis_with_a_zero_is_not_logarithmic():
    runs = [run(w, [1], width=w) for w in ("0", "2")]
    assert along(group_runs(runs), "width", "nc1").layout["xaxis"]["type"] == "linear"


def test_spread_over_seeds_is_a_bar_of_error():
    runs = [run(f"{w}{x}", [x], width=w) for w in ("2", "4") for x in (1, 3)]
    (trace,) = traces(along(group_runs(runs), "width", "nc1"))
    assert trace["y"] == [2, 2]
    assert trace["error_y"]["array"] == pytest.approx([math.sqrt(2)] * 2, rel=1e-3)


def test_depth_goes_from_the_first_layer_to_the_features():
    end, start = traces(by_depth(group_runs([run("a", [9, 1], layers=[5, 3], net="n")]), "nc1"))
    assert (end["x"], end["y"], end["text"]) == ([1, 2, 3], [5, 3, 1], ["l0", "l1", "features"])
    assert start["y"] == [5, 3, 9]
    assert start["line"]["dash"] == "dot"


def test_minority_lies_beside_the_exact_minimum():
    runs = [run(r, [1], ratio=r) for r in ("10", "2")]
    exact, found = traces(minority(group_runs(runs), "ratio", lambda one: float(one.name) / 100, lambda one: -0.1))
    assert exact["y"] == [-0.1, -0.1]
    assert (found["x"], found["y"]) == ([2, 10], [0.02, 0.1])


def costs(*rows):
    parts = ("parameters", "weights", "gradients", "optimizer_state", "peak")
    return [
        {"labels": {"network": n, "d": d}, **dict.fromkeys(parts, x * 2**20), "step_seconds": x / 1000, "device": "cpu"}
        for n, d, x in rows
    ]


def test_costs_are_bars_by_network():
    found = costs(("A", "512", 4), ("A", "10", 3), ("B", "512", 8), ("B", "10", 6))
    assert [(bar["name"], bar["y"]) for bar in traces(cost(found, "step_seconds"))] == [("512", [4, 8]), ("10", [3, 6])]
    memory = cost(found, "memory")
    assert memory.title.endswith("of A")
    assert [bar["y"] for bar in traces(memory)] == [[4] * 4, [3] * 4]


def test_names_from_users_are_text_in_figures():
    evil = "<b>x</b>"
    for figure in (
        curve(group_runs([run(evil, [1, 2])]), "nc1"),
        along(group_runs([run("a", [1], width="2", net=evil)]), "width", "nc1"),
        by_depth(group_runs([run("a", [1], layers=[2], net=evil)]), "nc1"),
        cost(costs(("A", evil, 1)), "parameters"),
    ):
        assert all("<b>" not in trace["name"] for trace in traces(figure))
        assert evil in figure.alt


def test_the_geometry_of_each_run_can_be_chosen():
    cosines, motion = geometry_figures([run("a", [1], geometry=True), run("b", [1]), run("c", [1], geometry=True)])
    assert (cosines.name, motion.name) == ("cosines", "simplex-motion")
    assert (cosines.own, list(cosines.others)) == ("a", ["c"])
    assert geometry_figures([run("b", [1])]) == []
    assert geometry_figures([run("a", [1], geometry=True)])[0].others == {}
