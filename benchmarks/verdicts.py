"""Count the verdicts of `certify` on random models, kind of point by kind of point, and those that are false.

    python benchmarks/verdicts.py --models 30 --seed 1              # prints, writes nothing
    python benchmarks/verdicts.py --out benchmarks/verdicts.json    # 1,000 models, some ten minutes of one processor

What --out names is written every 20 models, and a run that was stopped goes on from there; with all models done it
prints the table. Ends with 1 when a verdict was false.

Models: K from 2 to 10, d from K-1 up, decays of weights and features from 1e-8 to 1e2, each for itself, bias with no
decay, with one of 1e-8 to 1e2, or none, equal and unequal counts, cross-entropy, label smoothing and MSE.

What is false: an exact minimiser that is not a global_minimum; global_minimum where the objective lies above the exact
minimum by more than the certificate grants; strict_saddle at a point near the minimum, or at one that is not near a
critical point; a critical point of the atlas above the minimum that is called not_critical; another verdict of the same
point in other units.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import neuralcollapse as nc
from neuralcollapse.ufm import Point, closed_form
from neuralcollapse.ufm import UnconstrainedFeatureModel as Model
from neuralcollapse.ufm.atlas import Partition
from neuralcollapse.ufm.certificate import GLOBAL_GAP
from neuralcollapse.ufm.duality import decay_cost
from neuralcollapse.ufm.units import Units

PERTURBED = (1e-1, 1e-3, 1e-5, 1e-7, 1e-9)
VERDICTS = ("global_minimum", "strict_saddle", "not_critical", "undecided")


@dataclass
class Count:
    """Verdicts by kind of point, and the false ones in words."""

    verdicts: dict[str, Counter[str]] = field(default_factory=dict)
    false: list[tuple[str, str]] = field(default_factory=list)

    def add(self, kind: str, verdict: str, false: str = "") -> None:
        """One more; `false` says why it is."""
        self.verdicts.setdefault(kind, Counter())[verdict] += 1
        if false:
            self.false.append((kind, false))

    def table(self) -> str:
        """Markdown."""
        lines = [f"| point | {' | '.join(VERDICTS)} | false |", "| --- " * (len(VERDICTS) + 2) + "|"]
        for kind, verdicts in self.verdicts.items():
            wrong = sum(name == kind for name, _ in self.false)
            lines.append(f"| {kind} | {' | '.join(f'{verdicts[v]:,}' for v in VERDICTS)} | {wrong} |")
        total = sum(sum(verdicts.values()) for verdicts in self.verdicts.values())
        return "\n".join([*lines, "", f"{total:,} verdicts, {len(self.false)} false."])


def random_model(rng: random.Random) -> Model:
    """Any model for which the exact minimum is known."""
    K = rng.randint(2, 10)
    counts: int | list[int] = rng.randint(1, 40)
    if rng.random() < 0.5:
        counts = [rng.choice((1, 2, 3, 5, 10, 30)) for _ in range(K)]
    weight = 10 ** rng.uniform(-8, 2)
    feature = rng.choice((weight, 10 ** rng.uniform(-8, 2)))
    bias = rng.random() < 0.7
    decay = rng.choice((0.0, 10 ** rng.uniform(-8, 2))) if bias else 0.0
    loss = rng.choice(("cross_entropy", "cross_entropy", "label_smoothing", "mse"))
    least = K if loss == "mse" else K - 1
    return Model(K, least + rng.choice((0, 1, 1, 2, 5)), counts, weight, feature, decay, bias, loss)


def other_units(model: Model, rng: random.Random) -> tuple[Model, float, float, int]:
    """The same model in other units, with the factors of W and H and of the counts that lead there."""
    samples, balance = rng.randint(1, 4), 10 ** rng.uniform(-3, 3)
    twin = model.like(
        samples_per_class=[samples * n for n in model.counts],
        weight_decay=model.weight_decay / balance**2,
        feature_decay=model.feature_decay * balance**2 / samples,
    )
    return twin, balance, 1 / balance, samples


def in_units(point: Point, twin: tuple[Model, float, float, int]) -> Point:
    """A point of a model as one of `other_units`."""
    _, weight, feature, samples = twin
    return Point(point.W * weight, (point.H * feature).repeat_interleave(samples, dim=-1), point.b)


def judge(model: Model, rng: random.Random, count: Count, starts: int = 2) -> None:
    """Every kind of point of one model."""
    best = model.global_minimizer()
    minimum = model.objective(best) if closed_form(model) is None else model.global_minimum()
    units, twin = Units(model), other_units(model, rng)
    told = f"K={model.num_classes} d={model.feature_dim} n={model.counts} decays {model.weight_decay!r} "
    told += f"{model.feature_decay!r} {model.bias_decay!r} bias {model.bias} {model.loss.name}"
    granted = GLOBAL_GAP * decay_cost(model, minimum) * 1.01 + 3e-14 * minimum

    def add(kind: str, point: Point, *, saddle: bool, minimiser: bool = False, critical: bool = False) -> str:
        verdict = model.certify(point).verdict
        above = model.objective(point) - minimum
        false = ""
        if minimiser and verdict != "global_minimum":
            false = "an exact minimiser"
        if verdict == "global_minimum" and above > granted + GLOBAL_GAP * max(0.0, above):
            false = f"{above:.1e} above the minimum"
        if verdict == "strict_saddle" and not saddle:
            false = "no saddle"
        if critical and verdict == "not_critical":
            false = "a critical point"
        moved = twin[0].certify(in_units(point, twin)).verdict
        if moved != verdict:
            false = f"{moved} in other units"
        count.add(kind, verdict, false and f"{false}, {verdict}: {told}")
        return verdict

    def noise(size: float) -> Point:
        small = units.leave(units.small.random_point(rng.randrange(10**6))) * size
        if model.is_collapsed or rng.random() < 0.5:  # alike within classes, or not
            return small
        return Point(small.W, small.H * (1 + model.random_point(rng.randrange(10**6)).H), small.b)

    add("exact minimiser", best, saddle=False, minimiser=True)
    for size in PERTURBED:
        add(f"minimiser + {size:g}", best + noise(size * (1 + units.norm(best))), saddle=False)
    for factor in (0.5, 0.999999, 3.0):
        add("minimiser scaled", best * factor, saddle=False)
    for scale in (1e-2, 1.0, 10.0):
        add("random point", noise(scale), saddle=False)
    ends = model.many_starts(starts, seed=rng.randrange(10**6), iterations=400)
    for vector in ends.vectors:
        point = model.point(vector)
        near = model.objective(point) - minimum <= 1e-6 * decay_cost(model, minimum)
        add("end of a random start", point, saddle=not near)
    for point in critical_points(model, rng):
        if model.objective(point) - minimum <= 1e-6 * decay_cost(model, minimum):
            continue
        add("critical point above the minimum", point, saddle=True, critical=True)
        for size in PERTURBED:
            add("the same, perturbed", point + noise(size * (1 + units.norm(point))), saddle=size < 1e-1)


def critical_points(model: Model, rng: random.Random) -> list[Point]:
    """Some of the atlas: partitions into few groups, or, for few classes, ranks."""
    K = model.num_classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
        if K in (3, 4) and rng.random() < 0.2:
            return [entry.point for entry in model.atlas(ranks=[1], starts=30)][:6]
        cut = rng.randint(1, K - 1)
        order = sorted(range(K), key=lambda k: -model.counts[k])
        partitions: list[Partition] = [(tuple(order),), (tuple(order[:cut]), tuple(order[cut:]))]
        return [entry.point for entry in model.atlas(partitions)]


def main(arguments: list[str] | None = None) -> int:
    """Run and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the counts are kept, as JSON")
    options = parser.parse_args(arguments)
    count, done = Count(), 0
    if options.out and options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        if kept["seed"] != options.seed:
            parser.error(f"{options.out} is of seed {kept['seed']}: choose another file")
        done, count = kept["models"], Count({k: Counter(v) for k, v in kept["verdicts"].items()}, kept["false"])
    for number in range(done, options.models):
        rng = random.Random(f"{options.seed}-{number}")
        judge(random_model(rng), rng, count)
        if options.out and (number % 20 == 19 or number == options.models - 1):
            kept = {"seed": options.seed, "models": number + 1, "verdicts": count.verdicts, "false": count.false}
            options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"{options.models:,} models, seed {options.seed}\n\n{count.table()}")
    for kind, reason in count.false[:20]:
        print(f"false at {kind}: {reason}")
    return int(bool(count.false))


if __name__ == "__main__":
    raise SystemExit(main())
