"""TrainConfig: the one description of a run, for Python, YAML files and flags (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from neuralcollapse.errors import InputError, did_you_mean

_RATES = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "lbfgs": 0.1}


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
        label_noise: share of training samples of which the label is replaced by another class.
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
        classifier: "learned", or "etf": fixed to a simplex ETF, without weights (needs feature_dim >= classes - 1).
        learn_scale: learn the length of the fixed classifier's rows (with "etf").
        rotation: how the frame lies among the features (with "etf"): "blocks" (each class on features of its own, for
            features >= 0), "none" (the paper's: each class on one feature) or "fast" (all classes on all features).
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
        decay_on: "all": weight_decay on every parameter; "classifier": weight_decay on its weight W, feature_decay on
            the features H that it sees and bias_decay on its bias b, nothing else, as in the unconstrained feature
            model: mean loss + (weight_decay |W|^2 + feature_decay |H|^2 + bias_decay |b|^2) / 2, H of all samples.
        feature_decay: see decay_on.
        bias_decay: see decay_on.
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
        certify_head: compare the last layer with the exact optimum of the unconstrained feature model, each time
            (needs feature_dim >= classes - 1, weight_decay above 0, cross_entropy).
        checkpoint_every: epochs between kept weights; the last are always kept.
        save_seconds: at least so many seconds between saved states to resume from (at ends of epochs).
        loggers: "csv", "tensorboard", "wandb", "mlflow": where else the measures go.
        accelerator: "auto", "cpu", "cuda", "mps".
        devices: processes on this machine, one a device.
        nodes: machines.
        strategy: "auto", "ddp" or another of Lightning's that keeps the weights whole.
        precision: "32-true", "bf16-mixed", "16-mixed", "64-true" or another of Lightning's.
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
    classifier: Literal["learned", "etf"] = "learned"
    learn_scale: bool = False
    rotation: Literal["blocks", "none", "fast"] = "blocks"
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
    schedule: Literal["step", "multistep", "cosine", "constant"] = "step"
    decay_every: int = 70
    milestones: tuple[int, ...] = ()
    decay_factor: float = 0.1
    gradient_clip: float | None = None
    measure_every: int = 1
    measure_at: tuple[int, ...] = ()
    measure: Literal["eval", "online"] = "eval"
    layers: tuple[str, ...] = ()
    certify_head: bool = False
    checkpoint_every: int = 50
    save_seconds: float = 10.0
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ("csv", "tensorboard")
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in types().items():
            check_value(name, getattr(self, name))
            if get_origin(kind) is tuple:  # YAML and callers may give lists
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _require(self, "batch_size", self.batch_size >= 2, "at least 2, for batch normalisation")
        for name in _COUNTS:
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")
        for name in ("learning_rate", "decay_factor", "gradient_clip"):
            value = getattr(self, name)
            _require(self, name, value is None or _positive(value), "positive and finite")
        for name in ("weight_decay", "feature_decay", "bias_decay", "save_seconds"):
            value = getattr(self, name)
            _require(self, name, value == 0 or _positive(value), "0 or positive and finite")
        for name in ("milestones", "measure_at"):
            _require(self, name, all(epoch >= 1 for epoch in getattr(self, name)), "a list of epochs of at least 1")
        _require(self, "channels", self.channels in (None, 1, 3), "1 or 3")
        _require(self, "momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        _require(self, "label_noise", 0 <= self.label_noise <= 1, "a share from 0 to 1")
        _require(self, "seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.decay_on == "all" and (self.feature_decay or self.bias_decay):
            raise InputError("feature_decay and bias_decay need decay_on=classifier: with decay_on=all they do nothing")
        if self.milestones and self.schedule != "multistep":
            raise InputError(f"milestones are for schedule=multistep, got schedule={self.schedule}")
        if self.schedule == "multistep" and not self.milestones:
            raise InputError("schedule=multistep needs milestones, such as --milestones 80,120")
        if self.learn_scale and self.classifier != "etf":
            raise InputError("learn_scale is for classifier=etf: a learned classifier has its own lengths")
        if self.rotation != "blocks" and self.classifier != "etf":
            raise InputError(f"rotation={self.rotation} is for classifier=etf: a learned classifier has no frame")
        if self.certify_head and self.weight_decay == 0:
            raise InputError("certify_head needs weight_decay above 0: without decay no minimum exists")
        if self.certify_head and self.decay_on == "classifier" and self.feature_decay == 0:
            raise InputError("certify_head with decay_on=classifier needs feature_decay above 0")
        if self.certify_head and self.loss != "cross_entropy":
            raise InputError(f"certify_head knows cross_entropy only, got loss={self.loss}")
        if self.certify_head and self.optimizer == "adamw":
            raise InputError(
                "certify_head needs a coupled decay, which is part of the objective: use sgd, adam or lbfgs"
            )
        if self.imbalance and self.random_labels:
            raise InputError("imbalance does not go with random_labels, which give each class as often: choose one")
        if self.measure == "online" and self.layers:
            raise InputError("layers are measured in the eval pass only: leave out measure=online, or the layers")
        if self.measure == "online" and self.optimizer == "lbfgs":
            raise InputError("measure=online counts each sample once, and L-BFGS sees it several times: use eval")
        if self.channels_last and self.optimizer == "lbfgs":
            raise InputError("channels_last does not go with lbfgs, which lays all parameters in one row: leave it out")
        if self.gradient_clip and self.optimizer == "lbfgs":
            raise InputError("gradient_clip does not go with lbfgs: its line search needs the gradient as it is")

    @property
    def rate(self) -> float:
        """The learning rate: as given, or the optimiser's own."""
        return _RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

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
    "checkpoint_every",
    "devices",
    "nodes",
)

CHANGEABLE = (
    "epochs",
    "measure_every",
    "measure_at",
    "layers",
    "certify_head",
    "checkpoint_every",
    "save_seconds",
    "loggers",
    "accelerator",
    "devices",
    "nodes",
    "strategy",
)
"""What may change when a run is resumed: how long, what is looked at, where it runs. The rest made the weights."""


def resumed(old: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a resumed run: the old one with what may change.

    Raises:
        InputError: a change of what made the weights, or of epochs under a cosine schedule.
    """
    values = {item.name: getattr(old, item.name) for item in fields(old)}
    new = TrainConfig(**(values | dict(changes)))
    for name in values:
        if getattr(new, name) != getattr(old, name) and name not in CHANGEABLE:
            raise InputError(
                f"{name} was {getattr(old, name)!r} and cannot become {getattr(new, name)!r} when a run is resumed: "
                f"train anew with another --out; what may change: {', '.join(CHANGEABLE)}"
            )
    if new.epochs != old.epochs and new.schedule == "cosine":
        raise InputError("epochs cannot change under schedule=cosine, which ends with the last epoch: train anew")
    return new


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run folder, with what version 0.1.0 left unsaid: its fixed classifiers had the fast rotation."""
    unsaid = {"rotation": "fast"} if values.get("classifier") == "etf" else {}
    return unsaid | dict(values)


@cache
def types() -> dict[str, Any]:
    """The type of each option."""
    return get_type_hints(TrainConfig)


def check_names(values: Mapping[str, object], source: str) -> None:
    """Raise if `values` holds a name that is no field of TrainConfig, offering the nearest one.

    Raises:
        InputError: naming the first such name.
    """
    for name in values:
        if name not in types():
            raise InputError(
                f"{source}: no option {name!r}{did_you_mean(str(name), types())}; 'train --help' lists them"
            )


def _fits(value: object, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if parts:  # X | None
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool) == isinstance(value, bool)


def _said(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple:
        return f"a list, each {_said(parts[0])}"
    if origin is dict:
        return "a mapping of option names to values"
    if parts:
        return " or ".join(_said(part) for part in parts if part is not type(None)) + ", or left out"
    return f"of type {kind.__name__}"


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of the items of a tuple of them; none for other types."""
    while get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def check_value(name: str, value: object) -> None:
    """Raise unless an option can have this value, as far as its type says.

    Raises:
        InputError: with what was expected, and the nearest of the names where it has some.
    """
    kind = types()[name]
    if not _fits(value, kind):
        raise InputError(_complaint(name, _said(kind), value))


def _require(config: TrainConfig, name: str, holds: bool, what: str) -> None:
    if not holds:
        raise InputError(_complaint(name, what, getattr(config, name)))


def _complaint(name: str, what: str, value: object) -> str:
    known = _choices(types()[name])
    wrong = [item for item in (value if isinstance(value, list | tuple) else [value]) if item not in known]
    hint = did_you_mean(wrong[0], known) if known and wrong and isinstance(wrong[0], str) else ""
    return f"expected {name} to be {what}, got {value!r}{hint}"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
