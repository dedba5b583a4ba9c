"""From a model and a loader to its collapse measures: features caught by a hook, one pass, no gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm

from neuralcollapse._checks import check_classifier, check_features, check_labels
from neuralcollapse._errors import InputError, NeuralCollapseWarning
from neuralcollapse._forward import Forward, as_tensor
from neuralcollapse._sharded import merged, num_processes, summed
from neuralcollapse.classifier import find_module
from neuralcollapse.collapse import measures, nc4_disagreements
from neuralcollapse.metric import classifier_tensors
from neuralcollapse.moments import ClassMoments, kept_rows
from neuralcollapse.subset import LEFT_OUT, ClassSubset, frequent_classes, label_counts

# Features up to this size are kept for NC4; beyond it the network runs a second time over the loader.
_KEEP_BYTES = 512 * 2**20


@dataclass
class Capture:
    """What one pass over a loader showed of a network.

    Attributes:
        moments: of the features that the classifier sees.
        weight: (K, d) of the classifier, a row for each class that was measured.
        bias: (K,), or None.
        accuracy: share of the samples whose class has the largest logit.
        loss: mean loss.
        nc4: where asked for.
        layers: the moments of inner layers' outputs, by name.
        classes: the numbers of the classes that were measured, where they were not all.
    """

    moments: ClassMoments
    weight: Tensor
    bias: Tensor | None
    accuracy: float
    loss: float
    nc4: float | None = None
    layers: dict[str, ClassMoments] = field(default_factory=dict)
    classes: Tensor | None = None

    def measures(self, *, pairwise: bool | int = True) -> dict[str, Any]:
        """The dict that `measure` returns."""
        result: dict[str, Any] = dict(measures(self.moments, self.weight, self.bias, pairwise=pairwise))
        if self.nc4 is not None:
            result["nc4"] = self.nc4
        result |= {"accuracy": self.accuracy, "loss": self.loss, "num_samples": self.moments.num_samples}
        if self.layers:
            result["layers"] = {name: measures(moments, pairwise=pairwise) for name, moments in self.layers.items()}
        return result


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module = "fc",
    num_classes: int | None = None,
    layers: str | Sequence[str] = (),
    *,
    nc4: bool = True,
    ignore_index: int | None = None,
    next_token: bool = False,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    pairwise: bool | int = True,
    device: torch.device | str | None = None,
    sharded: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the collapse of a classifier network over a loader.

    The features are what the layer `classifier` receives, caught by a hook while the model runs in eval mode
    without gradients; afterwards every module is in the mode it was in. Give the un-augmented training
    set, as the paper does.

    Args:
        model: any module whose forward pass calls the layer `classifier` once.
        loader: gives (inputs, labels, ...) or a dict with "labels" (or "label"; the rest are keyword inputs).
        classifier: the last layer, which has a `.weight` (K, d): its dotted name, or itself.
        num_classes: K; that of the classifier's weight when not given.
        layers: names of inner layers whose outputs are measured in the same pass (feature measures
            only). Outputs (N, C, H, W) and (N, T, C) are averaged over positions (H, W or T).
        nc4: measure NC4 too. Features up to 512 MB are kept for it; beyond that the loader is run
            through the network a second time.
        ignore_index: samples with this label are left out; -100 with `next_token` when not given.
        next_token: the labels (N, T) are the tokens of the input themselves, as for a causal language model of
            transformers: each position's class is the next position's label, and the last one has none.
        classes: measure these classes alone. Samples and rows of others are left out; NC4 counts a prediction of one
            of them as a disagreement, and accuracy and loss are those of the samples kept, among all K classes.
        min_count: measure the classes with at least so many samples, counted in a pass of its own over the labels.
        means_dtype: torch.float32 halves the memory for K class means (see `ClassMoments`).
        pairwise: False leaves out the measures whose cost grows with K^2, a number takes a sample of so many pairs
            of classes (see `neuralcollapse.measures`).
        device: where to run; that of the model's parameters when not given.
        sharded: in each process of torch.distributed the loader gives its own share of the samples: the result, the
            same in all, is that of all samples. All processes must call this.
        progress: show a progress bar (on a terminal only).

    Returns:
        The keys of `neuralcollapse.measures`, with "nc4", "accuracy", "loss" (cross-entropy), "num_samples",
        and "layers" (name -> measures) when asked for.

    Raises:
        InputError: no layer of that name, an empty loader, features, labels or batches of a wrong kind (the
            message names the batch).
    """
    capture = collect(
        model,
        loader,
        classifier,
        num_classes,
        layers,
        nc4=nc4,
        ignore_index=ignore_index,
        next_token=next_token,
        classes=classes,
        min_count=min_count,
        means_dtype=means_dtype,
        device=device,
        sharded=sharded,
        progress=progress,
    )
    return capture.measures(pairwise=pairwise)


def collect(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module = "fc",
    num_classes: int | None = None,
    layers: str | Sequence[str] = (),
    *,
    nc4: bool = True,
    ignore_index: int | None = None,
    next_token: bool = False,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    sharded: bool = False,
    progress: bool = True,
) -> Capture:
    """The pass behind `measure`, with the moments themselves; arguments and errors as there.

    `loss` takes logits (N, K) and labels (N,) and gives their mean loss.
    """
    if isinstance(loader, Dataset):
        raise InputError("expected a loader of batches, got a Dataset: wrap it in torch.utils.data.DataLoader")
    layers = (layers,) if isinstance(layers, str) else layers
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper may skip hooks
    head = find_module(model, classifier)
    weight, bias = classifier_tensors(head)
    num_classes = weight.shape[0] if num_classes is None else num_classes
    check_classifier(weight, bias, num_classes, weight.shape[1])
    caught = {name: find_module(model, name) for name in layers}
    run = Forward(model, head, caught, ignore_index, device, next_token=next_token)
    run.subset = _subset(run, loader, num_classes, classes, min_count, sharded, progress)
    if run.subset is not None:
        num_classes, weight = len(run.subset), run.subset.rows(weight)
        bias = None if bias is None else run.subset.rows(bias)

    def empty(dim: int, device: torch.device) -> ClassMoments:
        return ClassMoments.zeros(num_classes, dim, device, means_dtype=means_dtype)

    moments: ClassMoments | None = None
    inner: dict[str, ClassMoments] = {}
    kept: list[tuple[Tensor, Tensor]] | None = [] if nc4 else None
    kept_bytes, correct, total = 0, 0.0, 0.0
    for index, batch in enumerate(_bar(loader, "measuring", progress), start=1):
        try:
            seen = run(batch)
            if moments is None:
                moments = empty(weight.shape[1], seen.features.device)
            moments.update(seen.features, seen.labels)
            for name, outputs in seen.layers.items():
                if name not in inner:
                    inner[name] = empty(outputs.shape[1], outputs.device)
                inner[name].update(outputs, seen.labels)
        except InputError as error:
            raise InputError(f"batch {index}: {error}") from None
        predicted = seen.predicted()
        correct += int((predicted == seen.targets).sum())
        total += seen.loss(loss)
        if kept is not None:
            kept.append((_owned(seen.features), _among(run.subset, predicted)))
            kept_bytes += seen.features.numel() * seen.features.element_size()
            kept = kept if kept_bytes <= _KEEP_BYTES else None
    if moments is None:
        moments = empty(weight.shape[1], run.device)
    if sharded:
        with_samples, keep, correct, total = summed(
            run.device, moments.num_samples > 0, kept is not None, correct, total
        )
        everywhere = num_processes()
        if 0 < with_samples < everywhere:
            raise InputError(f"only {with_samples:.0f} of {everywhere} processes got samples: make smaller batches")
        kept = kept if keep == everywhere else None
        moments = merged(moments)
        inner = {name: merged(part) for name, part in inner.items()}
    count = moments.num_samples
    if count == 0:
        raise InputError("the loader gave no samples: check its data set, drop_last and ignore_index")

    result = Capture(moments, weight, bias, correct / count, total / count, layers=inner)
    result.classes = None if run.subset is None else run.subset.classes
    if nc4:
        again = kept if kept is not None else _second_pass(run, loader, progress)
        wrong, seen_again = map(float, _disagreements(again, moments))
        if sharded:
            wrong, seen_again = summed(run.device, wrong, seen_again)
        result.nc4 = _nc4(wrong, seen_again, count)
    if run.other_output is not None:
        warnings.warn(
            f"the layer measured as the classifier gives {run.other_output[0]} outputs and the model "
            f"{run.other_output[1]}: name the layer that makes the model's logits",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    return result


def _subset(
    run: Forward,
    loader: Iterable[Any],
    num_classes: int,
    classes: Tensor | Sequence[int] | None,
    min_count: int | None,
    sharded: bool,
    progress: bool,
) -> ClassSubset | None:
    """The classes to measure, where they are not all."""
    if min_count is None:
        return None if classes is None else ClassSubset(classes, num_classes)
    if classes is not None:
        raise InputError("expected classes or min_count, got both: give one")
    counts = torch.zeros(num_classes, dtype=torch.int64, device=run.device)
    for batch in _bar(loader, "counting labels", progress):
        labels = run.labels(batch).to(run.device)
        counts += label_counts(labels, num_classes)
    if sharded:
        torch.distributed.all_reduce(counts)
    return ClassSubset(frequent_classes(counts, min_count), num_classes)


def _among(subset: ClassSubset | None, predicted: Tensor) -> Tensor:
    """Predicted classes as numbers of the classes that are measured."""
    return predicted if subset is None else subset.relabel(predicted)


def measure_features(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    num_classes: int | None = None,
    *,
    ignore_index: int | None = None,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    pairwise: bool | int = True,
) -> dict[str, Any]:
    """Measure the collapse of features that are already in memory.

    Args:
        features: (N, d), tensor or array.
        labels: (N,) integers.
        weight: (K, d) of the classifier; without it the measures of the features alone are given.
        bias: (K,).
        num_classes: K; that of the weight, or the largest label plus one, when not given.
        ignore_index: samples with this label are left out.
        classes: measure these classes alone, as for `measure`.
        min_count: measure the classes with at least so many samples.
        means_dtype: torch.float32 halves the memory for K class means.
        pairwise: as for `measure`.

    Returns:
        The keys of `neuralcollapse.measures` and "num_samples", with "nc4" and "accuracy" when a weight is given.

    Raises:
        InputError: arrays that do not fit each other, no samples, values that are not finite.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    weight = None if weight is None else as_tensor(weight, "weight")
    bias = None if bias is None else as_tensor(bias, "bias")
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    if ignore_index is not None:
        kept = kept_rows(features, labels, ignore_index)
        features, labels = features[kept], labels[kept]
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    if num_classes is None:
        num_classes = weight.shape[0] if weight is not None and weight.dim() else _count_classes(labels)
    check_classifier(weight, bias, num_classes, features.shape[1])
    subset = None if classes is None else ClassSubset(classes, num_classes)
    if min_count is not None:
        if classes is not None:
            raise InputError("expected classes or min_count, got both: give one")
        subset = ClassSubset(frequent_classes(label_counts(labels, num_classes), min_count), num_classes)
    targets, shown_weight, shown_bias = labels, weight, bias
    if subset is not None:
        labels = subset.relabel(labels)
        kept = labels != LEFT_OUT
        features, labels, targets = features[kept], labels[kept], targets[kept]
        if len(labels) == 0:
            raise InputError("none of the samples is of one of the classes: give classes that come in the labels")
        num_classes = len(subset)
        shown_weight = None if weight is None else subset.rows(weight)
        shown_bias = None if bias is None else subset.rows(bias)
    moments = ClassMoments.from_batch(features, labels, num_classes, means_dtype=means_dtype)
    result: dict[str, Any] = dict(measures(moments, shown_weight, shown_bias, pairwise=pairwise))
    result["num_samples"] = moments.num_samples
    if weight is not None:
        batches = list(_predictions(features, weight, bias))
        predicted = torch.cat([part for _, part in batches])
        found = ((block, _among(subset, part)) for block, part in batches)
        result["nc4"] = _nc4(*_disagreements(found, moments), moments.num_samples)
        result["accuracy"] = float((predicted == targets.to(predicted.device)).double().mean())
    return result


def _count_classes(labels: Tensor) -> int:
    """The largest label plus one, unless that is far beyond the number of different labels."""
    largest, different = int(labels.max()), len(labels.unique())
    if largest >= 10 * different + 1000:
        raise InputError(
            f"expected labels from 0 to K-1, got {different} different ones up to {largest}: "
            "remap them, or pass num_classes"
        )
    return max(1, largest + 1)


def _predictions(features: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of features with the class of the largest logit, taken in float64."""
    rows = weight.double().to(features.device)
    shift = 0 if bias is None else bias.double().to(features.device)
    for block in features.split(max(1, 2**22 // len(rows))):
        yield block, (block.double() @ rows.T + shift).argmax(1)


def _disagreements(batches: Iterable[tuple[Tensor, Tensor]], moments: ClassMoments) -> tuple[int, int]:
    """How many of (features, predicted class) disagree with the nearest mean, and how many there are."""
    wrong, count = 0, 0
    for features, predicted in batches:
        wrong += nc4_disagreements(features, predicted, moments)
        count += len(predicted)
    return wrong, count


def _nc4(wrong: float, seen: float, count: int) -> float:
    """The share of samples whose predicted class is not that of the nearest mean; NaN unless all came again."""
    if seen == count:
        return wrong / count
    warnings.warn(
        f"undefined (NaN): nc4 needs a second pass over the loader, which gave {seen:.0f} samples instead of "
        f"{count}: give a DataLoader that can be run again, or nc4=False",
        NeuralCollapseWarning,
        stacklevel=4,
    )
    return math.nan


def _owned(features: Tensor) -> Tensor:
    """The features alone: a view would keep alive the whole tensor that it was cut from."""
    own = features.numel() * features.element_size()
    return features if features.untyped_storage().nbytes() <= own else features.clone()


def _second_pass(run: Forward, loader: Iterable[Any], progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in _bar(loader, "measuring nc4", progress):
        seen = run(batch)
        yield seen.features, _among(run.subset, seen.predicted())


def _bar(loader: Iterable[Any], text: str, progress: bool) -> Iterable[Any]:
    return tqdm(loader, desc=text, unit="batch", leave=False, disable=None if progress else True)
