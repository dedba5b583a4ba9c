"""The harness of the benchmarks: ratios within a round, and no table from a machine that was too noisy."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Its modules, by the names that they have for each other."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(FOLDER))
    yield lambda name: importlib.import_module(name)
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def table_of(harness, pace):
    """A table whose rows take times that `pace` makes up: base 1, other 2, times pace(round, row)."""
    taken = []

    def take(count):
        rounds = []
        for _ in range(count):
            number = len(taken)
            taken.append(number)
            rounds.append({"base": 1.0 * pace(number, 0), "other": 2.0 * pace(number, 1)})
        return rounds

    rows = [harness.Row("base", lambda: None), harness.Row("other", lambda: None, "at most 3")]
    return harness.Table("made up", rows, rounds=8, take=take), taken


def test_a_ratio_is_taken_within_a_round_so_that_a_change_of_pace_does_not_count(bench):
    harness = bench("harness")
    table, taken = table_of(harness, lambda number, row: 1.0 + 0.2 * (number % 2))
    _, other = harness.measured(table)
    assert other.ratio == pytest.approx(2.0)
    assert other.quartiles == pytest.approx((2.0, 2.0))
    assert not other.noisy
    assert len(taken) == 8


def test_rows_that_are_not_compared_have_times_alone_and_are_never_noisy(bench):
    harness, page = bench("harness"), bench("page")
    table, taken = table_of(harness, lambda number, row: 1.0 + number % 2)
    table.compared = False
    base, other = harness.measured(table)
    assert (base.ratio, other.ratio, other.noisy, len(taken)) == (None, None, False, 8)
    assert other.quartiles == pytest.approx((2 / 3, 4 / 3))
    assert "| other | 3 s |  | 0.667 to 1.33 | 8 |" in page.table(page.Section("x", "X", [base, other], []))


@pytest.mark.parametrize("noisy", ["base", "other"])
def test_noise_is_told_after_three_times_the_rounds(bench, noisy):
    harness = bench("harness")

    def pace(number, row):
        slow = 1.6 if number % 2 else 1.0
        return slow if noisy == "base" or row == 1 else 1.0  # the machine's pace alone, or one row's

    table, taken = table_of(harness, pace)
    results = harness.measured(table)
    assert len(taken) == 24
    assert [result.label for result in results if result.noisy] == [noisy]


def test_quiet_rounds_after_noisy_ones_make_a_table_quiet(bench):
    harness = bench("harness")
    table, taken = table_of(harness, lambda number, row: 1.6 if number < 8 and number % 2 and row else 1.0)
    results = harness.measured(table)
    assert 8 < len(taken) <= 24
    assert not any(result.noisy for result in results)


@pytest.fixture
def made_up(bench, monkeypatch):
    """The command with one made-up table, quiet or not."""
    run, harness = bench("run"), bench("harness")
    pace = {"noise": 0.0}
    monkeypatch.setattr(run, "TABLES", {"made_up": "nowhere"})
    monkeypatch.setattr(harness, "fresh_peak", lambda *arguments: 250_000_000)

    def make(name, quick):
        return table_of(harness, lambda number, row: 1 + pace["noise"] * row * (number % 2))[0]

    monkeypatch.setattr(run, "make", make)
    return run, pace


def test_a_quiet_run_writes_both_files(made_up, tmp_path, capsys):
    run, _ = made_up
    assert run.main([], tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results.json"}
    text = (tmp_path / "README.md").read_text()
    assert "| other | 2 s | 2 | 2 to 2 | 8 |  | at most 3 |  |" in text
    assert str(FOLDER.parent) not in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["tables"][0]["results"][1]["ratio"] == 2
    assert found["machine"]["threads"] >= 1


def test_a_noisy_run_prints_and_writes_nothing(made_up, tmp_path, capsys):
    run, pace = made_up
    pace["noise"] = 0.6
    assert run.main([], tmp_path) == 1
    assert not list(tmp_path.iterdir())
    seen = capsys.readouterr()
    assert "made_up: other" in seen.err
    assert "Nothing was written" in seen.err
    assert "**noisy**" in seen.out


def test_a_table_that_was_noisy_is_made_once_more(made_up, tmp_path, capsys, monkeypatch):
    run, pace = made_up
    make, times = run.make, []

    def quiet_the_second_time(name, quick):
        times.append(name)
        pace["noise"] = 0.6 if len(times) == 1 else 0.0
        return make(name, quick)

    monkeypatch.setattr(run, "make", quiet_the_second_time)
    assert run.main([], tmp_path) == 0
    assert times == ["made_up", "made_up"]
    assert "noisy" not in (tmp_path / "README.md").read_text().partition("## ")[2]
    assert "Again, as the machine was too noisy: made_up" in capsys.readouterr().out


def test_some_tables_alone_are_printed_only(made_up, tmp_path, capsys):
    run, _ = made_up
    assert run.main(["made_up"], tmp_path) == 0
    assert not list(tmp_path.iterdir())
    assert "| other | 2 s | 2 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["momens"], tmp_path)
    assert "no table 'momens': expected some of made_up" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["moments", "measures", "pairs", "classifier", "certificate"])
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_a_table_runs_in_small(bench, name):
    """Each row once; the notes check that reference loops and library agree."""
    harness, run = bench("harness"), bench("run")
    results = harness.measured(run.make(name, True), judge=False)
    assert len(results) >= 2
    assert all(result.seconds > 0 for result in results)


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_the_stream_is_always_the_same_and_holds_every_class_twice(bench):
    stream = bench("stream")
    one, two = (stream.Stream(50, 8, 5, 40) for _ in range(2))
    labels = [data.batch(number)[1] for data in (one,) for number in range(5)]
    assert sum(batch.bincount(minlength=50) for batch in labels).min() >= 2
    assert all(bool((one.batch(3)[i] == two.batch(3)[i]).all()) for i in range(2))
    halves = one.moments(rank=0, world=2).merge(one.moments(rank=1, world=2))
    assert one.measures(halves)["nc1"] == pytest.approx(one.measures(one.moments())["nc1"], rel=1e-12)


def test_every_row_of_the_growth_runs_in_small(bench, capsys):
    growth = bench("growth")
    assert len({row.what for row in growth.ROWS}) == len(growth.ROWS)
    assert growth.main(["--quick"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(growth.ROWS)


def test_a_row_that_grows_too_fast_is_missed(bench):
    growth = bench("growth")
    row = growth.Row("x", 5, lambda path, n: None)
    assert growth.Grown(row, 1.0, 11.0).fine
    assert not growth.Grown(row, 1.0, 20.0).fine
    assert not growth.Grown(row._replace(flat=True), 1.0, 3.0).fine
    assert "**missed**" in growth.table([growth.Grown(row, 1.0, 20.0)])


def test_the_benchmark_of_a_gpu_runs_and_refuses_a_machine_without_one(bench, tmp_path, capsys):
    gpu = bench("gpu")
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "results")]) == 0
    lines = json.loads((tmp_path / "results/cpu.json").read_text())
    assert {line["what"].split(":")[0].split(" ")[0] for line in lines} == {
        "moments",
        "metric",
        "measures",
        "measuring",
        "head",
    }
    assert (tmp_path / "results/cpu.md").read_text().startswith("# CPU\n")
    if not gpu.torch.cuda.is_available():
        assert gpu.main([]) == 2
        assert "expected a CUDA GPU, found none" in capsys.readouterr().err
