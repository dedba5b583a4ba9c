"""The softmax code: K unit vectors in d dimensions that are as far apart as possible, for any K."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.matrix import as_matrix, tiles

_COSINES = 2**24  # cosines held in memory at a time
# First and last temperature, rate and momentum. In tests/geometry/test_softmax_code.py the largest cosine ends within
# 0.002 of the smallest known one in 3 and 15 dimensions, and within 0.02 of it in 16.
_TEMPERATURES = (0.1, 0.001)
_RATE, _MOMENTUM = 2.0, 0.9


def softmax_code(
    num_classes: int,
    dim: int,
    *,
    seed: int = 0,
    steps: int = 300,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""K unit rows that minimise :math:`\tau \log \sum_k \sum_{j \ne k} e^{\langle w_k, w_j \rangle / \tau}`.

    As the temperature falls (from 0.1 to 0.001) this becomes the largest cosine between two rows. It is the softmax
    code of generalised neural collapse with features equal to the rows (self-duality); in the cases tried it ends with
    larger one-vs-rest distances than when rows and features are optimised separately. The logarithm is taken of one sum
    over all pairs: a mean over rows of such logarithms may let two rows coincide, which costs the other rows little.

    The method is gradient descent with momentum on the sphere from random rows, each row's gradient divided by its
    share of the sum; on one kind of machine it is deterministic given the seed. In two dimensions the exact solution,
    the regular polygon, is returned.

    Largest cosines reached: within 0.001 of 0.4472 for K=12, d=3 (the icosahedron), within 0.002 of 0.723 for K=24, d=3
    (the snub cube, the best known), and below 0.6 for K=240, d=8 in 1,000 steps (the roots of E8 have 0.5). Cost:
    4 K^2 d operations a step, and memory for a few K x d matrices and 16 million cosines.

    Args:
        num_classes: K >= 2.
        dim: d >= 2.
        seed: seed of the random start.
        steps: steps of the descent. On one thread K=4,096, d=512 takes half a second a step, and the largest cosine
            goes from 0.23 (random rows) to 0.082 in 30 steps and 0.057 in 100: for tens of thousands of classes use
            tens of steps, or a GPU.
        dtype: dtype of the result. It is computed in float32, for fewer than 2,000 classes in float64.
        device: where it is computed and kept.

    Returns:
        (K, d) unit rows.

    Raises:
        InputError: K or d below 2, or a negative number of steps.

    Source: Jiang et al., Generalized Neural Collapse for a Large Number of Classes, ICML 2024.
    """
    check_count(num_classes, "num_classes", 2)
    check_count(dim, "dim", 2)
    check_count(steps, "steps", 0)
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise InputError(f"expected a floating-point dtype, got {dtype}: the entries of the code are not integers")
    if dim == 2:
        angles = torch.arange(num_classes, dtype=torch.float64) * (2 * math.pi / num_classes)
        return torch.stack([angles.cos(), angles.sin()], 1).to(device=device, dtype=dtype)
    working = torch.float64 if num_classes < 2_000 else torch.float32
    generator = torch.Generator().manual_seed(seed)
    rows = _unit(torch.randn(num_classes, dim, generator=generator, dtype=working).to(device))
    speed = torch.zeros_like(rows)
    first, last = _TEMPERATURES
    with torch.autocast(rows.device.type, enabled=False):
        for step in range(steps):
            temperature = first * (last / first) ** (step / max(1, steps - 1))
            speed = _MOMENTUM * speed - _RATE * temperature * _tangent(_push(rows, temperature), rows)
            rows = _unit(rows + speed)
            speed = _tangent(speed, rows)
    return rows.to(dtype)


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
    for first, second in tiles(matrix):
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
