import math

import numpy as np
import pytest

from neuralcollapse import InputError
from neuralcollapse.reproduce.checks import Finding, Verdict, judge, validate, validate_axes
from neuralcollapse.reproduce.results import Results
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Geometry, Record

NAN = math.nan


def run(name, nc1, start=10.0, accuracy=1.0, test=0.9, layers=None, **labels):
    def at(epoch, x):
        inner = {f"l{i}": {"nc1": value} for i, value in enumerate(layers or [])}
        return Record(epoch, 0.0, 0.1, {"accuracy": accuracy}, {"accuracy": test}, {"nc1": x}, {}, inner)

    config = {"layers": [f"l{i}" for i in range(len(layers or []))]}
    return Run(name, config, {}, [at(0, start), at(9, nc1)], labels=labels)


def path(name, *values, minimum=None, untrained=None):
    """A run whose NC2 takes these values; with its value at the exact minimum, and the expected one of random rows."""
    theory = {} if minimum is None else {"minimizer": {"nc2": minimum}}
    theory |= {} if untrained is None else {"untrained": {"nc2": untrained}}
    records = [Record(i, 0.0, 0.1, {"accuracy": 1.0}, {}, {"nc2": x}, **theory) for i, x in enumerate(values)]
    return Run(name, {}, {}, records)


def finding(kind, *runs, surveys=(), costs=(), **options):
    return judge([{"kind": kind, "statement": "so", **options}], Results(runs, surveys, costs)).findings[0]


def look(kind, *runs, **options):
    return finding(kind, *runs, **options).holds


def test_end():
    assert look("end", run("a", 0.1), run("b", 0.2), key="nc1", at_most=0.2)
    assert not look("end", run("a", 0.1), run("b", 0.3), key="nc1", at_most=0.2)
    assert not look("end", run("a", NAN), key="nc1", at_most=0.2)
    assert look("end", key="nc1", at_most=1) is None


def test_end_divides_the_bias_by_the_length_of_the_logits():
    # means of +-1, so W M holds four times +-3, and |W M| / sqrt(2) = sqrt(18)
    weight = np.asarray([[3.0, 0.0], [-3.0, 0.0]], np.float32)
    geometry = Geometry(9, weight / 3, np.zeros(2), weight, np.zeros(2))
    one = run("a", 0.3)
    one = Run(one.name, one.config, one.environment, one.records, [geometry])
    assert look("end", one, key="nc1", at_most=0.3 / math.sqrt(18) + 1e-6, of_logits=True)
    assert not look("end", one, key="nc1", at_most=0.3 / math.sqrt(18) - 1e-6, of_logits=True)
    assert look("end", run("b", 0.0), key="nc1", at_most=9, of_logits=True) is None  # nothing is kept to divide by


def test_a_dead_network_has_no_logits_to_divide_by_and_does_not_pass():
    still = Geometry(9, np.zeros((2, 2)), np.zeros(2), np.eye(2), np.zeros(2))
    for bias in (0.0, 0.1, NAN):
        one = run("a", bias)
        one = Run(one.name, one.config, one.environment, one.records, [still])
        assert look("end", one, key="nc1", at_most=9, of_logits=True) is False


def test_a_dead_network_does_not_near_the_minimum_even_where_that_is_not_known():
    dead = Record(9, 0.0, 0.1, {"accuracy": 0.1}, {}, {"nc1": NAN, "nc2": 0.3}, untrained={"nc2": 0.5})
    assert look("nears", Run("a", {}, {}, [dead]), key="nc2", share=0.5) is False


def test_falls():
    assert look("falls", run("a", 1.0), run("b", 0.1), key="nc1", times=10)
    assert not look("falls", run("a", 1.0), run("b", 1.1), key="nc1", times=10)
    assert not look("falls", run("a", 0.1), run("b", NAN), key="nc1", times=10)


def test_falls_counts_from_the_peak_or_to_a_level():
    low_start = path("a", 0.1, 0.8, 0.2)
    assert look("falls", low_start, key="nc2", times=4)
    assert not look("falls", low_start, key="nc2", times=4.1)
    assert look("falls", low_start, path("b", 0.2, 0.1), key="nc2", times=9, to=0.2)
    assert not look("falls", low_start, path("b", 0.4, 0.3), key="nc2", times=9, to=0.2)
    assert not look("falls", path("a", NAN, NAN), key="nc2", times=2, to=1)


def test_falls_looks_at_some_of_the_runs():
    runs = [run("a", 0.1, c="etf"), run("b", 9.0, c="learned")]
    assert look("falls", *runs, key="nc1", times=10, only={"c": "etf"})
    assert not look("falls", *runs, key="nc1", times=10)
    assert look("falls", *runs, key="nc1", times=10, only={"c": "other"}) is None


def test_what_rises_is_said_to_rise():
    found = finding("falls", path("up", 0.1, 0.2, 0.3), path("down", 0.9, 0.1), key="nc2", times=2)
    assert not found.holds
    assert "rises to the end in up, from 0.1" in found.detail
    assert "rises" not in finding("falls", path("down", 0.9, 0.1), key="nc2", times=2).detail


def test_nears_counts_the_way_from_an_untrained_head_to_the_exact_minimum():
    one = path("a", 0.9, 0.3, minimum=0.1, untrained=0.5)
    assert look("nears", one, key="nc2", share=0.5)
    assert not look("nears", one, key="nc2", share=0.49)
    assert look("nears", path("b", 0.9, 0.3, minimum=0.1), key="nc2", share=0.25)  # from the peak
    assert not look("nears", one, path("c", 0.9, NAN, minimum=0.1, untrained=0.5), key="nc2", share=9)
    assert look("nears", one, path("d", 0.9, 0.1), key="nc2", share=0.5) is None
    assert look("nears", key="nc2", share=0.5) is None


def test_alike():
    close = [run("a", 1, test=0.90, x="p"), run("b", 1, test=0.91, x="q")]
    assert look("alike", *close, key="test.accuracy", axis="x", within=0.02)
    assert not look("alike", *close, key="test.accuracy", axis="x", within=0.005)
    assert look("alike", close[0], key="test.accuracy", axis="x", within=1) is None
    assert not look("alike", *close, run("c", 1, test=NAN, x="r"), key="test.accuracy", axis="x", within=1)


def test_no_worse_takes_means_over_seeds_and_allows_better():
    runs = [
        run("a", 1, test=0.95, c="etf"),
        run("b", 1, test=0.85, c="etf"),
        run("c", 1, test=0.905, c="learned"),
    ]
    options = {"key": "test.accuracy", "less": {"c": "etf"}, "more": {"c": "learned"}}
    assert look("no_worse", *runs, within=0.01, **options)
    assert not look("no_worse", *runs, within=0.001, **options)
    assert look("no_worse", run("a", 1, test=1.0, c="etf"), run("c", 1, test=0.5, c="learned"), within=0, **options)


def test_fewer_compares_configurations_that_agree_otherwise():
    costs = [
        {"labels": {"net": n, "d": d}, "parameters": p}
        for n, d, p in (("A", "full", 100), ("A", "K", 75), ("B", "full", 100), ("B", "K", 95))
    ]
    options = {"of": "parameters", "percent": 20, "more": {"d": "full"}}
    assert look("fewer", costs=costs, less={"net": "A", "d": "K"}, **options)
    assert not look("fewer", costs=costs, less={"d": "K"}, **options)
    assert look("fewer", less={"d": "K"}, **options) is None


def test_interpolates_asks_for_no_level():
    fit, fail = run("a", 0.5), run("b", 0.6, accuracy=0.3)
    assert look("interpolates", fit, fail, key="nc1", accuracy=0.99)
    assert not look("interpolates", fit, run("b", 0.4, accuracy=0.3), key="nc1", accuracy=0.99)
    assert not look("interpolates", fit, run("c", NAN), fail, key="nc1", accuracy=0.99)
    dead = run("dead", NAN, accuracy=0.1)  # is not collapsed
    found = finding("interpolates", fit, fail, dead, key="nc1", accuracy=0.99)
    assert found.holds
    assert "1 dead, not collapsed" in found.detail
    assert look("interpolates", fit, dead, key="nc1", accuracy=0.99)
    assert look("interpolates", run("a", 0.7), fail, dead, key="nc1", accuracy=0.99) is False
    assert look("interpolates", fit, key="nc1", accuracy=0.99) is None


def test_grows_sorts_its_axis_by_number():
    runs = [run(w, 1, accuracy=a, width=w) for w, a in (("16", 0.9), ("2", 0.1), ("128", 1.0))]
    assert look("grows", *runs, key="train.accuracy", axis="width", by=0.9)
    assert not look("grows", *runs, key="train.accuracy", axis="width", by=0.95)


def test_deeper():
    assert look("deeper", run("a", 0.1, layers=[4.0, 3.0, 2.0]), key="nc1", correlation=-0.9)
    assert not look("deeper", run("a", 5.0, layers=[4.0, 3.0, 2.0]), key="nc1", correlation=-0.9)
    assert not look(
        "deeper", run("a", 0.1, layers=[4.0, 3.0]), run("b", 0.1, layers=[4.0, NAN]), key="nc1", correlation=-0.9
    )
    assert look("deeper", run("a", 0.1), key="nc1", correlation=-0.9) is None


def survey(verdicts=("global_minimum",), gap=1e-9, atlas=("strict_saddle", "global_minimum")):
    starts = {"verdicts": list(verdicts), "gaps": [gap] * len(verdicts), "objectives": [1.0] * len(verdicts)}
    return {"name": "m", "labels": {}, "starts": starts, "atlas": [{"verdict": verdict} for verdict in atlas]}


def test_surveys():
    assert look("certified", surveys=[survey()], gap=1e-6)
    assert not look("certified", surveys=[survey(gap=1e-3)], gap=1e-6)
    assert not look("certified", surveys=[survey(gap=NAN)], gap=1e-6)
    assert not look("certified", surveys=[survey(), survey(gap=NAN)], gap=1e-6)
    assert not look("certified", surveys=[survey(("global_minimum", "undecided"))], gap=1e-6)
    assert look("certified", gap=1) is None
    assert look("saddles", surveys=[survey()])
    assert not look("saddles", surveys=[survey(atlas=("undecided", "global_minimum"))])
    assert not look("saddles", surveys=[survey(atlas=("strict_saddle",))])


@pytest.mark.parametrize(
    ("holds", "word"),
    [
        ([True, True], "supported"),
        ([True, False], "partly supported"),
        ([True, None], "partly supported"),
        ([False, None], "not supported"),
        ([None], "not tested"),
    ],
)
def test_the_verdict_counts_what_holds(holds, word):
    verdict = Verdict([Finding(item, f"Part {i}", "") for i, item in enumerate(holds)])
    assert verdict.word == word
    assert f"{sum(item is True for item in holds)} of {len(holds)} checks hold" in verdict.sentence
    for i, item in enumerate(holds):
        assert (f"part {i}" in verdict.sentence) == (item is not True)


def test_the_reason_of_a_check_goes_with_its_finding():
    check = {"kind": "end", "statement": "s", "key": "nc1", "at_most": 1, "why": "it is\n  so"}
    assert judge([check], Results([run("a", 0.5)])).findings[0].why == "it is so"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"kind": "ends", "statement": "s"}, "check: no 'ends'.*'end'"),
        ({"kind": "end", "statement": "s", "key": "nc9"}, "no number 'nc9'"),
        ({"kind": "end", "statement": "s", "key": "minimizer.nc9"}, "no number 'minimizer.nc9'"),
        ({"kind": "end", "statement": "s", "kye": "nc1"}, "check 'end'"),
        ({"kind": "end", "statement": "s", "key": "nc1", "at_mots": 1}, "no option 'at_mots'.*did you mean 'at_most'"),
        ({"kind": "end", "statement": "s", "key": "nc1"}, "expected at_least or at_most"),
        ({"kind": "falls", "statement": "s", "key": "nc1", "times": NAN}, "expected times as a number, got nan"),
        ({"kind": "falls", "statement": "s", "key": "nc1", "times": "ten"}, "expected times as a number, got 'ten'"),
        ({"kind": "nears", "statement": "s", "key": "test.accuracy", "share": 0.5}, "theory expects no test.accuracy"),
        ({"kind": "minimizer", "statement": "s", "within": 1, "threshold": {"r": 40}}, "numbers in quotes"),
        ({"kind": "saddles", "statement": ["s"]}, "expected statement as text"),
        ({"kind": "saddles", "statement": "s", "why": 3}, "expected why as text"),
        ({"kind": "saddles"}, "expected `statement`"),
        (
            {"kind": "fewer", "statement": "s", "of": "wieghts", "less": {}, "more": {}, "percent": 1},
            "expected `of` as one of parameters",
        ),
    ],
)
def test_a_check_that_there_is_none_of_is_refused(check, message):
    with pytest.raises(InputError, match=message):
        validate([check], "mine")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"kind": "alike", "axis": "los"}, "no axis 'los' .did you mean 'loss'"),
        ({"kind": "minimizer", "threshold": {"ratoi": "40"}}, "no axis 'ratoi'.*`vary` has loss, width"),
        ({"kind": "grows", "axis": "loss"}, "expected numbers as the values of loss, got focal"),
        ({"kind": "minority", "axis": "loss"}, "expected numbers"),
    ],
)
def test_an_axis_that_runs_lack_or_that_has_no_numbers_is_refused(item, message):
    labels = [{"loss": "focal", "width": "4"}, {"loss": "mse"}]
    validate_axes([{"kind": "grows", "axis": "width"}, {"kind": "alike", "axis": "loss"}, {"kind": "end"}], labels, "f")
    with pytest.raises(InputError, match=message):
        validate_axes([item], labels, "f")


def test_runs_without_an_axis_do_not_grow_along_it():
    runs = [run("a", 1.0, width="1"), run("b", 2.0, width="2"), run("c", 9.0, depth="3")]
    assert look("grows", *runs, key="nc1", axis="width", by=1)
