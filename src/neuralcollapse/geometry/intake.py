"""Intake: how batches come into class moments.

Rows wait in a block of some thousand, so that a small batch costs little more than a copy. A full block, or any look at
the moments, adds them to the sums of `shifted.py`. On the CPU every batch is checked at once; on an accelerator
`update` returns without waiting for the device, and a batch that is wrong is reported at the next look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import check_features, check_finite, check_ignored, check_label_range, check_labels
from neuralcollapse.errors import InputError, NumberedError
from neuralcollapse.geometry.rounding import coarsest, rounding, sampled
from neuralcollapse.geometry.shifted import MARKS, ShiftedSums, row_marks
from neuralcollapse.geometry.waiting import Waiting, block_rows

if TYPE_CHECKING:
    from typing_extensions import Self


class Intake:
    """What `ClassMoments` does with batches until they are in its sums; it says itself which sums those are.

    Attributes:
        num_classes: K.
        feature_dim: d.
        device: where the state lives.
    """

    def __init__(self, num_classes: int, feature_dim: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.device = device
        self._on_host = waits_for_nothing(device)
        self._sums: ShiftedSums | None = None  # while samples are added, the state of the moments holds these sums
        self._waiting: Waiting | None = None
        self._updates = self._unmarked = 0  # batches, and those before the first one with a mark
        self._samples: dict[torch.dtype, Tensor] = {}  # rows whose rounding has not been judged

    def _begun(self, features: Tensor) -> ShiftedSums:
        """The sums that features like these are added to, which the state of the moments holds from now on."""
        raise NotImplementedError

    def update(self, features: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> Self:
        """Add a batch and return self; nothing of a wrong batch is added.

        With the moments on an accelerator, this waits for nothing. A batch whose labels or values are wrong is then
        left out, and the next look at the moments raises an error with its number (from 1, since they were made).

        Args:
            features: (N, d) float16, bfloat16, float32 or float64; N = 0 is allowed.
            labels: (N,) integers of any width in 0..K-1.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: wrong shapes or dtypes, labels out of range, NaN or infinite features, an ignore_index that is
                no integer.
        """
        return self._update(features, labels, ignore_index, 1)

    def update_batches(self, features: Tensor, labels: Tensor, sizes: Sequence[int]) -> Self:
        """Add several batches at once, one after the other in `features` and `labels`; `sizes` are theirs.

        The same as an `update` for each, but faster. A batch that is wrong is named by its number.

        Raises:
            InputError: as `update`; on the CPU, the batches before the wrong one have been added. Sizes that do not
                add up to the samples.
        """
        if sum(sizes) != len(labels):
            raise InputError(
                f"expected sizes of {len(labels)} samples in all, got {sum(sizes)}: give those of the batches"
            )
        try:
            fit = len(labels) <= block_rows(self.num_classes, self.feature_dim, on_host=False) and len(sizes) <= MARKS
            if self._on_host or fit:
                return self._update(features, labels, None, np.asarray(sizes))
        except NumberedError:
            raise
        except InputError:
            pass  # of which batch, the next lines find out
        for part, part_labels in zip(features.split(list(sizes)), labels.split(list(sizes)), strict=True):
            try:
                self._update(part, part_labels, None, 1)
            except NumberedError:
                raise
            except InputError as error:
                raise NumberedError(f"batch {self._updates + 1}: {error}") from None
        return self

    @torch.no_grad()
    def _update(self, features: Tensor, labels: Tensor, ignore_index: int | None, sizes: int | np.ndarray) -> Self:
        """Add one batch, or the batches of these sizes."""
        check_features(features)
        if features.shape[1] != self.feature_dim:
            raise InputError(
                f"expected features of dimension {self.feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, features.shape[0])
        check_ignored(ignore_index)
        if self._on_host or (waits_for_nothing(features.device) and waits_for_nothing(labels.device)):
            features, labels = checked_rows(features.cpu(), labels.cpu(), self.num_classes, ignore_index)
            ignore_index = None
        count, earlier = 1 if isinstance(sizes, int) else len(sizes), None
        if not self._on_host and self._updates + count - self._unmarked > MARKS:
            try:
                self._flush(looked_at=True)
            except NumberedError as error:
                earlier = error  # no reason to leave this batch out
            self._unmarked = self._updates
        mark = self._updates - self._unmarked
        self._updates += count
        if len(labels) > 0:
            plain = self._on_host or isinstance(sizes, int)  # on the CPU nobody looks at marks
            marks = mark if plain else np.repeat(np.arange(mark, mark + count), sizes)
            self._put(features, labels, ignore_index, marks)
        if earlier is not None:
            raise earlier
        return self

    def number_from(self, batch: int) -> None:
        """Let errors call the next batch by this number, unless batches before it have yet to be looked at."""
        if self._sums is None and self._waiting is None:
            self._updates = self._unmarked = batch - 1

    def _put(self, features: Tensor, labels: Tensor, ignored: int | None, mark: int | np.ndarray) -> None:
        """Let a batch wait for its block; one that is larger than a block is added in parts."""
        size = block_rows(self.num_classes, self.feature_dim, on_host=self._on_host)
        if self._on_host:
            whole = len(labels) // size * size
            for start in range(0, whole, size):
                self._add(features[start : start + size], labels[start : start + size])
            features, labels = features[whole:], labels[whole:]
            if len(labels) == 0:
                return
        elif len(labels) > size:
            features, labels = (each.to(self.device) for each in (features, labels))
            sound = _sound(features, labels, self.num_classes, ignored)
            marks = torch.full_like(labels, int(mark))
            for start in range(0, len(labels), size):
                part = slice(start, start + size)
                self._add(features[part], labels[part], marks[part], ignored, sound)
            self._samples[features.dtype] = sampled(features).clone()
            return
        waiting = self._waiting
        if waiting is not None and (waiting.dtype, waiting.ignored) != (features.dtype, ignored):
            self._flush()
            self._keep_sample()
            waiting = None
        if waiting is None:
            waiting = self._waiting = Waiting(features, size, self.device, ignored)
        if len(labels) > waiting.room:
            self._flush()
        waiting.put(features, labels, mark)
        if waiting.room == 0:
            self._flush()

    def _add(
        self,
        features: Tensor,
        labels: Tensor,
        marks: Tensor | None = None,
        ignored: int | None = None,
        sound: Tensor | None = None,
    ) -> None:
        """Add a block to the sums; `marks` and what follows are for an accelerator."""
        if self._sums is None:
            self._sums = self._begun(features)
        if marks is None:
            self._sums.add(features, labels)
            held = self._sums.state.coarsest
            held.fill_(coarsest(features, float(held)))
        else:
            self._sums.add_unchecked(features, labels, marks, ignored, sound)

    @torch.no_grad()
    def _flush(self, *, looked_at: bool = False) -> None:
        """Add the rows that wait; if someone looks at the sums, raise for a batch that was wrong."""
        waiting = self._waiting
        if waiting is not None and waiting.filled:
            marks = None if self._on_host else waiting.marks()
            self._add(*waiting.take(), marks, waiting.ignored)
        if looked_at and self._sums is not None and not self._on_host:
            self._check_marks(self._sums.batch_marks)

    def _check_marks(self, marks: Tensor) -> None:
        """Raise for the first batch that was wrong since the last look, which is forgotten."""
        found = marks.to("cpu", copy=True)
        bad = (~(found < torch.inf)).nonzero().flatten()
        marks.zero_()
        if len(bad) == 0:
            return
        first = self._unmarked + int(bad[0]) + 1
        raise wrong_batch(first, len(bad), self.num_classes if bool(found[bad[0]] == torch.inf) else None)

    def _keep_sample(self) -> None:
        """On an accelerator, keep rows whose rounding the next look judges."""
        if self._waiting is not None and not self._on_host:
            self._samples[self._waiting.dtype] = self._waiting.sample()

    def _fold(self) -> None:
        """Turn the sums into means, spreads and scatter, with nothing waiting."""
        if self._sums is not None:
            self._sums.fold()
            self._keep_sample()
            for rows in self._samples.values():
                self._sums.state.coarsest.clamp_(min=rounding(rows))
            self._sums, self._samples = None, {}
        self._waiting = None

    def _taken_in(self) -> dict[str, Any]:
        """Copies of what `_take_in` needs to go on from here."""
        kept: dict[str, Any] = {"batches": (self._updates, self._unmarked)}
        if self._sums is not None:
            sums = self._sums
            kept |= {"references": sums.references.clone(), "single": sums.single, "marks": sums.batch_marks.clone()}
        if self._waiting is not None and self._waiting.filled:
            kept["waiting"] = self._waiting.snapshot()
        return kept

    def _take_in(self, kept: dict[str, Any]) -> None:
        self._updates, self._unmarked = kept["batches"]
        if "references" in kept:
            self._sums = self._begun(kept["references"])
            self._sums.references.copy_(kept["references"])
            self._sums.batch_marks.copy_(kept["marks"])
            self._sums.single = kept["single"]
        if "waiting" in kept:
            features, labels, marks, ignored = kept["waiting"]
            rows = block_rows(self.num_classes, self.feature_dim, on_host=self._on_host)
            self._waiting = Waiting(features, max(rows, len(labels)), self.device, ignored)
            self._waiting.put(features, labels, marks.numpy())


def wrong_batch(first: int, count: int, num_classes: int | None) -> NumberedError:
    """The error for batches that an accelerator found to be wrong.

    Args:
        first: the number of the first of them.
        count: how many there are.
        num_classes: K if its labels are wrong, None if its features are.
    """
    wanted, got = "finite features", "NaN or infinity"
    if num_classes is not None:
        wanted, got = f"labels from 0 to {num_classes - 1}", "others"
    more = "" if count == 1 else f" and of {count - 1} later ones"
    return NumberedError(
        f"batch {first}: expected {wanted}, got {got}; nothing of that batch{more} was counted: correct or drop them"
    )


def waits_for_nothing(device: torch.device) -> bool:
    """Whether looking at a number on the device costs nothing, as on the CPU."""
    return device.type == "cpu"


def _sound(features: Tensor, labels: Tensor, num_classes: int, ignored: int | None) -> Tensor:
    """1 on the device if all rows are right, else infinite or NaN."""
    marks = row_marks(features.double(), (labels >= 0) & (labels < num_classes))
    if ignored is not None:
        marks.masked_fill_(labels == ignored, 1)
    return marks.amax()


def kept_rows(features: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(N,) bool, the rows whose label is not `ignore_index`.

    On the CPU they must be finite: errors number the rows as given. An accelerator is not waited for.
    """
    check_ignored(ignore_index)
    kept = labels.to(torch.int64) != ignore_index  # in uint8, -100 would be 156
    if waits_for_nothing(features.device) and not bool(kept.all()):
        check_finite(torch.where(kept[:, None], features, 0))
    return kept


def checked_rows(features: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """A batch without ignored rows, once its labels are in range and its features finite."""
    if ignore_index is not None:
        kept = kept_rows(features, labels, ignore_index)
        features, labels = features[kept], labels[kept]
    check_label_range(labels, num_classes)
    check_finite(features)
    return features, labels
