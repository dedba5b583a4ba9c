"""The softmax code: K unit vectors in d dimensions that are as far apart as possible, for any K."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, default_device
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.code_search import search
from neuralcollapse.geometry.frames import haar_rows, orthoplex, simplex_etf
from neuralcollapse.geometry.matrix import as_matrix
from neuralcollapse.geometry.precision import without_autocast
from neuralcollapse.geometry.sharp_codes import known_codes, sharp_code

_COSINES = 2**24  # cosines held in memory at a time
# First and last temperature, rate and momentum of the descent. In 300 steps from random rows the largest cosine of 24
# rows in 3 dimensions ends within 0.002 of the smallest known one, that of 32 rows in 16 within 0.02.
_TEMPERATURES = (0.1, 0.001)
_RATE, _MOMENTUM = 2.0, 0.9
_SEARCHED = 2_000  # fewer classes than these are searched for in float64; more get a descent of _STEPS steps
_STEPS = 300


def softmax_code(
    num_classes: int,
    dim: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""K unit rows that minimise :math:`\tau \log \sum_k \sum_{j \ne k} e^{\langle w_k, w_j \rangle / \tau}`.

    As tau goes to 0 this becomes the largest cosine c between two rows. A softmax code of generalised neural collapse
    has the largest distance rho of any row from the convex hull of the others. Always `rho >= 1 - c`, and in all cases
    tried the two are equal at the end, so that the rows are their own best features (self-duality). The logarithm is
    taken of one sum over all pairs: a mean over rows of such logarithms may let two rows coincide, which costs the
    other rows little.

    Without `steps` the result is the best code known here:

    - the simplex for K <= d+1, the orthoplex for K <= 2d, and the regular polygon for d = 2;
    - an exact code where there is a formula, K, d = 12, 3 (the icosahedron); 10, 24 or 120, 4; 16 or 40, 5; 27 or 72,
      6; 56 or 126, 7; 240, 8 (the roots of E8); 112 or 162, 21; 100, 275 or 891, 22; 552 or 4,600, 23; 196,560, 24;
    - else, for K < 2,000, the best of up to 18 minima found by L-BFGS as the temperature falls, or a part of the next
      larger exact code in d dimensions if that is better. On one thread this takes a second or two up to K=500, d=64,
      and five at K=1,000, d=128. For up to 24 rows in 3 to 5 dimensions, where the best codes are listed, the angles
      agree with the list to 0.01 degrees; more rows in more dimensions may end some degrees below the best possible;
    - for more classes, 300 steps of descent.

    With `steps` it is the end of so many steps of gradient descent with momentum on the sphere from random rows, each
    row's gradient divided by its share of the sum: 4 K^2 d operations a step, and memory for a few K x d matrices and
    16 million cosines.

    Args:
        num_classes: K >= 2.
        dim: d >= 2.
        seed: seed of the random starts, and of the rotation of exact codes (except polygons). The result is
            deterministic given the seed on one kind of machine.
        steps: steps of the descent. On one thread K=4,096, d=512 takes half a second a step, and the largest cosine
            goes from 0.23 (random rows) to 0.082 in 30 steps and 0.057 in 100: for tens of thousands of classes use
            tens of steps, or a GPU.
        dtype: dtype of the result. It is computed in float64; by descent, for 2,000 classes or more in float32.
        device: where it is kept, and where the descent runs.

    Returns:
        (K, d) unit rows.

    Raises:
        InputError: K or d below 2, or a negative number of steps.

    Source: Jiang et al., Generalized Neural Collapse for a Large Number of Classes, ICML 2024.
    """
    check_count(num_classes, "num_classes", 2)
    check_count(dim, "dim", 2)
    if steps is not None:
        check_count(steps, "steps", 0)
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise InputError(f"expected a floating-point dtype, got {dtype}: the entries of the code are not integers")
    generator = torch.Generator().manual_seed(seed)
    device = default_device() if device is None else torch.device(device)
    with torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
        rows = _polygon(num_classes) if dim == 2 else None
        if rows is None and steps is None:
            rows = _best_known(num_classes, dim, generator)
    if rows is None:
        rows = _descent(num_classes, dim, _STEPS if steps is None else steps, generator, device)
    return rows.to(device=device, dtype=dtype)


def _polygon(num_classes: int) -> Tensor:
    angles = torch.arange(num_classes, dtype=torch.float64) * (2 * math.pi / num_classes)
    return torch.stack([angles.cos(), angles.sin()], 1)


def _best_known(num_classes: int, dim: int, generator: torch.Generator) -> Tensor | None:
    """The rows as `softmax_code` describes them, float64; None where only a descent is left."""
    if num_classes <= dim + 1:
        return simplex_etf(num_classes, dim, generator=generator, dtype=torch.float64)
    if num_classes <= 2 * dim:
        return orthoplex(num_classes, dim, generator=generator, dtype=torch.float64)
    larger = next((count for count in known_codes(dim) if count >= num_classes), None)
    exact = None if larger is None else sharp_code(larger, dim)[:num_classes] @ haar_rows(dim, dim, generator)
    if larger == num_classes or num_classes >= _SEARCHED:
        return exact
    found = search(num_classes, dim, generator)
    return found if exact is None or coherence(found) <= coherence(exact) else exact


def _descent(num_classes: int, dim: int, steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """The rows after so many steps from random ones."""
    working = torch.float64 if num_classes < _SEARCHED else torch.float32
    rows = _unit(torch.randn(num_classes, dim, generator=generator, dtype=working, device="cpu").to(device))
    speed = torch.zeros_like(rows)
    first, last = _TEMPERATURES
    with without_autocast(rows.device):
        for step in range(steps):
            temperature = first * (last / first) ** (step / max(1, steps - 1))
            speed = _MOMENTUM * speed - _RATE * temperature * _tangent(_push(rows, temperature), rows)
            rows = _unit(rows + speed)
            speed = _tangent(speed, rows)
    return rows


def coherence(rows: Tensor) -> float:
    """The largest cosine between two of K vectors (K, d), computed in tiles, never as a K x K matrix.

    -1/(K-1) for a simplex ETF, 0 for an orthoplex.

    Raises:
        InputError: not a (K, d) floating-point matrix of at least two rows, or a row of zero length.
    """
    matrix = as_matrix(rows)
    if matrix.count < 2 or not bool(matrix.norms.all()):
        raise InputError("expected at least two rows, none of zero length: they have no angles otherwise")
    largest = -1.0
    for first, second in matrix.tiles():
        cosines = matrix.unit(first) @ matrix.unit(second).T
        if first == second:
            cosines.fill_diagonal_(-1)
        largest = max(largest, float(cosines.max()))
    return largest


def _push(rows: Tensor, temperature: float) -> Tensor:
    """(K, d) the gradient of each row over its share of the sum: its neighbours, weighted by a softmax of cosines."""
    pushes = torch.empty_like(rows)
    size = max(1, _COSINES // len(rows))
    for start in range(0, len(rows), size):
        cosines = rows[start : start + size] @ rows.T
        cosines.diagonal(start).fill_(-math.inf)
        pushes[start : start + size] = cosines.div_(temperature).softmax(1) @ rows
    return pushes


def _tangent(vectors: Tensor, rows: Tensor) -> Tensor:
    """The vectors without their components along the rows."""
    return vectors - (vectors * rows).sum(1, keepdim=True) * rows


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
