"""The numbers of each class: how far its mean lies, how much it varies, which class is nearest, how its row is aligned.

The nearest means are found by tiles of class pairs, so that no K x K matrix is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import as_tensor, check_class_names, check_classifier
from neuralcollapse.errors import InputError, NeuralCollapseWarning, Undefined, listed
from neuralcollapse.geometry.class_table import ClassTable
from neuralcollapse.geometry.matrix import BlockedMatrix
from neuralcollapse.geometry.means import OVERFLOW, CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import pair_distances, ratios, rounding_squares, tile_distances

_EQUAL = 1e-13  # rows that differ from their mean by less than this share of the largest entry are equal to it
_PLAIN = (1e-100, 1e100)  # the sizes of entries whose squares neither over- nor underflow
_ROWS = 2**20  # values of the rows of class pairs held in memory at a time
_OF_PAIRS = ("nearest", "distance", "cdnv")


def per_class(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    names: Sequence[str] | Mapping[int, str] | None = None,
    accuracy: Tensor | Sequence[float] | None = None,
    pairwise: bool = True,
) -> ClassTable:
    r"""The measures of each class, to find the classes that are behind.

    For class k with n_k samples, mean :math:`\mu_k` and row w_k of the classifier, :math:`\mu_G` the mean of all
    samples and :math:`\bar w` the mean of the rows:

    - `mean_norm`, :math:`|\mu_k - \mu_G|` (equal for all classes under collapse);
    - `variance`, :math:`V_k = \frac{1}{n_k} \sum_i |h_i - \mu_k|^2`, the trace of the class's covariance (goes to 0);
    - `nearest`, the class j whose mean is nearest (the lowest number where several are), `distance`,
      :math:`|\mu_k - \mu_j|`, and `cdnv`, :math:`(V_k + V_j) / (2 |\mu_k - \mu_j|^2)` (goes to 0; infinite where the
      means coincide). The nearest class need not be the one with the largest ratio: `worst_pairs` lists those;
    - `weight_norm`, :math:`|w_k|`, as in the measure `equinorm_weights`, and `centred_weight_norm`,
      :math:`|w_k - \bar w|`, which does not change when all rows are moved alike, as the softmax does not;
    - `alignment`, :math:`\cos(w_k - \bar w, \mu_k - \mu_G)`, in [-1, 1] (goes to 1);
    - `mean_logit`, :math:`b_k + w_k^\top \mu_G` less its mean over the classes: what the classifier gives class k
      before it sees anything of a sample. The length of this column is the measure `nc_bias_centered`.

    Classes without samples are left out of :math:`\bar w` and of the mean logit, as in `measures`; their rows are NaN.
    A class of one sample has no variance and no CDNV; in the CDNV of others its variance counts as 0, as in `nc1_cdnv`.
    What is undefined is NaN, with one warning for each reason.

    Args:
        moments: of the features that the classifier receives.
        weight: (K, d) rows w_k. Without it, the columns about the classifier are None.
        bias: (K,); zero by default.
        names: of the K classes, in their order, or by number.
        accuracy: (K,) share of the samples of each class that are predicted right, in [0, 1] or NaN.
        pairwise: False leaves out `nearest`, `distance` and `cdnv`, whose time grows with K^2 d.

    Returns:
        A table with one row a class.

    Raises:
        InputError: weight or bias of the wrong shape or dtype, or not finite; names or accuracies of another number of
            classes; accuracies outside 0 to 1.
    """
    table, reasons = quiet_per_class(moments, weight, bias, names=names, accuracy=accuracy, pairwise=pairwise)
    for reason in reasons:
        warnings.warn(f"undefined (NaN): {reason}", NeuralCollapseWarning, stacklevel=2)
    return table


@torch.no_grad()
def quiet_per_class(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    names: Sequence[str] | Mapping[int, str] | None = None,
    accuracy: Tensor | Sequence[float] | None = None,
    pairwise: bool = True,
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> tuple[ClassTable, list[str]]:
    """`per_class` without its warnings, and their reasons.

    Where the classes are a subset of more, `numbers` (K,) are those that the table and the reasons call them by.
    `means` are the centred means of the moments, if they are at hand.
    """
    check_moments(moments)
    count = moments.num_classes
    check_classifier(weight, bias, count, moments.feature_dim)
    known = None if names is None else dict(enumerate(check_class_names(names, count)))
    shares = None if accuracy is None else _shares(accuracy, count)
    means = means or CentredMeans(moments, numbers)
    reasons: dict[str, list[str]] = {}
    found: dict[str, Tensor] = {}
    if len(means.seen):
        found = _of_features(means, pairwise, reasons)
        if weight is not None:
            found |= _of_classifier(means, weight, bias, reasons)
    columns = {name: _over_all(values, means, count) for name, values in found.items()}
    wanted = ["mean_norm", "variance", *(_OF_PAIRS if pairwise else ())]
    if weight is not None:
        wanted += ["weight_norm", "centred_weight_norm", "alignment", "mean_logit"]
    for name in wanted:
        nothing = torch.full((count,), -1 if name == "nearest" else math.nan, dtype=torch.float64, device="cpu")
        columns.setdefault(name, nothing)
    if pairwise:
        columns["nearest"] = columns["nearest"].nan_to_num(-1).to(torch.int64)
    counts = moments.counts.cpu().double()
    if shares is not None:
        columns["accuracy"] = torch.where(counts > 0, shares, math.nan)
    table = ClassTable(torch.arange(count, device="cpu"), counts, **columns, names=known)  # type: ignore[arg-type]
    return table if numbers is None else table.renumbered(numbers), _sentences(table, reasons, numbers)


def _of_features(means: CentredMeans, pairwise: bool, reasons: dict[str, list[str]]) -> dict[str, Tensor]:
    """The columns about the features, for the classes seen."""
    single = means.counts == 1
    variances = means.class_variances
    found = {"variance": torch.where(single | ~variances.isfinite(), math.nan, variances)}
    if not bool(variances.isfinite().all()):
        reasons.setdefault(OVERFLOW, []).append("variance")
    try:
        matrix = means.matrix
    except Undefined as reason:
        reasons.setdefault(str(reason), []).extend(["mean_norm", *(_OF_PAIRS if pairwise else ())])
        return found
    found["mean_norm"] = matrix.norms
    if pairwise:
        near, distances = nearest_means(matrix)
        found["nearest"] = means.seen[near].double()
        found["distance"] = distances.sqrt()
        found["cdnv"] = torch.where(single, math.nan, ratios(distances, variances, variances[near]))
    return found


def nearest_means(matrix: BlockedMatrix) -> tuple[Tensor, Tensor]:
    """(K,) the number of the nearest other row of each row, the lowest of several, and (K,) its squared distance.

    A distance that may be rounding alone is 0. O(K^2 d) time, and memory for tiles of class pairs.
    """
    least = rounding_squares(matrix)
    best = torch.full_like(least, math.inf)
    near = torch.zeros(matrix.count, dtype=torch.int64, device=least.device)

    def keep(rows: slice, others: slice, distances: Tensor, axis: int) -> None:
        values, places = distances.min(axis)
        better = values < best[rows]
        best[rows] = torch.where(better, values, best[rows])
        near[rows] = torch.where(better, others.start + places, near[rows])

    for first, second in matrix.tiles():  # for each row the others come in ascending order
        distances = tile_distances(matrix, first, second)
        distances.masked_fill_(distances <= least[first, None] + least[None, second], 0)
        keep(first, second, distances, 1)
        if first != second:
            keep(second, first, distances, 0)
    size = max(1, _ROWS // matrix.dim)
    every = torch.arange(matrix.count, device=least.device)
    exact = [pair_distances(matrix, *both) for both in zip(every.split(size), near.split(size), strict=True)]
    return near, torch.where(best > 0, torch.cat(exact), 0.0)


def _of_classifier(
    means: CentredMeans, weight: Tensor, bias: Tensor | None, reasons: dict[str, list[str]]
) -> dict[str, Tensor]:
    """The columns about the classifier's rows, for the classes seen."""
    given = weight.detach().to(means.seen.device)
    index = None if means.complete else means.seen
    rows, scale = BlockedMatrix(given, index), 1.0
    if rows.largest > 0 and not _PLAIN[0] < rows.largest < _PLAIN[1]:  # the squares of its entries are no numbers
        scale = rows.largest
        rows = BlockedMatrix(given := given.double() / scale, index)
    middle = torch.stack([rows.block(part).sum(0) for part in rows.parts()]).sum(0) / rows.count
    centred = BlockedMatrix(given, index, middle, math.sqrt(rows.dim) * _EQUAL * rows.largest)
    logits = rows.times(means.centre) * scale
    if bias is not None:
        logits = logits + bias.detach().to(logits)[means.seen]
    found = {"weight_norm": scale * rows.norms, "centred_weight_norm": scale * centred.norms}
    found["mean_logit"] = logits - logits.mean()
    try:
        found["alignment"] = row_cosines(centred, means.matrix)
    except Undefined as reason:
        reasons.setdefault(str(reason), []).append("alignment")
        return found
    return found


def row_cosines(left: BlockedMatrix, right: BlockedMatrix) -> Tensor:
    """(K,) the cosine between the rows of the same number, NaN where one has no length."""
    parts = []
    for part in left.parts():
        if left.small:
            products = (left.polar.unit[part] * right.polar.unit[part]).sum(1)
        else:
            lengths = [torch.where(matrix.norms > 0, matrix.norms, 1.0)[part, None] for matrix in (left, right)]
            products = ((left.block(part) / lengths[0]) * (right.block(part) / lengths[1])).sum(1)
        parts.append(products)
    directed = (left.norms > 0) & (right.norms > 0)
    return torch.where(directed, torch.cat(parts).clamp(-1, 1), math.nan)


def _over_all(values: Tensor, means: CentredMeans, count: int) -> Tensor:
    """The values of the classes seen as a column of all classes on the CPU, NaN for the others."""
    if means.complete:
        return values.cpu()
    column = torch.full((count,), math.nan, dtype=torch.float64, device="cpu")
    column[means.seen.cpu()] = values.cpu()
    return column


def _shares(accuracy: Tensor | Sequence[float], count: int) -> Tensor:
    """(K,) float64 accuracies on the CPU, after checking them."""
    given = accuracy if isinstance(accuracy, Tensor) else np.asarray(accuracy)  # a list of floats, as float64
    values = as_tensor(given, "accuracy").detach().cpu().double()
    if tuple(values.shape) != (count,):
        raise InputError(
            f"expected accuracy of shape (K,) = ({count},), got {tuple(values.shape)}: a share for each class"
        )
    wrong = (values < 0) | (values > 1)
    if bool(wrong.any()):
        raise InputError(
            f"expected accuracy from 0 to 1 (or NaN), got {float(values[wrong][0]):g}: divide the right predictions of "
            "each class by its samples"
        )
    return values


def _sentences(table: ClassTable, reasons: dict[str, list[str]], numbers: Tensor | None) -> list[str]:
    """The reasons for undefined numbers, each with what is undefined."""
    called = range(len(table)) if numbers is None else numbers.tolist()

    def classes(which: Tensor) -> str:
        found = [called[k] for k in which.nonzero().flatten().tolist()]
        return f"class{'es' * (len(found) > 1)} {listed(found)}" if found else ""

    sentences = []
    if found := classes(table.count == 0):
        sentences.append(f"no samples of {found}: all of their numbers")
    if found := classes(table.count == 1):
        sentences.append(f"one sample of {found}: variance, cdnv")
    sentences += [f"{reason}: {', '.join(columns)}" for reason, columns in reasons.items()]
    known = any("alignment" in columns for columns in reasons.values())
    if table.alignment is not None and not known and (found := classes(table.alignment.isnan() & (table.count > 0))):
        sentences.append(f"a centred row or mean of zero length in {found}: alignment")
    return sentences
