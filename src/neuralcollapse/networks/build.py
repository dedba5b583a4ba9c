"""Networks by name, with their classifier at `.fc`, its rows learned or fixed to a frame."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.heads.fix import fix_classifier
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.networks.external import external_network
from neuralcollapse.networks.resnet import ResNet
from neuralcollapse.runs.other_tools import option_hint


class MLP(nn.Module):
    """Fully connected layers, each with batch normalisation and ReLU, and a classifier `fc`.

    Args:
        num_classes: K.
        feature_dim: d, the units of the last layer before `fc`.
        in_features: inputs a sample, once flattened.
        width: units of the other layers.
        depth: layers before `fc`.
        bias: whether `fc` has a bias.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 256,
        *,
        in_features: int = 64,
        width: int = 512,
        depth: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, count in (("in_features", in_features), ("width", width), ("depth", depth)):
            check_count(count, name, 1)
        sizes = [in_features, *[width] * (depth - 1), check_count(feature_dim, "feature_dim", 1)]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.fc: nn.Module = nn.Linear(feature_dim, num_classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, ...) images to (N, K) logits."""
        return self.fc(self.features(images))


_FRAMES = ("learned", "simplex", "orthoplex", "softmax_code")
_ROTATIONS = {"simplex": ("blocks", "none", "fast"), "orthoplex": ("none", "fast"), "softmax_code": ("none",)}
_OPTIONS = {
    "mlp": ("in_features", "width", "depth", "bias"),
    "resnet18": ("in_channels", "bias"),
    "resnet34": ("in_channels", "bias"),
    "resnet50": ("in_channels", "bias"),
    "resnet18_width": ("in_channels", "width", "bias"),
}
_NAMES = f"there are: {', '.join(_OPTIONS)}, torchvision:NAME, timm:NAME, transformers:NAME, package.module:function"


def build_network(
    name: str,
    num_classes: int,
    feature_dim: int | None = None,
    classifier: str = "learned",
    stem: str = "imagenet",
    *,
    frame: str | None = None,
    learn_scale: bool = False,
    rotation: str | None = None,
    **options: Any,
) -> nn.Module:
    """A network by name, with its classifier at `.fc` (see also `classifier_name`).

    Args:
        name: "mlp", "resnet18", "resnet34", "resnet50", "resnet18_width", or one from elsewhere: "torchvision:NAME",
            "timm:NAME", "transformers:NAME" (a model type, a hub id or a folder; the weights are random), or a function
            of your own as "package.module:function", called as function(num_classes=K, **options).
        num_classes: K >= 2.
        feature_dim: d of the features that `.fc` sees; the network's own when not given. The MLP's last layer has d
            units, a ResNet's last block d channels; a network from elsewhere gets a linear map to d.
        classifier: "learned", or "etf" for frame="simplex": for callers that do not use `frame`.
        stem: of a ResNet: "imagenet" (7x7 convolution with stride 2, max-pool) or "small" (3x3, for small images).
        frame: rows of the classifier: "learned" (nn.Linear), "simplex" (`ETFClassifier`, d >= K-1), "orthoplex"
            (`OrthoplexClassifier`, d >= K/2) or "softmax_code" (any K and d). A fixed classifier has a bias where the
            learned one has it.
        learn_scale: learn the length of the fixed classifier's rows.
        rotation: of the fixed classifier: "blocks" (the default of a simplex), "none" or "fast" (the default of an
            orthoplex), as for `ETFClassifier`. A network from elsewhere that brings a fixed classifier keeps its own.
        options: of the network; None means the default: in_features (64), width (512) and depth (3) of
            the MLP; in_channels (3) of a ResNet and width (64 channels in the first stage) of resnet18_width; bias
            (True) of the classifier in any of them; for one from elsewhere what it takes.

    Raises:
        InputError: an unknown network (the nearest name is offered), frame or option, a stem for a network that is no
            ResNet, a frame that cannot hold K classes in d dimensions, or a network from elsewhere that cannot be
            built.
    """
    if not isinstance(name, str):
        raise InputError(f"expected a network's name, such as 'mlp', got {name!r:.80}: {_NAMES}")
    check_count(num_classes, "num_classes", 2)
    frame = _frame(classifier, frame)
    _check_frame_options(frame, learn_scale, rotation)
    if stem != "imagenet" and (name == "mlp" or ":" in name):
        raise InputError(f"expected no stem for {name!r}, got {stem!r}: only the ResNets here have a choice of stems")
    options = {key: value for key, value in options.items() if value is not None}
    if ":" in name:
        network: Any = external_network(name, num_classes, feature_dim, options)
    else:
        network = _own_network(name, num_classes, feature_dim, stem, options)
    if isinstance(network.fc, FixedClassifier):
        _check_own(name, network.fc, frame, learn_scale, rotation)
    elif frame != "learned":
        turned = {} if rotation is None else {"rotation": rotation}
        network.fc = fix_classifier(network.fc, frame=frame, learn_scale=learn_scale, **turned)
    return network


def classifier_name(network: nn.Module) -> str:
    """The dotted path of a built network's classifier in `named_modules`, for `measure` and `fix_classifier`."""
    name: str = getattr(network, "classifier_name", "fc")  # torch.compile's wrapper passes this on
    return name


def _frame(classifier: str, frame: str | None) -> str:
    """The frame that is asked for, by either name."""
    if classifier not in ("learned", "etf"):
        raise InputError(f"expected classifier 'learned' or 'etf', got {classifier!r}: other frames go by frame=")
    named = {"etf": "simplex"}.get(classifier, classifier)
    if frame is None:
        return named
    if frame not in _FRAMES:
        raise InputError(
            f"expected frame {', '.join(map(repr, _FRAMES))}, got {frame!r}{did_you_mean(str(frame), _FRAMES)}"
        )
    if named not in ("learned", frame):
        raise InputError(f"expected classifier or frame, got classifier={classifier!r}, frame={frame!r}: leave one out")
    return frame


def _check_frame_options(frame: str, learn_scale: bool, rotation: str | None) -> None:
    if learn_scale and frame == "learned":
        raise InputError("learn_scale is for a fixed frame, such as frame='simplex': learned rows have any length")
    if frame == "learned" and rotation not in (None, "blocks"):
        raise InputError(f"rotation is for a fixed frame, such as frame='simplex', got {rotation!r} for learned rows")
    if frame != "learned" and rotation is not None and rotation not in _ROTATIONS[frame]:
        raise InputError(f"expected rotation {', '.join(map(repr, _ROTATIONS[frame]))} for {frame}, got {rotation!r}")


def _check_own(name: str, head: FixedClassifier, frame: str, learn_scale: bool, rotation: str | None) -> None:
    """Raise unless the fixed classifier that a network brings is the one that is asked for."""
    learned = isinstance(head.scale, nn.Parameter)
    if (frame, learn_scale) != (head.frame, learned):
        raise InputError(
            f"{name} brings its own {type(head).__name__}, got frame={frame!r}, learn_scale={learn_scale}: use "
            f"frame={head.frame!r}, learn_scale={learned}, or have it end in an nn.Linear"
        )
    if rotation not in (None, "blocks", head.rotation_name):
        raise InputError(
            f"{name} brings its own {type(head).__name__} with rotation={head.rotation_name!r}, got "
            f"rotation={rotation!r}: leave it out"
        )


def _own_network(name: str, num_classes: int, feature_dim: int | None, stem: str, options: dict[str, Any]) -> nn.Module:
    if name not in _OPTIONS:
        raise InputError(f"no network {name!r}{did_you_mean(name, _OPTIONS)}; {_NAMES}")
    known = _OPTIONS[name]
    for option in options:
        if option not in known:
            raise InputError(
                f"{name} has no option {option!r}{option_hint(option, known)}; it takes {', '.join(known)}"
            )
    if not isinstance(options.get("bias", True), bool):  # which nn.Linear would take for true
        raise InputError(f"expected bias of {name} to be true or false, got {options['bias']!r:.40}")
    if name == "mlp":
        return MLP(num_classes, **options) if feature_dim is None else MLP(num_classes, feature_dim, **options)
    return ResNet(name, num_classes, feature_dim, stem=stem, **options)
