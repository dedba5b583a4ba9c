"""Fixed classifiers for more classes than a simplex holds: the orthoplex, and an optimised softmax code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuralcollapse.geometry.frames import check_orthoplex_exists, orthoplex
from neuralcollapse.geometry.softmax_code import softmax_code
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.products import Orthoplex, orthoplex_plain


class OrthoplexClassifier(FixedClassifier):
    r"""Logits `s W h + b` where the rows of W are the vectors +-e_i of an orthoplex, i up to m = ceil(K/2) <= d.

    For d+2 <= K <= 2d no unit vectors have a smaller largest cosine than 0 (Rankin 1955), which is that of these rows.
    There is no weight matrix: class 2i has the logit s h_i, class 2i+1 the logit -s h_i. O(K) a sample.

    Args:
        in_features: d >= K/2. If d > m, the first m features are used (all of them with rotation="fast").
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        options: scale, learn_scale, rotation ("none" or "fast"), seed, device, dtype, as for `ETFClassifier`.

    Shapes: (..., d) -> (..., K).

    Raises:
        InputError: K > 2d, or options out of range.

    >>> OrthoplexClassifier(2, 4, bias=False)(torch.tensor([1.0, 3.0]))
    tensor([ 1., -1.,  3., -3.])
    """

    frame = "orthoplex"

    def __init__(self, in_features: int, num_classes: int, bias: bool = True, **options: Any) -> None:
        check_orthoplex_exists(num_classes, in_features)
        super().__init__(in_features, num_classes, bias, **options)
        self._turn()

    def _rows(self) -> Tensor:
        return orthoplex(self.num_classes, self.in_features, dtype=self.scale.dtype, device=self.scale.device)

    def _product(self, features: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        make = torch.ones_like if scale is None else torch.clone
        gain = self._constants.get(make, scale, None, make, self.scale)
        return Orthoplex.apply(features, bias, gain, self.num_classes)

    def _plain(self, features: Tensor) -> Tensor:
        return orthoplex_plain(self._rotated(features), self.num_classes)


class SoftmaxCodeClassifier(FixedClassifier):
    """Logits `s W h + b` with W a softmax code (`softmax_code`), for any K.

    The rows are a (K, d) buffer that the state dict keeps: a matrix as in `nn.Linear`, without gradient or optimiser
    state.

    Args:
        in_features: d >= 2.
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        steps: by default the best code known is searched for; a number gives that many steps of descent from random
            rows instead (`softmax_code` says what both cost).
        seed: seed of the random rows and rotations.
        options: scale, learn_scale, device, dtype, as for `ETFClassifier`; there is no rotation to choose, since the
            rows have no preferred directions.

    Shapes: (..., d) -> (..., K).

    Raises:
        InputError: options out of range.
    """

    frame = "softmax_code"
    rotations = ("none",)
    _stored = True
    rows: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        steps: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(in_features, num_classes, bias, **options)
        dtype, device = self.scale.dtype, self.scale.device
        rows = softmax_code(num_classes, in_features, seed=seed, steps=steps, dtype=dtype, device=device)
        self.register_buffer("rows", rows)

    def _rows(self) -> Tensor:
        return self.rows

    def _source(self) -> Tensor | None:
        return self._buffers["rows"]
