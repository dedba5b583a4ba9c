"""SamplingNoise: what n samples a class leave in the class means, and so in their squared distances and products.

With S_k the covariance of class k, the mean of n_k samples has `E|mu_k^ - mu_k|^2 = tr S_k / n_k`. So squares of means
are too large by what is given here, whatever the distribution of the samples. Products with the covariance itself are
too large by `tr S^2 / n`, whose estimate is exact on average for normal features, and too large for heavier tails when
there are fewer samples than dimensions. Where only one covariance of all classes is known, that of class k is taken
to be `(tr S_k / tr S) S`.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from neuralcollapse.errors import Undefined, listed
from neuralcollapse.geometry.matrix import mirror
from neuralcollapse.geometry.means import CentredMeans


class SamplingNoise:
    """Unbiased variances of the classes seen, and the noise that they leave in the class means.

    Attributes:
        counts: (K',) n_k of the classes seen.
        traces: (K',) tr S_k, the sum of `|h - mu_k|^2` over n_k - 1.
        inflation: (K',) `tr S_k / n_k`, by which the squared length of a class mean is too large.
        trace: tr S of the pooled covariance, the scatter over N - K'.
    """

    def __init__(self, means: CentredMeans) -> None:
        if bool((means.counts < 2).any()):
            alone = means.called(means.seen[means.counts < 2])
            raise Undefined(
                f"the variance of a class needs two samples, and class{'es' * (len(alone) > 1)} {listed(alone)} "
                f"{'have' if len(alone) > 1 else 'has'} one"
            )
        self._means = means
        self.counts = means.counts
        self.traces = means.class_variances * (self.counts / (self.counts - 1))
        self.inflation = self.traces / self.counts
        self._freedom = self.counts.sum() - len(self.counts)
        self.trace = means.variances.sum() * (self.counts.sum() / self._freedom)

    @cached_property
    def scales(self) -> Tensor:
        """(K',) `tr S_k / tr S`; 1 where no class has a spread."""
        return torch.where(self.trace > 0, self.traces / self.trace.clamp(min=1e-300), 1.0)

    @cached_property
    def covariance(self) -> Tensor:
        """(d, d) S, the scatter over N - K'."""
        return mirror(self._means.moments.upper / self._freedom)

    @cached_property
    def square_trace(self) -> Tensor:
        """Tr S^2: exact on average for normal features, in [(tr S)^2/d, (tr S)^2]."""
        return unbiased_square_trace(self.covariance, self._freedom)


def unbiased_square_trace(covariance: Tensor, freedom: Tensor | float) -> Tensor:
    """Tr S^2 from an estimate of S with so many degrees of freedom, of which the upper triangle (d, d) is read.

    The plain `tr S^^2` is too large by about `(tr S)^2` over the degrees of freedom.
    """
    trace, flat = covariance.trace(), covariance.flatten()
    least, plain = trace.square() / len(covariance), flat @ flat
    value = freedom**2 / ((freedom + 2) * max(float(freedom) - 1, 1)) * (plain - trace.square() / freedom)
    return torch.minimum(torch.maximum(value, least), trace.square())


def root(covariance: Tensor) -> Tensor:
    """(d, d) R with `RR' = S`, also for a singular S."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
