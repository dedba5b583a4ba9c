"""The certificate of a head, as a record keeps it, in three lines: its model, its ratio, its bound."""

from __future__ import annotations

from collections.abc import Mapping


def head_lines(head: Mapping[str, float]) -> list[str]:
    """Three lines on a head: the model it is compared with, objective / minimum / ratio, and the bound.

    `head` is `HeadCertificate.record()`. Records of version 0.1.0 have objective, minimum, ratio and lower_bound only:
    the model was the one with real features.
    """
    return [f"model  {model_words(head)}", _ratio_words(head), _bound_words(head)]


def model_words(head: Mapping[str, float]) -> str:
    """The model that the head is compared with."""
    parts = ["cross-entropy"]
    if "num_classes" in head:
        parts += [f"K = {head['num_classes']:.0f}", f"d = {head['feature_dim']:.0f}"]
        least, most = head["least_count"], head["largest_count"]
        parts.append(f"{least:.0f} samples a class" if least == most else f"{least:.0f} to {most:.0f} samples a class")
    parts.append(features_words(head))
    if "bias" in head:
        parts.append("bias" if head["bias"] else "no bias")
    words = ", ".join(parts)
    if "weight_decay" not in head:
        return words
    decays = [f"weight {head['weight_decay']:.4g} (given)"]
    decays.append(f"features {head['feature_decay']:.4g} ({_origin(head, 'feature_decay', 'from the balance')})")
    if head.get("bias"):
        decays.append(f"bias {head['bias_decay']:.4g} ({_origin(head, 'bias_decay', 'as for the weight')})")
    return f"{words}; decay of {', '.join(decays)}"


def features_words(head: Mapping[str, float]) -> str:
    """The sign of the features in the model."""
    return "features >= 0" if head.get("nonnegative") else "real features"


def _origin(head: Mapping[str, float], name: str, otherwise: str) -> str:
    return "given" if head.get(f"{name}_given") else otherwise


def _ratio_words(head: Mapping[str, float]) -> str:
    ratio, exact = f"{head['ratio']:.4g}", head.get("exact", 1)
    kind = "exact minimum" if exact else "minimum of at most"
    words = f"ratio  {ratio}: objective {head['objective']:.6g}, {kind} {head['minimum']:.6g}"
    if not exact:
        words += " (the ratio may fall below 1, as the exact minimum is not known)"
    elif float(ratio) < 1:
        words += " (below 1: the loss was measured with few digits, or is not the cross-entropy of this head)"
    elif head.get("floor"):
        words += " (a floor: the measured features are >= 0 and d < K, so that they may not reach it)"
    return words


def _bound_words(head: Mapping[str, float]) -> str:
    return f"bound  {head['lower_bound']:.6g}, proved from the head's own logits: the minimum is not below it"
