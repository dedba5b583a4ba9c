"""What theory expects of the measures: at the exact minimiser, and for a head that nobody has trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, FEATURE_MEASURES
from neuralcollapse.ufm.losses import CrossEntropy, Focal, find_loss
from neuralcollapse.ufm.minimizers import closed_form, collapsed_minimizer
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.nonnegative import class_margins

# For a record to wait: the most classes, whose measures take 3 s for 1,000, and the most distinct counts, for which the
# solver takes some 5 s. With features >= 0 and a bias some numbers of classes may take descents, 19 s for 100.
_SOLVED_CLASSES, _SOLVED_COUNTS, _DESCENTS = 1_500, 400, range(51, 201)
_ROUNDING = 1e-9  # a measure below it is 0 at the minimiser
_COLLAPSED = dict.fromkeys((*FEATURE_MEASURES, *CLASSIFIER_MEASURES, "nc4"), 0.0)


class Decays(NamedTuple):
    """The decays of the model's objective; without a bias, or with one that does not decay, `bias` is 0."""

    weight: float
    feature: float
    bias: float = 0.0


def minimizer_measures(model: Model) -> dict[str, float]:
    """The measures of `neuralcollapse.measures` at `global_minimizer(model)`; those that are undefined there are NaN.

    Raises:
        InputError: as `global_minimizer`.
    """
    # Which of more than K dimensions a minimiser uses changes no measure.
    changes: dict[str, Any] = {"feature_dim": min(model.feature_dim, model.num_classes)}
    if model.balanced:  # n samples of equal features cost what one sample costs with n times the decay
        changes |= {"samples_per_class": 1, "feature_decay": model.counts[0] * model.feature_decay}
    small = model.like(**changes)
    return small.collapsed().measures(collapsed_minimizer(small))


def untrained_measures(num_classes: int, feature_dim: int, frame: str = "learned") -> dict[str, float]:
    r"""What `nc0`, `nc2`, `nc3` and `nc3_distance` are expected to be before any training.

    The rows of the head are those of `nn.Linear`, whose entries are independent and uniform about 0, and independent of
    the class means. Then `nc0 = 1/K`, `nc2 = sqrt(2 - 2 sqrt((K-1)/K) / sqrt(1 + (K - 1/5)/d))`, and `W M'` and M are
    orthogonal on average to what they are compared with: `nc3 = nc3_distance = sqrt 2`. A simplex that is fixed has
    `nc0 = nc2 = 0`; of other fixed frames only NC3 is given, since NC2 is what it always will be.

    Simulated with 4,000 heads and means for K from 2 to 20 and with 6 to 600 for K up to 1,000, d from 2 to 2048:
    nc0 agreed to 1.5 %, the error of the simulation; nc2 to 4.6 % for K >= 4 and for d >= 16, and to 1 % for K >= 10
    (K=10: .4828 at d=64, simulated .4795; .4139 at 128, .4113; .3472 at 512, .3467); nc3 to 3.5 % for K >= 3 and 0.4 %
    for K >= 10; nc3_distance to 4.7 %, and 0.2 % for K >= 10. Where the formulas are off by more than 5 % (nc2 with K
    of 2 or 3 and d < 16, nc3 of two classes) nothing is given. For Gaussian rows the 1/5 is -1; the values are the same
    within 4 %.

    Args:
        num_classes: K >= 2.
        feature_dim: d >= 1.
        frame: "learned", or the name of a fixed frame.
    """
    K, d = check_count(num_classes, "num_classes", 2), check_count(feature_dim, "feature_dim", 1)
    values: dict[str, float] = {}
    if frame == "simplex":
        values |= {"nc0": 0.0, "nc2": 0.0}
    elif frame == "learned":
        values["nc0"] = 1 / K
        if K >= 4 or d >= 16:
            values["nc2"] = math.sqrt(2 - 2 * math.sqrt((K - 1) / K) / math.sqrt(1 + (K - 0.2) / d))
    if K >= 3:
        values["nc3"] = math.sqrt(2)
    return values | {"nc3_distance": math.sqrt(2)}


def expected_at_minimum(
    counts: Sequence[int],
    feature_dim: int,
    decays: Decays | None = None,
    *,
    loss: str = "cross_entropy",
    bias: bool = True,
    nonnegative: bool = False,
    frame: str = "learned",
) -> dict[str, float]:
    """The measures at the exact minimiser for the class counts of a training, or nothing where it is not known.

    With equal classes and a loss of softmax, all measures are 0 whatever the decays are, unless they are so strong that
    everything collapses to zero; a closed form says so for any number of classes. NC bias is left out where the bias
    does not decay, or nothing says how much: a constant may then be added to it.

    The minimiser is not known, and nothing is raised, for unequal classes without decays, under focal loss, of more
    than 1,500 or with more than 400 distinct counts (with features >= 0 and a bias also for 51 to 200 of them, which
    may take descents); for more than 1,500 equal classes under squared error; for classes without samples; for fewer
    dimensions than the minimiser needs; where features >= 0 leave no exact minimum, or the solver does not reach it;
    for unequal classes with a fixed frame, and for fixed frames other than the simplex.

    Args:
        counts: n_k, the samples of each class.
        feature_dim: d.
        decays: of the objective, where they are known.
        loss: a name that `UnconstrainedFeatureModel` takes.
        bias: whether the head has one.
        nonnegative: whether the features are >= 0, as behind a ReLU.
        frame: "learned", or that of fixed rows: "simplex", if the features can reach it, or any other name.
    """
    K, equal = len(counts), len(set(counts)) == 1
    quick = (
        K <= _SOLVED_CLASSES and len(set(counts)) <= _SOLVED_COUNTS and not (nonnegative and bias and K in _DESCENTS)
    )
    solved = decays is not None and quick and frame == "learned"
    if K < 2 or min(counts) < 1 or not (equal or solved):
        return {}
    values: dict[str, float] = {}
    if frame == "learned":
        values = _of_learned(tuple(counts), feature_dim, decays, loss, bias, nonnegative)
    elif frame == "simplex":
        values = dict(_COLLAPSED)
    if bias and not (decays and decays.bias):
        values.pop("nc_bias", None)
    return values


def _of_learned(
    counts: tuple[int, ...], dim: int, decays: Decays | None, loss: str, bias: bool, nonnegative: bool
) -> dict[str, float]:
    closed = len(set(counts)) == 1 and isinstance(find_loss(loss), CrossEntropy | Focal)
    if not closed and (decays is None or len(counts) > _SOLVED_CLASSES):
        return {}
    try:
        if closed:
            return dict(_COLLAPSED) if _collapses(counts, dim, decays, loss, nonnegative) else {}
        assert decays is not None
        values = _solved(counts, dim, decays, loss, bias, nonnegative)
    except (InputError, ArithmeticError, torch.linalg.LinAlgError):  # a bonus must not end a training
        return {}
    if math.isnan(values["nc2"]):  # W = 0 and H = 0
        return {}
    return {name: 0.0 if value < _ROUNDING else value for name, value in values.items() if not math.isnan(value)}


def _collapses(counts: tuple[int, ...], dim: int, decays: Decays | None, loss: str, nonnegative: bool) -> bool:
    """Whether the minimiser of equal classes under a loss of softmax collapses and is not zero, by its closed form.

    The bias is constant there and changes nothing. Without decays, or where the margin has no formula (focal loss with
    features >= 0), it is taken not to be zero.
    """
    if dim < len(counts) - (not nonnegative):
        return False
    if decays is None:
        return True
    features = "nonnegative" if nonnegative else "real"
    model = Model(len(counts), dim, counts, decays.weight, decays.feature, bias=False, loss=loss, features=features)
    if not nonnegative:
        form = closed_form(model)
        return form is not None and form.margin > 0
    return isinstance(model.loss, Focal) or float(class_margins(model).amin()) > 0


@lru_cache(maxsize=16)
def _solved(
    counts: tuple[int, ...], dim: int, decays: Decays, loss: str, bias: bool, nonnegative: bool
) -> dict[str, float]:
    """`minimizer_measures`; records of a run share it while the decays stay. The dict is not to be changed."""
    features = "nonnegative" if nonnegative else "real"
    return minimizer_measures(Model(len(counts), dim, counts, *decays, bias, loss, features=features))
