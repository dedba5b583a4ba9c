"""From a model and a loader to its collapse measures: features caught by a hook, in one pass without gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from neuralcollapse.capture.arguments import check_device, check_loader, check_model, find_classifier
from neuralcollapse.capture.class_names import find_class_names
from neuralcollapse.capture.forward import Forward
from neuralcollapse.capture.layers import Layers, inner_layers, layer_names
from neuralcollapse.capture.nearest import HEAD, NearestCounts, Rows
from neuralcollapse.capture.processes import first_buffers, without_sync
from neuralcollapse.capture.reference import Reference, reference_moments, warn_of_unseen
from neuralcollapse.capture.result import Capture
from neuralcollapse.capture.shared_head import head_of_all
from neuralcollapse.capture.sums import Sums
from neuralcollapse.capture.team import HeadMismatch, Team
from neuralcollapse.checks import check_classifier, check_ignored
from neuralcollapse.errors import InputError, NeuralCollapseWarning, NumberedError
from neuralcollapse.geometry.classes import chosen_classes, label_counts
from neuralcollapse.geometry.groups import check_errors
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import check_means_dtype
from neuralcollapse.heads.linear import head_tensors
from neuralcollapse.heads.meshes import split_again, tensor_dims
from neuralcollapse.heads.split import whole_heads


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module | None = None,
    num_classes: int | None = None,
    layers: Layers = (),
    *,
    test_loader: Iterable[Any] | None = None,
    reference: Reference | None = None,
    nc4: bool = True,
    ignore_index: int | None = None,
    next_token: bool = False,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    pairwise: bool | int = True,
    errors: bool | int = False,
    more: bool = False,
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
        test_loader: gives the batches of a test set, as `loader` does of the training set. It goes through the network
            once, and the result gets an entry "test" (see below). Nothing of it is counted as training data.
        reference: moments of another pass, such as that over the training set when `loader` gives a validation set:
            "nc4" and "ncc_accuracy" are then taken to its class means, in this one pass, and so are those of a
            `test_loader`. Moments of the features that the classifier receives; a dict from the names of `layers` to
            theirs, with "" for those features; or what `neuralcollapse.collect` returned.
        nc4: measure NC4 and the accuracy of the nearest class mean too. Features (with those of inner layers) up to
            512 MB are kept for it; beyond that the loader runs through the network a second time.
        ignore_index: samples with this label are left out; by default -100 with `next_token`.
        next_token: the labels (N, T) are the tokens of the input, as for a causal language model of transformers: the
            class of each position is the label of the next one, and the last position has none.
        classes: measure these classes alone. Samples and rows of others are left out. NC4 counts a prediction of
            another class as a disagreement; accuracy and loss are those of the samples kept, among all K classes.
        min_count: measure the classes with at least this many samples, counted in a separate pass over the labels.
        means_dtype: torch.float32 halves the memory for K class means (see `ClassMoments`).
        pairwise: False leaves out the measures whose cost grows with K^2; a number takes a sample of that many pairs of
            classes (see `neuralcollapse.measures`).
        errors: add values of NC1, its quotient and its CDNV without bias, and standard errors (see
            `neuralcollapse.standard_errors`), from 20 groups of the samples, each with moments of its own; from 10, 5
            or 4 where most classes have fewer samples, and from 10 to 20 where these would take more than 1 GiB. An
            integer sets the number of groups. Inner layers have groups of their own.
        more: add what `neuralcollapse.more_measures` gives of the training set and its inner layers, but for "gnc1",
            which needs features of length one.
        device: where to run; by default the device of the model's parameters.
        sharded: the loader gives each process of torch.distributed its own share of the samples. The result, the same
            in all processes, is that of all samples and of the first process's buffers. All processes must call this.
            Standard errors are of groups that depend on the shares, as on the order of the samples.
        progress: show a progress bar (on a terminal only).

    Returns:
        The keys of `neuralcollapse.measures`, and

        - "nc4": the share of samples whose nearest class mean is not that of the class predicted; goes to 0;
        - "ncc_accuracy": the share of samples whose nearest class mean is that of their label; goes to 1;
        - "accuracy", "loss" (cross-entropy) and "num_samples";
        - with `errors`, "nc1_corrected", "nc1_error" and so on, and "num_groups";
        - with `more`, "more": a dict of further numbers of the features and the classifier;
        - "layers", if asked for: name -> the measures of features, "nc4" and "ncc_accuracy" of an inner layer;
        - "test", with a `test_loader`: the same for the test set, without what the weight alone decides. NC1, NC2
          and NC3 are about the test set's own class means; "nc4" and "ncc_accuracy" of the test samples are taken to
          the class means of the training set, in inner layers too. A test sample of a class without training samples
          counts as wrong in "ncc_accuracy", with a warning; a class without test samples is left out of the measures.

    Raises:
        InputError: no layer of that name, a head that is not a linear map of its input, an empty loader, an inner layer
            with ambiguous axes, or features, labels or batches of a wrong kind (the message names the batch).
    """

    def given() -> dict[str, object]:
        """The options that the pass knows nothing of."""
        if test_loader is not None:
            check_loader(test_loader, "test_loader")
        return {"test_loader": test_loader is not None, "pairwise": pairwise, "sharded": sharded}

    Team.of(model, sharded=sharded).agree(None, given)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "layers": layers,
        "nc4": nc4,
        "ignore_index": ignore_index,
        "next_token": next_token,
        "means_dtype": means_dtype,
        "errors": errors,
        "device": device,
        "sharded": sharded,
        "progress": progress,
    }
    capture = collect(model, loader, classifier, reference=reference, classes=classes, min_count=min_count, **options)
    result = capture.measures(pairwise=pairwise)
    if more:
        result["more"] = capture.more_measures(pairwise=pairwise, labels_said=True)
        for name, found in capture.more_of_layers(pairwise=pairwise).items():
            result["layers"][name]["more"] = found
    if test_loader is not None:
        test = collect_test(model, test_loader, capture, classifier, reference=reference, **options)
        result["test"] = test.measures(pairwise=pairwise, held_out=True)
    return result


def collect(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module | None = None,
    num_classes: int | None = None,
    layers: Layers = (),
    *,
    reference: Reference | None = None,
    nc4: bool = True,
    ignore_index: int | None = None,
    next_token: bool = False,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    errors: bool | int = False,
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
    team = Team.of(model, sharded=sharded)

    def given() -> dict[str, object]:
        """The options that must be the same in all processes."""
        check_model(model), check_loader(loader), check_device(device), check_errors(errors)
        check_ignored(ignore_index)
        check_means_dtype(means_dtype)
        if reference is not None and not nc4:
            raise InputError("reference is for nc4 and ncc_accuracy: leave out nc4=False, or the reference")
        if min_count is not None and iter(loader) is loader:
            raise InputError(
                "expected a loader that can be run through twice with min_count, got an iterator: give a list"
            )
        named = {"classifier": _said(classifier), "layers": layer_names(layers)}
        numbers = {"num_classes": num_classes, "min_count": min_count, "errors": errors, "means_dtype": means_dtype}
        samples = {"ignore_index": ignore_index, "next_token": next_token, "classes": _said(classes)}
        return {**named, **numbers, **samples, "nc4": nc4, "reference": reference is not None, "sharded": sharded}

    team.agree(model, given)
    model, loader, device = check_model(model), check_loader(loader), check_device(device)

    def batches(text: str) -> Iterable[Any]:
        return tqdm(loader, desc=text, unit="batch", leave=False, disable=None if progress else True)

    def first_pass(classifier: str | nn.Module | None) -> tuple[Forward, Sums]:
        head, others = find_classifier(model, classifier, num_classes)
        kept.enter_context(whole_heads([each.module for each in (head, *others)], tensor_dims(model)))
        weight, bias = head_tensors(head.module)
        count = len(weight) if num_classes is None else num_classes
        check_classifier(weight, bias, count, weight.shape[1])
        inner, chosen = inner_layers(model, layers), classifier is not None
        passes: dict[str, Any] = {"next_token": next_token, "chosen": chosen, "team": team}
        forward = Forward(model, head, others, inner, ignore_index, device, **passes)
        counts = partial(_label_counts, forward, batches, count, team)
        forward.subset = chosen_classes(classes, min_count, count, counts)
        nearest = None
        if reference is not None:
            theirs: dict[str, ClassMoments] = {}
            team.exchanged(lambda: theirs.update(reference_moments(reference, inner, count, forward.subset)))
            nearest = NearestCounts(theirs)
        measured = count if forward.subset is None else len(forward.subset)
        sums = Sums(
            measured,
            means_dtype,
            loss,
            keep=nc4 and nearest is None,
            nearest=nearest,
            exact=exact_sums,
            errors=errors,
            share=team.rank / team.size if team.joins else 0.0,
        )
        with forward:
            team.run(lambda: _add_all(sums, forward, batches("measuring")), forward.idle)
        return forward, sums

    with ExitStack() as kept:
        kept.enter_context(without_sync(model))
        if team.joins:
            kept.enter_context(first_buffers(model))
        kept.enter_context(split_again(model))
        try:
            forward, sums = first_pass(classifier)
        except HeadMismatch as other:  # the first batch shows that another layer makes the logits, and nobody named one
            if any(team.exchanged(lambda: iter(loader) is loader)):
                raise HeadMismatch(other.name) from None
            forward, sums = first_pass(other.name)
        team.check_whole({name: part.means for name, part in sums.layers.items()})
        sums.join(forward, team)
        capture = _result(forward, sums, loader, team)
        by_model = forward.by_model  # as all processes agreed: a second pass sees the samples of this one
        if sums.nearest is not None:
            warn_of_unseen(capture.moments.counts, sums.nearest.counts, capture.classes)
        if nc4:
            nearest = sums.nearest or NearestCounts(capture.all_moments)
            with forward:
                if sums.nearest is None:
                    again = (Rows.of(forward(batch), forward.subset) for batch in batches("measuring nc4"))
                    rows = again if sums.kept is None else sums.kept
                    team.run(lambda: nearest.add_all(rows), forward.idle)
                shares = nearest.shares(by_model=by_model, summed=team.summed)
            _check_seen(nearest.seen, capture, shares)
            capture.nc4, capture.ncc_accuracy = shares[HEAD]["nc4"], shares.pop(HEAD)["ncc_accuracy"]
            capture.layers_nearest = shares
    return capture


def collect_test(
    model: nn.Module,
    loader: Iterable[Any],
    train: Capture,
    classifier: str | nn.Module | None = None,
    *,
    reference: Reference | None = None,
    **options: Any,
) -> Capture:
    """A pass over the test set with the head, the classes and, for NC4, the class means of the training set.

    Args:
        model: the network.
        loader: gives the batches of the test set.
        train: what the pass over the training set gave.
        classifier: as for that pass.
        reference: class means for NC4, if not those of the training set.
        options: of `collect`; `min_count` and `classes` are those of the training set, whatever they say. There is no
            NC4 where `train` has no class means of one of the layers.

    Raises:
        InputError: as for `collect`; the message says that it is about the test set.
    """
    options = {**options, "classes": train.classes, "min_count": None}
    layers = options.get("layers", ())
    known = {layers} if isinstance(layers, str) else set(layers)
    options["nc4"] = options.get("nc4", True) and known <= train.layers.keys()
    if options["nc4"]:
        options["reference"] = train if reference is None else reference
    try:
        return collect(model, loader, (train.layer or None) if classifier is None else classifier, **options)
    except InputError as error:
        raise InputError(f"test_loader: {error}") from error.__cause__  # that of the network, if there is one


def _said(value: Any) -> object:
    """An option as the processes compare it."""
    return (
        type(value).__name__ if isinstance(value, nn.Module) else value.tolist() if isinstance(value, Tensor) else value
    )


def _label_counts(forward: Forward, batches: Callable[[str], Iterable[Any]], num_classes: int, team: Team) -> Tensor:
    """(K,) the number of samples of each class, over all processes, from a pass over the labels alone."""
    counts = torch.zeros(num_classes, dtype=torch.int64, device="cpu")

    def count() -> None:
        for batch in batches("counting labels"):
            counts.add_(label_counts(forward.labels(batch), num_classes))

    team.run(count)
    return torch.tensor(team.summed(*counts.tolist()), dtype=torch.float64, device=counts.device).to(counts.dtype)


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
        raise InputError(f"batch {batch}: {error}") from error.__cause__


def _result(forward: Forward, sums: Sums, loader: Iterable[Any], team: Team) -> Capture:
    """The measured head with its moments, accuracy, loss and class names.

    Raises:
        InputError: no samples, or a head that is not a linear map of its input.
    """
    moments = sums.moments
    if moments is None or moments.num_samples == 0:
        raise InputError("the loader gave no samples: check its data set, drop_last and ignore_index")
    weight, bias = head_of_all(forward, team)  # only now: parametrised layers compute their weight in the pass
    check_classifier(weight, bias, *weight.shape)
    subset, count = forward.subset, moments.num_samples
    correct = sums.correct
    return Capture(
        moments,
        weight if subset is None else subset.rows(weight),
        bias if subset is None or bias is None else subset.rows(bias),
        int(correct.sum()) / count,
        sums.total_loss / count,
        layers=sums.layers,
        classes=None if subset is None else subset.classes,
        layer=forward.head.name,
        nonnegative=sums.nonnegative,
        correct=correct,
        groups=() if sums.grouped is None else sums.grouped.parts(),
        layers_groups={name: part.parts() for name, part in sums.grouped_layers.items()},
        class_names=find_class_names(forward.model, loader, len(weight)),
    )


def _check_seen(seen: int, capture: Capture, shares: dict[str, dict[str, float]]) -> None:
    """Make the shares NaN, with a warning, unless they are of all samples."""
    if seen == capture.moments.num_samples:
        return
    for part in shares.values():
        part.update(dict.fromkeys(part, math.nan))
    warnings.warn(
        f"undefined (NaN): nc4 and ncc_accuracy need a second pass over the loader, which gave {seen} samples instead "
        f"of {capture.moments.num_samples}: give a DataLoader that can be run again, or nc4=False",
        NeuralCollapseWarning,
        stacklevel=3,
    )
