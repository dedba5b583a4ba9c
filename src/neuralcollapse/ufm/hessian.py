"""The Hessian at a point as a linear operator: products, extreme eigenvalues, and the number of negative ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.effort import FEWEST, Effort, OutOfEffort
from neuralcollapse.ufm.model import Model, check_model
from neuralcollapse.ufm.points import Point

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

_DENSE_UP_TO = 1500  # variables up to which the whole matrix is computed
_COLLAPSED = 1e-9  # features this close to their class means, relatively, count as equal


class Hessian:
    """The Hessian of a model's objective at a point.

    If the features of each class coincide, as at every critical point, the spectrum splits into that of the collapsed
    model (one column a class) and, for differences within class k, the eigenvalues of `W' C_k W / N + lH I`, C_k the
    curvature of the loss, each n_k - 1 times. `eigenvalues` and `negative` use this, so that their cost does not grow
    with the number of samples. What its products cost is taken from an `effort`, if there is one: a search that goes
    beyond it raises `OutOfEffort`.
    """

    def __init__(self, model: Model, point: Point, effort: Effort | None = None) -> None:
        check_model(model)
        model.check_point(point)
        self.model = model.near(point)
        self.at = point
        self.size = model.size
        self.effort = effort

    @cached_property
    def _at_point(self) -> Callable[[Point], Point]:
        return self.model.hessian_at(self.at)

    def product(self, direction: Point) -> Point:
        """The Hessian times a direction."""
        if self.effort is not None:
            self.effort.spend(self.effort.product)
        return self._at_point(direction)

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector (n,)."""
        return self.product(self.model.point(vector)).vector()

    def quadratic(self, direction: Point) -> float:
        """`f''[D, D]`."""
        return float(direction.dot(self.product(direction)))

    def operator(self) -> LinearOperator:
        """The Hessian as a SciPy operator."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(vector: np.ndarray) -> np.ndarray:
            direction = torch.as_tensor(vector.ravel(), dtype=torch.float64, device=self.model.device)
            return (self @ direction).cpu().numpy()

        return LinearOperator((self.size, self.size), matvec=matvec, rmatvec=matvec, dtype=np.float64)

    def dense(self) -> Tensor:
        """The whole matrix (n, n).

        Raises:
            InputError: more than a few thousand variables.
        """
        if self.size > 3 * _DENSE_UP_TO:
            raise InputError(f"the Hessian has {self.size} variables, too many for a dense matrix: use operator()")
        if self.model.is_collapsed:
            return dense_hessian(self.model, self.at)
        directions = self.model.point(torch.eye(self.size, dtype=torch.float64, device=self.model.device))
        matrix = self.model.hessian_product(self.at, directions).vector()
        return (matrix + matrix.mT) / 2

    def eigenvalues(self, count: int = 6, *, largest: bool = False) -> Tensor:
        """The `count` smallest (or largest) eigenvalues, ascending."""
        pieces = [(self._reduced() if self._splits else self)._extreme(count, largest)]
        if self._splits:
            pieces += [values.repeat(min(count, repeats)) for values, _, repeats in self._within()]
        values = torch.cat(pieces).sort().values
        return values[-count:] if largest else values[:count]

    def least(self) -> float:
        """The least eigenvalue."""
        return float(self.eigenvalues(1)[0])

    def negative(self, tolerance: float = 1e-8) -> int:
        """The number of eigenvalues below -tolerance: the index of a critical point."""
        if self._splits:
            within = sum(int((values < -tolerance).sum()) * repeats for values, _, repeats in self._within())
            return self._reduced().negative(tolerance) + within
        count = 16
        while True:
            values = self._extreme(min(count, self.size), largest=False)
            below = int((values < -tolerance).sum())
            if below < len(values) or len(values) == self.size:
                return below
            count *= 4

    @property
    def _splits(self) -> bool:
        return not self.model.is_collapsed and self.model.spread(self.at) <= _COLLAPSED

    def _reduced(self) -> Hessian:
        return Hessian(self.model.collapsed(), self.model.collapse(self.at), self.effort)

    def _within(self) -> list[tuple[Tensor, Tensor, int]]:
        """For each class the curvatures (d,) of differences between its features, the directions, and multiplicity."""
        small, point = self.model.collapsed(), self.model.collapse(self.at)
        if self.effort is not None:
            self.effort.spend(float(point.W.numel()) * point.W.numel())
        logits = small.logits(point)
        pieces = []
        for k, samples in enumerate(self.model.counts):
            bent = self.model.loss.curvature(logits[:, k : k + 1], small.targets[:, k : k + 1], point.W)
            block = point.W.mT @ bent / self.model.num_samples
            values, vectors = torch.linalg.eigh((block + block.mT) / 2)
            pieces.append((values + self.model.feature_decay, vectors, samples - 1))
        return pieces

    def _extreme(self, count: int, largest: bool) -> Tensor:
        from scipy.sparse.linalg import eigsh

        if self.size <= _DENSE_UP_TO:
            values = torch.linalg.eigvalsh(self.dense())
            return values[-count:] if largest else values[:count]
        count = min(count, self.size - 1)
        found = eigsh(
            self.operator(),
            k=count,
            which="LA" if largest else "SA",
            return_eigenvectors=False,
            ncv=min(self.size, max(2 * count + 1, 40)),
            v0=np.random.default_rng(0).standard_normal(self.size),
        )
        return torch.as_tensor(np.sort(found), dtype=torch.float64, device=self.model.device)

    def least_direction(self) -> tuple[float, Point]:
        """The least eigenvalue and its unit eigenvector.

        Raises:
            OutOfEffort: what the effort allows does not suffice.
        """
        if self._splits:
            best, direction = self._reduced().least_direction()
            direction = self.model.expand(direction)
            first = 0
            for (values, vectors, repeats), samples in zip(self._within(), self.model.counts, strict=True):
                if repeats and float(values[0]) < best:  # move two features of the class apart
                    best, direction = float(values[0]), self.model.zero_point()
                    direction.H[:, first] = vectors[:, 0] / math.sqrt(2)
                    direction.H[:, first + 1] = -vectors[:, 0] / math.sqrt(2)
                first += samples
            return best, direction
        if self.size <= _DENSE_UP_TO:
            values, vectors = torch.linalg.eigh(self.dense())
            return float(values[0]), self.model.point(vectors[:, 0])
        from scipy.sparse.linalg import eigsh

        if self.effort is not None and not self.effort.products(FEWEST):
            raise OutOfEffort("too little is left of the work allowed")
        start = np.random.default_rng(0).standard_normal(self.size)
        found, along = eigsh(self.operator(), k=1, which="SA", v0=start)
        vector = torch.as_tensor(along[:, 0].copy(), dtype=torch.float64, device=self.model.device)
        return float(found[0]), self.model.point(vector)


def dense_hessian(model: Model, point: Point) -> Tensor:
    """(..., n, n) the whole matrix, block by block, for a model with one column a class, over any leading dimensions.

    With C_k the weighted curvature of the loss at `z_k = W h_k / r_k + b` and S the weighted slopes, the blocks are
    `sum_k C_k (h_k h_k') / r_k^2` for W, `W' C_k W / r_k^2` for each h_k, `C_k W h_k / r_k^2 + S_k / r_k` between W and
    h_k, and the like for b.
    """
    K, d = model.num_classes, model.feature_dim
    W, roots, logits = point.W, model.columns.roots, model.logits(point)
    batch = logits.shape[:-2]
    one = torch.eye(K, dtype=torch.float64, device=model.device)
    basis = one.reshape(K, *(1 for _ in batch), K, 1)
    bent = model.loss.curvature(logits, model.targets, basis).expand(K, *batch, K, K) * model.columns.weights
    slopes = model.loss.gradient(logits, model.targets) * model.columns.weights / roots
    G, axes = point.H / roots, torch.eye(d, dtype=torch.float64, device=model.device)
    along = torch.einsum("j...ik,...jb->...ikb", bent, W)  # C_k W
    WW = torch.einsum("j...ik,...ak,...bk->...iajb", bent, G, G).reshape(*batch, K * d, K * d)
    WH = torch.einsum("...ikb,...ak->...iabk", along / roots[:, None], G)
    WH = (WH + torch.einsum("...ik,ab->...iabk", slopes, axes)).reshape(*batch, K * d, d * K)
    HH = torch.einsum("...ikb,...ia,kl->...akbl", along / roots[:, None].square(), W, one).reshape(*batch, d * K, d * K)
    rows = [torch.cat([WW, WH], -1), torch.cat([WH.mT, HH], -1)]
    decays = [
        torch.full((K * d,), model.weight_decay, dtype=torch.float64, device=model.device),
        torch.full((d * K,), model.feature_decay, dtype=torch.float64, device=model.device),
    ]
    if point.b is not None:
        Wb = torch.einsum("j...ik,...ak->...iaj", bent, G).reshape(*batch, K * d, K)
        Hb = (torch.einsum("j...ik,...ia->...akj", bent, W) / roots[:, None]).reshape(*batch, d * K, K)
        bb = bent.sum(-1).movedim(0, -1)
        rows = [torch.cat([rows[0], Wb], -1), torch.cat([rows[1], Hb], -1), torch.cat([Wb.mT, Hb.mT, bb], -1)]
        decays.append(torch.full((K,), model.bias_decay, dtype=torch.float64, device=model.device))
    matrix = torch.cat(rows, -2)
    return (matrix + matrix.mT) / 2 + torch.diag(torch.cat(decays).to(model.device))
