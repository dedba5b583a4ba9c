"""Measure, prove and use neural collapse in PyTorch.

The public names are listed in `__init__.pyi`. Each is loaded when it is first used, so that importing this package
costs next to nothing.
"""

import lazy_loader as _lazy_loader

__version__ = "0.1.0"

_load, _, _names = _lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]

_RENAMED = {"CodeClassifier": "SoftmaxCodeClassifier"}  # name of version 0.1.0 -> name of today


def __getattr__(name: str) -> object:
    try:
        value = _load(_RENAMED.get(name, name))
    except ModuleNotFoundError as error:
        from neuralcollapse.extras import to_install

        raise ModuleNotFoundError(
            f"neuralcollapse.{name} needs more packages ({error}): {to_install(error)}", name=error.name
        ) from None
    if name in _RENAMED:
        from neuralcollapse.runs.renamed import warn_renamed

        warn_renamed(name, _RENAMED[name])
        globals()[name] = value  # `from neuralcollapse import` asks twice
    return value


def __dir__() -> list[str]:
    return __all__
