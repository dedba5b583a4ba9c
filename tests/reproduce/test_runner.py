"""Every experiment at smoke scale, its page, its verdict, and going on after a stop."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from neuralcollapse import InputError
from neuralcollapse.report.figure import Line
from neuralcollapse.reproduce.checks import judge
from neuralcollapse.reproduce.experiment import names
from neuralcollapse.reproduce.jobs import AllStopped
from neuralcollapse.reproduce.page import experiment_page
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.runs.reading import group_runs
from neuralcollapse.training import run as training

# three epochs leave classes that coincide, and narrow networks have too few features for a simplex
pytestmark = pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
FEW = {"epochs": 3, "decay_warmup": 0}  # what is tested is not how far they collapse
WHOLE = ("random-labels", "landscape")
TRAINED = [name for name in names() if name != "landscape"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each experiment at smoke scale, run when first asked for."""
    place, made = tmp_path_factory.mktemp("experiments"), {}

    def get(name):
        if name not in made:
            made[name] = ExperimentFolder.create(name, "smoke", place / name, {} if name in WHOLE else FEW)
            made[name].run(progress=False)
            made[name].measure_costs()
        return made[name]

    return get


@pytest.mark.parametrize("name", names())
def test_the_page_holds_data_and_the_verdict_of_the_records(folders, name):
    folder = folders(name)
    page = experiment_page(folder).html()
    assert folder.missing() == []
    figures = json.loads(re.search(r"const figures = (\[.*?\]);\n", page).group(1))
    assert len(figures) >= len(folder.experiment.figures)
    for figure in figures:
        assert any(mark.get("y") or mark.get("z") or mark.get("points") for mark in figure["marks"])
    verdict = judge(folder.experiment.checks, folder.results())
    text = page.replace("&#39;", "'")
    assert verdict.sentence.partition(": ")[2] in text  # a smoke run has no verdict: it says which checks hold
    assert len(re.findall(r'<li class="(?:good|bad|open)">', page)) == len(verdict.findings)
    assert page.count('<li class="good">') == sum(item.holds is True for item in verdict.findings)
    assert len(page.encode()) < 2_000_000


@pytest.mark.parametrize("name", names())
def test_the_page_begins_with_what_differs_and_draws_the_loss(folders, name):
    page, results = experiment_page(folders(name)), folders(name).results()
    headings = [table.heading for table in page.tables]
    drawn = [figure.name for figure in page.figures]
    if results.surveys:
        assert page.lead == 1
        assert "What differs" not in headings
        assert "curve-train-loss" not in drawn
    else:
        alone = ["What differs"] if len(group_runs(results.runs)) > 1 else []
        assert headings[: len(alone) + 1] == [*alone, "The runs at their end"]
        assert page.lead == headings.index("Every run at its end") - bool(results.costs)
        assert drawn.count("curve-train-loss") == 1
        loss = next(figure for figure in page.figures if figure.name == "curve-train-loss")
        ends = {mark.name: mark.y[-1] for mark in loss.marks if isinstance(mark, Line) and not mark.only_selected}
        assert ends == {group.name: pytest.approx(group.mean("train.loss")) for group in group_runs(results.runs)}


def test_a_finding_is_what_the_records_say(folders):
    folder = folders("random-labels")
    fits, fails = [], []
    for run in folder.experiment.runs:
        last = json.loads((folder.path / run.name / "records.jsonl").read_text().splitlines()[-1])
        (fits if last["train"]["accuracy"] >= 0.99 else fails).append(last["measures"]["nc1"])
    assert fits
    assert fails
    finding = judge(folder.experiment.checks, folder.results()).findings[1]
    assert finding.holds == (max(fits) < min(fails))


def test_the_wider_networks_fit_the_random_labels(folders):
    assert judge(folders("random-labels").experiment.checks, folders("random-labels").results()).findings[0].holds


def test_what_was_stopped_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    began = []
    real = training.train

    def train(config, out, **options):
        began.append(out.name)
        if len(began) == 3:
            raise KeyboardInterrupt
        return real(config, out, **options)

    monkeypatch.setattr(training, "train", train)
    folder = ExperimentFolder.create("losses", "smoke", tmp_path / "out", {"epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        folder.run(progress=False)
    assert [run.name for run in folder.missing()] == ["focal-seed0", "mse-seed0"]
    assert "2 runs, of 4" in experiment_page(folder).subtitle
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if "seed0" in str(path)}

    ExperimentFolder.create("losses", "smoke", tmp_path / "out", {"epochs": 1}).run(progress=False)
    assert began == ["cross-entropy-seed0", "label-smoothing-seed0", "focal-seed0", "focal-seed0", "mse-seed0"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_an_unfinished_run_is_taken_up_not_begun_again(folders, tmp_path, monkeypatch):
    shutil.copytree(folders("feature-decay").path, tmp_path / "out")
    place = tmp_path / "out/all-parameters-seed0"
    (place / "checkpoints/epoch-00003.safetensors").unlink()
    taken = []
    monkeypatch.setattr(training, "resume", lambda path, **_: taken.append(path.name))
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("begun again"))
    folder = ExperimentFolder.create("feature-decay", "smoke", tmp_path / "out", FEW)
    assert [run.name for run in folder.missing()] == ["all-parameters-seed0"]
    folder.run(progress=False)
    assert taken == ["all-parameters-seed0"]


def test_kept_records_need_no_weights(folders, tmp_path):
    shutil.copytree(folders("layers").path, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".safetensors", ".npz", ".pt"):
            path.unlink()
    folder = ExperimentFolder.open(tmp_path / "out")
    assert folder.missing() == []
    assert experiment_page(folder).verdict


def test_costs_are_measured_once(folders, monkeypatch):
    folder = folders("fixed-etf")
    costs = json.loads((folder.path / "costs.json").read_text())
    assert [cost["labels"] for cost in costs] == [dict(plan.labels) for plan in folder.experiment.costs]
    by_name = {cost["name"]: cost for cost in costs}
    assert by_name["fixed-etf-d-k"]["parameters"] < by_name["learned-full-d"]["parameters"]
    monkeypatch.setattr("neuralcollapse.training.cost.step_costs", lambda *_: pytest.fail("measured again"))
    folder.measure_costs()


def test_a_run_of_another_configuration_is_refused(folders, tmp_path):
    shutil.copytree(folders("layers").path, tmp_path / "out")
    with pytest.raises(InputError, match="was run with epochs 3, and the experiment now asks 4"):
        ExperimentFolder.create("layers", "smoke", tmp_path / "out", {"epochs": 4})
    with pytest.raises(InputError, match="holds the experiment layers at the scale smoke"):
        ExperimentFolder.create("layers", "laptop", tmp_path / "out")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="holds no experiment"):
        ExperimentFolder.create("layers", "smoke", tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file"),
    [("landscape", "experiment.yaml"), ("landscape", "k-3-seed0/survey.json"), ("fixed-etf", "costs.json")],
)
def test_damaged_files_are_named(folders, tmp_path, name, file):
    shutil.copytree(folders(name).path, tmp_path / "out")
    (tmp_path / "out" / file).write_text("{")
    with pytest.raises(InputError, match=re.escape(file.rpartition("/")[0] or file)) as error:
        ExperimentFolder.open(tmp_path / "out").results()
    assert "\n" not in str(error.value)


def test_an_empty_experiment_has_no_page(tmp_path):
    with pytest.raises(InputError, match="no run is whole yet"):
        experiment_page(ExperimentFolder.create("layers", "smoke", tmp_path / "out"))


def test_two_at_once_share_the_runs_and_what_one_leaves_undone_the_other_takes_up(tmp_path, monkeypatch):
    """While another process holds the first run, the others are run; when it is killed, the first is too."""
    folder = ExperimentFolder.create("losses", "smoke", tmp_path / "out", {"epochs": 1})
    first, *others = [run.name for run in folder.experiment.runs]
    (tmp_path / "out" / first).mkdir()
    code = (
        "import sys; from neuralcollapse.runs.locks import hold; h = hold(sys.argv[1]); print(1, flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out" / first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline()
    began, told = [], []
    real = training.train

    def train(config, out, **options):
        began.append(out.name)
        return real(config, out, **options)

    def tell(text):
        told.append(text)
        if "waiting for" in text:
            child.kill()
            child.wait()

    monkeypatch.setattr(training, "train", train)
    try:
        folder.run(progress=False, on_message=tell)
    finally:
        child.kill()
        child.communicate()
    assert began == [*others, first]
    assert f"waiting for {first}, which another process runs" in told
    assert folder.missing() == []
    assert not list((tmp_path / "out").rglob(".lock"))


def test_what_another_process_has_finished_is_not_run_again(folders, tmp_path, monkeypatch):
    """Whether a run is whole is looked at once its lock is there, not before."""
    shutil.copytree(folders("layers").path, tmp_path / "out")
    folder = ExperimentFolder.create("layers", "smoke", tmp_path / "out", FEW)
    monkeypatch.setattr(ExperimentFolder, "missing", lambda self: list(self.experiment.runs) if not asked else [])
    asked, whole = [], ExperimentFolder._whole
    monkeypatch.setattr(ExperimentFolder, "_whole", lambda self, run: asked.append(run) or whole(self, run))
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(training, "resume", lambda *_, **__: pytest.fail("taken up again"))
    folder.run(progress=False)
    assert asked == list(folder.experiment.runs)


@pytest.mark.parametrize("value", ["text", None, [1], {"a": 1}, True, float("inf"), -1])
def test_other_values_in_an_experiments_files_are_refused_in_one_line(folders, tmp_path, value):
    shutil.copytree(folders("feature-decay").path, tmp_path / "out")
    run = tmp_path / "out" / ExperimentFolder.open(tmp_path / "out").experiment.runs[0].name
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"weight_decay": value}))
    with pytest.raises(InputError, match="weight_decay") as error:
        experiment_page(ExperimentFolder.open(tmp_path / "out"))
    assert "\n" not in str(error.value)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    there = yaml.safe_load((tmp_path / "out/experiment.yaml").read_text())
    for name in there:
        if name == "name" and isinstance(value, str):
            continue  # any name will do
        (tmp_path / "out/experiment.yaml").write_text(yaml.safe_dump(there | {name: value}))
        with pytest.raises(InputError) as error:
            experiment_page(ExperimentFolder.open(tmp_path / "out"))
        assert "\n" not in str(error.value)


def records_of(folder):
    lines = {
        run.name: (folder.path / run.name / "records.jsonl").read_text().splitlines() for run in folder.experiment.runs
    }
    return {
        name: [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in found]
        for name, found in lines.items()
    }


@pytest.mark.slow
def test_two_jobs_leave_the_records_of_one(folders, tmp_path):
    said = []
    folder = ExperimentFolder.create("feature-decay", "smoke", tmp_path / "out", FEW)
    folder.run(progress=True, on_message=said.append, jobs=2)
    assert folder.missing() == []
    assert records_of(folder) == records_of(folders("feature-decay"))
    assert said[:2] == ["run 1 of 2: all-parameters-seed0", "run 2 of 2: w-h-and-b-seed0"]
    assert any(text.startswith("w-h-and-b-seed0: epoch ") for text in said)
    assert not list((tmp_path / "out").rglob(".lock"))


@pytest.mark.slow
def test_a_job_that_dies_is_named_and_the_others_go_on(tmp_path):
    folder = ExperimentFolder.create("feature-decay", "smoke", tmp_path / "out", {"epochs": 1, "decay_warmup": 0})
    name = folder.experiment.runs[0].name
    (tmp_path / "out" / name).mkdir()
    (tmp_path / "out" / name / "mine").write_text("somebody's")
    said = []
    with pytest.raises(InputError, match=f"^1 of 2 runs failed: {name} .{name}: .*{name}"):
        folder.run(progress=False, on_message=said.append, jobs=2)
    assert [run.name for run in folder.missing()] == [name]
    assert any(text.startswith(f"{name} failed, the others go on: ") for text in said)


@pytest.mark.slow
def test_a_signal_stops_all_jobs_and_they_go_on_later(folders, tmp_path):
    folder = ExperimentFolder.create("feature-decay", "smoke", tmp_path / "out", FEW)
    left = [signal.SIGINT]

    def interrupt(text):
        if ": epoch " in text and left:
            signal.raise_signal(left.pop())

    with pytest.raises(AllStopped, match="all runs stopped, and saved"):
        folder.run(on_message=interrupt, jobs=2)
    assert folder.missing()
    folder.run(progress=False, jobs=2)
    assert records_of(folder) == records_of(folders("feature-decay"))
