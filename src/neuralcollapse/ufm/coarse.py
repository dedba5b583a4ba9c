"""A coarser model, with neighbouring counts taken together, and its solution between its counts.

What a minimiser gives to a class is a smooth function of the count, but for kinks, so that the solution with a few
dozen groups of equal counts is a start for hundreds of them from which few costly steps remain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.ufm.grouped import GroupedModel
from neuralcollapse.ufm.model import Model

FINE = 150  # groups up to which a coarser model saves nothing
_COARSE = 60  # groups of the coarser model


def coarser(model: Model) -> GroupedModel:
    """The model whose counts are each replaced by the geometric mean of a run of neighbouring ones; on the CPU."""
    runs = np.array_split(np.sort(np.asarray(model.counts, dtype=np.float64)), _COARSE)
    counts = [max(1, round(float(np.exp(np.log(run).mean())))) for run in runs for _ in run]
    return GroupedModel(model.like(samples_per_class=counts), torch.device("cpu"))


def interpolated(fine: GroupedModel, coarse: GroupedModel, values: Tensor, *axes: int) -> Tensor:
    """Values at the groups of one model along `axes` as values at those of another: monotone in the log of the counts.

    Beyond the least and the largest group they are constant.
    """
    from scipy.interpolate import PchipInterpolator

    places = coarse.groups.shares.log().numpy()
    wanted = fine.groups.shares.log().cpu().numpy().clip(places[0], places[-1])
    array = values.numpy()
    for axis in axes:
        array = PchipInterpolator(places, array, axis=axis)(wanted)
    return torch.as_tensor(array, device=fine.groups.shares.device)
