import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest

from neuralcollapse.report.landscape import landscape_figures, landscape_page, summary
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import minority_phase, survey


@pytest.fixture(scope="module")
def balanced():
    return survey(Model(3, 4, 4, 0.005, 0.005), starts=10)


@pytest.fixture(scope="module")
def unequal():
    return survey(Model(3, 4, [9, 4, 2], 0.01, 0.004, 0.01), starts=10)


def test_a_survey_finds_the_minimum_the_saddles_and_a_way_out(balanced):
    assert [entry.name for entry in balanced.atlas] == ["3", "2+1", "rank 1: line at -1, 0, 1", "1+1+1"]
    assert "rank 1" in balanced.coverage
    assert set(balanced.starts.verdicts) == {"global_minimum"}
    assert balanced.atlas[-1].objective == pytest.approx(balanced.minimum, abs=1e-12)
    saddle, way = balanced.way
    values = [float(balanced.model.value(point)) for point in way]
    assert values[0] == pytest.approx(saddle.objective)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(balanced.minimum, abs=1e-8)
    assert float(balanced.spectra["global minimum"][0]) > -1e-9
    assert float(balanced.spectra["saddle 3"][0]) < -1e-3


def test_every_figure_is_valid_plotly_and_plain_json(unequal):
    figures = landscape_figures(unequal)
    assert [figure.name for figure in figures] == ["energy", "gaps", "spectrum", "way-out", "phase"]
    for figure in figures:
        go.Figure(data=figure.data, layout=figure.layout, frames=[go.Frame(frame) for frame in figure.frames])
        json.dumps([figure.data, figure.layout, figure.frames], allow_nan=False)
        assert figure.alt


def test_the_energy_figure_holds_the_atlas(balanced):
    figure = landscape_figures(balanced)[0]
    points = {(x, y) for trace in figure.data for x, y in zip(trace["x"], trace["y"], strict=True)}
    expected = {(entry.index, float(f"{entry.objective:.9g}")) for entry in balanced.atlas}
    assert points == expected


def test_families_are_told_apart_in_figure_table_and_summary(balanced):
    traces = {trace["name"]: trace for trace in landscape_figures(balanced)[0].data}
    assert list(traces) == ["global minimum", "strict saddle", "strict saddle, low rank"]
    assert traces["strict saddle, low rank"]["text"] == ["rank 1: line at -1, 0, 1"]
    assert traces["strict saddle"]["text"] == ["groups 3", "groups 2+1"]
    assert len({(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces.values()}) == 3
    assert "(3 by partitions, 1 of low rank)" in summary(balanced)
    page = landscape_page(balanced)
    assert balanced.coverage in page
    assert "rank 1: line at -1, 0, 1" in page


def test_gaps_fall_below_the_tolerance_and_never_under_the_true_gap(balanced):
    for run in balanced.trajectories:
        assert run.history[-1].gap < 1e-6
        for step in run.history:
            assert step.gap >= step.objective - balanced.minimum - 1e-12


def test_minority_rows_coincide_exactly_beyond_the_line():
    phase = minority_phase(Model(4, 4, [9, 9, 2, 2], 0.01, 0.004, 0.01))
    for ratio, row in zip(phase.ratios, phase.cosines, strict=True):
        small = max(1, round(phase.majority / ratio))
        for decay, cosine in zip(phase.decays, row, strict=True):
            if math.isnan(cosine):
                continue
            together = math.sqrt(small) <= decay
            assert (cosine > 1 - 1e-6) == together, (ratio, decay, cosine)


def test_the_page_states_what_the_survey_found(unequal):
    page = landscape_page(unequal)
    assert summary(unequal) in page
    assert f"{unequal.minimum:.8g}" in page
    assert "0 | 1 | 2" in page
    assert len(page.encode()) < 6_000_000


def test_focal_and_low_dimensions_are_surveyed_without_claims():
    focal = survey(Model(3, 3, 3, 0.01, 0.01, loss="focal"), starts=4)
    assert "no bound exists" in summary(focal)
    assert "global_minimum" not in focal.starts.verdicts
    low = survey(Model(5, 2, 3, 0.004, 0.004, 0.01), starts=4)
    assert low.minimum is None
    assert low.way is None
    landscape_page(focal)
    landscape_page(low)
    assert np.isfinite(low.starts.gaps.numpy()).all()
