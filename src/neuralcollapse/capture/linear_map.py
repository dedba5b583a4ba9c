"""Which linear map a head computes: the weight and bias that made its outputs, whatever its attributes hold.

A layer with a `.weight` need not compute `W h + b`. A cosine head normalises h and the rows of W first; an adapter
(LoRA) adds a product of its own; a scale or a bias may be learnt and never used. NC2 and NC3 of the attribute would
then be those of another network. So some rows of every batch are compared with `W h + b`, up to the rounding of their
dtypes, and if they differ, the map is found:

    z = W h + b                          a plain linear layer
    z = s W' h' + c                      h' and W' as they are or normalised: cosine heads, scales, unused biases
    z = s W h + c + (a number for each sample): squared distances from prototypes
    z = A h + c                          A and c found by applying the layer to unit vectors: adapters
    otherwise                            the layer is not a linear map of its input, and is refused
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.errors import InputError
from neuralcollapse.geometry.rounding import TOO_FEW, rounding
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.linear import eval_mode, head_axis, head_tensors
from neuralcollapse.heads.split import whole_head

_CLASSES = 256  # classes that are compared in a batch; each batch takes others
_KEPT = 64  # rows kept over all batches, to find the map again if the first rows did not determine it
# What rounding explains: sums in float32 (or float64) err by a few spacings of sum |w_j h_j| in any order; the outputs
# and, in coarse dtypes, each factor are rounded once, which adds up like a random walk. Four spacings are about ten
# standard deviations; the root mean square of many entries is held to a third of that.
_SUMS, _ROUNDED, _ON_AVERAGE = 8.0, 4.0, 3.0
_QUANTISED = 2.0**-6  # spacing of the features that torch's quantised layers round to eight bits
_PROBES = 1024  # unit vectors that the layer is applied to at a time


@dataclass(frozen=True)
class Form:
    """How a head's linear map follows from its weight W and bias b: `z = s W' h' + c`, or `z = A h + c`.

    Attributes:
        unit_features: h' is h/|h| instead of h.
        unit_rows: the rows of W' are those of W, normalised to length one.
        scale: s.
        shift: (K,) c, if it is not b.
        matrix: (K, d) A, if the map does not follow from W.
        shifted: outputs are compared after subtracting their mean over the classes, since a shift of all logits of a
            sample changes no prediction.
    """

    unit_features: bool = False
    unit_rows: bool = False
    scale: float = 1.0
    shift: Tensor | None = None
    matrix: Tensor | None = None
    shifted: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the map is `z = W h + b`."""
        changed = self.unit_features or self.unit_rows or self.shifted or self.scale != 1.0
        return not changed and self.shift is None and self.matrix is None

    def features(self, features: Tensor) -> Tensor:
        """(N, d) h' of (N, d) features h."""
        return F.normalize(features, dim=-1) if self.unit_features else features

    def tensors(
        self, weight: Tensor, bias: Tensor | None, picked: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor | None]:
        """(K, d) `s W'` and (K,) c, or those of the picked classes."""
        shift = bias if self.shift is None else self.shift
        rows = (weight if self.matrix is None else self.matrix)[picked]
        if self.unit_rows:
            rows = F.normalize(rows, dim=1)
        return rows if self.scale == 1.0 else self.scale * rows, None if shift is None else shift[picked]

    def __str__(self) -> str:
        if self.matrix is not None:
            return "its outputs are not those of its weight (an adapter?): measured with the matrix that made them"
        parts = ["features" * self.unit_features, "rows" * self.unit_rows]
        unit = " and ".join(part for part in parts if part)
        words = [f"{unit} of unit length"] if unit else []
        words += [f"a scale of {self.scale:.4g}"] if self.scale != 1.0 else []
        words += ["another bias than its own"] if self.shift is not None else []
        words += ["a shift of each sample left out"] if self.shifted else []
        return f"its outputs are not weight times input plus bias: measured with {', '.join(words)}"


class HeadMap:
    """Finds the form of a head's map from some rows of its inputs and outputs, and compares later rows with it."""

    def __init__(self, head: nn.Module, name: str) -> None:
        self.head = head
        self.name = name
        self.form: Form | None = None
        self._own: tuple[Tensor, Tensor | None] | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._checked = 0  # batches

    def check(self, inputs: Tensor, outputs: Tensor) -> None:
        """Compare some of the (n, K) outputs with the map of the (n, d) inputs.

        Raises:
            InputError: they are not a linear map of the inputs.
        """
        self._own = weight, bias = head_tensors(self.head)  # only now: parametrised layers make it in the forward pass
        finite = torch.isfinite(inputs).all(1)  # others are refused when the moments are updated
        inputs, outputs = inputs[finite], outputs[finite]
        if len(inputs) == 0:
            return
        self._checked += 1
        if sum(len(rows) for rows, _ in self._kept) < _KEPT:
            self._kept.append((inputs, outputs))
        if self.form is not None and self._distance(self.form, inputs, outputs, weight, bias) <= 1:
            return
        rows = [(inputs, outputs)] if self.form is None else [*self._kept, (inputs, outputs)]
        taken, given = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        form = self._found(taken, given, weight, bias)
        if form is None or (self.form is not None and form.unit_features != self.form.unit_features):
            raise InputError(self._refusal(inputs, outputs, weight, bias))
        self.form = form

    @property
    def is_found(self) -> bool:
        """Whether some rows showed the form of the map."""
        return self.form is not None

    def fits(self, inputs: Tensor, outputs: Tensor) -> bool:
        """Whether (n, K) outputs are those of the form that was found, for the (n, d) inputs that are finite."""
        finite = torch.isfinite(inputs).all(1)
        if self.form is None:
            return False
        self._checked += 1
        own = head_tensors(self.head)
        return not bool(finite.any()) or self._distance(self.form, inputs[finite], outputs[finite], *own) <= 1

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The weight (K, d) and the bias (K,) or None that made the outputs."""
        own = self._own or head_tensors(self.head)
        return (self.form or Form()).tensors(*own)

    def features(self, features: Tensor) -> Tensor:
        """(N, d) the inputs of the linear map: those of the head, normalised if the head normalises them."""
        return features if self.form is None else self.form.features(features)

    @property
    def is_plain(self) -> bool:
        """Whether the outputs are those of the head's own weight and bias."""
        return self.form is None or self.form.is_plain

    def _distance(self, form: Form, inputs: Tensor, outputs: Tensor, weight: Tensor, bias: Tensor | None) -> float:
        count = outputs.shape[1]
        quantised = callable(getattr(type(self.head), "weight", None))  # `weight` is a method of quantised layers only
        rotated = isinstance(self.head, FixedClassifier) and self.head.rotation is not None
        if self._checked == 1 and len(inputs):  # all classes once, on one row, by parts
            parts = torch.arange(count, device=outputs.device).split(4096)
            first = inputs[:1], outputs[:1], weight, bias
            whole = max(distance(form, *first, part, quantised, rotated) for part in parts)
        else:
            whole = 0.0
        picked = (torch.arange(min(count, _CLASSES), device=outputs.device) * max(1, count // _CLASSES)) + self._checked
        return max(whole, distance(form, inputs, outputs, weight, bias, picked % count, quantised, rotated))

    def _found(self, inputs: Tensor, outputs: Tensor, weight: Tensor, bias: Tensor | None) -> Form | None:
        """The plain form, or the best fitting form with unit features or rows, or the matrix that probing gives."""
        plain = Form()
        if self._distance(plain, inputs, outputs, weight, bias) <= 1:
            return plain
        inputs, outputs = self._with_more(inputs, outputs)
        best: tuple[float, Form] | None = None
        for unit_features, unit_rows in product((False, True), repeat=2):
            found = scaled(Form(unit_features, unit_rows), inputs, outputs, weight, bias)
            if found is not None and (best is None or found[0] < best[0] / 2):
                best = found
        if best is not None:
            return best[1]
        probed = self._probed(inputs)
        if probed is not None and self._distance(probed, inputs, outputs, weight, bias) <= 1:
            return probed
        shifted = scaled(Form(shifted=True), inputs, outputs, weight, bias)
        return None if shifted is None else shifted[1]

    @torch.no_grad()
    def _outputs(self, vectors: Tensor) -> Tensor:
        """(n, K) the outputs of the head for (n, d) inputs."""
        tail = (1,) * (-1 - head_axis(self.head))  # the positions of a convolution
        copy = whole_head(self.head)
        head = self.head if copy is None else copy.module
        with eval_mode(head):
            return head(vectors.reshape(*vectors.shape, *tail)).reshape(len(vectors), -1)

    def _with_more(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The rows, and more of other lengths and directions: a single sample cannot distinguish a scale from |h|."""
        more = torch.cat([2 * inputs, inputs.roll(1, 1), inputs.flip(1) / 2])
        try:
            return torch.cat([inputs, more]), torch.cat([outputs, self._outputs(more)])
        except Exception:  # a layer may raise anything on inputs that it was not made for
            return inputs, outputs

    def _probed(self, inputs: Tensor) -> Form | None:
        """The matrix and the shift of the layer if it is linear; None if it does not accept unit vectors."""
        dim = inputs.shape[1]
        wide = torch.promote_types(inputs.dtype, torch.float32)
        try:
            columns = []
            for start in range(0, dim, _PROBES):
                count = min(_PROBES, dim - start)
                vectors = torch.zeros(count, dim, dtype=inputs.dtype, device=inputs.device)
                vectors[:, start : start + count].fill_diagonal_(1)
                columns.append((self._outputs(vectors).to(wide) - self._outputs(-vectors).to(wide)) / 2)
            shift = self._outputs(torch.zeros_like(inputs[:1]))[0].to(wide)
        except Exception:
            return None
        matrix = torch.cat(columns).T
        if not bool(torch.isfinite(matrix).all() and torch.isfinite(shift).all()):
            return None
        return Form(matrix=matrix, shift=shift)

    def _refusal(self, inputs: Tensor, outputs: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        wanted = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
        off = float((outputs.double() - wanted).norm() / outputs.double().norm().clamp(min=1e-300))
        return (
            f"expected the layer {self.name!r} to give weight times input plus bias, or another linear map of its "
            f"input, got outputs that differ by {100 * off:.3g} %: name the layer that makes the logits"
        )


def distance(
    form: Form,
    inputs: Tensor,
    outputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    picked: Tensor | None = None,
    quantised: bool = False,
    rotated: bool = False,
) -> float:
    """The deviation of some outputs from a map, relative to what rounding explains: up to 1 they agree.

    Classes with an infinite output, as a mask gives, are left out. A head that rotates its input rounds every output by
    the length of the whole input, even where the entry of the weight that meets it is zero.
    """
    if picked is None:
        picked = torch.arange(outputs.shape[1], device=outputs.device)
    wanted = outputs[:, picked].double()
    finite = torch.isfinite(wanted).all(0)
    if not bool(finite.any()):
        return math.inf
    picked, wanted = picked[finite], wanted[:, finite]
    features = form.features(inputs.double())
    rows, shift = form.tensors(weight, bias, picked)
    rows, shift = rows.double(), features.new_zeros(1) if shift is None else shift.double()
    off = wanted - features @ rows.T - shift
    off = (off - off.mean(1, keepdim=True) if form.shifted else off).abs()
    exact = torch.finfo(torch.float64 if inputs.dtype == outputs.dtype == torch.float64 else torch.float32).eps
    if rotated:
        sums = walk = torch.outer(features.norm(dim=1), rows.norm(dim=1))
    else:
        sums, walk = features.abs() @ rows.abs().T, (features.square() @ rows.square().T).sqrt()
    allowed = _SUMS * exact * (sums + shift.abs())
    spacing = _QUANTISED if quantised else product_rounding(outputs)
    if outputs.numel() < TOO_FEW:  # to show that they were rounded, as under FSDP2's MixedPrecisionPolicy
        spacing = max(spacing, torch.finfo(inputs.dtype).eps)
    allowed += _ROUNDED * spacing * (walk + wanted.abs() + shift.abs())
    ratio = off / allowed.clamp(min=1e-300)
    worst = max(float(ratio.max()), _ON_AVERAGE * float(ratio.square().mean().sqrt()))
    return math.inf if math.isnan(worst) else worst


def scaled(
    form: Form, inputs: Tensor, outputs: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[float, Form] | None:
    """The distance and the form with the scale and shift that fit best; None if none fits.

    The shift is the bias, or zero, or (from two rows on) any other.
    """
    rows, _ = form.tensors(weight.double(), None)
    products = form.features(inputs.double()) @ rows.T
    exact = outputs.double()
    own = torch.zeros(weight.shape[0], dtype=torch.float64, device=products.device)
    own = own if bias is None else bias.double()
    for shift in (own, torch.zeros_like(own), None):
        if shift is None and len(inputs) < 2:
            return None
        x, y = (products, exact - shift) if shift is not None else (_centred(products), _centred(exact))
        if form.shifted:
            x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        kept = torch.isfinite(y).all(0)
        size = float(x[:, kept].square().sum())
        scale = float((x * y)[:, kept].sum()) / size if size > 0 else 0.0
        if scale == 0:
            continue
        if abs(scale - 1) < 4 * product_rounding(outputs):
            scale = 1.0
        c = shift if shift is not None else (exact - scale * products).mean(0)
        if form.shifted and shift is None:  # known up to a number: choose that of minus squared distances, or centre it
            squares = -scale / 2 * weight.double().square().sum(1)
            near = float((c - c.mean() - squares + squares.mean()).abs().max()) <= 1e-4 * float(squares.abs().max())
            c = squares if near else c - c.mean()
        found = replace(form, scale=scale, shift=None if c is own else c.to(weight.dtype))
        off = distance(found, inputs, outputs, weight, bias)
        if off <= 1:
            return off, found
    return None


def product_rounding(outputs: Tensor) -> float:
    """The spacing of the dtype in which a product was computed: that of its values, or of TF32 if it may be used."""
    eps = max(torch.finfo(outputs.dtype).eps, rounding(outputs) if len(outputs) else 0.0)
    return eps if outputs.dtype != torch.float32 or _full_float32(outputs.device) else max(eps, 2.0**-10)


def _full_float32(device: torch.device) -> bool:
    """Whether float32 products are certainly computed in float32."""
    if device.type == "cuda":  # convolutions use TF32 there by default
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer settings are in use
        return False


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(0)
