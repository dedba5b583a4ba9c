import pytest
import yaml

from neuralcollapse import InputError
from neuralcollapse.report.experiment import figures
from neuralcollapse.reproduce.checks import Results, validate
from neuralcollapse.reproduce.experiment import SCALES, SurveyConfig, find_experiment, names, parse, slug, text_of
from neuralcollapse.training.config import TrainConfig

MINE = {
    "title": "Mine",
    "options": {"data": "digits", "epochs": 3},
    "vary": {"loss": {"MSE": {"loss": "mse"}, "cross-entropy": {}}},
    "checks": [{"kind": "end", "key": "nc1", "at_most": 1, "say": "it ends"}],
    "figures": [{"kind": "curve", "key": "nc1"}],
    "scales": {"smoke": {"seeds": [0, 1], "options": {"epochs": 2}}, "laptop": {"vary": {"loss": None}}},
}


def changed(**changes) -> str:
    return yaml.safe_dump(MINE | changes, sort_keys=False)


def refusal(text: str, scale: str = "smoke") -> str:
    with pytest.raises(InputError) as caught:
        parse(text, "mine", scale)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_experiments_of_the_paper_are_there():
    assert names() == sorted(set(names()))
    assert names() == [
        "feature-decay",
        "fixed-etf",
        "imbalance",
        "landscape",
        "layers",
        "losses",
        "optimizers",
        "random-labels",
    ]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
def test_every_experiment_parses_with_unique_runs_checks_that_validate_and_known_figures(name, scale):
    found = find_experiment(name, scale)
    assert (found.name, found.scale) == (name, scale)
    assert found.title
    assert found.claim
    assert found.source
    assert found.needs
    assert found.minutes > 0
    for planned in (found.runs, found.costs):
        assert len({run.name for run in planned}) == len(planned)
    kind = SurveyConfig if found.kind == "landscape" else TrainConfig
    assert found.runs
    assert all(isinstance(run.config, kind) for run in (*found.runs, *found.costs))
    assert found.checks
    validate(found.checks, name)
    assert found.figures
    kinds = {"curve", "axis", "depth", "minority", "cost", "energy", "gaps"}
    assert {item["kind"] for item in found.figures} <= kinds


def test_a_scale_goes_before_the_rest_and_seeds_are_outermost():
    found = parse(changed(), "mine", "smoke")
    assert [run.name for run in found.runs] == [
        "mse-seed0",
        "cross-entropy-seed0",
        "mse-seed1",
        "cross-entropy-seed1",
    ]
    assert [(run.config.loss, run.config.seed, run.config.epochs) for run in found.runs][1:3] == [
        ("cross_entropy", 0, 2),
        ("mse", 1, 2),
    ]
    assert found.runs[0].labels == {"loss": "MSE"}


def test_a_scale_drops_an_axis_by_leaving_it_empty():
    (run,) = parse(changed(), "mine", "laptop").runs
    assert (run.name, run.labels, run.config.epochs) == ("seed0", {}, 3)


def test_changes_go_before_the_options_of_every_run_and_cost():
    text = changed(costs={"classifier": {"ETF": {"classifier": "etf"}, "learned": {}}})
    found = parse(text, "mine", "smoke", {"data": "mnist:folder"})
    assert {run.config.data for run in (*found.runs, *found.costs)} == {"mnist:folder"}
    assert {run.config.data for run in parse(text, "mine", "smoke").runs} == {"digits"}
    assert [run.name for run in found.costs] == ["etf", "learned"]


def test_data_of_a_landscape_are_refused():
    with pytest.raises(InputError, match="landscape: no option 'data'"):
        find_experiment("landscape", "smoke", {"data": "digits"})


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_file_of_your_own_works_by_its_path(tmp_path, ending):
    (tmp_path / f"mine.{ending}").write_text(changed())
    found = find_experiment(str(tmp_path / f"mine.{ending}"), "smoke")
    assert (found.name, found.title, len(found.runs)) == ("mine", "Mine", 4)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.yaml: No such file"):
        text_of(str(tmp_path / "none.yaml"))
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read .*odd\.yaml: it is not text"):
        text_of(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize("name", ["optimisers", "optimizer", "Landscape"])
def test_an_unknown_name_gets_the_nearest(name):
    near = "landscape" if name == "Landscape" else "optimizers"
    with pytest.raises(InputError, match=rf"^no experiment '{name}' \(did you mean '{near}'\?\)"):
        text_of(name)


def test_an_unknown_scale_gets_the_nearest():
    assert "got 'lap top' (did you mean 'laptop'?)" in refusal(changed(), "lap top")
    assert "mine has no scale 'paper': it has smoke, laptop" in refusal(changed(), "paper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optoins": {}}, "mine: no entry 'optoins' (did you mean 'options'?)"),
        ({"scales": {"smok": {}}}, "mine: scales: no entry 'smok' (did you mean 'smoke'?)"),
        ({"scales": {"smoke": {"seed": [1]}}}, "mine: smoke: no entry 'seed' (did you mean 'seeds'?)"),
        ({"scales": None}, "mine: scales: expected a mapping"),
        ({"scales": {"smoke": 3}}, "mine: smoke: expected a mapping"),
        ({"scales": {"smoke": {"seeds": []}}}, "mine: smoke: expected seeds as a list of numbers"),
        ({"scales": {"smoke": {"seeds": 3}}}, "mine: smoke: expected seeds as a list of numbers"),
        ({"scales": {"smoke": {"seeds": ["x"]}}}, "seed"),
        ({"kind": "trian"}, "expected kind 'train' or 'landscape', got 'trian'"),
        ({"options": {"epoch": 3}}, "mine: no option 'epoch' (did you mean 'epochs'?)"),
        ({"options": {"loss": "mse", "optimizer": "adm"}}, "got 'adm' (did you mean 'adam'?)"),
        ({"vary": {"loss": {"A": {}, "a": {}}}}, "two runs would be called 'a-seed0'"),
        ({"checks": {"kind": "end"}}, "mine: checks: expected a list of mappings, each with a kind"),
        ({"checks": [{"say": "x"}]}, "mine: checks: expected a list of mappings, each with a kind"),
        ({"figures": [3]}, "mine: figures: expected a list of mappings, each with a kind"),
        ({"kind": "landscape", "options": {"classes": 3}, "vary": {}}, "no option 'classes' (did you mean"),
        ({"kind": "landscape", "options": {}, "vary": {}}, "num_classes"),
    ],
)
def test_wrong_entries_are_named_in_one_line(changes, message):
    assert message in refusal(changed(**changes))


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "text"])
def test_text_that_is_no_mapping_is_refused(text):
    assert refusal(text).startswith("mine")


@pytest.mark.xfail(raises=(TypeError, ValueError), strict=True, reason="no InputError yet")
@pytest.mark.parametrize(
    "changes",
    [
        {"options": [1]},
        {"vary": [1]},
        {"vary": {"loss": [1]}},
        {"vary": {"loss": {"MSE": 5}}},
        {"scales": {"smoke": {"minutes": "soon"}}},
        {"costs": 5},
    ],
)
def test_entries_of_a_wrong_type_are_refused(changes):
    try:
        parse(changed(**changes), "mine", "smoke")
    except InputError:
        return
    except AttributeError as error:
        raise TypeError from error


def test_unknown_figures_get_the_nearest_and_wrong_options_are_named():
    for wanted, message in (
        ({"kind": "curv", "key": "nc1"}, r"mine: no figure 'curv' \(did you mean 'curve'\?\)"),
        ({"kind": "curve", "kee": "nc1"}, "mine: figure 'curve': .*'kee'"),
        ({"kind": "curve", "key": "nc9"}, "mine: no number 'nc9'"),
    ):
        with pytest.raises(InputError, match=message):
            figures([wanted], Results(), "mine")


@pytest.mark.parametrize(
    ("text", "name"),
    [("d = K", "d-k"), ("W, H and b", "w-h-and-b"), ("../../etc", "etc"), ("漢字", "run"), ("..", "run")],
)
def test_a_slug_is_a_safe_name_of_a_folder(text, name):
    assert slug(text) == name
