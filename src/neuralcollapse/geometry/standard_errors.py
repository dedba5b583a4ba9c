"""How sure NC1 and the CDNV are: bias-corrected values and standard errors, by a jackknife over groups of samples.

Nothing is assumed of how the features are distributed. The samples are in G groups with moments of their own. Leaving
out one group after the other gives G values of each corrected measure (`corrected.py`), whose spread is the standard
error, and whose mean shows what bias is left. With T of all samples, T_g without group g, and `h_g = N / N_g`:

    value = G T - sum_g (1 - 1/h_g) T_g,    error^2 = (1/G) sum_g (h_g T - (h_g - 1) T_g - value)^2 / (h_g - 1).

For groups of one size these are the usual formulas; for others, those of Busing, Meijer, van der Leeden 1999.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, Undefined, listed
from neuralcollapse.geometry.corrected import Corrected
from neuralcollapse.geometry.groups import joined, without
from neuralcollapse.geometry.means import CentredMeans, check_moments
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.pairs import Estimate, Sample, draw
from neuralcollapse.geometry.undefined import Reasons

_LEFT = 2  # samples that a class must keep when a group is left out, so that it has a variance
_Value = Tensor | Estimate
_Job = Callable[[Corrected, Sample | None], _Value]
_JOBS: dict[str, _Job] = {
    "nc1": lambda corrected, sample: corrected.nc1(),
    "nc1_quotient": lambda corrected, sample: corrected.nc1_quotient(),
    "nc1_cdnv": lambda corrected, sample: corrected.nc1_cdnv(sample),
}


@torch.no_grad()
def standard_errors(groups: Sequence[ClassMoments], *, pairwise: bool | int = True) -> dict[str, float]:
    r"""Bias-corrected NC1, its quotient and its CDNV, with standard errors, from the moments of groups of samples.

    From few samples the measures are too small, since the noise of the class means adds to their distances: the CDNV of
    two classes by a factor of about `1 / (1 + x)`, :math:`x = 2 \mathrm{tr} S / (n |\mu_1 - \mu_2|^2)`. What is
    estimated here is what ever more samples would give of the same classes in the same shares. The samples count as
    independent. An interval is `value ± q error`, with q of the t distribution with G - 1 degrees of freedom: 2.09 for
    95 % and 20 groups.

    Args:
        groups: moments of G groups of samples, each a fair sample of all, such as every G-th one of each class. Twenty
            are good, five the fewest that make sense. `measure` and `measure_features` make them with `errors=True`.
        pairwise: as in `neuralcollapse.measures`. With a sample of pairs, their own error is part of that of the CDNV.

    Returns:
        "nc1_corrected", the value without bias, and "nc1_error", its standard error; the same for "nc1_quotient" and
        "nc1_cdnv"; and "num_groups", G. NaN with a warning where a class has fewer than three samples, or where means
        are not far enough apart for the noise in them.

    Raises:
        InputError: fewer than two groups with samples, or of different K or d.
    """
    if not isinstance(groups, Iterable):
        raise InputError(f"expected a list of moments, one a group, got {type(groups).__name__}: split the samples")
    for group in groups:
        check_moments(group)
    groups = [group for group in groups if group.num_samples > 0]
    if len(groups) < 2:
        raise InputError(f"expected moments of at least two groups of samples, got {len(groups)}: split the samples")
    return errors_of(joined(groups), groups, pairwise=pairwise)


@torch.no_grad()
def errors_of(
    whole: ClassMoments,
    groups: Sequence[ClassMoments],
    *,
    pairwise: bool | int = True,
    held_out: bool = False,
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`standard_errors`, given the moments of all groups together too; NaN for fewer than two groups.

    `held_out` and `numbers` are what warnings say, and `means` those of `whole`, as of `measures_of`.
    """
    groups = [group for group in groups if group.num_samples > 0]
    means, undefined = means or CentredMeans(whole, numbers), Reasons()
    sample = draw(len(means.seen), pairwise, means.seen.device)
    names = [name for name in _JOBS if pairwise is not False or name != "nc1_cdnv"]
    values = {f"{name}_{kind}": math.nan for name in names for kind in ("corrected", "error")}
    try:
        _check_enough(means, groups)
        left = [CentredMeans(without(whole, group), numbers) for group in groups]
        basis = means.basis
        every = [Corrected(means, basis), *(Corrected(each, basis, strict=False) for each in left)]
    except Undefined as reason:
        undefined.add(str(reason), names)
        names = []
    shares = torch.tensor(
        [group.num_samples / whole.num_samples for group in groups], dtype=torch.float64, device="cpu"
    )
    for name in names:
        found = undefined.attempt([name], partial(_each, _JOBS[name], every, sample), None)
        if found is None:
            continue
        taken = torch.stack([value.mean if isinstance(value, Estimate) else value for value in found]).cpu()
        value, error = _jackknife(taken, shares)
        of_pairs = found[0].error if isinstance(found[0], Estimate) else None
        if of_pairs is not None:
            error = math.hypot(error, float(of_pairs))
        values[f"{name}_corrected"], values[f"{name}_error"] = value, error
    whose = "test set: " if held_out else ""
    undefined.warn(6, about=f"{whose}no bias-corrected value and no standard error (NaN)")
    return values | {"num_groups": float(len(groups))}


def _each(job: _Job, every: Sequence[Corrected], sample: Sample | None) -> list[_Value]:
    return [job(each, sample) for each in every]


def _check_enough(means: CentredMeans, groups: Sequence[ClassMoments]) -> None:
    """`Undefined` unless there are groups, and enough samples of each class without any of them."""
    if len(groups) < 2:
        raise Undefined("fewer than two groups have samples")
    most = torch.stack([group.counts for group in groups]).amax(0)
    counts = means.moments.counts
    few = means.called(((counts - most < _LEFT) & (counts > 0)).nonzero().flatten())
    if few:
        raise Undefined(
            f"too few samples of class{'es' * (len(few) > 1)} {listed(few)} to leave some out, which takes three of "
            "each class (min_count=3 leaves such classes out)"
        )


def _jackknife(values: Tensor, shares: Tensor) -> tuple[float, float]:
    """The value less its bias and its standard error, from that of all samples and those without each group."""
    rest = 1 - shares
    value = len(shares) * values[0] - rest @ values[1:]
    pseudo = (values[0] - rest * values[1:]) / shares
    error = ((pseudo - value).square() * shares / rest).mean().sqrt()
    return float(value), float(error)
