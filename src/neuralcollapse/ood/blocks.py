"""All scores of a block of features: three products, whatever the number of scores.

The first gives the logits, the coordinates of NECO and those of the residual; the second the coordinates in which S_W
is the identity, about the mean of the predicted class, so that nothing cancels where features are near it; the third,
of at most K-1 columns, finds the class mean that is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from neuralcollapse.ood import scores
from neuralcollapse.ood.fitted import Fitted

# Whitened coordinates of float32 products are off by eps |h - mu_k| / sqrt(least variance); beyond this, float64.
_OFF = 1e-4
_MOVED = 1e-4  # in units of S_W: class means rounded to the dtype of the products are corrected where that moves them


class Blocks:
    """A scorer's constants on one device, in one dtype, and the scores of a block of features there."""

    def __init__(
        self, fitted: Fitted, names: Iterable[str], alpha: float | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.names, self._fitted, self._alpha = set(names), fitted, alpha
        self._device, self._dtype = device, dtype
        options = fitted.options
        self._center, self._center_rest = self._split(fitted.mean)
        parts = [fitted.weight]
        if "neco" in self.names:
            directions = fitted.directions
            assert directions is not None
            scale = fitted.scales
            parts.append((directions if scale is None else directions / scale[:, None]).T)
        offset = fitted.mean.new_zeros(0)
        if self.names & {"vim", "residual"}:
            assert fitted.residual is not None
            assert fitted.origin is not None
            parts.append(fitted.residual.T)
            offset = fitted.residual.T @ (fitted.mean - fitted.origin)
        self._sizes = [len(part) for part in parts]
        self._rows = self._placed(torch.cat(parts)).T
        self._logits_at_mean = self._placed(fitted.weight @ fitted.mean + fitted.bias)
        self._residual_at_mean = self._placed(offset)
        self._inverse_scales = None if fitted.scales is None else self._placed(1 / fitted.scales)
        self._neco_max_logit, self._nci_alpha = options.neco_max_logit, options.nci_alpha
        # Below this a length is the rounding of features that lie at the mean: what is divided by it stays finite.
        size = float(torch.linalg.vector_norm(fitted.mean)) + float(fitted.covariances.total.trace().sqrt())
        self._least = max(torch.finfo(dtype).eps * size, torch.finfo(dtype).tiny)
        if self.names & {"mahalanobis", "relative_mahalanobis"}:
            self._place_whitened()

    def _placed(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return values.to(device=self._device, dtype=dtype or self._dtype)

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The values in the dtype of the products, and what that leaves over; None if nothing."""
        rounded = self._placed(values)
        rest = values - rounded.to(values)
        return rounded, self._placed(rest) if bool(rest.any()) else None

    def _place_whitened(self) -> None:
        fitted, found = self._fitted, self._fitted.whitened
        assert found is not None
        covariances = fitted.covariances
        variances = covariances.within_spectrum.variances
        off = torch.finfo(self._dtype).eps * float((variances.sum() / variances[-1]).sqrt())
        wide = self._dtype == torch.float64 or off <= _OFF or self._device.type == "mps"
        self._wide = self._dtype if wide else torch.float64
        rank, seen = found.means.shape[1], covariances.seen
        rows = rank if "mahalanobis" not in self.names else len(found.axes)
        if found.background is not None:
            rows = len(found.axes)
        axes = found.axes[:rows]
        count = len(fitted.weight)
        centers = fitted.mean.repeat(count, 1)
        centers[seen] = covariances.moments.means[seen].double()
        means = fitted.mean.new_zeros(count, rank)
        means[seen] = found.means
        self._rank = rank
        self._axes = self._placed(axes, self._wide).T
        self._centers = self._placed(centers, self._wide)
        self._moved: Tensor | None = None
        if self._wide != torch.float64:
            moved = (centers - self._centers.to(centers)) @ axes.T
            self._moved = self._placed(moved, self._wide) if float(moved.abs().max()) > _MOVED else None
        self._means = self._placed(means, self._wide)
        halves = torch.full_like(fitted.bias, torch.inf)
        halves[seen] = found.means.square().sum(1) / 2
        self._halves = self._placed(halves, self._wide)
        self._shares = self._placed(found.within_shares, self._wide)
        self._background = None if found.background is None else self._placed(found.background).T

    def scores(self, features: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
        """The scores of (n, d) features of the dtype, and their (n, K) logits if they are known."""
        names, options = self.names, self._fitted.options
        centred = features - self._center
        if self._center_rest is not None:
            centred -= self._center_rest
        products = (centred @ self._rows).split(self._sizes, 1)
        logits = products[0] + self._logits_at_mean if logits is None else logits
        largest, predicted = scores.max_logit(logits)
        found: dict[str, Tensor] = {"max_logit": largest}
        if names & {"neco", "nci", "fdbd"}:
            lengths = torch.linalg.vector_norm(centred, dim=1).clamp_(min=self._least)
        if "neco" in names:
            sizes = lengths
            if self._inverse_scales is not None:
                sizes = torch.linalg.vector_norm(centred * self._inverse_scales, dim=1).clamp_(min=self._least)
            found["neco"] = scores.neco(products[1], sizes, largest if self._neco_max_logit else None)
        if "nci" in names:
            sums = features.abs().sum(1) if self._nci_alpha else None
            projections = products[0].gather(1, predicted[:, None])[:, 0]
            found["nci"] = scores.nci(projections, lengths, sums, self._nci_alpha)
        if "fdbd" in names:
            boundaries, sizes = self._fitted.boundaries, lengths
            assert boundaries is not None
            if options.fdbd_center == "origin":
                sizes = torch.linalg.vector_norm(features, dim=1).clamp_(min=self._least)
            found["fdbd"] = scores.fdbd(logits, largest, boundaries.inverse(predicted, logits.dtype), sizes)
        if names & {"energy", "msp", "vim"}:
            others = scores.others(logits, largest, predicted)
            found["msp"], found["energy"] = scores.msp(others), scores.energy(largest, others)
        if names & {"vim", "residual"}:
            found["residual"] = scores.residual(products[-1].add_(self._residual_at_mean))
            if self._alpha is not None and "vim" in names:
                found["vim"] = scores.vim(found["energy"], found["residual"], self._alpha)
        if names & {"mahalanobis", "relative_mahalanobis"}:
            found |= self._distances(features, centred, predicted)
        return {name: value for name, value in found.items() if name in names}

    def _distances(self, features: Tensor, centred: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """The two Mahalanobis scores."""
        coordinates = (features - self._centers[predicted]) @ self._axes
        if self._moved is not None:
            coordinates -= self._moved[predicted]
        within, beyond = coordinates[:, : self._rank], coordinates[:, self._rank :]
        own = self._means[predicted]
        total = within + own
        nearest = torch.addmm(self._halves, total, self._means.T, alpha=-1).argmin(1)
        within = within + (own - self._means[nearest])  # zero, not a difference that rounds, where both are one class
        distance = scores.mahalanobis(within, beyond)
        found = {"mahalanobis": distance.to(features.dtype)}
        if self._background is not None:
            relative = distance + (centred @ self._background).square().sum(1)
        else:
            relative = scores.relative_mahalanobis(within, total, self._shares)
        found["relative_mahalanobis"] = relative.to(features.dtype)
        return found
