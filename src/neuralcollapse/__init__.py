"""Measure, prove and use neural collapse in PyTorch.

Names are loaded when first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Said out, so that type checkers know what `neuralcollapse.NAME` is.
__all__ = [
    "ClassMoments",
    "CodeClassifier",
    "CollapseCallback",
    "CollapseTrainerCallback",
    "ETFClassifier",
    "InputError",
    "NeuralCollapse",
    "NeuralCollapseWarning",
    "OrthoplexClassifier",
    "Record",
    "Recorder",
    "TrainConfig",
    "__version__",
    "build_network",
    "coherence",
    "collect",
    "fix_classifier",
    "frequent_classes",
    "measure",
    "measure_checkpoints",
    "measure_features",
    "measures",
    "nearest_simplex_etf",
    "orthoplex",
    "read_run",
    "resume",
    "simplex_etf",
    "softmax_code",
    "train",
    "ufm",
    "worst_pairs",
    "write_page",
]

# Where each is found when it is first used.
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
    "Record": "records",
    "read_run": "runs",
    "build_network": "training.networks",
    "TrainConfig": "training.config",
    "train": "training.run",
    "resume": "training.run",
    "CollapseCallback": "integrations.lightning",
    "CollapseTrainerCallback": "integrations.huggingface",
    "measure_checkpoints": "integrations.checkpoints",
    "write_page": "integrations.pages",
    "InputError": "_errors",
    "NeuralCollapseWarning": "_errors",
}

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
    from neuralcollapse.records import Record
    from neuralcollapse.runs import read_run
    from neuralcollapse.subset import frequent_classes
    from neuralcollapse.training.config import TrainConfig
    from neuralcollapse.training.networks import build_network
    from neuralcollapse.training.run import resume, train

else:  # a type checker that saw this would take any name

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
