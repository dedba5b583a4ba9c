import math

import pytest
import torch

from neuralcollapse import InputError
from neuralcollapse.ufm import CrossEntropy, Focal, Point, UnconstrainedFeatureModel, certify
from neuralcollapse.ufm.certificate import free_direction

Model = UnconstrainedFeatureModel
PAIRS = ((0, 1), (2, 3))


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
@pytest.mark.parametrize("counts", [3, [5, 3, 1]])
def test_a_global_minimiser_is_one(loss, counts):
    model = Model(3, 4, counts, 0.01, 0.004, 0.01, loss=loss)
    point = model.global_minimizer()
    certificate = certify(model, point)
    assert certificate.verdict == "global_minimum"
    assert "certified gap" in certificate.reason
    assert certificate.gap <= 1e-8
    assert certificate.lower_bound <= model.global_minimum() + 1e-12
    assert certificate.objective == pytest.approx(model.objective(point), abs=1e-15)
    assert certificate.gradient_norm < 1e-7
    assert certificate.spectral_ratio == pytest.approx(1, abs=1e-6)
    assert certificate.direction is None
    assert certificate.curvature is None


def test_a_random_point_is_not_critical_and_its_gap_is_true():
    model = Model(4, 6, 3, 0.01, 0.004)
    for seed in range(5):
        certificate = model.certify(model.random_point(seed))
        assert certificate.verdict == "not_critical"
        assert "descend" in certificate.reason
        assert certificate.gap == pytest.approx(certificate.objective - certificate.lower_bound)
        assert certificate.gap >= certificate.objective - model.global_minimum()
        assert certificate.gradient_norm == pytest.approx(model.gradient(model.random_point(seed)).norm())


def test_the_spectral_ratio_is_the_norm_of_the_slopes_over_mu():
    model = Model(3, 4, [4, 2, 1], 0.01, 0.004)
    point = model.random_point()
    expected = float(torch.linalg.svdvals(model.slopes(point))[0]) / model.mu
    assert model.certify(point).spectral_ratio == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_theorys_saddle(bias):
    model = Model(4, 6, 5, 0.01, 0.005, bias=bias)
    (entry,) = model.atlas([PAIRS])
    certificate = model.certify(entry.point)
    assert certificate.verdict == "strict_saddle"
    assert certificate.objective == pytest.approx(0.83348580, abs=1e-8)
    assert certificate.lower_bound <= 0.24300160 + 1e-8
    assert certificate.curvature == pytest.approx(-0.20946466, abs=1e-8)
    direction = certificate.direction
    assert model.hessian(entry.point).quadratic(direction) == pytest.approx(certificate.curvature, abs=1e-8)
    assert float((entry.point.W @ direction.H).norm()) < 1e-9  # logits do not move to first order
    assert float((direction.W @ entry.point.H).norm()) < 1e-9


@pytest.mark.parametrize(
    "model",
    [
        Model(4, 6, 3, 0.005, 0.005, bias=False),
        Model(4, 6, 5, 0.01, 0.005),
        Model(4, 5, 2, 0.002, 0.05, 0.01),
        Model(3, 4, [5, 3, 2], 0.03, 0.005, 0.01),
        Model(4, 5, 2, 0.002, 0.02, loss=CrossEntropy(0.1)),
    ],
    ids=["theory", "unequal_decays", "very_unequal_decays", "unequal_counts", "smoothing"],
)
def test_at_saddles_the_curvature_and_the_least_eigenvalue_are_the_hessians(model):
    saddles = [entry for entry in model.atlas(ranks=()) if entry.certificate.verdict == "strict_saddle"]
    assert len(saddles) >= 2
    for entry in saddles:
        certificate = model.certify(entry.point)
        hessian = model.hessian(entry.point)
        assert certificate.curvature < 0
        assert hessian.quadratic(certificate.direction) == pytest.approx(certificate.curvature, abs=1e-8)
        least = float(torch.linalg.eigvalsh(hessian.dense())[0])
        assert certificate.least_eigenvalue == pytest.approx(least, abs=1e-8)


def test_theorys_least_eigenvalue():
    model = Model(4, 6, 3, 0.005, 0.005, bias=False)
    for entry in model.atlas(ranks=())[:-1]:
        assert model.certify(entry.point).least_eigenvalue == pytest.approx(-0.1393, abs=5e-5)
        assert model.hessian(entry.point).least() == pytest.approx(-0.1393, abs=5e-5)


def test_the_way_down_goes_down():
    model = Model(4, 6, 3, 0.005, 0.005, bias=False)
    for entry in model.atlas(ranks=())[:-1]:
        direction = entry.certificate.direction
        for step in (0.03, -0.03):
            expected = entry.certificate.curvature * step**2 / 2
            change = model.objective(entry.point + direction * step) - entry.objective
            assert change == pytest.approx(expected, rel=0.05)


def test_saddles_in_k_minus_1_dimensions_have_a_way_down():
    model = Model(4, 3, 3, 0.005, 0.005)
    entries = model.atlas(ranks=())
    assert [entry.certificate.verdict for entry in entries] == 4 * ["strict_saddle"] + ["global_minimum"]
    for entry in entries[:-1]:
        quadratic = model.hessian(entry.point).quadratic(entry.certificate.direction)
        assert quadratic == pytest.approx(entry.certificate.curvature, abs=1e-8)
        assert quadratic < -0.01


def test_saddles_that_use_every_dimension_leave_along_an_eigenvector():
    model = Model(4, 2, 3, 0.004, 0.004, bias=False)
    (entry,) = model.atlas([((0, 1), (2,), (3,))])
    assert entry.rank == 2
    assert free_direction(entry.point) is None
    certificate = model.certify(entry.point)
    assert certificate.verdict == "strict_saddle"
    assert "the Hessian has the eigenvalue" in certificate.reason
    assert model.hessian(entry.point).quadratic(certificate.direction) == pytest.approx(certificate.curvature, abs=1e-8)
    assert certificate.curvature < 0


def test_a_free_direction_is_a_unit_vector_that_w_and_h_ignore():
    model = Model(4, 6, 3, 0.005, 0.005)
    point = model.global_minimizer()
    free = free_direction(point)
    assert float(free.norm()) == pytest.approx(1)
    assert float((point.W @ free).norm()) < 1e-9
    assert float((free @ point.H).norm()) < 1e-9
    assert free_direction(model.random_point()) is None
    assert float(free_direction(model.zero_point()).norm()) == pytest.approx(1)


def test_a_known_bound_counts_where_it_is_better():
    model = Model(4, 6, 3, 0.005, 0.005)
    point = model.random_point()
    own = model.certify(point)
    better = own.lower_bound + 0.01
    assert model.certify(point, known_bound=better).lower_bound == better
    assert model.certify(point, known_bound=better).gap == pytest.approx(own.gap - 0.01)
    assert model.certify(point, known_bound=own.lower_bound - 1).lower_bound == own.lower_bound
    near = model.global_minimizer() + model.random_point(1) * 1e-5
    assert model.certify(near).verdict == "not_critical"
    assert model.certify(near, known_bound=model.global_minimum()).verdict == "global_minimum"


def test_the_gap_is_of_first_order_and_the_distance_of_second():
    model = Model(4, 6, 3, 0.005, 0.005)
    best, minimum = model.global_minimizer(), model.global_minimum()
    gaps, heights = [], []
    for size in (1e-3, 1e-4):
        certificate = model.certify(best + model.random_point(1) * size)
        gaps.append(certificate.gap)
        heights.append(certificate.objective - minimum)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.2)
    assert heights[0] / heights[1] == pytest.approx(100, rel=0.2)


def test_the_focal_loss_never_claims_a_bound_or_a_global_minimum():
    model = Model(4, 6, 3, 0.005, 0.005, loss=Focal(2.0))
    points = [model.global_minimizer(), model.random_point(), model.zero_point()]
    points += [entry.point for entry in model.atlas(ranks=())]
    verdicts = set()
    for point in points:
        certificate = model.certify(point)
        assert certificate.lower_bound == -math.inf
        assert certificate.gap == math.inf
        verdicts.add(certificate.verdict)
    assert verdicts == {"undecided", "not_critical", "strict_saddle"}
    best = model.certify(model.global_minimizer())
    assert best.verdict == "undecided"
    assert "not convex" in best.reason


def test_below_k_minus_1_dimensions_two_local_minima_are_told_from_the_global_one():
    model = Model(6, 2, 3, 0.004, 0.004, 0.01)
    ends = model.many_starts(60)
    values = [round(float(x), 6) for x in ends.objectives]
    assert set(values) >= {0.339952, 0.344169}
    assert "global_minimum" not in ends.verdicts
    for value in (0.339952, 0.344169):
        point = model.point(ends.vectors[values.index(value)])
        certificate = model.certify(point)
        assert certificate.verdict == "undecided"
        assert "fewer than K-1" in certificate.reason
        assert float(torch.linalg.eigvalsh(model.hessian(point).dense())[0]) > -1e-8  # a local minimum indeed
        assert certificate.gap > 1e-3


def test_below_k_minus_1_dimensions_the_zero_minimum_is_still_certified():
    model = Model(6, 2, 3, 0.5, 0.5)
    assert model.certify(model.zero_point()).verdict == "global_minimum"


@pytest.mark.parametrize("bias", [True, False])
def test_the_origin_is_a_saddle_under_weak_decay_and_the_minimum_under_strong(bias):
    weak, strong = Model(4, 6, 3, 0.005, 0.005, bias=bias), Model(4, 6, 3, 0.5, 0.5, bias=bias)
    assert weak.certify(weak.zero_point()).verdict == "strict_saddle"
    assert strong.certify(strong.zero_point()).verdict == "global_minimum"
    assert strong.certify(strong.zero_point()).gap == pytest.approx(0, abs=1e-9)


def test_certificates_of_collapsed_and_full_points_agree():
    model = Model(3, 4, [4, 2, 1], 0.01, 0.004, 0.01)
    small = model.collapsed()
    for entry in model.atlas(ranks=()):
        full, reduced = model.certify(entry.point), certify(small, model.collapse(entry.point))
        assert full.verdict == reduced.verdict
        assert full.objective == pytest.approx(reduced.objective, abs=1e-13)
        assert full.lower_bound == pytest.approx(reduced.lower_bound, abs=1e-8)
        assert full.spectral_ratio == pytest.approx(reduced.spectral_ratio, rel=1e-10)


@pytest.mark.parametrize("decay", [1e-9, 1e-8, 1e-3])
def test_a_small_minimum_is_no_excuse_for_a_point_above_it(decay):
    model = UnconstrainedFeatureModel(4, 5, 3, decay, decay)
    lowest = model.global_minimizer()
    assert model.certify(lowest).verdict == "global_minimum"
    assert model.certify(lowest * 1.05).verdict == "not_critical"


def test_points_and_bounds_that_make_no_sense_are_one_line():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    point = model.random_point(0)
    cases = [
        (lambda: model.certify(model.random_point(0, 1e160)), "overflow"),
        (lambda: model.certify(point.vector()), r"expected a Point\(W, H, b\)"),
        (lambda: model.certify(Point(point.W.numpy(), point.H, point.b)), "W as a torch.Tensor"),
        (lambda: model.certify(point, known_bound=math.nan), "known_bound"),
        (lambda: model.certify(point, known_bound=1e9), "known_bound"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
