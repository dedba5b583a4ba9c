import warnings
from pathlib import Path

import pytest

from neuralcollapse.errors import InputError, RenamedWarning
from neuralcollapse.runs.reading import read_run
from neuralcollapse.runs.renamed import RENAMED, RENAMED_VALUES, with_new_flags, with_new_names

FIRST_VERSION = Path(__file__).parents[1] / "data/v0_1_0"
NAMES = [(where, old, new) for where, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("where", "old", "new"), NAMES)
def test_each_old_name_gives_way_in_its_place_and_is_noted(where, old, new):
    with pytest.warns(RenamedWarning, match=f"^{old} is now called {new}; the old name works in this version only$"):
        found = with_new_names({"a": 1, old: "x", "b": 2}, where)
    assert list(found.items()) == [("a", 1), (new, "x"), ("b", 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_new_names({old: "x"}, where, quiet=True) == {new: "x"}
        assert with_new_names({new: "x"}, where) == {new: "x"}
    with pytest.raises(InputError, match=f"{old} is now called {new}, got both: leave {old} out"):
        with_new_names({old: "x", new: "y"}, where)
    assert with_new_names({old: "x", new: "y"}, where, quiet=True) == {old: "x", new: "y"}


@pytest.mark.parametrize(
    ("name", "old", "new"), [(name, *item) for name, values in RENAMED_VALUES.items() for item in values.items()]
)
def test_each_old_value_is_translated_and_noted(name, old, new):
    with pytest.warns(RenamedWarning, match=f"^{name}={old} is now called {name}={new};"):
        assert with_new_names({name: old}, "train") == {name: new}
    with pytest.warns(RenamedWarning, match=f"^--{name} {old} is now called --{name} {new};"):
        assert with_new_flags([f"--{name}", old, "--a"], "train") == [f"--{name}", new, "--a"]


@pytest.mark.parametrize(
    "flags", [["--frame", "simplex"], ["--frame=simplex"], ["--frame"], ["etf"], ["--out", "etf"], ["--out=etf"]]
)
def test_other_words_of_a_command_line_stay(flags):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_new_flags(flags, "train") == flags
        assert with_new_flags(["--classifier", "etf"], "landscape") == ["--classifier", "etf"]


def test_a_run_of_the_first_version_is_read_by_the_names_of_today():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = read_run(FIRST_VERSION / "run-etf")
    assert "classifier: etf" in (FIRST_VERSION / run.name / "config.yaml").read_text()
    assert run.config["frame"] == "simplex"
    assert "classifier" not in run.config
