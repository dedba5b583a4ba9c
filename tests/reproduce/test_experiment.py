import warnings

import pytest

from neuralcollapse import InputError
from neuralcollapse.errors import RenamedWarning
from neuralcollapse.reproduce.checks import validate
from neuralcollapse.reproduce.experiment import SCALES, SurveyConfig, find_experiment, names, parse, slug, text_of
from neuralcollapse.training.config import TrainConfig

EIGHT = ["feature-decay", "fixed-etf", "imbalance", "landscape", "layers", "losses", "optimizers", "random-labels"]
SMALL = """
title: T
claim: C
options: {epochs: 3}
vary: {loss: {CE: {}, MSE: {loss: mse}}}
checks: [{kind: end, key: nc1, at_most: 1, statement: s}]
scales: {smoke: {needs: nothing, minutes: 1, seeds: [0, 1]}}
"""


def test_the_eight_experiments_are_there():
    assert names() == EIGHT


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_describes_runs_and_checks(name, scale):
    found = find_experiment(name, scale)
    assert found.title
    assert found.claim
    assert found.source
    assert found.needs
    assert found.minutes > 0
    assert len({run.name for run in found.runs}) == len(found.runs) > 0
    kind = SurveyConfig if found.kind == "landscape" else TrainConfig
    assert all(isinstance(run.config, kind) for run in found.runs)
    validate(found.checks, name)
    assert found.figures


@pytest.mark.parametrize("name", EIGHT)
def test_every_check_at_laptop_and_paper_scale_says_why_it_has_its_form(name):
    for scale in ("laptop", "paper"):
        assert all(check.get("why") for check in find_experiment(name, scale).checks)


def test_an_option_may_have_the_value_of_another():
    text = SMALL.replace("{epochs: 3}", "{epochs: 3, width: 9, feature_dim: '=width'}")
    assert {run.config.feature_dim for run in parse(text, "mine", "smoke").runs} == {9}
    assert {run.config.feature_dim for run in parse(text, "mine", "smoke", {"width": 7}).runs} == {7}
    for wrong in ("'=depth'", "'=feature_dim'", "'='"):
        with pytest.raises(InputError, match="asks for the value of the option"):
            parse(text.replace("'=width'", wrong), "mine", "smoke")


def test_each_combination_and_seed_is_a_run():
    found = parse(SMALL, "mine", "smoke")
    assert [run.name for run in found.runs] == ["ce-seed0", "mse-seed0", "ce-seed1", "mse-seed1"]
    assert [run.config.loss for run in found.runs] == ["cross_entropy", "mse"] * 2
    assert [run.config.seed for run in found.runs] == [0, 0, 1, 1]
    assert found.runs[1].labels == {"loss": "MSE"}


def test_changes_go_before_what_the_file_says():
    assert {run.config.epochs for run in parse(SMALL, "mine", "smoke", {"epochs": 9}).runs} == {9}


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(SMALL)
    assert find_experiment(str(tmp_path / "mine.yaml"), "smoke").name == "mine"
    with pytest.raises(InputError, match="cannot read"):
        find_experiment(str(tmp_path / "none.yaml"), "smoke")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: T", "titel: T", r"no entry 'titel' \(did you mean 'title'\?\)"),
        ("epochs: 3", "epoch: 3", r"no option 'epoch'.*'epochs'"),
        ("epochs: 3", "epochs: many", "expected epochs"),
        ("claim: C", "kind: dance", "expected kind 'train' or 'landscape', got 'dance'"),
        ("MSE:", "ce:", "two runs would be called"),
        ("seeds: [0, 1]", "seeds: 3", "expected seeds as a list"),
        ("smoke:", "huge:", "no entry 'huge'"),
        ("checks: [", "checks: [3, ", "expected a list of mappings"),
        ("title: T", "title: [", "is not YAML"),
        ("options: {epochs: 3}", "options: [1]", "expected options as a mapping"),
        ("MSE: {loss: mse}", "MSE: 5", "expected MSE as a mapping"),
        ("minutes: 1", "minutes: soon", "expected minutes as a number"),
    ],
)
def test_what_a_file_says_wrongly_is_named(old, new, message):
    assert old in SMALL
    with pytest.raises(InputError, match=message) as error:
        parse(SMALL.replace(old, new), "mine", "smoke")
    assert "\n" not in str(error.value)


OLD = {
    "options: {epochs: 3}": "options: {epochs: 3, classifier: etf}",
    "CE: {}": "CE: {classifier: etf}",
    "statement: s": "say: s",
}
NEW = {
    "options: {epochs: 3}": "options: {epochs: 3, frame: simplex}",
    "CE: {}": "CE: {frame: simplex}",
    "statement: s": "statement: s",
}


@pytest.mark.parametrize("place", OLD)
def test_an_old_name_works_with_a_note_and_without_one_where_this_library_wrote_the_file(place):
    assert place in SMALL
    old, new = SMALL.replace(place, OLD[place]), SMALL.replace(place, NEW[place])
    with pytest.warns(RenamedWarning, match=r"is now called (frame=simplex|statement); the old name works in"):
        assert parse(old, "mine", "smoke") == parse(new, "mine", "smoke")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse(old, "mine", "smoke", quiet=True) == parse(new, "mine", "smoke")


def test_an_unknown_experiment_or_scale_is_refused():
    with pytest.raises(InputError, match="did you mean 'optimizers'"):
        text_of("optimisers")
    with pytest.raises(InputError, match="expected a scale"):
        find_experiment("optimizers", "lap top")
    with pytest.raises(InputError, match="has no scale 'paper'"):
        parse(SMALL, "mine", "paper")


@pytest.mark.parametrize(
    ("text", "name"), [("d = K", "d-k"), ("L-BFGS seed0", "l-bfgs-seed0"), ("..", "run"), ("W, H", "w-h")]
)
def test_names_of_folders(text, name):
    assert slug(text) == name


def test_a_list_of_several_vary_is_several_grids():
    text = SMALL.replace("minutes: 1,", "minutes: 1, vary: [{w: {a: {width: 1}}}, {w: {b: {width: 2}}, loss: {}}],")
    assert [run.name for run in parse(text, "mine", "smoke").runs] == [
        f"{name}-seed{seed}" for seed in (0, 1) for name in ("ce-a", "mse-a", "b")
    ]
    with pytest.raises(InputError, match="expected vary as a mapping"):
        parse(text.replace("[{w", "[3, {w"), "mine", "smoke")
    with pytest.raises(InputError, match="two runs would be called"):
        parse(SMALL.replace("minutes: 1,", "minutes: 1, vary: [{}, {}],"), "mine", "smoke")
