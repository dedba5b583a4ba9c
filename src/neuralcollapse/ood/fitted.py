"""What a scorer keeps of the training set and the head, in float64, and which scores they do not allow."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError, NeuralCollapseWarning, Undefined, listed
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.rounding import NAMES
from neuralcollapse.ood.boundaries import Boundaries
from neuralcollapse.ood.options import SCORES, ScoreOptions
from neuralcollapse.ood.spaces import (
    Covariances,
    Whitened,
    head_origin,
    principal,
    residual_directions,
    scales,
    whitened,
)

_ONCE = "the mean of the largest logit over the training features, which ViM weighs the residual by, needs them: "


class Fitted:
    """Projections, coordinates and distances that the scores share.

    Attributes:
        names: the scores that can be worked out, of those wanted.
        undefined: score -> why it has no value.
        weight, bias: (K, d) and (K,) of the head.
        mean: (d,) of the training features.
        covariances: of the training features.
        directions: (d, q) of NECO, or None.
        scales: (d,) what NECO divides the entries of a feature by, or None.
        residual: (d, d - vim_dim) directions of the residual, or None.
        origin: (d,) of ViM.
        whitened: coordinates for the two Mahalanobis scores, or None.
        boundaries: for fDBD, or None.
    """

    def __init__(self, moments: ClassMoments, weight: Tensor, bias: Tensor | None, options: ScoreOptions) -> None:
        count, dim = moments.num_classes, moments.feature_dim
        check_classifier(weight, bias, count, dim)
        if count < 2:
            raise InputError(f"expected a head of at least 2 classes, got {count}: outlier scores compare classes")
        if moments.num_samples == 0:
            raise InputError("expected moments of training features, got those of no samples: fit them first")
        self.options, self.undefined = options, dict[str, str]()
        self._wanted = options.scores or tuple(SCORES)
        device, eps = moments.device, torch.finfo(weight.dtype).eps
        self.weight = weight.detach().to(device, torch.float64)
        shift = torch.zeros(count) if bias is None else bias.detach()
        self.bias = shift.to(device, torch.float64)
        self.covariances = Covariances(moments)
        self.mean = self.covariances.mean
        self.scales = scales(self.covariances) if options.neco_standardize and "neco" in self._wanted else None
        self.origin = head_origin(self.weight, self.bias, eps) if self._asked("vim", "residual") else None
        self.directions = self._if("neco", principal, self.covariances, options.neco_dim, self.scales)
        self.residual: Tensor | None = None
        if self.origin is not None:
            find = residual_directions
            self.residual = self._if(("vim", "residual"), find, self.covariances, self.origin, options.vim_dim)
        names = ("mahalanobis", "relative_mahalanobis")
        self.whitened: Whitened | None = self._if(names, whitened, self.covariances)
        self.boundaries: Boundaries | None = self._if("fdbd", Boundaries, self.weight, eps)
        self.need_alpha = options.vim_alpha is None and "vim" in self._wanted and "vim" not in self.undefined
        if self.need_alpha:
            self.undefined["vim"] = f"{_ONCE}give features or vim_alpha"

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that can be worked out, of those wanted."""
        return tuple(name for name in self._wanted if name not in self.undefined)

    def check(self) -> None:
        """Warn of what is left out.

        Raises:
            InputError: a score that was asked for by name has no value.
        """
        silent = "vim" if self.need_alpha else ""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.undefined.items():
            if name in self.options.scores:
                raise InputError(f"no score {name!r} here: {reason}")
            if name != silent:
                reasons.setdefault(reason, []).append(name)
        notes = [f"left out: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        for note in (*notes, *self._notes()):
            warnings.warn(note, NeuralCollapseWarning, stacklevel=4)

    def _notes(self) -> list[str]:
        notes = []
        counts, seen = self.covariances.moments.counts, len(self.covariances.seen)
        if seen < len(counts) and self.whitened is not None:
            unseen = (counts == 0).nonzero().flatten().tolist()
            classes = "class" if len(unseen) == 1 else "classes"
            notes.append(
                f"no samples of {classes} {listed(unseen)}: distances are to the means of the {seen} that have"
            )
        if self.whitened is not None and self.whitened.left_out:
            dim, spacing = len(self.mean), self.covariances.moments.rounding
            left = self.whitened.left_out
            notes.append(
                f"S_W has the rank {dim - left} of d={dim} beyond the rounding of "
                f"{NAMES.get(spacing, 'exact')} features: Mahalanobis distances are taken on its span (by the "
                "pseudo-inverse) and do not see what lies outside, which the residual does"
            )
        if self.boundaries is not None and self.boundaries.merged:
            notes.append(
                f"{self.boundaries.merged} classes have the row of another class in the head, and so no boundary with "
                "it: fDBD averages over those that they have"
            )
        return notes

    def _asked(self, *names: str) -> bool:
        return any(name in self._wanted for name in names)

    def _if(self, names: str | tuple[str, ...], find: Any, *arguments: Any) -> Any:
        """What `find` gives, if one of these scores is wanted and defined; else None, and why is kept."""
        names = (names,) if isinstance(names, str) else names
        if not self._asked(*names):
            return None
        try:
            return find(*arguments)
        except Undefined as reason:
            self.undefined |= {name: str(reason) for name in names if name in self._wanted}
            return None
