"""The errors and hints that users see. Importing this file loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Wrong input from the user. The message is one line: expected, got, what to do."""


class NumberedError(InputError):
    """Wrong input in a batch that the message names by its number."""


class Undefined(InputError):
    """A measure that has no value for this input, such as an angle of a zero vector. The message is the reason."""


class NeuralCollapseWarning(UserWarning):
    """Something was measured, but not in the way that a user may assume."""


class RenamedWarning(FutureWarning):
    """A name of an earlier version was used: it still works in this one, and the message gives the name it has now."""


def listed(names: Sequence[object], most: int = 8) -> str:
    """`a, b, c`; beyond `most` names an ellipsis and their number."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of another library's error in one line of at most `most` characters; its type if that is empty."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[: most - 3].rstrip()}..."


_CALLED = {
    # losses
    "cross-entropy": "ce xe xent nll nllloss celoss softmax log-loss logloss categorical-crossentropy bce "
    "crossentropyloss cross-entropy-loss",
    "label-smoothing": "ls lsce smooth smoothing lsr",
    "focal": "fl focal-loss focalloss",
    "mse": "l2 squared squared-error squared-loss quadratic mse-loss mseloss",
    # optimisers and methods
    "sgd": "momentum nesterov sgdm",
    "gd": "gradient-descent steepest-descent",
    "lbfgs": "bfgs quasi-newton",
    # schedules
    "step": "steplr",
    "constant": "none fixed flat off no const",
    "cosine": "cosineannealinglr cosine-annealing annealing",
    "multistep": "multisteplr milestones piecewise",
    # frames
    "simplex": "etf fixed fixed-etf simplex-etf equiangular",
    "orthoplex": "cross-polytope crosspolytope",
    "learned": "none linear learnable trainable nn.linear standard free",
    # data sets
    "fashion-mnist": "fmnist fashion f-mnist",
    "cifar10": "cifar c10",
    "cifar100": "c100",
    "digits": "sklearn optdigits",
    "imagefolder": "imagenet tiny-imagenet tinyimagenet folder images",
    # networks
    "resnet18": "resnet rn18",
    "resnet50": "rn50",
    "mlp": "fc fcnet dense linear multilayer-perceptron",
    # augmentation
    "crop+flip": "flip+crop standard basic default yes true all",
    # loggers
    "tensorboard": "tb tensorboardx",
    "wandb": "w&b weights-and-biases weights-&-biases",
    # outlier scores
    "msp": "softmax max-softmax baseline",
    "max-logit": "mls maxlogit logit max-logits",
    "mahalanobis": "maha mds",
    "relative-mahalanobis": "rmd rmds",
}
"""A value of an option, with hyphens -> what it is called elsewhere, so that `ce` offers `cross_entropy`."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is called `name` elsewhere, or is a near spelling of it; an empty text when none is.

    Near is what one slip of the finger in three letters explains; one letter alone is near to nothing.
    Capitals make no difference, nor whether words are joined by hyphens, underscores or spaces.
    """
    word = _plain(name)
    plain = {_plain(each): each for each in known}
    called = next((each for key, each in plain.items() if word in _CALLED.get(key, "").split()), "")
    near = {key: (_slips(word, key), abs(len(word) - len(key))) for key in plain if _alike_in_length(word, key)}
    close = min(near, key=near.__getitem__, default="")
    return called or (plain[close] if close and near[close][0] <= _slips_left(word, close) else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint ` (did you mean 'x'?)`, or an empty text when no known name is close."""
    close = nearest(name, known)
    return f" (did you mean {close!r}?)" if close else ""


def _slips_left(word: str, other: str) -> float:
    """How many slips may lie between near spellings of these lengths."""
    length = min(len(word), len(other))
    return max(length / 3, 1) if length > 1 else 0


def _alike_in_length(word: str, other: str) -> bool:
    return abs(len(word) - len(other)) <= _slips_left(word, other)


def _slips(word: str, other: str) -> float:
    """The slips of the finger that make one word of the other: a letter left out or added, or two neighbours swapped.

    Another letter in place of one is one and a half: in a word of up to four letters it makes another word
    (`mae`, `mse`).
    """
    before: list[float] = []
    row: list[float] = list(range(len(other) + 1))
    for i, letter in enumerate(word, 1):
        before, above, row = row, before, [float(i)]
        for j, against in enumerate(other, 1):
            least = min(before[j] + 1, row[-1] + 1, before[j - 1] + 1.5 * (letter != against))
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == against:
                least = min(least, above[j - 2] + 1)
            row.append(least)
    return row[-1]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")
