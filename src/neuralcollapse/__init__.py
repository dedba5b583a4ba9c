"""Measure, prove and use neural collapse in PyTorch.

Names are loaded when first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "simplex_etf": "frames",
    "nearest_simplex_etf": "frames",
    "orthoplex": "frames",
    "softmax_code": "codes",
    "coherence": "codes",
    "ClassMoments": "moments",
    "measures": "collapse",
    "worst_pairs": "pairs",
    "frequent_classes": "subset",
    "NeuralCollapse": "metric",
    "ETFClassifier": "classifier",
    "OrthoplexClassifier": "other_frames",
    "CodeClassifier": "other_frames",
    "fix_classifier": "classifier",
    "measure": "capture.collect",
    "collect": "capture.collect",
    "measure_features": "capture.features",
    "Recorder": "recorder",
    "build_network": "training.networks",
    "CollapseCallback": "integrations.lightning",
    "CollapseTrainerCallback": "integrations.huggingface",
    "measure_checkpoints": "integrations.checkpoints",
    "write_page": "integrations.pages",
    "InputError": "_errors",
    "NeuralCollapseWarning": "_errors",
}

__all__ = [*_HOMES, "__version__", "ufm"]

if TYPE_CHECKING:
    from neuralcollapse import ufm
    from neuralcollapse._errors import InputError, NeuralCollapseWarning
    from neuralcollapse.capture.collect import collect, measure
    from neuralcollapse.capture.features import measure_features
    from neuralcollapse.classifier import ETFClassifier, fix_classifier
    from neuralcollapse.codes import coherence, softmax_code
    from neuralcollapse.collapse import measures
    from neuralcollapse.frames import nearest_simplex_etf, orthoplex, simplex_etf
    from neuralcollapse.integrations.checkpoints import measure_checkpoints
    from neuralcollapse.integrations.huggingface import CollapseTrainerCallback
    from neuralcollapse.integrations.lightning import CollapseCallback
    from neuralcollapse.integrations.pages import write_page
    from neuralcollapse.metric import NeuralCollapse
    from neuralcollapse.moments import ClassMoments
    from neuralcollapse.other_frames import CodeClassifier, OrthoplexClassifier
    from neuralcollapse.pairs import worst_pairs
    from neuralcollapse.recorder import Recorder
    from neuralcollapse.subset import frequent_classes
    from neuralcollapse.training.networks import build_network


def __getattr__(name: str) -> object:
    if name == "ufm":
        return importlib.import_module(f"{__name__}.ufm")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
