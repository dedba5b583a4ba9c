r"""The convex form of the model, with the classes of equal counts together: G distinct counts instead of K classes.

Classes of equal counts are interchangeable and the problem `min g(Z + b1') + mu |Z|_* + lb/2 |b|^2` is convex, so the
mean of a minimiser over all permutations of them is a minimiser too. It has one bias for each group and, in the block
of groups g and h of m_g and m_h classes, `Z = a_g I + c_gh J`, J of ones, with the a_g only where g = h. On vectors
that sum to 0 in each group Z acts as a_g, on those that are constant in each group as the (G, G) matrix

    C_gh = a_g [g = h] + sqrt(m_g m_h) c_gh,      so that      |Z|_* = sum_g (m_g - 1) |a_g| + |C|_*

The slopes have the same form, and their spectral norm is the largest of all |a_g| with m_g > 1 and of |C|_2. A column
of logits has the entry of its own class, and in each group equal entries of all others: (G+1, G) logits describe all
classes. Everything here is in canonical units (`units.py`).

For descent, C = W H with two (G, G) factors, and `a_g = u_g^2/(m_g - 1)`, which is not negative at a minimiser.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.ufm.duality import Line, best_scale, newton_bias, spectral_norm
from neuralcollapse.ufm.losses import CrossEntropy, SquaredError
from neuralcollapse.ufm.model import Model

_NEVER = -1e300  # the logit of classes that do not exist: the others of a class that is alone in its group


@dataclass(frozen=True)
class Groups:
    """The classes by their counts: the group (K,) of each, and of each group its classes (G,) and share n_g/N (G,)."""

    of: Tensor
    sizes: Tensor
    shares: Tensor

    @classmethod
    def of_counts(cls, counts: tuple[int, ...], device: torch.device) -> Groups:
        """The groups of equal counts, smallest counts first."""
        values, of, sizes = torch.unique(torch.tensor(counts, device="cpu"), return_inverse=True, return_counts=True)
        parts = (of, sizes.double(), values.double() / sum(counts))
        return cls(*(part.to(device) for part in parts))

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class GroupedPoint:
    """A point: `within` are the a_g (..., G), `between` is C (..., G, G), and b (..., G) the biases or None."""

    within: Tensor
    between: Tensor
    b: Tensor | None


class GroupedModel:
    """The convex form of a model with real features, over groups of classes with equal counts, in canonical units.

    Vectors (..., n) hold the factors W and H of C, u, and the bias of each group times sqrt(m_g): lengths and inner
    products are those of the same points of the whole canonical model with K classes.
    """

    def __init__(self, model: Model, device: torch.device | None = None) -> None:
        self.model, self.loss = model, model.loss
        device = model.device if device is None else device
        self.groups = Groups.of_counts(model.counts, device)
        self.mu = model.mu * math.sqrt(model.num_samples)
        m, G, K = self.groups.sizes, len(self.groups), model.num_classes
        self.less = (m - 1).clamp(min=1)  # what divides by it is 0 for a class that is alone
        self.size = 2 * G * G + G * (2 if model.bias else 1)
        self.roots, self.weights = self.groups.shares.sqrt(), self.groups.shares * m
        self.eye = torch.eye(G, dtype=torch.float64, device=device)
        # The first row is the class itself, the row of each group its other classes.
        times = torch.cat([torch.ones_like(m)[None], m[:, None] - self.eye])  # how many there are
        smoothing = self.loss.smoothing if isinstance(self.loss, CrossEntropy) else 0.0
        targets = times * (smoothing / K)
        targets[0] += 1 - smoothing
        # A loss of all K entries is the loss itself at `stretch * logits + shift`, but for a constant.
        if isinstance(self.loss, SquaredError):
            self.stretch, self.shift, self.constant = times.sqrt(), torch.zeros_like(times), torch.zeros_like(m)
        else:
            self.stretch, self.shift = torch.ones_like(times), times.log().clamp(min=_NEVER)
            self.constant = torch.where(times > 0, targets * self.shift, 0.0).sum(0)
        self.times, self.targets = times, targets
        self.outer = (m[:, None] * m).sqrt()
        self._beside: tuple[Tensor, Callable[[Tensor], Tensor], Tensor, Tensor] | None = None

    # -- points -------------------------------------------------------------------------------------------

    def factors(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(W, H, u, scaled bias) of a vector."""
        G = len(self.groups)
        W, H, u, b = vector.split([G * G, G * G, G, G if self.model.bias else 0], dim=-1)
        return W.unflatten(-1, (G, G)), H.unflatten(-1, (G, G)), u, b if self.model.bias else None

    def point(self, vector: Tensor) -> GroupedPoint:
        """The point of a vector."""
        W, H, u, b = self.factors(vector)
        return GroupedPoint(
            u.square() / self.less,
            W @ H,
            None if b is None else b / self.groups.sizes.sqrt(),
        )

    def vector(self, point: GroupedPoint, ridge: float = 0.0) -> Tensor:
        """The vector of a point with balanced factors; no singular value of C counts as less than `ridge`."""
        left, size, right = torch.linalg.svd(point.between)
        root = size.clamp(min=ridge).sqrt()
        u = (point.within.clamp(min=ridge) * (self.groups.sizes - 1)).sqrt()
        parts = [(left * root).flatten(), (root[:, None] * right).flatten(), u]
        return torch.cat(parts if point.b is None else [*parts, point.b * self.groups.sizes.sqrt()])

    def to(self, kind: torch.dtype) -> GroupedModel:
        """A copy for products of the Hessian in another precision."""
        model = copy.copy(self)
        parts = {name: part.to(kind) for name, part in vars(self).items() if isinstance(part, Tensor)}
        groups = Groups(self.groups.of, self.groups.sizes.to(kind), self.groups.shares.to(kind))
        vars(model).update(parts, groups=groups, _beside=None)
        return model

    def zero(self) -> GroupedPoint:
        """All zeros."""
        G, zeros = len(self.groups), torch.zeros_like(self.weights)
        return GroupedPoint(zeros, zeros.new_zeros(G, G), zeros.clone() if self.model.bias else None)

    def start(self, seed: int) -> Tensor:
        """Near the simplex of the margins that equal classes would have, or for later seeds a random vector."""
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(self.size, generator=generator, dtype=torch.float64, device="cpu").to(self.weights.device)
        if seed:
            return noise
        K, m = self.model.num_classes, self.groups.sizes
        if isinstance(self.loss, SquaredError):
            margins = torch.ones_like(m)
        else:
            pull = self.mu / self.roots + (1 - float(self.targets[0, 0])) / (K - 1)
            margins = torch.log1p((1 - K * pull).clamp(min=0) / pull).clamp(min=0.1)
        within = margins * self.roots
        between = torch.diag(within) - self.outer / K * within
        bias = torch.zeros_like(m) if self.model.bias else None
        return self.vector(GroupedPoint(within, between, bias), 1e-4) + 1e-3 * noise

    # -- the objective ------------------------------------------------------------------------------------

    def logits(self, point: GroupedPoint) -> Tensor:
        """(..., G+1, G): for a class of each group its own logit, and those of the others in each group."""
        others = (point.between - torch.diag_embed(point.within)) / self.outer
        own = point.within + others.diagonal(dim1=-2, dim2=-1)
        logits = torch.cat([own.unsqueeze(-2), others], -2) / self.roots
        return logits if point.b is None else logits + self._spread(point.b)

    def _spread(self, bias: Tensor) -> Tensor:
        """The biases of groups as a matrix that is added to logits."""
        return torch.cat([bias.unsqueeze(-2), bias.unsqueeze(-1).expand(*bias.shape, bias.shape[-1])], -2)

    def at_logits(self, logits: Tensor, bias: Tensor | None) -> GroupedPoint:
        """The point with (G+1, G) logits, without the bias."""
        scaled = logits * self.roots
        within = scaled[0] - scaled[1:].diagonal()
        return GroupedPoint(within, self.outer * scaled[1:] + torch.diag(within), bias)

    def value(self, point: GroupedPoint, norms: Tensor | None = None) -> Tensor:
        """The objective; `norms` is |Z|_* or a bound of it, if it is known."""
        if norms is None:
            norms = torch.linalg.svdvals(point.between).sum(-1)
            norms = norms + ((self.groups.sizes - 1) * point.within.abs()).sum(-1)
        fit = self._fit(self.logits(point))
        cost = self.mu * norms
        if point.b is not None:
            cost = cost + self.model.bias_decay / 2 * (self.groups.sizes * point.b.square()).sum(-1)
        return fit + cost

    def _fit(self, logits: Tensor) -> Tensor:
        losses = self.loss.value(self.stretch * logits + self.shift, self.targets) + self.constant
        return (losses * self.weights).sum(-1)

    def raw_slopes(self, logits: Tensor) -> Tensor:
        """The slopes that the loss itself gives, one column for each group."""
        slopes = self.loss.gradient(self.stretch * logits + self.shift, self.targets)
        if isinstance(self.loss, CrossEntropy) and self.loss.smoothing:  # columns sum to 0, even at confident points
            slopes[..., 0, :] = -slopes[..., 1:, :].sum(-2)
        return slopes

    def weighted_slopes(self, logits: Tensor) -> Tensor:
        """The same, weighted for `pull`."""
        return self.raw_slopes(logits) * self.stretch * self.weights

    def pull(self, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives with respect to C, the a_g, and the biases, of weighted (..., G+1, G) slopes."""
        scaled = slopes / self.roots
        own, others = scaled[..., 0, :], scaled[..., 1:, :]
        between = (others + torch.diag_embed(own)) / self.outer
        within = own - between.diagonal(dim1=-2, dim2=-1)
        return between, within, slopes[..., 1:, :].sum(-1) + slopes[..., 0, :]

    def value_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The objective (...) of (..., n) vectors, and its gradient."""
        W, H, u, b = self.factors(vector)
        point = self.point(vector)
        logits = self.logits(point)
        norms = (W.square().sum((-1, -2)) + H.square().sum((-1, -2))) / 2 + u.square().sum(-1)
        value = self._fit(logits) + self.mu * norms
        between, within, bias = self.pull(self.weighted_slopes(logits))
        parts = [
            (between @ H.mT + self.mu * W).flatten(-2),
            (W.mT @ between + self.mu * H).flatten(-2),
            2 * u * (within / self.less + self.mu),
        ]
        if b is not None:
            value = value + self.model.bias_decay / 2 * b.square().sum(-1)
            parts.append(bias / self.groups.sizes.sqrt() + self.model.bias_decay * b)
        return value, torch.cat(parts, -1)

    def product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at a vector (n,) times (..., n) directions."""
        W, H, u, _ = self.factors(vector)
        dW, dH, du, db = self.factors(direction)
        if self._beside is None or self._beside[0] is not vector:  # many products are asked for at the same vector
            logits = self.logits(self.point(vector))
            pulled = self.pull(self.weighted_slopes(logits))
            self._beside = (
                vector,
                self.loss.curvature_at(self.stretch * logits + self.shift, self.targets),
                *pulled[:2],
            )
        _, curvature, between, within = self._beside
        less = self.less
        moved = GroupedPoint(2 * u * du / less, dW @ H + W @ dH, None if db is None else db / self.groups.sizes.sqrt())
        bent = curvature(self.stretch * self.logits(moved)) * (self.stretch * self.weights)
        turned, moved_within, bias = self.pull(bent)
        parts = [
            (turned @ H.mT + between @ dH.mT + self.mu * dW).flatten(-2),
            (W.mT @ turned + dW.mT @ between + self.mu * dH).flatten(-2),
            2 * du * (within / less + self.mu) + 2 * u * moved_within / less,
        ]
        if db is not None:
            parts.append(bias / self.groups.sizes.sqrt() + self.model.bias_decay * db)
        return torch.cat(parts, -1)

    def dense(self, vector: Tensor) -> Tensor:
        """The whole Hessian (n, n) at a vector."""
        matrix = self.product(vector, torch.eye(self.size, dtype=torch.float64, device=vector.device))
        return (matrix + matrix.mT) / 2

    # -- the whole matrix ---------------------------------------------------------------------------------

    def singular(self, point: GroupedPoint) -> tuple[Tensor, Tensor, Tensor]:
        """The singular values (K,) of Z for all K classes, and the matrices (K, K) of left and right vectors."""
        K, of = len(self.groups.of), self.groups.of
        sizes, left, right = point.within.new_zeros(K), point.within.new_zeros(K, K), point.within.new_zeros(K, K)
        across, between, back = torch.linalg.svd(point.between)
        G = len(between)
        sizes[:G] = between
        left[:, :G] = (across / self.groups.sizes.sqrt()[:, None])[of]
        right[:, :G] = (back.mT / self.groups.sizes.sqrt()[:, None])[of]
        first = G
        for group, several in enumerate(self.groups.sizes.long().tolist()):
            if several == 1:
                continue
            own = slice(first, first + several - 1)
            first += several - 1
            sizes[own] = point.within[group].abs()
            rows = (of == group).nonzero()
            left[rows, torch.arange(own.start, own.stop, device=of.device)] = _differences(several, sizes)
            right[:, own] = left[:, own] * torch.where(point.within[group] < 0, -1.0, 1.0)
        # Before any root of them, which would make rounding 1e-8.
        return torch.where(sizes > 1e-13 * sizes.max(), sizes, 0.0), left, right

    def rank(self, point: GroupedPoint) -> int:
        """The rank of Z, without singular values that are small beside 1 in the units of the collapsed model."""
        between, m = torch.linalg.svdvals(point.between), self.groups.sizes
        all_sizes = torch.cat([between, point.within.abs()]) * math.sqrt(self.model.num_samples)
        times = torch.cat([torch.ones_like(between), m - 1])
        largest = float(torch.where(times > 0, all_sizes, 0.0).max())
        return int(times[all_sizes > 1e-9 * max(1.0, largest)].sum())

    # -- the bound ----------------------------------------------------------------------------------------

    def best_bias(self, point: GroupedPoint) -> Tensor:
        """The biases (G,) that minimise the objective for the rest of a point."""
        assert point.b is not None
        logits = self.logits(GroupedPoint(point.within, point.between, None))
        m, decay = self.groups.sizes, self.model.bias_decay
        if isinstance(self.loss, SquaredError):
            apart = self.pull(self.weighted_slopes(logits))[2]
            return -apart / (m * (1 + decay))
        shifted = logits + self.shift  # the logits of all classes of a group as one
        together = torch.where(self.eye > 0, torch.logaddexp(shifted[:1], shifted[1:]), shifted[1:])
        targets = self.targets[1:] + torch.diag(self.targets[0])
        return newton_bias(self.loss, decay * m, together, targets, self.weights, point.b, tolerance=1e-16)

    def lower_bound(self, point: GroupedPoint, sharp: bool = False) -> float:
        """The bound of `duality.lower_bound`, of the whole model at this point; `sharp` also that of `sharpened`."""
        bias = None if point.b is None else self.best_bias(point)
        slopes = self.raw_slopes(self.logits(GroupedPoint(point.within, point.between, bias)))
        bound = self._bound_of(slopes)
        return max(bound, self._bound_of(self.sharpened(slopes, point))) if sharp else bound

    def sharpened(self, slopes: Tensor, point: GroupedPoint) -> Tensor:
        """Raw slopes near others, with the singular values that a minimiser near a point has: mu where Z is not 0.

        Their gap is of second order in the distance from the minimum, that of the slopes of a point of first order.
        """
        m, several = self.groups.sizes, self.groups.sizes > 1
        between, within, _ = self.pull(slopes * self.stretch * self.weights)
        left, sizes, right = torch.linalg.svd(between)
        alive = torch.linalg.svdvals(point.between)
        sizes = sizes.clamp(max=self.mu)
        sizes[: int((alive > 1e-12 * alive.max()).sum())] = self.mu
        each = torch.where(point.within > 0, -self.mu, (within / self.less).clamp(-self.mu, self.mu))
        totals = (left * sizes) @ right * self.outer
        if isinstance(self.loss, CrossEntropy):  # probabilities that add up to 1
            least = -(self.targets[1:] * self.weights / self.roots)
            totals = torch.maximum(totals, least).fill_diagonal_(0.0)
            totals.diagonal().copy_(-totals.sum(0))
        own = torch.where(several, each * (m - 1), 0.0) + totals.diagonal() / m
        totals.diagonal().sub_(own)
        moved = torch.cat([own[None], totals]) * self.roots
        return torch.where(self.times > 0, moved / (self.stretch * self.weights).clamp(min=1e-300), 0.0)

    def _bound_of(self, slopes: Tensor) -> float:
        """The bound from raw slopes."""
        m, decay = self.groups.sizes, self.model.bias_decay
        rest = self.pull(slopes * self.stretch * self.weights)[2] / m  # of each class: G 1
        one_hot = isinstance(self.loss, CrossEntropy) and not self.loss.smoothing
        biased = self.model.bias
        if biased and decay == 0 and not one_hot:
            shares = self.times / self.stretch.clamp(min=1e-300)
            slopes = slopes - shares * self._spread(rest / self.weights.sum())
            rest = self.pull(slopes * self.stretch * self.weights)[2] / m
        quadratic = float((m * rest.square()).sum()) / (2 * decay) if biased and decay > 0 else 0.0
        undecayed = float((m * rest.abs()).sum()) if biased and decay == 0 else 0.0
        norm = self.dual_norm(slopes)
        largest = min(self.loss.largest_scale(slopes, self.targets), self.mu / norm if norm > 0 else 1.0)
        line = self.loss.dual_line(slopes, self.targets, self.weights)
        shifted = float((torch.where(self.times > 0, slopes * self.shift, 0.0) @ self.weights).sum())
        constant = float(self.constant @ self.weights)

        def whole(scale: float) -> tuple[float, float]:
            value, slope = line(scale)
            return value + scale * shifted + constant, slope + shifted

        return best_scale(Line(whole, quadratic, undecayed), largest)

    def dual_norm(self, slopes: Tensor) -> float:
        """`duality.dual_norm` of the whole model, from unweighted raw slopes."""
        between, within, _ = self.pull(slopes * self.stretch * self.weights)
        several = self.groups.sizes > 1
        each = within / self.less
        if not self.model.nonnegative:
            return max(spectral_norm(between), _largest(each[several].abs()))
        gram, squares = between.mT @ between, each.square()
        # The entries of Y'Y: `squares` on the diagonal, and `entries` everywhere.
        entries = (gram - torch.diag(squares)) / self.outer
        positive = entries.clamp(min=0)
        kept = squares + (entries - positive).diagonal()
        norms = [
            max(float(torch.linalg.eigvalsh(matrix)[-1]), _largest(alone[several]))
            for matrix, alone in ((torch.diag(kept) + self.outer * positive, kept), (gram, squares))
        ]
        return math.sqrt(max(0.0, min(norms)))

    def decay_cost(self, objective: float) -> float:
        """`duality.decay_cost`: the objective minus the least value of the loss alone."""
        zero = torch.zeros_like(self.targets)
        least = float((self.loss.dual(zero, self.targets) + self.constant) @ self.weights)
        return max(0.0, objective - least)

    def is_zero(self) -> GroupedPoint | None:
        """The minimiser if W = 0 and H = 0 minimise the model, for so strong a decay that `|grad g|_2 <= mu` there."""
        point = self.zero()
        if point.b is not None:
            point = GroupedPoint(point.within, point.between, self.best_bias(point))
        return point if self.dual_norm(self.raw_slopes(self.logits(point))) <= self.mu else None


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0


def _differences(count: int, like: Tensor) -> Tensor:
    """(count, count-1) orthonormal columns that sum to 0: each entry less the mean of those before it (Helmert)."""
    j = torch.arange(1, count, dtype=like.dtype, device=like.device)
    columns = torch.ones(count, count - 1, dtype=like.dtype, device=like.device).triu(0)
    columns[1:].diagonal().copy_(-j)
    return columns / (j * (j + 1)).sqrt()
