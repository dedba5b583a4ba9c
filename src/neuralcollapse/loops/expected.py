"""What theory expects of a network that was measured: which model it is a point of, as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.capture.collect import Capture
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.ufm.expected import Decays, expected_at_minimum, untrained_measures
from neuralcollapse.ufm.head import balanced_decay

HeadDecay = float | tuple[float, float | None, float | None]

_REACHED = ("none", "blocks")  # rotations of a simplex that features >= 0 can reach


def at_minimum(
    capture: Capture, head: nn.Module, decay: HeadDecay | None, loss: str | None, *, frozen: bool = False
) -> dict[str, float]:
    """The measures at the exact minimiser for the data, decays, loss and frame of a network; nothing where not known.

    Args:
        capture: of the training set.
        head: the last layer.
        decay: of the training, as `neuralcollapse.Recorder` takes it for the certificate of the head.
        loss: the name of the training's loss, where it has one.
        frozen: the rows are no parameters that training changes.
    """
    if loss is None or capture.classes is not None:  # classes that are left out were trained too
        return {}
    moments, frame = capture.moments, frame_of(head) or "learned"
    if isinstance(head, FixedClassifier) and frame == "simplex":
        frame = "simplex" if not capture.nonnegative or head.rotation_name in _REACHED else "simplex out of reach"
    elif frozen:
        frame = "frozen"
    decays = None if decay is None else decays_of(decay, capture.weight, squares(moments))
    values = expected_at_minimum(
        moments.counts.tolist(),
        moments.feature_dim,
        decays,
        loss=loss,
        bias=capture.bias is not None,
        nonnegative=capture.nonnegative,
        frame=frame,
    )
    return values | model_numbers(decays, capture.nonnegative) if values else {}


def model_numbers(decays: Decays | None, nonnegative: bool) -> dict[str, float]:
    """Which model a minimiser is of, in the names of the head's certificate."""
    known = {} if decays is None else {f"{name}_decay": value for name, value in decays._asdict().items()}
    return {"nonnegative": float(nonnegative), **known}


def before_training(capture: Capture, head: nn.Module, measured: Mapping[str, float]) -> dict[str, float]:
    """What is expected before any training; of fixed rows, NC0 and NC2 are what they are `measured` to be."""
    frame = frame_of(head)
    values = untrained_measures(len(capture.weight), capture.weight.shape[1], frame or "learned")
    if frame not in (None, "simplex"):
        values |= {name: measured[name] for name in ("nc0", "nc2") if name in measured}
    return {name: value for name, value in values.items() if name in measured}


def decays_of(decay: HeadDecay, weight: Tensor, size: float) -> Decays | None:
    """The decays, a missing one of the features from the balance `lW |W|^2 = lH |H|^2`, `size` being |H|^2.

    None where all weights or all features are zero. A missing decay of the bias is that of the weight.
    """
    weight_decay, feature_decay, bias_decay = decay if isinstance(decay, tuple) else (decay, None, None)
    if feature_decay is None:
        feature_decay = balanced_decay(weight_decay, weight, size)
        if feature_decay is None:
            return None
    return Decays(weight_decay, feature_decay, weight_decay if bias_decay is None else bias_decay)


def squares(moments: ClassMoments) -> float:
    """|H|^2, the sum of the squared features of all samples."""
    return float(moments.spreads.sum() + moments.counts.double() @ moments.means.square().sum(1))


def frame_of(head: nn.Module) -> str | None:
    """The name of the frame of a last layer with fixed rows."""
    return head.frame if isinstance(head, FixedClassifier) else None


def is_cross_entropy(loss: Any) -> bool:
    """Whether a loss is plain cross-entropy: torch's function, or its module with the default options that count."""
    plain = isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None and loss.reduction == "mean"
    return loss is F.cross_entropy or (plain and loss.label_smoothing == 0)
