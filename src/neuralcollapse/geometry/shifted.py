"""ShiftedSums: features added up less a reference of their class, so that a single subtraction centres a row.

The reference r of a class is its first row. With `z = h - r`, each class has its count n, `s = sum z` and
`t = sum |z|^2`, and all classes together `Q = sum z z'`. At a look

    mean = r + s / n,    spread = t - |s|^2 / n,    scatter = Q - sum over classes of s s' / n.

Nothing cancels as long as the reference lies near the mean: the differences lose a factor `1 / (1 - f)`,
`f = |s|^2 / (n t)`, which is 2 for a typical row. On the CPU, where looking at a number costs nothing, a class with f
above 0.9 (a first row that is an outlier, features that drift) gets the median of its rows instead, exactly: `r + e`
turns s into `s - n e`, t into `t - 2 s'e + n |e|^2` and Q into `Q - s e' - e s' + n e e'`. On an accelerator
references stay: products in float64 can lose six digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.geometry.packed import State
from neuralcollapse.geometry.products import add_gram, add_single, add_unchecked, fits_float32, in_float32, scratch

# Rows pass through float64 so many values at a time: more would leave the cache, and with fewer the threads of each
# operation cost more than they save (2 threads, d = 512: 128 rows take twice as long as 512).
_PASS_VALUES = 2**18
# Class means are processed in blocks of this many, since a copy of all of them would double the memory.
MEANS_ROWS = 4096
# A reference is moved when this share of the squares about it is the mean's distance.
_FAR = 0.9
# On an accelerator, so many batches are added before one look at whether they were right, which waits.
MARKS = 2**14


class ShiftedSums:
    """While samples are added, the state holds t in place of the spreads, s of the means and Q of the scatter.

    `state` may hold samples already, unless `fresh`; after `fold` it is what it says again.
    """

    def __init__(self, state: State, features: Tensor, *, fresh: bool) -> None:
        self.state = state
        self.single = True  # whether every product so far may run in float32
        num_classes, dim = state.means.shape
        wide = torch.promote_types(features.dtype, torch.float32)
        with torch.inference_mode(False):
            # One row more than classes: rows that do not count write there.
            self.references = torch.zeros(num_classes + 1, dim, dtype=wide, device=state.means.device)
            self.batch_marks = torch.zeros(MARKS, dtype=torch.float64, device=state.means.device)
        if not fresh:
            self._unfold()

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add a block of checked rows on the CPU."""
        state, single = self.state, self._in_float32(features)
        counts = torch.bincount(labels, minlength=len(state.counts))
        # A block of few rows looks at its own classes alone.
        classes = counts.nonzero().flatten() if len(counts) > len(labels) else None
        index = labels
        if classes is not None:
            index = scratch("places", counts.shape, torch.int64, labels.device)
            index[classes] = torch.arange(len(classes), device=labels.device)
            index, counts = index[labels], counts[classes]
        places = slice(None) if classes is None else classes
        before = state.counts[places]
        if bool(((before == 0) & (counts > 0)).any()):
            self._refer(features, labels, (before == 0)[index])
        block = self._shifted(features, labels, index, len(counts), single=single)
        if self._recentre(features, labels, block, counts, before, places):
            block = self._shifted(features, labels, index, len(counts), single=single)
        if single and fits_float32(block.lengths):
            add_single(state.upper, block.rows, block.diagonal)
        else:
            if single:
                block = self._shifted(features, labels, index, len(counts), single=False)
            add_gram(state.upper, block.rows)
        if classes is None:
            state.counts.add_(counts)
            state.spreads.add_(block.squares)
            state.means.add_(block.sums)
        else:
            state.counts[classes] += counts
            state.spreads.index_add_(0, classes, block.squares)
            state.means.index_add_(0, classes, block.sums.to(state.means.dtype))

    def add_unchecked(
        self, features: Tensor, labels: Tensor, marks: Tensor, ignored: int | None, sound: Tensor | None
    ) -> None:
        """Add a block of rows on an accelerator without waiting for it.

        A batch with a label out of range or a value that is not finite is left out as a whole. In `batch_marks`, what
        it adds up to is infinite or NaN then.

        Args:
            features: (N, d).
            labels: (N,) int64.
            marks: (N,) int64, the place in `batch_marks` of each row's batch.
            ignored: the label of rows that are left out.
            sound: 1 if the whole of a batch that is larger than a block is right, else infinite or NaN.
        """
        self._in_float32(features)
        state, references = self.state, self.references
        last = len(references) - 1
        clamped = labels.clamp(0, last - 1)
        exact = features.to(torch.float64, copy=True)
        right = row_marks(exact, labels == clamped)
        if ignored is not None:
            skipped = labels == ignored
            right.masked_fill_(skipped, 1)
        if sound is not None:
            right.mul_(sound)
        kept = self.batch_marks.index_add_(0, marks, right).index_select(0, marks) < torch.inf
        if ignored is not None:
            kept = kept > skipped  # and not
        dropped = ~kept

        place = clamped.masked_fill(dropped, last)
        rows = torch.arange(len(place), device=place.device)
        first = place.new_full((last + 1,), len(rows)).scatter_reduce_(0, place, rows, "amin")
        known = torch.logical_or(first.index_select(0, place) != rows, state.counts.index_select(0, clamped))
        references.index_copy_(0, place.masked_fill(known, last), features.to(references.dtype))
        exact.sub_(references.index_select(0, place)).masked_fill_(dropped.unsqueeze(1), 0)

        squares = torch.linalg.vector_norm(exact, dim=1).square_()
        state.counts.index_add_(0, clamped, kept.to(torch.float64))
        state.spreads.index_add_(0, clamped, squares)
        state.means.index_add_(0, clamped, exact.to(state.means.dtype))
        add_unchecked(state.upper, exact, squares)

    def fold(self) -> None:
        """Turn the sums into spreads, means and scatter, in place."""
        state = self.state
        for part in self._parts():
            counts = state.counts[part].clamp(min=1)[:, None]
            shift = state.means[part] / counts  # in float32 for float32 means
            state.means[part] = self.references[:-1][part] * (state.counts[part] > 0)[:, None] + shift
            scaled = shift.double().mul_(counts.sqrt())
            state.spreads[part] -= self._add_gram(scaled, -1)
            state.spreads[part].clamp_(min=0)

    def _unfold(self) -> None:
        """Turn spreads, means and scatter into sums about references that are the means, rounded."""
        state = self.state
        for part in self._parts():
            self.references[:-1][part] = state.means[part]
            shift = state.means[part].double() - self.references[:-1][part]
            counts = state.counts[part][:, None]
            state.means[part] = shift * counts
            state.spreads[part] += self._add_gram(shift.mul_(counts.sqrt()), 1)

    def _add_gram(self, rows: Tensor, sign: int) -> Tensor:
        """Add `sign R'R` for float64 rows; returns the squared length of each row."""
        squares = torch.linalg.vector_norm(rows, dim=1).square_()
        upper = self.state.upper
        if rows.device.type == "cpu" and self.single and in_float32(1.0, rows.shape[1]) and fits_float32(squares):
            add_single(upper, rows.to(torch.float32), rows.square().sum(0), sign)
        else:
            add_gram(upper, rows, sign)
        return squares

    def _parts(self) -> list[slice]:
        return [slice(start, start + MEANS_ROWS) for start in range(0, len(self.state.means), MEANS_ROWS)]

    def _in_float32(self, features: Tensor) -> bool:
        """Whether this block's products may run in float32; float64 features get float64 references."""
        single = in_float32(torch.finfo(features.dtype).eps, features.shape[1])
        self.single &= single
        if features.dtype == torch.float64 != self.references.dtype:
            with torch.inference_mode(False):  # else updates outside inference mode would be refused
                self.references = self.references.double()
        return single

    def _refer(self, features: Tensor, labels: Tensor, new: Tensor) -> None:
        """Make the first row of each new class its reference; `new` marks the rows of such classes."""
        rows = new.nonzero().flatten()
        first = labels.new_full((len(self.references),), len(labels)).scatter_reduce_(0, labels[rows], rows, "amin")
        classes = (first < len(labels)).nonzero().flatten()
        self.references[classes] = features[first[classes]].to(self.references.dtype)

    def _shifted(self, features: Tensor, labels: Tensor, index: Tensor, num_classes: int, *, single: bool) -> _Block:
        """The rows of a block less the references of their classes, and their sums."""
        count, dim = features.shape
        rows = scratch("rows", features.shape, torch.float32 if single else torch.float64, features.device)
        sums = scratch("sums", (num_classes, dim), torch.float64, features.device).zero_()
        lengths = sums.new_empty(count)
        step = max(1, _PASS_VALUES // dim)
        size = (min(step, count), dim)
        exact, taken, columns = (
            scratch(name, size, torch.float64, features.device) for name in ("exact", "taken", "columns")
        )
        references, near = self.references, None
        if references.dtype != torch.float64:
            if 4 * len(references) <= count:  # some classes are converted rather than all rows
                references = references.double()
            else:
                near = scratch("near", size, references.dtype, features.device)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            place = labels[part]
            # Operations on two types would make copies of their own, in fresh memory.
            wide, theirs = exact[: len(place)].copy_(features[part]), taken[: len(place)]
            if near is None:
                torch.index_select(references, 0, place, out=theirs)
            else:
                theirs.copy_(torch.index_select(references, 0, place, out=near[: len(place)]))
            wide.sub_(theirs)
            sums.index_add_(0, index[part], wide)
            rows[part] = wide
            torch.sum(wide.square_(), 1, out=lengths[part])
            # Value by value: a sum over the rows of each part would pass between the cores what lies in their caches.
            if single and start == 0:
                columns.copy_(wide)
            elif single:
                columns[: len(place)].add_(wide)
        diagonal = columns.sum(0) if single else sums.new_zeros(dim)
        squares = sums.new_zeros(num_classes).index_add_(0, index, lengths)
        return _Block(rows, sums, squares, lengths, diagonal)

    def _recentre(
        self,
        features: Tensor,
        labels: Tensor,
        block: _Block,
        counts: Tensor,
        before: Tensor,
        places: Tensor | slice,
    ) -> bool:
        """Move the references that lie far from the mean of what was seen with this block; whether any was."""
        state = self.state
        total = before + counts
        sums = block.sums
        if bool(before.any()):  # in memory that is there: fresh pages would cost more than the sum
            kept = scratch("total", sums.shape, sums.dtype, sums.device)
            sums = torch.add(sums, state.means[places], out=kept)
        spread = block.squares + state.spreads[places]
        far = (torch.linalg.vector_norm(sums, dim=1).square_() > _FAR * total * spread) & (total > 2) & (counts > 0)
        if not bool(far.any()):
            return False
        number = far.nonzero().flatten()
        classes = number if isinstance(places, slice) else places[number]
        old = self.references[classes]
        # Not the mean, which an outlier drags away from all the others.
        new = torch.stack([features[labels == each].double().median(0).values for each in classes.tolist()])
        new = new.to(old.dtype)
        moved = new.double() - old
        self.references[classes] = new
        seen, held = before[number, None], state.means[classes].double()
        halfway = held - moved * seen / 2
        state.upper.addmm_(halfway.T, moved, alpha=-1).addmm_(moved.T, halfway, alpha=-1)
        state.spreads[classes] -= 2 * (halfway * moved).sum(1)
        state.means[classes] = (held - moved * seen).to(state.means.dtype)
        return True


def row_marks(exact: Tensor, in_range: Tensor) -> Tensor:
    """(N,) 1 for a right row, NaN if it holds NaN or infinity, infinite if its label is out of range."""
    totals = exact.sum(1)
    return (totals - totals).add_(in_range.reciprocal())


class _Block(NamedTuple):
    """Rows less their references (N, d), and the sums of them: by class (k, d), of squares by class, row and column."""

    rows: Tensor
    sums: Tensor
    squares: Tensor
    lengths: Tensor
    diagonal: Tensor
