"""The page of a surveyed landscape: what was found, its figures, and the tables behind them."""

from __future__ import annotations

import math
from collections import Counter

from neuralcollapse.report.landscape_figures import landscape_figures
from neuralcollapse.report.page import Page, Table
from neuralcollapse.runs.words import number
from neuralcollapse.ufm.survey import Survey


def landscape_page(found: Survey) -> Page:
    """The page of a survey."""
    model = found.model
    counts = model.counts[0] if model.balanced else ", ".join(map(str, model.counts))
    return Page(
        title=f"Landscape of the unconstrained feature model, K = {model.num_classes}, d = {model.feature_dim}",
        subtitle=(
            f"{model.loss.name.replace('_', ' ')}, samples a class: {counts}; decay of weights {model.weight_decay:g}, "
            f"features {model.feature_decay:g}, bias {f'{model.bias_decay:g}' if model.bias else 'none (no bias)'}"
        ),
        verdict=summary(found),
        cards=_cards(found),
        figures=landscape_figures(found),
        tables=_tables(found),
    )


def summary(found: Survey) -> str:
    """What the survey found, in one or two plain sentences of facts."""
    verdicts = Counter(found.starts.verdicts)
    count = len(found.starts.verdicts)
    worst = float(found.starts.gaps.max())
    ends = f"{verdicts['global_minimum']} of {count} random starts end at a certified global minimum"
    gap = f" (largest certified gap {worst:.1e})" if math.isfinite(worst) else " (no bound exists for this loss)"
    if not found.atlas:
        return f"{ends}{gap}."
    saddles = sum(entry.certificate.verdict == "strict_saddle" for entry in found.atlas)
    low = sum(entry.family == "low rank" for entry in found.atlas)
    by = f" ({len(found.atlas) - low} by partitions, {low} of low rank)" if low else ""
    return f"{ends}{gap}. Of {len(found.atlas)} critical points in the atlas{by}, {saddles} are strict saddles."


def _cards(found: Survey) -> list[tuple[str, str, str]]:
    cards = []
    if found.minimum is not None:
        cards.append(("global minimum", f"{found.minimum:.8g}", "exact"))
    cards.append(("random starts", str(len(found.starts.verdicts)), ""))
    certified = sum(verdict == "global_minimum" for verdict in found.starts.verdicts)
    cards.append(("certified global", str(certified), "starts that end at a certified global minimum"))
    if found.atlas:
        cards.append(("critical points", str(len(found.atlas)), "in the atlas"))
    return cards


def _tables(found: Survey) -> list[Table]:
    tables = []
    if found.atlas:
        rows = [
            (
                entry.name,
                f"{entry.objective:.8f}",
                entry.certificate.verdict.replace("_", " "),
                entry.index,
                entry.rank,
                f"{entry.least_eigenvalue:.3g}",
                number(entry.measures["nc2"]),
                f"{max(entry.certificate.gap, 0):.1e}",
            )
            for entry in found.atlas
        ]
        header = ("groups or shape", "objective", "verdict", "index", "rank", "least eigenvalue", "NC2", "gap")
        note = "NC1 is 0 at every critical point, saddles included: it certifies nothing. " + found.coverage
        tables.append(Table("Atlas", rows, header, note.strip()))
    ends = Counter(
        (f"{float(value):.8f}", verdict)
        for value, verdict in zip(found.starts.objectives, found.starts.verdicts, strict=True)
    )
    lines = [(value, verdict.replace("_", " "), count) for (value, verdict), count in sorted(ends.items())[:20]]
    tables.append(Table("Where the starts end", lines, ("objective", "verdict", "starts"), narrow=True))
    return tables
