"""How sure NC1 and the CDNV are: bias-corrected values and standard errors, by a jackknife over groups of samples.

Nothing is assumed of how the features are distributed. The samples are in G groups with moments of their own. Leaving
out one group after the other gives G values of each corrected measure (`corrected.py`), whose spread is the standard
error, and whose mean shows what bias is left. The measures are ratios that err by a factor, to either side alike in
their logarithm. With T the logarithm from all samples, T_g that without group g, and `h_g = N / N_g`:

    t = G T - sum_g (1 - 1/h_g) T_g,    p_g = h_g T - (h_g - 1) T_g - t,    v = (1/G) sum_g p_g^2 / (h_g - 1).

For groups of one size these are the usual formulas; for others, those of Busing, Meijer, van der Leeden 1999. Two
things remain. Of n samples a class v is too large: a group that has one sample of a class, or none, moves its mean by
`(1 - 1/G) / (1 - 1/n)` too much in its square, and squares of means and variances have parts that depend on two samples
each, which are counted twice, a share of about 1/n. And where few large values make the spread (the skewness g of the
p_g is above 0), intervals end too early (Johnson 1978), so that s, the root of v, grows by `1 + g / (2 sqrt(G))`. The
value is `e^t`, and the error such that `value + q error` is the end `e^(t + q s)`, q of the t distribution.
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
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import Estimate, Sample, draw
from neuralcollapse.geometry.undefined import Reasons, whose

_LEFT = 2  # samples that a class must keep when a group is left out, so that it has a variance
_LEVEL = 0.975  # of the upper end of a 95 % interval
# Johnson's correction of a t interval is 0.8; the logarithm does the rest (tests/geometry/test_standard_errors.py).
_SKEWED = 0.5
_FARTHEST = 100  # times the value: where the upper end lies beyond, a few samples make it
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
    independent. A 95 % interval is `value ± q error`, with q of the t distribution with G - 1 degrees of freedom: 2.09
    for 20 groups. Its upper end is that of an interval of the logarithm.

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
    layer: str = "",
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`standard_errors`, given the moments of all groups together too; NaN for fewer than two groups.

    `held_out`, `layer` and `numbers` are what warnings say, and `means` those of `whole`, as of `measures_of`.
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
    spare = 1 - float((1 / means.counts).mean()) if names else 0.0
    for name in names:
        found = undefined.attempt([name], partial(_estimated, _JOBS[name], every, sample, shares, spare), None)
        if found is not None:
            values[f"{name}_corrected"], values[f"{name}_error"] = found
    undefined.warn(6, about=f"{whose(held_out, layer)}no bias-corrected value and no standard error (NaN)")
    return values | {"num_groups": float(len(groups))}


def _estimated(
    job: _Job, every: Sequence[Corrected], sample: Sample | None, shares: Tensor, spare: float
) -> tuple[float, float]:
    """A measure without bias and its standard error, with that of a sample of pairs; arguments as of `_jackknife`."""
    found = [job(each, sample) for each in every]
    taken = torch.stack([value.mean if isinstance(value, Estimate) else value for value in found]).cpu()
    value, error = _jackknife(taken, shares, spare)
    of_pairs = found[0].error if isinstance(found[0], Estimate) else None
    return value, error if of_pairs is None else math.hypot(error, float(of_pairs))


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


def _jackknife(values: Tensor, shares: Tensor, spare: float) -> tuple[float, float]:
    """The value less its bias and its standard error, from that of all samples and those without each group.

    Args:
        values: (1 + G,) of all samples, and without each group; all of them above 0, or all 0.
        shares: (G,) of the samples that each group has.
        spare: the mean over the classes of 1 - 1/n_k.
    """
    if not bool(values.any()):
        return 0.0, 0.0
    another = Undefined("without some of the samples the value is another altogether")
    if not bool((values > 0).all()):
        raise another
    groups, rest, logs = len(shares), 1 - shares, values.log()
    value = groups * logs[0] - rest @ logs[1:]
    moved = ((logs[0] - rest * logs[1:]) / shares - value) * (shares / rest).sqrt()
    skewness = float(moved.pow(3).mean() / moved.square().mean().clamp(min=1e-300).pow(1.5))
    counted = spare * min(1.0, spare / (1 - 1 / groups))
    spread = math.sqrt(counted * float(moved.square().mean())) * (1 + _SKEWED * max(skewness, 0) / math.sqrt(groups))
    from scipy.special import stdtrit

    reach = float(stdtrit(groups - 1, _LEVEL))
    if reach * spread > math.log(_FARTHEST):
        raise another
    return math.exp(value), math.exp(value) * math.expm1(reach * spread) / reach
