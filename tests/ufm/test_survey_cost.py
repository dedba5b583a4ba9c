import pytest

from neuralcollapse.ufm.atlas import atlas
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.solvers import many_starts, minimize
from neuralcollapse.ufm.survey import survey
from neuralcollapse.ufm.survey_cost import evaluation_seconds, survey_bytes, survey_seconds


def test_more_starts_and_slower_methods_cost_more():
    model = Model(4, 6, 5, 0.005, 0.005)
    few, many = (survey_seconds(model, starts, evaluation=0.01) for starts in (10, 100))
    assert few < many < survey_seconds(model, 100, "gd", evaluation=0.01)
    assert evaluation_seconds(model) > 0


def test_a_thousand_classes_are_over_ten_minutes_and_four_are_not():
    large, small = Model(50, 1002, 1, 0.005, 0.005), Model(4, 6, 5, 0.005, 0.005)
    assert survey_seconds(large, 100, evaluation=1.1) > 600
    assert survey_seconds(small, 100, evaluation=1e-4) < 60


def test_memory_grows_with_the_starts():
    assert survey_bytes(10, 12, 50, 1000) > 2 * survey_bytes(10, 12, 50, 1)


@pytest.mark.parametrize("features", ["real", "nonnegative"])
def test_many_starts_say_how_far_they_are(features):
    shares = []
    many_starts(Model(3, 3, 2, 0.01, 0.01, features=features), 3, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1)


def test_the_atlas_and_a_descent_say_how_far_they_are():
    model, shares, iterations = Model(3, 3, 2, 0.01, 0.01), [], []
    atlas(model, starts=20, on_progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 4  # three partitions and a rank
    minimize(model, model.random_point(0), on_iteration=iterations.append)
    assert iterations[:3] == [0, 1, 2]


@pytest.mark.slow
def test_every_long_stage_of_a_survey_says_how_far_it_is():
    stages = {}
    survey(
        Model(2, 2, [3, 2], 0.01, 0.01),
        starts=2,
        on_message=lambda text: stages.update({text: []}),
        on_progress=lambda share: stages[next(reversed(stages))].append(share),
    )
    silent = {text for text, shares in stages.items() if not shares}
    assert silent == {"the global minimum", "the way out of a saddle"}
    assert all(0 <= share <= 1 for shares in stages.values() for share in shares)


def test_too_many_variables_have_no_spectrum():
    said = []
    found = survey(Model(60, 60, 1, 0.005, 0.005), starts=1, on_message=said.append)
    assert not found.spectra
    assert "no spectra: 7,260 variables are too many" in said
