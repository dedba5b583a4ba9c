"""A kept survey is read as it was written, or refused in one line."""

import json
import random

import pytest

from neuralcollapse import InputError
from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.report.landscape import energy_figure, gap_figure
from neuralcollapse.reproduce import surveys
from neuralcollapse.reproduce.experiment import SurveyConfig
from neuralcollapse.reproduce.tables import survey_csv, survey_tables

CONFIG = SurveyConfig(3, 2, 5, 1e-3, 1e-3, starts=2)
FACTS = {
    "minimum": 0.5,
    "atlas": [
        {"name": "2+1", "verdict": "strict_saddle", "index": 1, "objective": 0.6, "least_eigenvalue": None, "nc2": 1.0}
        | {"gap": 0.1, "groups": [[0, 1], [2]], "rank": 1}
    ],
    "starts": {"objectives": [0.5, 0.5], "gaps": [1e-9, None], "verdicts": ["global_minimum", "undecided"]},
    "trajectories": [[[0, 0.9, None], [1, 0.5, 1e-9]]],
}
VALUES = [None, True, "text", -1, 1e999, {}, [], [[]], {"a": 1}, 10**30, 1.5, "\ud800"]


def changed(value, source):
    if not isinstance(value, dict | list) or not value or source.random() < 0.2:
        return source.choice(VALUES)
    value = value.copy()
    key = source.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value[key] = changed(value[key], source)
    return value


def test_a_survey_comes_back(tmp_path):
    surveys.write(tmp_path, CONFIG, FACTS)
    config, found = surveys.read(tmp_path)
    assert config == CONFIG
    assert found["trajectories"] == FACTS["trajectories"]
    assert found["starts"]["gaps"][0] == 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_a_survey_can_be_shown_or_is_refused(tmp_path, seed):
    source = random.Random(seed)
    for _ in range(100):
        surveys.write(tmp_path, CONFIG, FACTS)
        (tmp_path / "survey.json").write_text(json.dumps(changed(FACTS, source)))
        try:
            _, found = surveys.read(tmp_path)
        except InputError as error:
            if "\n" in str(error):
                pytest.fail(f"expected one line, got {error}")
            continue
        shown = [{"name": "a", "labels": {}, **found}]
        for figure in (energy_figure(shown), energy_figure(shown * 2), gap_figure(shown), gap_figure(shown * 2)):
            if figure is not None:
                figure_data(figure)
        survey_tables(shown)
        survey_csv(shown)


def test_a_survey_is_there_only_when_whole(tmp_path):
    assert surveys.read(tmp_path) is None
