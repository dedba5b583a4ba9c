"""TrainConfig: the one description of a training run, from which its flags and YAML files follow (no torch)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, wraps
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.runs.events import StopMode, StopRule
from neuralcollapse.runs.other_tools import needless, option_hint
from neuralcollapse.runs.renamed import RENAMED, with_new_names
from neuralcollapse.training.combinations import check_combinations
from neuralcollapse.training.values import choices, described, fits, means_nothing, read

_T = TypeVar("_T")

_RATES = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "lbfgs": 0.1}

_ROTATIONS = {"simplex": "blocks", "orthoplex": "fast"}  # of a frame when none is given


def _takes_old_names(cls: type[_T]) -> type[_T]:
    """Let a dataclass be made with names that have changed (`neuralcollapse.runs.renamed`)."""
    made: Callable[..., None] = cls.__init__

    @wraps(made)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for old, new in RENAMED["train"].items():
            if old in values and set(types()) <= {*values, old}:
                values.pop(new, None)  # dataclasses.replace gives every field beside what changes
        values = with_new_names(values, "train")
        check_names(values, "TrainConfig")
        made(self, *args, **values)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_takes_old_names
@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        data: the data set. "digits" (1,797 images of 8x8 pixels, 10 classes, ships with scikit-learn); "mnist",
            "fashion-mnist", "cifar10", "cifar100", from their standard files in a folder as in "mnist:FOLDER", or from
            the Hugging Face hub; "idx:FOLDER", "imagefolder:FOLDER", or a hub id such as "uoft-cs/cifar10".
        samples_per_class: keep so many training samples of each class (all when not given).
        imbalance: "exponential:R" or "step:R": the first class keeps R times the samples of the last.
        random_labels: give the training samples random labels, each class as often as any other.
        label_noise: share of training samples whose label is replaced by another class.
        image_size: resize images to this height and width.
        channels: 3 repeats grey images to three channels.
        augment: random changes of the training images: "crop" (shifted by up to an eighth of the size), "flip"
            (left to right), or both.
        network: "mlp", "resnet18", "resnet34", "resnet50", "resnet18_width", "torchvision:NAME", "timm:NAME",
            "transformers:NAME", or a function of your own as "package.module:function".
        width: units of each hidden layer of the MLP (512), channels of the first stage of resnet18_width (64).
        depth: layers of the MLP before the classifier, the one that makes the features included (3).
        feature_dim: dimension d of the features that the classifier sees (the network's own; 256 for the MLP).
        stem: first layers of a ResNet: "imagenet" (7x7, stride 2, max-pool) or "small" (3x3).
        network_options: more options of the network, by name.
        frame: rows of the classifier: "learned", or fixed without weights to a "simplex" (ETF; needs feature_dim >=
            classes - 1), an "orthoplex" (feature_dim >= classes / 2) or a "softmax_code" (any number of classes).
        learn_scale: learn the length of a fixed frame's rows.
        rotation: how a fixed frame lies among the features: "blocks" (each class on features of its own, for features
            >= 0; the default of a simplex, which alone has it), "none" (each class on one feature, as in the paper) or
            "fast" (all classes on all features; the default of an orthoplex). A softmax code has no rotation.
        loss: "cross_entropy", "label_smoothing[:A]", "focal[:GAMMA]" or "mse".
        optimizer: "sgd", "adam", "adamw" or "lbfgs" (strong Wolfe). The decay is coupled (part of the gradient), but
            for adamw.
        epochs: passes over the training set.
        batch_size: samples in a step, over all processes; at least 2.
        learning_rate: 0.05 for sgd, 0.001 for adam and adamw, 0.1 for lbfgs when not given.
        momentum: of sgd.
        lbfgs_history: pairs that L-BFGS keeps.
        lbfgs_iterations: iterations of L-BFGS on each batch.
        weight_decay: L2 decay, of all parameters or of the classifier's weight (see decay_on).
        decay_on: "all": weight_decay on every parameter; "classifier": as in the unconstrained feature model, half of
            weight_decay |W|^2 + feature_decay |H|^2 + bias_decay |b|^2 is added to the mean loss, for the classifier's
            weight W and bias b and the features H of all samples; nothing else decays.
        feature_decay: decay of the features that the classifier sees (see decay_on).
        bias_decay: decay of the classifier's bias (see decay_on).
        decay_warmup: epochs at the beginning in which weight_decay, feature_decay and bias_decay are all multiplied by
            decay_warmup_factor; fewer than epochs.
        decay_warmup_factor: what the decays are multiplied by in those epochs, from 0 to 1.
        schedule: of the learning rate: "step" (times decay_factor every decay_every epochs), "multistep" (at
            milestones), "cosine" (to 0 at the last epoch) or "constant".
        decay_every: epochs between two drops of "step".
        milestones: epochs of the drops of "multistep".
        decay_factor: what the learning rate is multiplied by.
        gradient_clip: largest norm of the gradient.
        measure_every: epochs between measurements; the first and the last are always measured.
        measure_at: measure after these epochs instead (and at the first and the last).
        measure: "eval": a pass over the un-augmented training set; "online": from the features of the training steps,
            which is cheap, but of weights that move (and of augmented images).
        layers: inner layers to measure too, by dotted name in the network.
        test_measures: measure the features of the test set too, and not its loss and accuracy alone.
        errors: add values of NC1, its quotient and its CDNV without the bias of few samples, and standard errors, which
            the page draws as bands (needs measure=eval).
        certify_head: compare the last layer with the exact optimum of the unconstrained feature model, each time
            (needs feature_dim >= classes - 1, weight_decay above 0, cross_entropy), at the decays after a warm-up.
        stop_on: end the training when this number of the records gets no better, such as nc1, test.accuracy or
            layers.stage1.nc1.
        patience: of stop_on: so many measurements in a row without a better value.
        stop_mode: of stop_on: which values are better: "falling", "rising", or "auto": accuracies rise, everything
            else falls.
        min_delta: of stop_on: by how much a better value has to be better.
        checkpoint_every: epochs between kept weights; the last are always kept.
        save_seconds: least number of seconds between two saved states to resume from (at ends of epochs).
        loggers: "csv", "tensorboard", "wandb", "mlflow": where else the measures go; "none" for nowhere.
        accelerator: "auto", "cpu", "cuda", "mps".
        devices: processes on this machine, one a device.
        nodes: machines.
        timeout: seconds that a process waits for the others before it gives the run up; more than it takes the first
            one to write a record.
        strategy: "auto", "ddp" (each process has all weights) or another of Lightning's like it, or "fsdp2" (each has a
            part of the weights, gradients and optimiser state, by torch's fully_shard).
        precision: "auto" ("bf16-mixed" on CUDA GPUs that have bfloat16, except for lbfgs; else "32-true"), "32-true",
            "bf16-mixed", "16-mixed", "64-true" or another of Lightning's.
        cuda_graph: replay each step of a full batch as one CUDA graph: "auto" (where that can be done), "on" (refused
            where it cannot) or "off".
        channels_last: memory layout of images and convolutions; often faster.
        compile: run the network through torch.compile.
        deterministic: choose deterministic algorithms where there are any (on CUDA; slower).
        seed: of the initial weights, the order of samples, the augmentation.
    """

    data: str = "digits"
    samples_per_class: int | None = None
    imbalance: str | None = None
    random_labels: bool = False
    label_noise: float = 0.0
    image_size: int | None = None
    channels: int | None = None
    augment: Literal["none", "crop", "flip", "crop+flip"] = "none"
    network: str = "mlp"
    width: int | None = None
    depth: int | None = None
    feature_dim: int | None = None
    stem: Literal["imagenet", "small"] = "imagenet"
    network_options: dict[str, Any] = field(default_factory=dict)
    frame: Literal["learned", "simplex", "orthoplex", "softmax_code"] = "learned"
    learn_scale: bool = False
    rotation: Literal["blocks", "none", "fast"] | None = None
    loss: str = "cross_entropy"
    optimizer: Literal["sgd", "adam", "adamw", "lbfgs"] = "sgd"
    epochs: int = 200
    batch_size: int = 64
    learning_rate: float | None = None
    momentum: float = 0.9
    lbfgs_history: int = 10
    lbfgs_iterations: int = 20
    weight_decay: float = 0.01
    decay_on: Literal["all", "classifier"] = "all"
    feature_decay: float = 0.0
    bias_decay: float = 0.0
    decay_warmup: int = 0
    decay_warmup_factor: float = 0.1
    schedule: Literal["step", "multistep", "cosine", "constant"] = "step"
    decay_every: int = 70
    milestones: tuple[int, ...] = ()
    decay_factor: float = 0.1
    gradient_clip: float | None = None
    measure_every: int = 1
    measure_at: tuple[int, ...] = ()
    measure: Literal["eval", "online"] = "eval"
    layers: tuple[str, ...] = ()
    test_measures: bool = True
    errors: bool = False
    certify_head: bool = False
    stop_on: str | None = None
    patience: int = 5
    stop_mode: StopMode = "auto"
    min_delta: float = 0.0
    checkpoint_every: int = 50
    save_seconds: float = 10.0
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ("csv", "tensorboard")
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    timeout: float = 600.0
    strategy: str = "auto"
    precision: str = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in types().items():
            value = _as_given(kind, getattr(self, name))
            check_value(name, value)
            object.__setattr__(self, name, tuple(value) if get_origin(kind) is tuple else value)
        _require(self, "batch_size", self.batch_size >= 2, "at least 2, for batch normalisation")
        for name in _COUNTS:
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")
            _require(self, name, value is None or value < 2**31, "below 2^31")
        for name in ("learning_rate", "decay_factor", "gradient_clip", "timeout"):
            value = getattr(self, name)
            _require(self, name, value is None or _positive(value), "positive and finite")
        for name in ("weight_decay", "feature_decay", "bias_decay", "min_delta", "save_seconds"):
            value = getattr(self, name)
            _require(self, name, value == 0 or _positive(value), "0 or positive and finite")
        for name in ("milestones", "measure_at"):
            _require(self, name, all(epoch >= 1 for epoch in getattr(self, name)), "a list of epochs of at least 1")
        _require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        _require(self, "momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        _require(self, "label_noise", 0 <= self.label_noise <= 1, "a share from 0 to 1")
        _require(self, "decay_warmup_factor", 0 <= self.decay_warmup_factor <= 1, "from 0 to 1")
        _require(self, "seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")
        fewer = f"a number of epochs from 0 to below epochs={self.epochs}"
        _require(self, "decay_warmup", 0 <= self.decay_warmup < self.epochs, fewer)
        check_combinations(self)
        if self.rotation is None:  # said in the run folder, so that it means the same when a default has moved
            object.__setattr__(self, "rotation", _ROTATIONS.get(self.frame))

    @property
    def stop_rule(self) -> StopRule | None:
        """When the training ends early, if it may."""
        if self.stop_on is None:
            return None
        return StopRule(self.stop_on, self.patience, self.stop_mode, self.min_delta)

    @property
    def rate(self) -> float:
        """The learning rate: as given, or the optimiser's own."""
        return _RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def classifier(self) -> str:
        """The name that version 0.1.0 had for `frame`."""
        return "etf" if self.frame == "simplex" else self.frame

    @property
    def data_options(self) -> dict[str, Any]:
        """The options of `neuralcollapse.data.load.load_data`."""
        return {name: getattr(self, name) for name in _DATA_OPTIONS}

    def measured(self, epoch: int) -> bool:
        """Whether the network is measured after this epoch (0: before the first)."""
        if epoch in (0, self.epochs):
            return True
        return epoch in self.measure_at if self.measure_at else epoch % self.measure_every == 0


_DATA_OPTIONS = (
    "image_size",
    "channels",
    "samples_per_class",
    "imbalance",
    "random_labels",
    "label_noise",
    "seed",
)

_COUNTS = (
    "samples_per_class",
    "image_size",
    "width",
    "depth",
    "feature_dim",
    "epochs",
    "lbfgs_history",
    "lbfgs_iterations",
    "decay_every",
    "measure_every",
    "patience",
    "checkpoint_every",
    "devices",
    "nodes",
)

CHANGEABLE = (
    "epochs",
    "measure_every",
    "measure_at",
    "layers",
    "test_measures",
    "errors",
    "certify_head",
    "stop_on",
    "patience",
    "stop_mode",
    "min_delta",
    "checkpoint_every",
    "save_seconds",
    "loggers",
    "accelerator",
    "devices",
    "nodes",
    "timeout",
    "strategy",
    "cuda_graph",
)
"""What may change when a run is resumed: how long, what is looked at, where it runs. The rest made the weights."""


def resumed(old: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a resumed run: the old one with what may change."""
    values = {item.name: getattr(old, item.name) for item in fields(old)}
    check_names(changes, "resume")
    new = TrainConfig(**(values | dict(changes)))
    for name in values:
        if getattr(new, name) != getattr(old, name) and name not in CHANGEABLE:
            raise InputError(
                f"{name} was {getattr(old, name)!r} and cannot become {getattr(new, name)!r} when a run is resumed: "
                f"start another run with another --out; what may change: {', '.join(CHANGEABLE)}"
            )
    if new.epochs != old.epochs and new.schedule == "cosine":
        raise InputError("epochs cannot change under schedule=cosine, which ends with the last one: start another run")
    return new


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run folder by the names of today, with what version 0.1.0 did not write.

    Its fixed classifiers had the fast rotation.
    """
    options = with_new_names(values, "train", quiet=True)
    if options.get("frame") == "simplex":
        return {"rotation": "fast"} | options
    return options


def _as_given(kind: Any, value: Any) -> Any:
    """A value as a caller may give it: NumPy's numbers and arrays as Python's, one name for a list of names."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bool) and {"on", "off"} <= {*get_args(kind)}:  # as YAML reads on and off
        return "on" if value else "off"
    return read(kind, value) if get_origin(kind) is tuple and isinstance(value, str) else value


@cache
def types() -> dict[str, Any]:
    """The type of each option."""
    return get_type_hints(TrainConfig)


@cache
def descriptions() -> dict[str, str]:
    """What each option is for: its entry in the docstring of TrainConfig."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(TrainConfig) or "").partition("Args:\n")[2].splitlines():
        if not line.startswith(" " * 8):
            name, _, line = line.partition(":")
        found[name.strip()] = f"{found.get(name.strip(), '')} {line.strip()}".strip()
    return found


def check_names(values: Mapping[str, object], source: str) -> None:
    """Raise if `values` holds a name that is no field of TrainConfig, offering the nearest one."""
    for name in values:
        if name not in types():
            why = needless(str(name))
            hint = f" ({why})" if why else option_hint(str(name), types())
            raise InputError(f"{source}: no option {name!r}{hint}; 'neuralcollapse train --help' lists them")


def check_value(name: str, value: object) -> None:
    """Raise unless an option can have this value, as far as its type says."""
    kind = types()[name]
    if not fits(value, kind):
        raise InputError(_complaint(name, described(kind), value))


def _require(config: TrainConfig, name: str, holds: bool, what: str) -> None:
    if not holds:
        raise InputError(_complaint(name, what, getattr(config, name)))


def _complaint(name: str, what: str, value: object) -> str:
    known = choices(types()[name])
    wrong = [item for item in (value if isinstance(value, list | tuple) else [value]) if item not in known]
    hint = did_you_mean(wrong[0], known) if known and wrong and isinstance(wrong[0], str) else ""
    if get_origin(types()[name]) is tuple and means_nothing(value):
        hint = " (an empty list is written none or [])"
    return f"expected {name} to be {what}, got {value!r}{hint}"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
