"""The tables of a landscape page: the model and what is proved of it, the atlas and how to read it, certificates."""

from __future__ import annotations

import math

from neuralcollapse.report.page import Cell, Table
from neuralcollapse.runs.records import number
from neuralcollapse.ufm.atlas import Entry
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import Survey

_LOSSES = {
    "cross_entropy": "cross-entropy",
    "label_smoothing": "cross-entropy with label smoothing {smoothing:g}",
    "focal": "focal loss with exponent {gamma:g}",
    "mse": "squared error to the one-hot labels, halved",
}
_VERDICTS = {
    "global_minimum": "proved: its certified gap is at most 1e-7 of what the decay costs.",
    "strict_saddle": "proved: the gradient vanishes and there is a way down of second order (negative curvature).",
    "not_critical": "the gradient does not vanish: descent goes on from there.",
    "undecided": "neither could be shown.",
}


def model_table(found: Survey) -> Table:
    """The model with its formula, decays and sizes; the theorem that the page checks; what the list may miss."""
    model = found.model
    rows: list[tuple[Cell | str, ...]] = [
        (
            "objective",
            Cell("the mean loss of the logits, and the decays:", f"loss: {loss_words(model)}", formula=_formula(model)),
        ),
        ("decays", _symbols(model)),
        ("sizes", f"K = {model.num_classes} classes, d = {model.feature_dim} dimensions, {_samples(model)}"),
        ("features", "free, and >= 0 as behind a ReLU" if model.nonnegative else "free, of any sign"),
        ("theorem", _theorem(model)),
        ("checked here", _checked(found)),
        ("complete?", _complete(found)),
    ]
    return Table("The model, and what is proved of it", rows, words=True)


def atlas_tables(found: Survey) -> list[Table]:
    """The critical points with their numbers, and what the columns mean, in a line each."""
    if not found.atlas:
        return []
    rows = [_atlas_row(entry, found.minimum) for entry in found.atlas]
    ratio = ("/ minimum",) if found.minimum else ()
    header = ("groups or shape", "objective", *ratio, "verdict", "index", "rank", "least eigenvalue", "NC2", "gap")
    note = "NC1 is 0 at every critical point, saddles included: it certifies nothing."
    return [
        Table("Atlas of critical points", rows, header, note, sortable=True, tall=True),
        Table("How to read the atlas", _terms(found), words=True),
    ]


def certificate_table(found: Survey, ends: list[tuple[str, str, list[float]]]) -> Table:
    """Where the starts end: objective, minimum and their ratio, and the bound that is proved from the point alone."""
    rows = []
    for value, verdict, gaps in ends:
        objective, gap = float(value), max(gaps)
        rows.append(
            [
                Cell(f"{len(gaps)} start{'s' * (len(gaps) > 1)}", sort=len(gaps)),
                Cell(value, sort=objective),
                *([Cell(f"{found.minimum:.8f}"), Cell(_ratio(objective, found.minimum))] if found.minimum else []),
                Cell(f"{objective - max(gap, 0):.8f}" if math.isfinite(gap) else "none"),
                Cell(f"{max(gap, 0):.1e}" if math.isfinite(gap) else "unbounded", sort=gap),
                Cell(verdict.replace("_", " ")),
            ]
        )
    known = ("minimum", "ratio") if found.minimum else ()
    model = found.model
    sign = "features >= 0" if model.nonnegative else "features of any sign"
    note = (
        f"Model assumed: {loss_words(model)}, {sign}, {_samples(model)}; decay of {decays(model)}. "
        f"{'Minimum: exact. ' if found.minimum else ''}"
        "Bound: no point of the model is below it, proved by duality from the point's own logits; gap: objective less "
        "bound, of the worst start."
    )
    header = ("where starts end", "objective", *known, "bound", "gap at most", "verdict")
    return Table("Certificates of the random starts", rows, header, note, sortable=True)


def decays(model: Model) -> str:
    """The decays of a model, in words."""
    bias = f"bias {model.bias_decay:g}" if model.bias else "no bias"
    return f"weights {model.weight_decay:g}, features {model.feature_decay:g}, {bias}"


def _symbols(model: Model) -> str:
    """The decays by the symbols of the formula."""
    bias = f", λ_b = {model.bias_decay:g}" if model.bias else "; no bias"
    return f"λ_W = {model.weight_decay:g}, λ_H = {model.feature_decay:g}{bias}"


def _atlas_row(entry: Entry, minimum: float | None) -> list[Cell]:
    gap = entry.certificate.gap
    return [
        Cell(entry.name),
        Cell(f"{entry.objective:.8f}", sort=entry.objective),
        *([Cell(_ratio(entry.objective, minimum), sort=entry.objective)] if minimum else []),
        Cell(entry.certificate.verdict.replace("_", " ")),
        Cell(str(entry.index), sort=entry.index),
        Cell(str(entry.rank), sort=entry.rank),
        Cell(_eigenvalue(entry), sort=entry.least_eigenvalue),
        Cell(_nearly_zero(entry.measures["nc2"]), sort=entry.measures["nc2"]),
        Cell(f"{max(gap, 0):.1e}" if math.isfinite(gap) else "unbounded", sort=gap),
    ]


def _eigenvalue(entry: Entry) -> str:
    """The least eigenvalue; 0 where it is rounding alone, as at a minimum."""
    return "0" if entry.index == 0 and abs(entry.least_eigenvalue) < 1e-9 else f"{entry.least_eigenvalue:.3g}"


def _nearly_zero(x: float) -> str:
    return "0" if abs(x) < 1e-12 else number(x)


def _ratio(objective: float, minimum: float) -> str:
    return f"{objective / minimum:.4f}"


def _terms(found: Survey) -> list[tuple[str, str]]:
    entries = found.atlas
    labelled = any(entry.labelled and entry.family == "partition" for entry in entries)
    example = (
        '"0,1 | 2": the classes in each group'
        if labelled
        else '"2+1+1": how many classes are in each group; which ones they are makes no difference'
    )
    rows = [
        ("groups", f"the classes of a group share one class mean and one row of the classifier. {example}."),
    ]
    if any(entry.family == "low rank" for entry in entries):
        rows.append(
            (
                "low rank",
                "a point with a rank of W below K-1 that no groups give, named by its shape: the places of the classes "
                "on a line (the farthest at 1), or the cosines between the rows.",
            )
        )
    rows += [
        ("index", "the number of negative eigenvalues of the Hessian: independent directions down. 0 at a minimum."),
        ("rank", "of W: the number of dimensions that the classes span; K-1 in a simplex."),
        *((verdict.replace("_", " "), text) for verdict, text in _VERDICTS.items() if _seen(verdict, entries)),
        ("least eigenvalue", "the steepest way down; its size against the decays says how soon descent leaves."),
        ("NC2", "distance of the classifier's rows from a simplex ETF; 0 for a simplex, at most sqrt(2)."),
        ("gap", "how far above the global minimum the point can be at most, proved from the point alone."),
    ]
    return rows


def _seen(verdict: str, entries: list[Entry]) -> bool:
    return any(entry.certificate.verdict == verdict for entry in entries)


def loss_words(model: Model) -> str:
    """The loss of a model, as people call it."""
    name = model.loss.name
    numbers = {part: getattr(model.loss, part, math.nan) for part in ("smoothing", "gamma")}
    return _LOSSES.get(name, name.replace("_", " ")).format(**numbers)


def _samples(model: Model) -> str:
    counts = list(model.counts)
    if model.balanced:
        return f"{counts[0]} sample{'s' * (counts[0] != 1)} a class (N = {sum(counts)})"
    return f"{', '.join(map(str, counts))} samples (N = {sum(counts)})"


def _theorem(model: Model) -> str:
    theorem = (
        "Every critical point is a global minimum or a strict saddle, where the loss is convex, the features have any "
        "sign and d >= K (Zhu et al. 2021, theorem 3.2)"
    )
    if model.nonnegative:
        return (
            f"{theorem}. Here features are >= 0, and it does not hold: descent may end at points that are no minimum."
        )
    if not model.loss.convex:
        return f"{theorem}. This loss is not convex in the logits, so the theorem says nothing of it."
    if model.feature_dim < model.num_classes:
        few = "d = K-1" if model.feature_dim == model.num_classes - 1 else "d < K-1, there may be other minima"
        return f"{theorem}. Here {few}: the theorem says nothing of it."
    return f"{theorem}: here all three hold."


def _checked(found: Survey) -> str:
    parts = [f"the ends of {len(found.starts.verdicts)} random starts"]
    parts += [f"the {len(found.atlas)} critical points of the atlas"] if found.atlas else []
    return (
        f"{' and '.join(parts)}, each with a certificate of its own: a gap proved by duality, or a direction down. "
        "A start that ended at a minimum above the global one would be a counterexample."
    )


def _complete(found: Survey) -> str:
    sort = "The theorem and the certificates are proofs of the points they are about. "
    if not found.atlas:
        return sort + "There is no list of critical points for this model."
    return sort + f"The list of critical points is a search. {found.coverage}"


def _formula(model: Model) -> str:
    """The objective as MathML."""
    bias = "<mo>+</mo><mi>b</mi>" if model.bias else ""
    arguments = "<mi>W</mi><mo>,</mo><mi>H</mi>" + ("<mo>,</mo><mi>b</mi>" if model.bias else "")
    total = "<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>N</mi></munderover>"
    logits = f"<mi>W</mi><msub><mi>h</mi><mi>i</mi></msub>{bias}"
    loss = f"<mi>&#8467;</mi><mo>(</mo>{logits}<mo>,</mo><msub><mi>y</mi><mi>i</mi></msub><mo>)</mo>"
    mean = f"<mfrac><mn>1</mn><mi>N</mi></mfrac>{total}{loss}"
    parts = [f"<mi>f</mi><mo>(</mo>{arguments}<mo>)</mo><mo>=</mo>{mean}"]
    parts += [f"<mo>+</mo>{_decay(name)}" for name in ("W", "H", *(["b"] if model.bias else []))]
    parts += ["<mo>,</mo><mspace width='1em'/><mi>H</mi><mo>≥</mo><mn>0</mn>"] if model.nonnegative else []
    # one element for each summand, since a line breaks only between them
    return " ".join(f'<math display="inline"><mrow>{part}</mrow></math>' for part in parts)


def _decay(name: str) -> str:
    weight = f"<mfrac><msub><mi>λ</mi><mi>{name}</mi></msub><mn>2</mn></mfrac>"
    return f"{weight}<msup><mrow><mo>‖</mo><mi>{name}</mi><mo>‖</mo></mrow><mn>2</mn></msup>"
