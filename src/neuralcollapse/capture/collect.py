"""From a model and a loader to its collapse measures: features caught by a hook, one pass, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from neuralcollapse.capture.agreement import disagreements
from neuralcollapse.capture.agreement import nc4 as nc4_of
from neuralcollapse.capture.arguments import check_device, check_loader, check_model, find_classifier
from neuralcollapse.capture.forward import Forward, OtherHead
from neuralcollapse.capture.layers import Layers, inner_layers
from neuralcollapse.capture.processes import merged, num_processes, summed
from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.classes import ClassSubset, chosen_classes, label_counts
from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.linear import head_tensors

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
        layer: the dotted name of the classifier.
    """

    moments: ClassMoments
    weight: Tensor
    bias: Tensor | None
    accuracy: float
    loss: float
    nc4: float | None = None
    layers: dict[str, ClassMoments] = field(default_factory=dict)
    classes: Tensor | None = None
    layer: str = ""

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
    classifier: str | nn.Module | None = None,
    num_classes: int | None = None,
    layers: Layers = (),
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

    The weight and bias are those that made the layer's outputs: some rows of every batch are compared with W h + b. A
    cosine head is measured with features and rows of unit length, an adapter with the matrix that it amounts to, and a
    warning says so; a layer that is no linear map of its input is refused. Accuracy and loss are of what the model
    returns, where that differs too (an average of several heads), and a warning names the heads.

    Args:
        model: any module whose forward pass calls the layer `classifier` once.
        loader: gives (inputs, labels, ...) or a dict with "labels" (or "label"; the rest are keyword inputs).
        classifier: the last layer: its dotted name, or itself. It may be an nn.Linear, a fixed classifier of this
            package, a 1x1 convolution (features are averaged over positions), anything else that has a `.weight`
            (K, d), or an nn.Sequential that ends in one. When not given, the layer that makes the model's logits is
            found.
        num_classes: K; that of the classifier's weight when not given.
        layers: names of inner layers whose outputs are measured in the same pass (feature measures only). Outputs
            with positions, as (N, C, H, W) or (N, T, C), are averaged over them, without padding where the batch has
            an attention mask; which axis holds the channels is read off the layers. To say it, give a dict of name
            to layout, such as {"norm": "NHWC"} (N samples, C channels), or to a function of the output that gives
            (N, C).
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
        InputError: no layer of that name, a head that is no linear map of its input, an empty loader, an inner layer
            whose axes cannot be told apart, features, labels or batches of a wrong kind (the message names the batch).
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
    classifier: str | nn.Module | None = None,
    num_classes: int | None = None,
    layers: Layers = (),
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
    model, loader = check_model(model), check_loader(loader)
    attempt = partial(
        _collect,
        model,
        loader,
        num_classes=num_classes,
        layers=layers,
        nc4=nc4,
        ignore_index=ignore_index,
        next_token=next_token,
        classes=classes,
        min_count=min_count,
        means_dtype=means_dtype,
        device=check_device(device),
        loss=loss,
        sharded=sharded,
        progress=progress,
    )
    try:
        return attempt(classifier)
    except OtherHead as other:  # seen in the first batch, where nobody named one
        if iter(loader) is loader:
            raise
        return attempt(other.name)


def _collect(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module | None,
    *,
    num_classes: int | None,
    layers: Layers,
    nc4: bool,
    ignore_index: int | None,
    next_token: bool,
    classes: Tensor | Sequence[int] | None,
    min_count: int | None,
    means_dtype: torch.dtype,
    device: torch.device | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    sharded: bool,
    progress: bool,
) -> Capture:
    head, others = find_classifier(model, classifier, num_classes)
    weight, bias = head_tensors(head.module)
    num_classes = weight.shape[0] if num_classes is None else num_classes
    check_classifier(weight, bias, num_classes, weight.shape[1])
    run = Forward(
        model,
        head,
        others,
        inner_layers(model, layers),
        ignore_index,
        device,
        next_token=next_token,
        chosen=classifier is not None,
    )
    if min_count is not None and iter(loader) is loader:
        raise InputError("expected a loader that can be run through twice with min_count, got an iterator: give a list")
    run.subset = chosen_classes(
        classes, min_count, num_classes, lambda: _label_counts(run, loader, num_classes, sharded, progress)
    )
    pass_ = _Pass(num_classes if run.subset is None else len(run.subset), means_dtype, loss, keep=nc4)
    for index, batch in enumerate(_bar(loader, "measuring", progress), start=1):
        try:
            pass_.add(run, batch)
        except OtherHead:
            raise
        except InputError as error:
            raise InputError(f"batch {index}: {error}") from None
    if sharded:
        pass_.join(run)
    if pass_.moments is None or pass_.moments.num_samples == 0:
        raise InputError("the loader gave no samples: check its data set, drop_last and ignore_index")
    moments, count = pass_.moments, pass_.moments.num_samples
    weight, bias = run.tensors()  # now: parametrised layers make their weight in the forward pass
    check_classifier(weight, bias, num_classes, weight.shape[1])
    if run.subset is not None:
        weight, bias = run.subset.rows(weight), None if bias is None else run.subset.rows(bias)
    result = Capture(moments, weight, bias, pass_.correct / count, pass_.loss_sum / count, layers=pass_.layers)
    result.classes = None if run.subset is None else run.subset.classes
    result.layer = run.head.name
    if nc4:
        kept = pass_.kept if pass_.kept is not None else _second_pass(run, loader, progress)
        again = ((features, by_model if run.by_model else by_head) for features, by_head, by_model in kept)
        wrong, seen_again = map(float, disagreements(again, moments))
        if sharded:
            wrong, seen_again = summed(run.device, wrong, seen_again)
        result.nc4 = nc4_of(wrong, seen_again, count)
    return result


class _Pass:
    """The sums of a pass: moments of the features and of inner layers, correct predictions, loss, features for NC4."""

    def __init__(
        self,
        num_classes: int,
        means_dtype: torch.dtype,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        keep: bool,
    ) -> None:
        self.moments: ClassMoments | None = None
        self.layers: dict[str, ClassMoments] = {}
        self.correct = self.loss_sum = 0.0
        self.kept: list[tuple[Tensor, Tensor, Tensor]] | None = [] if keep else None
        self._num_classes = num_classes
        self._means_dtype = means_dtype
        self._loss = loss
        self._kept_bytes = 0

    def add(self, run: Forward, batch: Any) -> None:
        """Run a batch through the network and add what it saw."""
        seen = run(batch)
        if self.moments is None:
            self.moments = self._empty(seen.features.shape[1], seen.features.device)
            self.moments.round_at_least(run.spacing)
        self.moments.update(seen.features, seen.labels)
        for name, outputs in seen.layers.items():
            if name not in self.layers:
                self.layers[name] = self._empty(outputs.shape[1], outputs.device)
                self.layers[name].round_at_least(run.spacing)
            self.layers[name].update(outputs, seen.labels)
        predicted = seen.predicted()
        self.correct += int((predicted == seen.targets).sum())
        self.loss_sum += seen.loss(self._loss)
        if self.kept is not None:
            head = predicted if seen.own is seen.logits else seen.head_predicted()
            self.kept.append((seen.features, _among(run.subset, head), _among(run.subset, predicted)))
            self._kept_bytes += seen.features.numel() * seen.features.element_size()
            self.kept = self.kept if self._kept_bytes <= _KEEP_BYTES else None

    def join(self, run: Forward) -> None:
        """Join the sums of all processes; all of them must call this.

        Raises:
            InputError: some processes had no samples, and others had.
        """
        if self.moments is None:
            self.moments = self._empty(run.tensors()[0].shape[1], run.device)
        with_samples, keep, self.correct, self.loss_sum = summed(
            run.device, self.moments.num_samples > 0, self.kept is not None, self.correct, self.loss_sum
        )
        everywhere = num_processes()
        if 0 < with_samples < everywhere:
            raise InputError(f"only {with_samples:.0f} of {everywhere} processes got samples: make smaller batches")
        self.kept = self.kept if keep == everywhere else None
        self.moments = merged(self.moments)
        self.layers = {name: merged(part) for name, part in self.layers.items()}

    def _empty(self, dim: int, device: torch.device) -> ClassMoments:
        return ClassMoments.zeros(self._num_classes, dim, device, means_dtype=self._means_dtype)


def _label_counts(run: Forward, loader: Iterable[Any], num_classes: int, sharded: bool, progress: bool) -> Tensor:
    """(K,) how often each class comes, over all processes, from a pass over the labels alone."""
    counts = torch.zeros(num_classes, dtype=torch.int64, device=run.device)
    for batch in _bar(loader, "counting labels", progress):
        counts += label_counts(run.labels(batch).to(run.device), num_classes)
    if sharded:
        torch.distributed.all_reduce(counts)
    return counts


def _among(subset: ClassSubset | None, predicted: Tensor) -> Tensor:
    """Predicted classes as numbers of the classes that are measured."""
    return predicted if subset is None else subset.relabel(predicted)


def _second_pass(run: Forward, loader: Iterable[Any], progress: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for batch in _bar(loader, "measuring nc4", progress):
        seen = run(batch)
        yield seen.features, _among(run.subset, seen.head_predicted()), _among(run.subset, seen.predicted())


def _bar(loader: Iterable[Any], text: str, progress: bool) -> Iterable[Any]:
    return tqdm(loader, desc=text, unit="batch", leave=False, disable=None if progress else True)
