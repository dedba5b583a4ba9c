import math

import pytest

from neuralcollapse.report.paper import draw
from neuralcollapse.reproduce.checks import Results
from neuralcollapse.reproduce.figures import along, by_depth, cost, curve, energy, gaps, minority
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record


def run(name, values, layers=(), config=None, environment=None, **labels):
    def record(epoch, x):
        inner = {f"l{i}": {"nc1": y} for i, y in enumerate(layers)}
        return Record(epoch, 1.0, 0.1, {"accuracy": 1.0}, {"accuracy": 0.5}, {"nc1": x}, {}, inner)

    config = {"layers": [f"l{i}" for i in range(len(layers))]} | (config or {})
    return Run(name, config, environment or {}, [record(i, x) for i, x in enumerate(values)], [], labels)


def test_an_axis_is_sorted_by_number():
    figure = along(
        Results([run(w, [x], width=w, net="n") for w, x in (("16", 3), ("2", 1), ("128", 5))]), "width", "nc1"
    )
    (line,) = figure.marks
    assert (line.x, line.y) == ([2, 16, 128], [1, 3, 5])
    assert figure.x.log
    assert figure.x.ticks == [2, 16, 128]
    assert "2: 1, 16: 3, 128: 5" in figure.alt
    draw(figure)


def test_an_axis_with_a_zero_is_not_logarithmic():
    assert not along(Results([run(w, [1], width=w) for w in ("0", "2")]), "width", "nc1").x.log


def test_spread_over_seeds_is_a_bar_of_error():
    runs = [run(f"{w}{x}", [x], width=w) for w in ("2", "4") for x in (1, 3)]
    (line,) = along(Results(runs), "width", "nc1").marks
    assert line.y == [2, 2]
    assert line.errors == pytest.approx([math.sqrt(2)] * 2)


def test_a_curve_has_a_line_for_each_group():
    lines = curve(Results([run("a", [4, 1]), run("b", [8, 3])]), "nc1").marks
    assert [(line.name, line.y) for line in lines] == [("a", [4, 1]), ("b", [8, 3])]


def test_depth_goes_from_the_first_layer_to_the_features():
    figure = by_depth(Results([run("a", [9, 1], layers=[5, 3], net="n")]), "nc1")
    end, start = figure.marks
    assert (list(end.x), end.y, end.texts) == ([1, 2, 3], [5, 3, 1], ["l0", "l1", "features"])
    assert start.y == [5, 3, 9]
    assert start.dash == "dot"
    draw(figure)


def test_minority_is_drawn_beside_the_exact_minimum(monkeypatch):
    monkeypatch.setattr("neuralcollapse.reproduce.figures.minority_cosine", lambda one: float(one.name) / 100)
    monkeypatch.setattr("neuralcollapse.reproduce.figures.cosine_at_minimum", lambda one: -0.1)
    figure = minority(Results([run(r, [1], ratio=r) for r in ("10", "2")]), "ratio")
    exact, found = figure.marks
    assert exact.y == [-0.1, -0.1]
    assert (found.x, found.y) == ([2, 10], [0.02, 0.1])
    draw(figure)


def costs(*rows):
    parts = ("parameters", "weights", "gradients", "optimizer_state", "peak")
    return Results(
        costs=[
            {"labels": {"network": n, "d": d}, **dict.fromkeys(parts, x * 2**20)}
            | {"step_seconds": x / 1000, "device": "cpu"}
            for n, d, x in rows
        ]
    )


def test_costs_are_bars_by_network():
    found = costs(("A", "512", 4), ("A", "10", 3), ("B", "512", 8), ("B", "10", 6))
    assert [(bar.name, bar.x, bar.y) for bar in cost(found, "step_seconds").marks] == [
        ("512", ["A", "B"], [4, 8]),
        ("10", ["A", "B"], [3, 6]),
    ]
    memory = cost(found, "memory")
    assert memory.title.endswith("of A")
    assert [bar.y for bar in memory.marks] == [[4] * 4, [3] * 4]
    draw(memory)


def test_without_costs_or_landscapes_there_is_no_figure():
    assert cost(Results(), "memory") is energy(Results()) is gaps(Results()) is None
