"""Every kind of page in a real browser, on a laptop and on a phone, in light and in dark.

Nothing goes wrong in it, nothing is asked of another host, nothing runs over its edge, axe-core finds nothing serious,
and the keyboard reaches every control.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from neuralcollapse.ood.evaluation import evaluate
from neuralcollapse.ood.page import outliers_page
from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.landscape import landscape_page
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.reading import read_run
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import survey
from tests.look import SCHEMES, WIDTHS, opened, scroll_through, too_wide, unreached, violations
from tests.test_docs import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")


def run_page(folder, short_run):
    return single_page(read_run(short_run.path))


def comparison(folder, short_run):
    run = read_run(short_run.path)
    options = {**run.config, "seed": 1, "weight_decay": 0.01}
    return comparison_page([run, replace(run, name="other", config=options)])


def landscape(folder, short_run):
    return landscape_page(survey(Model(3, 4, 4, 0.005, 0.005), starts=5))


def outliers(folder, short_run):
    rng = np.random.default_rng(0)
    names = ("energy", "nci", "mahalanobis")
    inside = {name: rng.standard_normal(200) for name in names}
    outside = {"noise": {name: rng.standard_normal(200) - 2 for name in names}}
    results = {"noise": {name: evaluate(inside[name], outside["noise"][name]) for name in names}}
    return outliers_page("Outliers", "of a test", results, inside, outside, {"neco": "no head"})


def experiment(folder, short_run):
    from neuralcollapse.reproduce.page import experiment_page
    from neuralcollapse.reproduce.runner import ExperimentFolder

    made = ExperimentFolder.create("optimizers", "smoke", folder / "optimizers", {"epochs": 3, "decay_warmup": 0})
    made.run(progress=False)
    return experiment_page(made)


PAGES = [
    run_page,
    comparison,
    *(pytest.param(make, marks=pytest.mark.slow) for make in (landscape, outliers, experiment)),
]


@pytest.fixture(scope="module")
def file_of(short_run, tmp_path_factory):
    """The file of a page, written when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("pages"), {}

    def get(make):
        if make not in made:
            made[make] = folder / f"{make.__name__}.html"
            made[make].write_text(make(folder, short_run).html(), encoding="utf-8")
        return made[make]

    return get


@pytest.mark.parametrize("make", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_holds_wide_and_narrow_light_and_dark(make, width, browser, file_of):
    with opened(browser, file_of(make), width, "light") as (page, wrong):
        scroll_through(page)
        assert too_wide(page) == []
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(100)
        assert too_wide(page) == []
        assert wrong == []


@pytest.mark.parametrize("make", PAGES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_serious(make, scheme, browser, file_of):
    with opened(browser, file_of(make), 390 if scheme == "dark" else 1280, scheme) as (page, _):
        scroll_through(page)
        assert violations(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", PAGES)
def test_the_keyboard_reaches_every_control(make, browser, file_of):
    with opened(browser, file_of(make), 1280, "light") as (page, wrong):
        scroll_through(page)
        assert unreached(page) == []
        assert wrong == []


ENGINES = ("mkdocs", "zensical")
LOOKED_AT = ("index", "measures", "api/records", "guides/measure", "gallery", "results/optimizers/README")


@pytest.fixture(scope="module")
def site_of(tmp_path_factory):
    """The docs site, built when it is first asked for."""
    made = {}

    def get(engine):
        program = shutil.which(engine, path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            pytest.skip(f"{engine} is not installed")
        if engine not in made:
            # Zensical builds within the project alone.
            folder = tmp_path_factory.mktemp("site") if engine == "mkdocs" else ROOT / "build/test-site"
            tools = os.pathsep.join([str(ROOT / "tools"), str(ROOT / "src")])
            subprocess.run([sys.executable, "tools/docs_pages.py"], cwd=ROOT, check=True)
            subprocess.run(
                [program, "build", "--strict", "--clean"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": tools, "SITE": str(folder), "NO_MKDOCS_2_WARNING": "1"},
                check=True,
                capture_output=True,
            )
            made[engine] = folder
        return made[engine]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("width", "scheme"), list(zip(WIDTHS, SCHEMES, strict=True)))
def test_pages_of_the_site_hold(engine, width, scheme, browser, site_of):
    site, said = site_of(engine), {}
    for name in LOOKED_AT:
        found = site / f"{name}.html"
        found = found if found.exists() else found.with_name("index.html")
        with opened(browser, found, width, scheme) as (page, wrong):
            faults = [*too_wide(page), *wrong, *violations(page)]
            if faults:
                said[name] = faults
    assert said == {}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_keyboard_reaches_every_control_of_the_site(engine, browser, site_of):
    with opened(browser, site_of(engine) / "guides/measure.html", 1280, "light") as (page, wrong):
        assert unreached(page) == []
        assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_site_is_searched_without_a_server(engine, browser, site_of):
    with opened(browser, site_of(engine) / "guides/measure.html", 1280, "light") as (page, wrong):
        page.locator(".md-search__input, .md-search__button").locator("visible=true").first.click()
        page.locator("input:focus").wait_for()
        for letter in "orthoplex":
            page.keyboard.type(letter)
            page.wait_for_timeout(50)
        page.locator("a").filter(has_text="OrthoplexClassifier").locator("visible=true").first.click()
        page.wait_for_url("**/api/classifier.html**")
        assert wrong == []
