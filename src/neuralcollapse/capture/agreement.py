"""Agreement: how the outputs of a head, and the logits that the model returns, follow from the features.

Rows of every batch are compared. On an accelerator that waits for the device, so that plain batches, once they were
found to be plain, are compared many at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuralcollapse.capture.hooks import Head, Trace
from neuralcollapse.capture.linear_map import HeadMap
from neuralcollapse.capture.logits import candidates
from neuralcollapse.capture.returned import Comparison, LeastSquares, Relation
from neuralcollapse.errors import InputError, NeuralCollapseWarning, NumberedError
from neuralcollapse.heads.linear import head_tensors

# Rows of so many batches, or so many values, are kept before they are compared.
_UNSEEN_BATCHES, _UNSEEN_VALUES = 64, 2**22
_BY_MODEL = ("same", "scaled", "shared")


class Undetermined(InputError):
    """The logits are not the outputs of the head, and the rows so far are too few to find their linear map."""


class Agreement:
    """What was found, in the batches so far, of one head.

    Attributes:
        name: of the head.
        map: the linear map from features to the outputs of the head.
        comparison: of these outputs with the returned logits.
        pooled: that the logits are a mean of outputs over positions, if they are.
        least_squares: of logits that are no function of the outputs.
        by_model: whether the logits that the model returned are those of what is measured.
        no_logits: a note that the model returned no logits; empty otherwise.
    """

    def __init__(self, head: Head) -> None:
        self.name = head.name
        self.map = HeadMap(head.module, head.name)
        self.comparison = Comparison(head.name)
        self.pooled: Relation | None = None
        self.least_squares = LeastSquares()
        self.by_model = True
        self.no_logits = ""
        self._unseen: list[tuple[Sequence[int], Tensor, Tensor, Tensor, Tensor]] = []  # rows to be compared, by batch
        self._unseen_values = 0

    @property
    def relation(self) -> Relation | None:
        """How the returned logits follow from the outputs of the head, according to the batches so far."""
        return self.pooled or self.comparison.relation

    @property
    def is_plain(self) -> bool:
        """Whether the head's own weight and bias made the logits, up to a softmax or another function of them."""
        relation = self.relation
        return self.map.is_plain and (relation is None or relation.kind in ("same", "increasing", "pooled"))

    def add(
        self, features: Tensor, outputs: Tensor, logits: Tensor, others: dict[str, tuple[Tensor, bool]], picked: Tensor
    ) -> str:
        """Compare rows of a batch at once; what the model applied to the logits afterwards, as `Relation.after` says.

        Args:
            features: (N, d) of the head.
            outputs: (N, K) of the head.
            logits: (N, K) that the model returned.
            others: name -> outputs of another head at the rows, and whether it receives the same features.
            picked: the rows that are compared.
        """
        if self.pooled is None:
            self.comparison.add(outputs[picked], logits[picked], others)
        relation = self.relation
        assert relation is not None
        self.by_model = relation.kind in _BY_MODEL
        if relation.kind == "other":
            self.least_squares.add(features, logits)
        return relation.after

    def settled(self, trace: Trace, shape: tuple[int, ...], outputs: Tensor) -> bool:
        """Whether the head and the logits were found to be plain, so that rows of a batch may be compared later."""
        relation = self.comparison.relation
        plain = relation is not None and (relation.kind, relation.after, relation.masked) == ("same", "", 0)
        settled = plain and self.pooled is None and self.map.is_found and not self.comparison.needs_others
        return settled and len(candidates(trace.returned, shape, outputs.shape[-1])) == 1

    def keep(self, rows: tuple[Sequence[int], Tensor, Tensor, Tensor, Tensor]) -> None:
        """Compare rows now or, since that waits for the device, with those of many batches at once.

        `rows` are the numbers of their batches, and the inputs and outputs of the head as they were caught; then the
        outputs of samples and the logits that the model returned for them.
        """
        self._unseen.append(rows)
        self._unseen_values += sum(each.numel() for each in rows[1:])
        if len(self._unseen) >= _UNSEEN_BATCHES or self._unseen_values >= _UNSEEN_VALUES:
            self.check()

    def check(self) -> None:
        """Compare the rows that were kept with the map of the head and with the returned logits.

        Raises:
            InputError: as for a batch that is compared at once, with its number.
        """
        unseen, self._unseen, self._unseen_values = self._unseen, [], 0
        if not unseen:
            return
        inputs, made, outputs, logits = (torch.cat(rows) for rows in list(zip(*unseen, strict=True))[1:])
        if self.map.fits(inputs, made) and Relation.of(self.name, outputs, logits).kind == "same":
            return
        for numbers, *rows in unseen:  # as they would have been compared one by one
            for number in dict.fromkeys(numbers):
                picked = [place for place, each in enumerate(numbers) if each == number]
                self._check_one(number, *(each[[place for place in picked if place < len(each)]] for each in rows))

    def _check_one(self, number: int, taken: Tensor, made: Tensor, outputs: Tensor, returned: Tensor) -> None:
        """Compare the rows of one batch, inputs and outputs of the head, and its outputs and the logits of samples."""
        try:
            self.map.check(taken, made)
        except InputError as error:
            raise NumberedError(f"batch {number}: {error}") from None
        self.comparison.add(outputs, returned, {})
        kind = self.comparison.relation.kind if self.comparison.relation else ""
        self.by_model = kind in _BY_MODEL
        if kind == "other" and len(taken) == len(returned):
            self.least_squares.add(self.map.features(taken), returned)

    def tensors(self, model: nn.Module, notes: Sequence[str] = ()) -> tuple[Tensor, Tensor | None]:
        """The weight (K, d) and the bias (K,) or None that made the logits, with a warning if the head has others.

        `notes` are further warnings.

        Raises:
            InputError: the logits are not a linear function of the features.
        """
        self.check()
        weight, bias = self.map.tensors()
        found = [] if self.map.is_plain else [f"the layer {self.name!r}: {self.map.form}"]
        relation = self.relation or Relation(self.name)
        if relation.kind == "scaled":
            scale = torch.as_tensor(relation.scale, dtype=weight.dtype, device=weight.device)
            weight = weight * (scale[:, None] if scale.dim() else scale)
            shift = None if relation.shift is None else relation.shift.to(weight)
            bias = shift if bias is None else bias * scale if shift is None else bias * scale + shift
        elif relation.kind == "shared":
            parts = [(share, head_tensors(model.get_submodule(name))) for name, share in relation.heads.items()]
            weight = sum((share * rows for share, (rows, _) in parts), torch.zeros_like(weight))
            shifts = [share * shift for share, (_, shift) in parts if shift is not None]
            bias = sum(shifts, torch.zeros_like(shifts[0])) if shifts else None
        elif relation.kind == "other":
            solved = self.least_squares.solve()
            if solved is not None:
                (weight, bias), self.by_model = solved, True
                relation = Relation(self.name, "linear")
            elif not relation.others:
                raise (Undetermined if self.least_squares.has_few else InputError)(
                    f"expected the model to return the outputs of {self.name!r}, or a linear map of its input, "
                    f"got logits that are {100 * relation.off:.3g} % off: measure a model whose logits are a linear "
                    "map of the last features"
                )
        if self.no_logits:
            found.append(self.no_logits)
        found += notes
        for note in (*found, relation.words()):
            if note:
                warnings.warn(note, NeuralCollapseWarning, stacklevel=5)
        return weight, bias
