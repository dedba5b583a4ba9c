"""The unconstrained feature model: its certificate beside one gradient, and what it takes to solve and to map it."""

from __future__ import annotations

import inspect

import torch

from harness import Row, Table
from neuralcollapse import ufm
from neuralcollapse.ufm.atlas import Entry
from neuralcollapse.ufm.convex import grouped, solve
from neuralcollapse.ufm.solvers import Starts


def certificate(quick: bool) -> Table:
    """One certificate at a random point."""
    num_classes, samples, dim = (5, 4, 8) if quick else (100, 100, 128)
    model = ufm.UnconstrainedFeatureModel(num_classes, dim, samples, 5e-4, 1e-5)
    point = model.random_point(0, 0.3)
    slopes = model.slopes(point)
    return Table(
        f"Certificate: K={num_classes}, n={samples}, d={dim}, a random point",
        [
            Row("one gradient of the model", lambda: model.gradient(point)),
            Row("one spectral norm, by SVD", lambda: torch.linalg.matrix_norm(slopes, 2)),
            Row("`certify`", lambda: model.certify(point), "at most 5 gradients and one norm"),
        ],
        rounds=2 if quick else 21,
    )


def landscape(quick: bool) -> Table:
    """Minimisers, many starts, and the atlas of critical points."""
    count, most, starts, atlas_count = (5, 20, 10, 3) if quick else (100, 500, 1_000, 10)
    dim = count * 5 // 4 + 3
    sizes = [max(1, round(most * 0.01 ** (k / (count - 1)))) for k in range(count)]
    balanced = ufm.UnconstrainedFeatureModel(count, dim, most, 5e-4, 1e-5, 0.01)
    long_tail = ufm.UnconstrainedFeatureModel(count, dim, sizes, 5e-4, 1e-5, 0.01)
    # ImageNet has 895 classes of 1,300 images, and 105 with some 100 different numbers from 732 to 1,299.
    classes, rare = (20, 4) if quick else (1_000, 105)
    imagenet = [1_300] * (classes - rare) + [732 + 567 * k // rare for k in range(rare)]
    distinct = [300 + k for k in range(classes)]
    many = classes * 100
    like_imagenet = ufm.UnconstrainedFeatureModel(classes, 2 * classes, imagenet, 5e-4, 5e-3 / sum(imagenet), 5e-4)
    all_distinct = ufm.UnconstrainedFeatureModel(classes, 2 * classes, distinct, 5e-4, 5e-3 / sum(distinct), 5e-4)
    all_equal = ufm.UnconstrainedFeatureModel(many, many, 500, 5e-4, 1e-11, 1e-3, loss="mse")
    many_classes = 50 if quick else 5_000
    large = ufm.UnconstrainedFeatureModel(many_classes, many_classes // 10, 1, 1e-5, 1e-6, 1e-3)
    anywhere = large.random_point(0, 0.1)
    small = ufm.UnconstrainedFeatureModel(4, 6, 10, 0.005, 0.005)
    mapped = ufm.UnconstrainedFeatureModel(atlas_count, atlas_count + 2, 10, 0.005, 0.005)

    def fresh(model: ufm.UnconstrainedFeatureModel) -> float:
        """The minimum, not from the cache of the last solutions."""
        return float(grouped(model).value(inspect.unwrap(solve)(model)))

    def ends_note(ends: Starts) -> str:
        certified = sum(verdict == "global_minimum" for verdict in ends.verdicts)
        return f"{certified} certified, largest gap {float(ends.gaps.max()):.0e}"

    def atlas_note(entries: list[Entry]) -> str:
        saddles = sum(entry.certificate.verdict == "strict_saddle" for entry in entries)
        return f"{len(entries)} entries, {saddles} strict saddles"

    return Table(
        "Landscape",
        [
            Row(
                f"exact minimiser, K={count}, {most} samples each",
                balanced.global_minimizer,
                "at most 2 s",
                lambda point: f"certified gap {balanced.certify(point).gap:.0e}",
            ),
            Row(
                f"the same, counts from {sizes[0]} down to {sizes[-1]}",
                long_tail.global_minimizer,
                "at most 2 s",
                lambda point: f"certified gap {long_tail.certify(point).gap:.0e}",
            ),
            Row(
                f"exact minimum, K={classes:,} with ImageNet's counts",
                lambda: fresh(like_imagenet),
                "at most 15 s",
                peak=True,
            ),
            Row(
                f"the same, K={classes:,}, all counts distinct",
                lambda: fresh(all_distinct),
                "at most 60 s",
                peak=True,
                rounds=1,
            ),
            Row(f"the same, K={many:,} of equal counts, MSE", all_equal.global_minimum, "at most 1 s", peak=True),
            Row(
                f"`certify`, K={many_classes:,}, d={many_classes // 10}, n=1, a random point",
                lambda: large.certify(anywhere),
                "at most 60 s",
                lambda found: f"{found.verdict}, bound {found.lower_bound:.2f} of {found.objective:.2f}",
                peak=True,
                rounds=1,
            ),
            Row(
                f"{starts:,} starts, K=4, d=6, n=10, each end certified",
                lambda: small.many_starts(starts),
                "at most 60 s",
                ends_note,
                peak=True,
            ),
            Row(
                f"atlas, K={atlas_count}, d={atlas_count + 2}, n=10, with verdicts",
                mapped.atlas,
                "at most 60 s",
                atlas_note,
                peak=True,
            ),
        ],
        rounds=2 if quick else 5,
        compared=False,
    )
