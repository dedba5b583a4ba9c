"""From a model and a loader to its collapse measures: features caught by a hook, in one pass without gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from neuralcollapse.capture.arguments import check_device, check_loader, check_model, find_classifier
from neuralcollapse.capture.forward import Forward, HeadMismatch
from neuralcollapse.capture.layers import Layers, inner_layers
from neuralcollapse.capture.processes import summed
from neuralcollapse.capture.sums import Sums, predictions
from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError, NeuralCollapseWarning, NumberedError
from neuralcollapse.geometry.classes import chosen_classes, label_counts
from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.heads.linear import head_tensors

# NC4 looks at so many samples at once.
_BLOCK_ROWS = 512


@dataclass
class Capture:
    """The result of one pass over a loader.

    Attributes:
        moments: moments of the features that the classifier receives.
        weight: (K, d) weight of the classifier, one row for each class that was measured.
        bias: (K,), or None.
        accuracy: share of the samples whose class has the largest logit.
        loss: mean loss.
        nc4: NC4, if it was asked for.
        layers: name -> moments of the outputs of an inner layer.
        classes: the numbers of the classes that were measured, if not all.
        layer: the dotted name of the classifier.
        nonnegative: whether every feature was >= 0, as after a ReLU; False if that is not known.
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
    nonnegative: bool = False

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

    The features are the inputs of the layer `classifier`, caught by a hook while the model runs in eval mode without
    gradients; afterwards every module is in its previous mode. Give the training set without augmentation, as the
    paper does.

    The weight and bias are those that made the outputs of the layer: some rows of every batch are compared with
    `W h + b`. A cosine head is measured with features and rows of unit length, an adapter with the matrix that it
    amounts to, each with a warning; a layer that is not a linear map of its input is refused. Accuracy and loss are
    those of what the model returns. If that is not the output of the layer (but an average of several heads), a warning
    says how it comes about.

    Args:
        model: any module whose forward pass calls the layer `classifier` once.
        loader: gives (inputs, labels, ...) or a dict with "labels" (or "label"; the rest are keyword inputs).
        classifier: the last layer, or its dotted name. It may be an nn.Linear, a fixed classifier of this package, a
            1x1 convolution (features are averaged over positions), any other module with a `.weight` (K, d), or an
            nn.Sequential that ends in one. By default the layer that makes the logits of the model is found.
        num_classes: K; by default that of the classifier's weight.
        layers: names of inner layers whose outputs are measured in the same pass (measures of features only). Outputs
            with positions, such as (N, C, H, W) or (N, T, C), are averaged over them, without padding if the batch has
            an attention mask. The axis of the channels is inferred from the layers; to set it, give a dict from name to
            layout, such as {"norm": "NHWC"} (N samples, C channels), or to a function of the output that returns
            (N, C).
        nc4: measure NC4 too. Features up to 512 MB are kept for it; beyond that the loader runs through the network a
            second time.
        ignore_index: samples with this label are left out; by default -100 with `next_token`.
        next_token: the labels (N, T) are the tokens of the input, as for a causal language model of transformers: the
            class of each position is the label of the next one, and the last position has none.
        classes: measure these classes alone. Samples and rows of others are left out. NC4 counts a prediction of
            another class as a disagreement; accuracy and loss are those of the samples kept, among all K classes.
        min_count: measure the classes with at least this many samples, counted in a separate pass over the labels.
        means_dtype: torch.float32 halves the memory for K class means (see `ClassMoments`).
        pairwise: False leaves out the measures whose cost grows with K^2; a number takes a sample of that many pairs of
            classes (see `neuralcollapse.measures`).
        device: where to run; by default the device of the model's parameters.
        sharded: the loader gives each process of torch.distributed its own share of the samples. The result, the same
            in all processes, is that of all samples. All processes must call this.
        progress: show a progress bar (on a terminal only).

    Returns:
        The keys of `neuralcollapse.measures`, and "nc4", "accuracy", "loss" (cross-entropy), "num_samples", and
        "layers" (name -> measures) if asked for.

    Raises:
        InputError: no layer of that name, a head that is not a linear map of its input, an empty loader, an inner layer
            with ambiguous axes, or features, labels or batches of a wrong kind (the message names the batch).
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
    exact_sums: bool = False,
) -> Capture:
    """The pass behind `measure`, returning the moments themselves; arguments and errors as there.

    `loss` takes logits (N, K) and labels (N,) and returns their mean loss. With `exact_sums`, the moments of the
    features are sums of float64 products whatever their dtype: for what divides by the least variances.
    """
    model, loader, device = check_model(model), check_loader(loader), check_device(device)

    def batches(text: str) -> Iterable[Any]:
        return tqdm(loader, desc=text, unit="batch", leave=False, disable=None if progress else True)

    def first_pass(classifier: str | nn.Module | None) -> tuple[Forward, Sums]:
        head, others = find_classifier(model, classifier, num_classes)
        weight, bias = head_tensors(head.module)
        count = len(weight) if num_classes is None else num_classes
        check_classifier(weight, bias, count, weight.shape[1])
        inner, chosen = inner_layers(model, layers), classifier is not None
        forward = Forward(model, head, others, inner, ignore_index, device, next_token=next_token, chosen=chosen)
        if min_count is not None and iter(loader) is loader:
            raise InputError(
                "expected a loader that can be run through twice with min_count, got an iterator: give a list"
            )
        counts = partial(_label_counts, forward, batches, count, sharded)
        forward.subset = chosen_classes(classes, min_count, count, counts)
        classes_kept = count if forward.subset is None else len(forward.subset)
        sums = Sums(classes_kept, means_dtype, loss, keep=nc4, exact=exact_sums)
        with forward:
            _add_all(sums, forward, batches("measuring"))
        return forward, sums

    try:
        forward, sums = first_pass(classifier)
    except HeadMismatch as other:  # the first batch shows that another layer makes the logits, and nobody named one
        if iter(loader) is loader:
            raise
        forward, sums = first_pass(other.name)
    if sharded:
        sums.join(forward)
    capture = _result(forward, sums)
    if nc4:
        again = (predictions(forward(batch), forward) for batch in batches("measuring nc4"))
        with forward:
            capture.nc4 = _nc4(forward, again if sums.kept is None else sums.kept, capture.moments, sharded)
    return capture


def _label_counts(forward: Forward, batches: Callable[[str], Iterable[Any]], num_classes: int, sharded: bool) -> Tensor:
    """(K,) the number of samples of each class, over all processes, from a pass over the labels alone."""
    counts = torch.zeros(num_classes, dtype=torch.int64, device=forward.device)
    for batch in batches("counting labels"):
        counts += label_counts(forward.labels(batch).to(forward.device), num_classes)
    if sharded:
        torch.distributed.all_reduce(counts)
    return counts


def _add_all(sums: Sums, forward: Forward, batches: Iterable[Any]) -> None:
    """Add all batches; an error says which one caused it."""
    for index, batch in enumerate(batches, start=1):
        with _numbered(index):
            sums.add(forward, batch)
    with _numbered(forward.batches):
        sums.flush(forward)


@contextmanager
def _numbered(batch: int) -> Iterator[None]:
    """Inside, errors get the number of the batch, unless they name one."""
    try:
        yield
    except (HeadMismatch, NumberedError):
        raise
    except InputError as error:
        raise InputError(f"batch {batch}: {error}") from None


def _result(forward: Forward, sums: Sums) -> Capture:
    """The measured head with its moments, accuracy and loss.

    Raises:
        InputError: no samples, or a head that is not a linear map of its input.
    """
    if sums.moments is None or sums.moments.num_samples == 0:
        raise InputError("the loader gave no samples: check its data set, drop_last and ignore_index")
    weight, bias = forward.tensors()  # only now: parametrised layers compute their weight in the forward pass
    check_classifier(weight, bias, *weight.shape)
    subset, count = forward.subset, sums.moments.num_samples
    correct, loss = sums.totals
    return Capture(
        sums.moments,
        weight if subset is None else subset.rows(weight),
        bias if subset is None or bias is None else subset.rows(bias),
        correct / count,
        loss / count,
        layers=sums.layers,
        classes=None if subset is None else subset.classes,
        layer=forward.head.name,
        nonnegative=sums.nonnegative,
    )


def _nc4(
    forward: Forward, kept: Iterable[tuple[Tensor, Tensor, Tensor]], moments: ClassMoments, sharded: bool
) -> float:
    """NC4 of (features, classes predicted by the head, by the model), over all processes.

    NaN with a warning unless all samples were seen again.
    """
    nearest, counts, seen = NearestMeans(moments), [], 0.0
    for features, by_head, by_model in _in_blocks(kept):
        counts.append(nearest.disagreements(features, by_model if forward.by_model else by_head))
        seen += len(features)
    wrong = float(torch.stack(counts).sum()) if counts else 0.0
    if math.isnan(wrong):
        raise InputError(
            "expected finite features in the second pass, got NaN or infinity: check the data and the model"
        )
    if sharded:
        wrong, seen = summed(forward.device, wrong, seen)
    if seen == moments.num_samples:
        return wrong / seen
    warnings.warn(
        f"undefined (NaN): nc4 needs a second pass over the loader, which gave {seen:.0f} samples instead of "
        f"{moments.num_samples}: give a DataLoader that can be run again, or nc4=False",
        NeuralCollapseWarning,
        stacklevel=3,
    )
    return math.nan


def _in_blocks(kept: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The batches joined to blocks of some thousand samples, for which one product is fast."""
    waiting: list[tuple[Tensor, ...]] = []
    rows = 0
    for batch in kept:
        waiting.append(batch)
        rows += len(batch[0])
        if rows >= _BLOCK_ROWS:
            yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
            waiting, rows = [], 0
    if waiting:
        yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
