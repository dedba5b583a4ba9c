"""Networks of torchvision, timm, transformers or a function of the user's, each with its classifier at `.fc`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, did_you_mean, listed, one_line
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.linear import head_axis, head_tensors
from neuralcollapse.heads.search import main_heads


class ExternalNetwork(nn.Module):
    """A network whose classifier, whatever its place and name, is at `.fc`, and whose output is the logits.

    The classifier is the head that `main_heads` finds, the last one if there are several. It stays in its place, so the
    state dict holds each weight once.

    Args:
        network: takes images alone; returns logits (N, K), an object with `.logits`, a mapping with "logits", or a
            tuple or list that begins with them.
        num_classes: K.

    Attributes:
        classifier_name: dotted path of the classifier in this module, such as "network.head".
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.classifier_name = f"network.{main_heads(network, num_classes)[-1]}".rstrip(".")

    @property
    def fc(self) -> nn.Module:
        """The classifier; assign a module to replace it in the network."""
        return self.get_submodule(self.classifier_name)

    @fc.setter
    def fc(self, layer: nn.Module) -> None:
        old = self.fc
        paths = [path for path, module in self.named_modules(remove_duplicate=False) if module is old]
        for path in paths:  # several where the network holds it under two names
            parent, _, leaf = path.rpartition(".")
            setattr(self.get_submodule(parent), leaf, layer)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fc":  # nn.Module would register the layer under this name and never call the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def project(self, feature_dim: int) -> None:
        """Change the classifier's input to dimension d: it becomes a `Head`, whose `fc` is the new classifier."""
        old = self.fc
        weight, bias = head_tensors(old)
        num_classes, own_dim = weight.shape
        if isinstance(old, FixedClassifier):
            raise InputError(
                f"expected feature_dim {own_dim}, that of the network's own {type(old).__name__}, got {feature_dim}: "
                "leave it out"
            )
        head = Head(own_dim, feature_dim, num_classes, bias is not None, spatial=-1 - head_axis(old))
        self.fc = head.to(device=weight.device, dtype=weight.dtype)
        self.classifier_name += ".fc"

    def forward(self, images: Tensor) -> Tensor:
        """(N, ...) images to (N, K) logits."""
        output = self.network(images)
        if isinstance(output, Tensor):
            return output
        if hasattr(output, "logits"):
            return output.logits
        if isinstance(output, Mapping) and "logits" in output:
            return output["logits"]
        if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            return output[0]
        raise InputError(
            f"expected {type(self.network).__name__} to return logits, got {type(output).__name__}: return a tensor, "
            "an object with .logits, a dict with 'logits', or a tuple that begins with them"
        )


class Head(nn.Module):
    """A linear map without bias from the network's features to d dimensions, then a classifier `fc`.

    `spatial` is the number of spatial dimensions if the network's own classifier is a 1x1 convolution, else 0.

    Shapes: (..., in_features) -> (..., num_classes), with spatial=2 (N, in_features, H, W) -> (N, num_classes, H, W).
    """

    def __init__(
        self, in_features: int, feature_dim: int, num_classes: int, bias: bool = True, *, spatial: int = 0
    ) -> None:
        super().__init__()
        convolution: Any = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial]
        layer = nn.Linear if convolution is None else partial(convolution, kernel_size=1)
        self.project: nn.Module = layer(in_features, feature_dim, bias=False)
        self.fc: nn.Module = layer(feature_dim, num_classes, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """The logits."""
        return self.fc(self.project(features))


def external_network(
    name: str, num_classes: int, feature_dim: int | None, options: Mapping[str, Any]
) -> ExternalNetwork:
    """The network that `name` describes (see `build_network`), randomly initialised unless its options say otherwise.

    Where its classifier's input has another dimension than `feature_dim`, a linear map comes before the classifier.

    Raises:
        InputError: a library, model, module or function that is missing, options that it does not take, or a network
            without a linear layer of K outputs.
    """
    library, _, model = name.partition(":")
    if library in _LIBRARIES:
        network = _LIBRARIES[library](model, num_classes, dict(options))
    else:
        network = _call(library, model, num_classes, options)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"expected {name} to return a torch.nn.Module, got {type(network).__name__}: return the network"
        )
    external = ExternalNetwork(network, num_classes)
    if feature_dim is not None and check_count(feature_dim, "feature_dim", 1) != head_tensors(external.fc)[0].shape[1]:
        external.project(feature_dim)
    return external


def untrusted_code(name: str, options: Mapping[str, Any]) -> str | None:
    """What building a network would import or load beyond the models of installed libraries, in words; or None.

    A model that torchvision, timm or transformers know by name, with numbers and short words as options, is data.
    Options that name files or hold mappings of settings may lead to code or pickles.
    """
    library, colon, model = name.partition(":")
    if not colon:
        return None
    if library not in _LIBRARIES:
        return f"import {library} and call {model}"
    for option, value in options.items():
        words = value if isinstance(value, list | tuple) else [value]
        if option in _NAMES_ONLY and isinstance(value, Mapping):
            words = list(value.values())
        if option in _LOADING or not all(
            word is None or isinstance(word, int | float) or (isinstance(word, str) and _WORD.fullmatch(word))
            for word in words
        ):
            return f"give {library} the option {option}={value!r:.60}"
    return None


_LOADING = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "model_args", "backbone_kwargs")
_NAMES_ONLY = ("id2label", "label2id")
_WORD = re.compile(r"[\w .,+-]*")


def _torchvision(model: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    models = _library("torchvision").models
    _check_known("torchvision", model, models.list_models())
    with _explained(f"torchvision:{model}"):
        return models.get_model(model, num_classes=num_classes, **options)


def _timm(model: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    timm = _library("timm")
    _check_known("timm", model.partition(".")[0], timm.list_models())  # a tag of its weights follows the dot
    with _explained(f"timm:{model}"):
        return timm.create_model(model, num_classes=num_classes, **options)


def _transformers(model: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    library = _library("transformers")
    config = _config(library, model, options)
    if type(config) not in library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        kinds = _image_kinds()
        raise InputError(
            f"expected transformers:{model} to classify images, got the type {config.model_type!r}: use one of "
            f"{listed(kinds, most=len(kinds))}"
        )
    config.num_labels = num_classes
    _check_no_code(config, model)
    with _explained(f"transformers:{model}"):
        network = library.AutoModelForImageClassification.from_config(config)
    return network.to(torch.get_default_dtype())  # the hub's configurations may ask for half precision


def _config(library: Any, model: str, options: dict[str, Any]) -> Any:
    for name in ("num_labels", "trust_remote_code"):
        if name in options:
            why = "it is the data's number of classes" if name == "num_labels" else "code from the hub is never run"
            raise InputError(f"expected no option {name!r} for transformers:{model}: {why}")
    if model in library.CONFIG_MAPPING:
        with _explained(f"transformers:{model}"):
            plain, config = (library.AutoConfig.for_model(model, **given) for given in ({}, options))
        unknown = [name for name in options if not hasattr(plain, name)]
    else:
        config, unknown = _saved_config(library, model, options)
    if unknown:
        near = did_you_mean(unknown[0], vars(config).keys() - options.keys())
        raise InputError(
            f"transformers:{model} has no option {unknown[0]!r}{near}; it takes those of its configuration"
        )
    return config


def _check_no_code(config: Any, model: str) -> None:
    """Raise where a configuration names kernels of the hub, which are code, or files to load.

    transformers keeps the choice of kernels in private attributes such as `_attn_implementation_internal`.
    """
    for name, value in vars(config).items():
        kernel = name.endswith("implementation_internal") and "/" in str(value)
        loads = name in _LOADING and isinstance(value, Mapping) and any(key in _LOADING for key in value)
        if kernel or loads:
            shown = name.removeprefix("_").removesuffix("_internal")
            raise InputError(f"transformers:{model} asks for {shown}={value!r:.60}: code from the hub is never run")
        if hasattr(value, "to_dict") and value is not config:
            _check_no_code(value, model)


def _saved_config(library: Any, model: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The configuration in a folder or on the hub, and the options that it does not have."""
    if "/" not in model and not os.path.isdir(model):
        known = _image_kinds()
        raise InputError(
            f"transformers has no model type {model!r}{did_you_mean(model, known)}, and the current folder "
            "has no folder of that name: give a type such as 'vit', a hub id such as "
            "'google/vit-base-patch16-224', or a folder"
        )
    try:
        config, unknown = library.AutoConfig.from_pretrained(
            model, trust_remote_code=False, return_unused_kwargs=True, **options
        )
        return config, list(unknown)
    except OSError as error:
        raise InputError(
            f"found no configuration {model!r} on the Hugging Face hub (offline, or no such model) nor in a folder: "
            f"give a local folder with its config.json, as in transformers:./FOLDER ({one_line(error)})"
        ) from error
    except Exception as error:
        raise InputError(
            f"transformers:{model} has no configuration that transformers can use: {one_line(error)}"
        ) from error


def _image_kinds() -> list[str]:
    """The model types that classify images, by name; listing the classes themselves would import every one."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    return list(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


_LIBRARIES: dict[str, Callable[[str, int, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


def _call(module: str, function: str, num_classes: int, options: Mapping[str, Any]) -> Any:
    name = f"{module}:{function}"
    if not (function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise InputError(
            f"expected a network as package.module:function, got {name!r}: for ./my_model.py say my_model:function"
        )
    with _current_folder_first():
        make = _function(module, function)
        arguments = {"num_classes": num_classes, **options}
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise InputError(
                f"expected {name} to take the arguments {', '.join(arguments)}, got {inspect.signature(make)}: {error}"
            ) from None
        except ValueError:  # a callable without a signature
            pass
        try:
            return make(**arguments)
        except TypeError as error:
            if re.search(r"unexpected keyword|required positional|required keyword|multiple values", str(error)):
                raise InputError(f"{name} does not take these arguments: {one_line(error)}") from error
            raise


def _function(module: str, function: str) -> Callable[..., Any]:
    if module.endswith(".py"):
        raise InputError(f"expected a module's name, got the file {module!r}: say {module[:-3]}:{function}")
    try:
        importlib.invalidate_caches()
        loaded = importlib.import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise InputError(
                f"no module {missing!r}{did_you_mean(missing, _LIBRARIES)} in the current folder {os.getcwd()} or "
                "among the installed packages: run in the folder that holds it, or install it"
            ) from None
        raise InputError(
            f"the import of {module!r} failed inside it: {type(error).__name__}: {one_line(error)}"
        ) from error
    make = getattr(loaded, function, None)
    if not callable(make):
        known = [key for key, value in vars(loaded).items() if callable(value)]
        raise InputError(
            f"{module} ({getattr(loaded, '__file__', None)}) has no function {function!r}"
            f"{did_you_mean(function, known)}"
        )
    return make


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Import from the current folder too, as `python -m` does but an installed command does not."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # libraries of versions that do not fit together raise errors of many kinds
        raise InputError(
            f"{name} is not installed, or its import fails ({type(error).__name__}: {one_line(error)}): "
            f"pip install {name}"
        ) from error


def _check_known(library: str, model: str, known: Iterable[str]) -> None:
    known = list(known)
    if model not in known:
        near = difflib.get_close_matches(model, known, n=5, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"it has {listed(known)}"
        raise InputError(f"{library} has no model {model!r}: {hint}")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Report whatever a library raises about a model's options in one line."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{name} could not be built with these options: {one_line(error)}") from error
