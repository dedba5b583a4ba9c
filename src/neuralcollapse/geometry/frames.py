"""The simplex equiangular tight frame (ETF), the one nearest to given vectors, and the orthoplex.

A simplex ETF is K unit vectors with all pairwise cosines equal to -1/(K-1), the smallest value that all cosines of K
vectors can have. They span K-1 dimensions and sum to zero. Source: Papyan, Han, Donoho (PNAS 2020), definition 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_etf_exists, check_vectors
from neuralcollapse.errors import InputError


def simplex_etf(
    num_classes: int,
    dim: int | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""A simplex ETF: :math:`\sqrt{K/(K-1)}\,(I - \frac1K 11^\top) P^\top`, one unit row for each class.

    P (d, K) has orthonormal columns. Without a generator the frame is canonical: P is the first K coordinates or, for
    d = K-1, one Householder reflection removes the direction of ones (see `drop_ones`). With a generator, a uniformly
    drawn (Haar) rotation is applied.

    Args:
        num_classes: K >= 2.
        dim: d >= K-1; K by default.
        generator: draws the rotation; the same seed gives the same frame.
        dtype: dtype of the result, by default torch's; the frame is built in float64.
        device: device of the result.

    Returns:
        (K, d) unit rows with pairwise cosines -1/(K-1).

    Raises:
        InputError: K < 2 or d < K-1 (no simplex ETF exists).

    >>> simplex_etf(3, dtype=torch.float64).mul(6**0.5).round()
    tensor([[ 2., -1., -1.],
            [-1.,  2., -1.],
            [-1., -1.,  2.]], dtype=torch.float64)
    """
    dim = num_classes if dim is None else dim
    check_etf_exists(num_classes, dim)
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise InputError(f"expected a floating-point dtype, got {dtype}: the entries of the frame are not integers")
    if generator is None and dim >= num_classes:
        frame = torch.eye(num_classes, dim, dtype=torch.float64, device="cpu")
        frame[:, :num_classes] -= 1 / num_classes
    else:
        frame = drop_ones(torch.eye(num_classes - 1, dtype=torch.float64, device="cpu")).T
    if generator is not None:
        frame = frame @ haar_rows(num_classes - 1, dim, generator)
    return (math.sqrt(num_classes / (num_classes - 1)) * frame).to(device=device, dtype=dtype)


def orthoplex(
    num_classes: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""K of the 2d vectors +-e_i of an orthoplex: row 2i is e_i, row 2i+1 is -e_i.

    Their largest cosine is 0, and no K >= d+2 unit vectors have a smaller one (Rankin 1955). For even K they sum to
    zero.

    Args:
        num_classes: K from 2 to 2d.
        dim: d.
        generator: draws a uniform (Haar) rotation; by default there is none.
        dtype: dtype of the result, by default torch's; the frame is built in float64.
        device: device of the result.

    Returns:
        (K, d) unit rows.

    Raises:
        InputError: K < 2 or K > 2d.

    >>> orthoplex(3, 2)
    tensor([[ 1.,  0.],
            [-1.,  0.],
            [ 0.,  1.]])
    """
    check_orthoplex_exists(num_classes, dim)
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise InputError(f"expected a floating-point dtype, got {dtype}: the entries of the frame are not integers")
    axes = (num_classes + 1) // 2
    plain = torch.eye(axes, dim, dtype=torch.float64, device="cpu")
    half = plain if generator is None else haar_rows(axes, dim, generator)
    rows = torch.stack([half, -half], 1).flatten(0, 1)[:num_classes] + 0.0  # no negative zeros
    return rows.to(device=device, dtype=dtype)


def frame_name(num_classes: int, dim: int) -> str:
    """The best-known frame of K unit vectors: "simplex" up to K = d+1, "orthoplex" up to 2d, then "softmax_code"."""
    check_count(num_classes, "num_classes", 2)
    check_count(dim, "dim", 1)
    if num_classes <= dim + 1:
        return "simplex"
    return "orthoplex" if num_classes <= 2 * dim else "softmax_code"


def check_orthoplex_exists(num_classes: int, dim: int) -> None:
    """Raise unless 2 <= K <= 2d, the number of the vectors +-e_i."""
    check_count(num_classes, "num_classes", 2)
    check_count(dim, "dim", 1)
    if num_classes > 2 * dim:
        raise InputError(
            f"expected at most 2d = {2 * dim} classes for an orthoplex in d={dim} dimensions, got K={num_classes}: "
            "use a softmax code, or widen the features"
        )


def nearest_simplex_etf(vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""The scaled simplex ETF nearest to K vectors: :math:`\min_{s \ge 0, E} |V - s E|_F`.

    Orthogonal Procrustes: with T (K, K-1) an orthonormal basis of the vectors that sum to zero and `T'V = A S B'` (thin
    SVD), the minimiser is `E = sqrt(K/(K-1)) T A B'` and `s = <V, E>/K`. Unlike a polar factor of V itself, this is a
    simplex ETF even when V is rank deficient. Then the nearest one is not unique, since the missing directions may be
    rotated freely, and one of them is returned.

    Args:
        vectors: (K, d) floating-point, d >= K-1, one row for each class.

    Returns:
        etf: (K, d) unit rows, in the dtype of `vectors`.
        scale: s >= 0, a scalar tensor.

    Raises:
        InputError: fewer than two rows, d < K-1, or values that are not finite floats.

    Source: Schoenemann (1966) for Procrustes.
    """
    check_vectors(vectors)
    num_classes, dim = vectors.shape
    check_etf_exists(num_classes, dim)
    rows = vectors.to(torch.float64)
    basis = drop_ones(torch.eye(num_classes - 1, dtype=torch.float64, device=vectors.device)).T
    left, singular, right = torch.linalg.svd(basis.T @ rows, full_matrices=False)
    factor = math.sqrt(num_classes / (num_classes - 1))
    etf = factor * (basis @ (left @ right))
    scale = factor * singular.sum() / num_classes
    return etf.to(vectors.dtype), scale.to(vectors.dtype)


def drop_ones(features: Tensor) -> Tensor:
    r"""`T h` for h of K-1 coordinates, T (K, K-1) an orthonormal basis of the vectors that sum to zero.

    T is the Householder reflection that maps the K-th axis to the vector of ones over sqrt(K), without its last column:
    `(T h)_k = h_k - sum(h)/(sqrt(K)(sqrt(K)-1))` for k < K, and `sum(h)/sqrt(K)` for the last. O(K) a row.

    Args:
        features: (..., K-1).

    Returns:
        (..., K), rows that sum to zero and keep their norm.
    """
    root = math.sqrt(features.shape[-1] + 1)
    total = features.sum(-1, keepdim=True)
    return torch.cat([features - total / (root * (root - 1)), total / root], dim=-1)


def haar_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal rows in `dim` dimensions, uniformly distributed (QR with the diagonal of R made positive)."""
    gaussian = torch.randn(dim, count, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(gaussian.cpu())
    return (q * r.diagonal().sign()).T
