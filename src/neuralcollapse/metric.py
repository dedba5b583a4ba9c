"""NeuralCollapse: the collapse measures as a torchmetrics metric, exact over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from neuralcollapse._checks import check_classifier, check_count
from neuralcollapse._errors import InputError
from neuralcollapse.collapse import measures
from neuralcollapse.moments import ClassMoments, packed_size


class NeuralCollapse(Metric):
    """NC1..NC3 and their variants over all samples seen, in one pass.

    The state is one float64 vector (`ClassMoments.packed`), merged jointly by the same function in
    `forward`, `merge_state` and `torch.distributed` sync, so any split over batches or processes gives
    what one process would have measured. Moving the metric to another dtype leaves the state float64.

    Args:
        num_classes: K.
        feature_dim: d.
        classifier: a module with `.weight` (K, d) and perhaps `.bias` (K,), read at `compute`; without
            it only the measures of the features are given. It is neither copied nor made a submodule.
        ignore_index: samples with this label are left out.
        pairwise: False leaves out the measures whose cost grows with K^2 (see `neuralcollapse.measures`).
        kwargs: torchmetrics' own, such as `dist_sync_on_step`.

    `update(features, labels)` takes (N, d) floating-point features and (N,) integer labels and raises
    InputError, naming the batch, on anything else. `compute()` returns a dict of float64 scalars; undefined
    measures, all of them when nothing was seen, are NaN with a warning.

    >>> metric = NeuralCollapse(num_classes=2, feature_dim=2)
    >>> metric.update(torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]), torch.tensor([0, 0, 1, 1]))
    >>> round(float(metric.compute()["nc1_quotient"]), 6)
    0.01
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    moments: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        classifier: nn.Module | None = None,
        *,
        ignore_index: int | None = None,
        pairwise: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check_count(num_classes, "num_classes", 1)
        self.feature_dim = check_count(feature_dim, "feature_dim", 1)
        self.ignore_index = ignore_index
        self.pairwise = pairwise
        self._classifier = None if classifier is None else _Shared(classifier)
        if classifier is not None:
            check_classifier(*classifier_tensors(classifier), num_classes, feature_dim)
        self.add_state(
            "moments",
            default=torch.zeros(packed_size(num_classes, feature_dim), dtype=torch.float64),
            dist_reduce_fx=partial(_merge_packed, num_classes, feature_dim),
            persistent=True,
        )

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch; on wrong input nothing is added."""
        try:
            self._moments().update(features, labels, ignore_index=self.ignore_index)
        except InputError as error:
            raise InputError(f"batch {self._update_count}: {error}") from None

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen since the last reset, over all processes."""
        weight, bias = (None, None) if self._classifier is None else classifier_tensors(self._classifier.module)
        values = measures(self._moments(), weight, bias, pairwise=self.pairwise)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.moments.device) for name, value in values.items()
        }

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric (or of its `metric_state`), which stays as it was."""
        if isinstance(incoming_state, NeuralCollapse):
            theirs = incoming_state.moments
        elif isinstance(incoming_state, dict) and isinstance(incoming_state.get("moments"), Tensor):
            theirs = incoming_state["moments"]
        else:
            kind = type(incoming_state).__name__
            raise InputError(f"expected a NeuralCollapse metric or its metric_state, got {kind}")
        if theirs.shape != self.moments.shape:
            raise InputError(
                f"expected the state of K={self.num_classes}, d={self.feature_dim} ({self.moments.numel()} values), "
                f"got {theirs.numel()} values: both metrics need the same num_classes and feature_dim"
            )
        super().merge_state({"moments": theirs.to(self.moments.device)})
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1
        self._computed = None

    def _moments(self) -> ClassMoments:
        return ClassMoments(self.moments, self.num_classes, self.feature_dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Module.to(dtype) would cast the state without a word: follow the device, keep float64.
        super()._apply(fn, exclude_state=("moments",))
        stores: tuple[dict[str, Any], dict[str, Any]] = (self.__dict__, self._defaults)
        for store in stores:
            moved = fn(store["moments"])
            store["moments"] = moved if moved.dtype == torch.float64 else store["moments"].to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "moments")
        if loaded is not None and (loaded.shape != self.moments.shape or loaded.dtype != torch.float64):
            raise InputError(
                f"expected a float64 state of {self.moments.numel()} values (K={self.num_classes}, "
                f"d={self.feature_dim}), got {loaded.dtype} {tuple(loaded.shape)}: load it into the same metric"
            )
        device = self.moments.device
        super()._load_from_state_dict(state_dict, prefix, *args)
        if loaded is not None:  # a copy: updates work in place, and the caller's dict must not change with them
            self.moments = loaded.to(device=device, copy=True)
            self._update_count = max(1, self._update_count)
            self._computed = None


class _Shared:
    """A module held by reference: not a submodule, and shared by copies of its holder."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        copied = memo.get(id(self.module))  # the whole model is being copied, and its classifier already was
        return self if copied is None else _Shared(copied)


def classifier_tensors(classifier: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (K, d) and the bias (K,) or None of a module such as nn.Linear or ETFClassifier."""
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise InputError(
            f"expected a classifier with a .weight of shape (K, d), such as nn.Linear or ETFClassifier, "
            f"got {type(classifier).__name__}"
        )
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def _merge_packed(num_classes: int, feature_dim: int, states: Tensor) -> Tensor:
    """Merge packed states (n, size), one a process, in order."""
    merged = ClassMoments(states[0].clone(), num_classes, feature_dim)
    for state in states[1:]:
        merged.absorb(ClassMoments(state, num_classes, feature_dim))
    return merged.packed
