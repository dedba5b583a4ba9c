"""The end of an experiment: the page, once no run is missing, by whoever ends last."""

from __future__ import annotations

from pathlib import Path

from neuralcollapse.report.page import save_text
from neuralcollapse.reproduce.page import experiment_page
from neuralcollapse.reproduce.runner import ExperimentFolder, OnMessage


def finish(folder: ExperimentFolder, on_message: OnMessage = lambda text: None) -> Path | None:
    """Measure the costs and write the page, whole or not at all; None where a run is missing.

    Two processes that end at once both see that nothing is missing: one measures the costs, and both write the page.
    """
    if folder.missing():
        return None
    folder.measure_costs(on_message)
    return save_text(experiment_page(folder).html(), folder.path / "report.html")
