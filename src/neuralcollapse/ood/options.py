"""The names of the scores, and the options that some of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.errors import InputError, did_you_mean

SCORES: dict[str, str] = {
    "neco": "share of the centred feature's length in the principal directions",
    "nci": "projection of the centred feature's direction on the row of its class",
    "fdbd": "mean distance to the decision boundaries, over the distance to the centre",
    "vim": "log-sum-exp of the logits less the residual, in units of the logits",
    "residual": "length outside the principal directions, negative",
    "mahalanobis": "squared distance to the nearest class mean in units of the within-class covariance, negative",
    "relative_mahalanobis": "squared Mahalanobis distance to the mean of all less that to the nearest class mean",
    "energy": "log-sum-exp of the logits",
    "max_logit": "largest logit",
    "msp": "largest softmax probability",
}
"""Name -> meaning. Every score is higher for inputs that are more like the training set."""

CENTRES = ("mean", "origin")


@dataclass(frozen=True)
class ScoreOptions:
    """What the scores leave open.

    Attributes:
        scores: the names of the scores that are wanted; empty for all that the moments and the head allow.
        neco_dim: q, the number of principal directions of NECO; a number below 1 for as many as hold that share of the
            variance; None for K-1, but no more than the rank.
        neco_standardize: NECO of features divided by their standard deviation, entry by entry.
        neco_max_logit: NECO times the largest logit.
        nci_alpha: the weight of |h|_1 in NCI.
        vim_dim: the number of principal directions that the residual leaves out; None for 1,000 if d >= 2,048, 512 if
            768 <= d < 2,048, and half of d below.
        vim_alpha: the residual's weight in ViM; None to fit it.
        fdbd_center: "mean" divides fDBD by |h - mu_G|, "origin" by |h|.
    """

    scores: tuple[str, ...] = ()
    neco_dim: int | float | None = None
    neco_standardize: bool = False
    neco_max_logit: bool = False
    nci_alpha: float = 0.0
    vim_dim: int | None = None
    vim_alpha: float | None = None
    fdbd_center: str = "mean"

    def __post_init__(self) -> None:
        scores = self.scores
        if isinstance(scores, str) or not isinstance(scores, Sequence | set | frozenset):
            scores = (scores,)
        for name in scores:
            if name not in SCORES:
                raise InputError(
                    f"no score {name!r}{did_you_mean(str(name), SCORES)}: expected some of {', '.join(SCORES)}"
                )
        object.__setattr__(self, "scores", tuple(name for name in SCORES if name in scores))
        if self.neco_dim is not None:
            object.__setattr__(self, "neco_dim", _directions(self.neco_dim))
        if self.vim_dim is not None:
            object.__setattr__(self, "vim_dim", check_count(self.vim_dim, "vim_dim", 1))
        object.__setattr__(self, "nci_alpha", check_real(self.nci_alpha, "nci_alpha", zero=True))
        if self.vim_alpha is not None:
            object.__setattr__(self, "vim_alpha", check_real(self.vim_alpha, "vim_alpha", zero=True))
        for name in ("neco_standardize", "neco_max_logit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"expected {name} to be True or False, got {getattr(self, name)!r}")
        if self.fdbd_center not in CENTRES:
            raise InputError(f"expected fdbd_center to be one of {', '.join(CENTRES)}, got {self.fdbd_center!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ScoreOptions:
        """The options of these keyword arguments.

        Raises:
            InputError: no option of that name, or a value that it cannot have.
        """
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"no option {name!r}{did_you_mean(name, known)}: expected some of {', '.join(known)}")
        values = dict(given)
        if values.get("scores", ()) is None:
            values["scores"] = ()
        return cls(**values)


def _directions(value: object) -> int | float:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return check_count(value, "neco_dim", 1)
    if isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < 1:
        return float(value)
    raise InputError(
        f"expected neco_dim as a number of directions, or as a share of the variance between 0 and 1, got {value!r}"
    )
