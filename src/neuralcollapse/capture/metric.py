"""NeuralCollapse: the collapse measures as a torchmetrics metric, exact over batches and processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from neuralcollapse.checks import (
    check_classifier,
    check_count,
    check_features,
    check_ignored,
    check_labels,
    in_one_piece,
)
from neuralcollapse.errors import InputError, NeuralCollapseWarning, NumberedError
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, PAIRWISE_MEASURES, measures_of
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.heads.linear import head_shape, head_tensors
from neuralcollapse.heads.split import is_split

_ELSEWHERE = {"errors", "more", "nc4", "layers", "min_count"}  # options of `measure` that one sum cannot serve


class NeuralCollapse(Metric):
    """NC1..NC3 and their variants over all samples seen, in one pass.

    The state, `moments`, is one float64 vector (`ClassMoments.packed`). `forward`, `merge_state` and the
    synchronisation of torch.distributed merge it by the same function, so that any split over batches or processes
    gives the result of a single process. Casting the metric to another dtype leaves the state in float64.

    Args:
        num_classes: K.
        feature_dim: d.
        classifier: a module with `.weight` (K, d) and perhaps `.bias` (K,), read by `compute`; without it only the
            features are measured. It is neither copied nor registered as a submodule. One that FSDP2 or tensor
            parallelism has split over processes is gathered by `compute` and `forward`, which all processes must then
            call alike.
        ignore_index: samples with this label are left out.
        pairwise: False leaves out the measures whose cost grows with K^2; a number takes a sample of that many pairs of
            classes (see `neuralcollapse.measures`).
        classes: measure these classes alone: samples and classifier rows of others are left out.
        means_dtype: torch.float32 halves the memory for K class means (see `ClassMoments`).
        kwargs: arguments of torchmetrics' Metric, such as `dist_sync_on_step`.

    The features of all updates should come from the same weights: update in eval mode over the training set after an
    epoch, not while the weights change. (NC4 needs two passes over the samples, and standard errors groups of them:
    `neuralcollapse.measure`.)

    `update(features, labels)` takes (N, d) floating-point features and (N,) integer labels, and raises InputError,
    naming the batch, for anything else. `compute()` returns a dict of float64 scalars; measures without a value (all of
    them before the first update) are NaN with a warning.

    >>> metric = NeuralCollapse(num_classes=2, feature_dim=2)
    >>> metric.update(torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]), torch.tensor([0, 0, 1, 1]))
    >>> round(float(metric.compute()["nc1_quotient"]), 6)
    0.01
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    _held: ClassMoments

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        classifier: nn.Module | None = None,
        *,
        ignore_index: int | None = None,
        pairwise: bool | int = True,
        classes: Tensor | Sequence[int] | None = None,
        means_dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        elsewhere = sorted(_ELSEWHERE & kwargs.keys())
        if elsewhere:
            raise InputError(
                f"expected no {', '.join(elsewhere)} of a metric, which keeps one sum of all samples: use "
                "neuralcollapse.measure, which has them"
            )
        # No cache: computing is cheap beside updating, a cached value would be stale once the classifier has changed,
        # and a process without updates would return it without joining the synchronisation of the others.
        super().__init__(**({"compute_with_cache": False} | kwargs))
        self.num_classes = check_count(num_classes, "num_classes", 1)
        self.feature_dim = check_count(feature_dim, "feature_dim", 1)
        check_ignored(ignore_index)
        self.ignore_index = ignore_index
        self.pairwise = pairwise
        self._classifier = None if classifier is None else _Shared(classifier)
        if classifier is not None:
            _check_head(classifier, num_classes, feature_dim)
        self.classes = None if classes is None else ClassSubset(classes, num_classes)
        measured = num_classes if self.classes is None else len(self.classes)
        self._shape = (measured, feature_dim, means_dtype)
        self.add_state(
            "moments",
            default=ClassMoments.zeros(measured, feature_dim, means_dtype=means_dtype).packed,
            dist_reduce_fx=partial(_merge_packed, self._shape),
            persistent=True,
        )

        # In a MetricCollection metrics with equal states share one. This state keeps metrics over other classes apart.
        left_out = torch.tensor([] if ignore_index is None else [ignore_index], dtype=torch.int64, device="cpu")
        if self.classes is not None:
            left_out = torch.cat([left_out, self.classes.classes.cpu()])
        self.add_state("left_out", default=left_out, dist_reduce_fx=_first)

    @property
    def moments(self) -> Tensor:
        """The state as torchmetrics knows it, `ClassMoments.packed`: reading it is a look at the moments."""
        return self._held.packed

    @moments.setter
    def moments(self, packed: Any) -> None:
        self._held = ClassMoments(packed, *self._shape)

    def reset(self) -> None:
        """Forget all samples."""
        self.moments = self._defaults["moments"]  # torchmetrics reads the state, which may hold a batch that is wrong
        with torch.inference_mode(False):  # otherwise updates outside inference mode would be refused
            super().reset()
        classes, dim, means_dtype = self._shape
        self._held = ClassMoments.zeros(classes, dim, self._held.device, means_dtype=means_dtype)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch; on wrong input nothing is added."""
        self._add(self._held, in_one_piece(features), in_one_piece(labels), self._update_count)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Add a batch and return the measures of that batch alone; on wrong input nothing is added."""
        if self.dist_sync_on_step or self._is_synced:
            return super().forward(features, labels)
        classes, dim, means_dtype = self._shape
        batch = ClassMoments.zeros(classes, dim, self._held.device, means_dtype=means_dtype)
        self._add(batch, in_one_piece(features), in_one_piece(labels), self._update_count + 1)
        values = self._measures(batch)
        # Private to torchmetrics: its own `forward` keeps these three up to date, and MetricCollection reads them.
        self._update_count += 1
        self._computed = None
        self._held.absorb(batch)
        self._forward_cache: Any = values
        return values

    def compute(self) -> dict[str, Tensor]:
        """The measures of everything seen since the last reset, over all processes."""
        return self._measures(self._held)

    def _add(self, moments: ClassMoments, features: Tensor, labels: Tensor, batch: int) -> None:
        try:
            left_out = self.ignore_index
            if self.classes is not None:
                check_features(features)
                labels = self.classes.relabel(check_labels(labels, features.shape[0]), left_out)
                left_out = LEFT_OUT
            moments.number_from(batch)
            moments.update(features, labels, ignore_index=left_out)
        except NumberedError:
            raise
        except InputError as error:
            raise InputError(f"batch {batch}: {error}") from None

    def _measures(self, moments: ClassMoments) -> dict[str, Tensor]:
        weight, bias = (None, None) if self._classifier is None else head_tensors(self._classifier.module)
        if weight is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            weight, bias = weight.clone(), None if bias is None else bias.clone()  # FSDP2 frees what it has made whole
        if self.classes is not None and weight is not None:
            weight, bias = self.classes.rows(weight), None if bias is None else self.classes.rows(bias)
        numbers = None if self.classes is None else self.classes.classes
        device = moments.means.device  # a look at the moments: it raises for a batch that was wrong
        try:
            values = measures_of(moments, weight, bias, pairwise=self.pairwise, numbers=numbers)
        except InputError as error:  # a weight that is not finite; raising during a synchronisation would break it off
            wanted = [
                name for name in CLASSIFIER_MEASURES if self.pairwise is not False or name not in PAIRWISE_MEASURES
            ]
            warnings.warn(f"undefined (NaN): {error}: {', '.join(wanted)}", NeuralCollapseWarning, stacklevel=3)
            values = measures_of(moments, pairwise=self.pairwise, numbers=numbers) | dict.fromkeys(wanted, math.nan)
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in values.items()}

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric (or of its `metric_state`), which does not change."""
        if isinstance(incoming_state, NeuralCollapse):
            theirs, shape = incoming_state.moments, incoming_state._shape
            mine, others = (metric.classes and metric.classes.classes.tolist() for metric in (self, incoming_state))
            if mine != others:
                raise InputError("expected a metric of the same classes, got one of others: give both the same classes")
            updates = incoming_state._update_count  # torchmetrics has no public count of updates
        elif isinstance(incoming_state, dict) and isinstance(incoming_state.get("moments"), Tensor):
            theirs, shape, updates = incoming_state["moments"], self._shape, 1
        else:
            kind = type(incoming_state).__name__
            raise InputError(f"expected a NeuralCollapse metric or its metric_state, got {kind}")
        if shape != self._shape:
            need, got = (f"K={k}, d={d}, means in {dtype}" for k, d, dtype in (self._shape, shape))
            raise InputError(
                f"expected a metric of {need}, got {got}: both need the same num_classes, feature_dim, means_dtype"
            )
        self._update_count += updates
        self._computed = None
        self._held.absorb(ClassMoments(theirs.to(self._held.device), *shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Metric._apply would cast the states (and their defaults, private to torchmetrics): move them, keep float64.
        super()._apply(fn, exclude_state=("moments", "left_out"))
        left_out: Any = self.left_out
        device = state_device(fn(left_out).device)
        if device != self._held.device:
            self.moments = self.moments.to(device)
        stores: tuple[dict[str, Any], dict[str, Any]] = (self.__dict__, self._defaults)
        for store in stores:
            store["left_out"] = store["left_out"].to(device)
        stores[1]["moments"] = stores[1]["moments"].to(device)
        return self

    def __hash__(self) -> int:
        # That of torchmetrics reads the state, and torch asks for it whenever it goes through the modules of a model.
        return id(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("moments", None)  # a pickle of version 0.1.0
        super().__setstate__(state)
        if packed is not None:
            self.moments = packed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "moments")
        if loaded is not None:
            try:
                packed = ClassMoments(loaded, *self._shape).packed
            except InputError:
                raise InputError(
                    f"expected a float64 state of {self.moments.numel()} values (K={self.num_classes}, "
                    f"d={self.feature_dim}), got {loaded.dtype} {tuple(loaded.shape)}: load it into the same metric"
                ) from None
        device = self._held.device
        super()._load_from_state_dict(state_dict, prefix, *args)
        if loaded is not None:  # a copy: updates work in place, and the caller's dict must not change with them
            self.moments = packed.to(device=device, copy=True)
            self._update_count = max(1, self._update_count)
            self._computed = None


class _Shared:
    """A module held by reference: not a submodule, and shared by copies of its holder.

    When a model is deep-copied with its metric, the metric of the copy must read the copied classifier. That may be
    copied after the metric, so it is looked up when it is first used.
    """

    def __init__(self, module: nn.Module, copies: dict[int, Any] | None = None) -> None:
        self._module = module
        self._copies = copies

    @property
    def module(self) -> nn.Module:
        if self._copies is not None:
            self._module = self._copies.get(id(self._module), self._module)
            self._copies = None
        return self._module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return _Shared(self.module, memo)

    def __getstate__(self) -> dict[str, Any]:
        return {"_module": self.module, "_copies": None}


def _check_head(classifier: nn.Module, num_classes: int, feature_dim: int) -> None:
    """Raise unless a classifier fits; one whose weight is split is not gathered for it."""
    if any(map(is_split, classifier.parameters())):
        shape = head_shape(classifier)
        if shape != (num_classes, feature_dim):
            raise InputError(
                f"expected weight of shape (K, d) = ({num_classes}, {feature_dim}), got {shape}: it must fit the "
                "features and labels"
            )
    else:
        check_classifier(*head_tensors(classifier), num_classes, feature_dim)


def _first(states: Tensor) -> Tensor:
    """The state of the first process; all processes have the same."""
    return states[0]


def _merge_packed(shape: tuple[int, int, torch.dtype], states: Tensor) -> Tensor:
    """Merge packed states (n, size) of n processes, in order."""
    merged = ClassMoments(states[0].clone(), *shape)
    for state in states[1:]:
        merged.absorb(ClassMoments(state, *shape))
    return merged.packed
