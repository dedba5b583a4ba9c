"""FixedClassifier: what last layers with fixed rows share, whatever their frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.precision import without_autocast
from neuralcollapse.heads.constants import Constants, Ready, Source, is_kept
from neuralcollapse.heads.fast_rotation import FastRotation
from neuralcollapse.heads.named_frame import NamedFrame
from neuralcollapse.heads.products import Scaled, is_plain

# Below these sizes a product with the K x d matrix is faster than the structure, as measured on one CPU core. The
# first is of K d, the second of N K d. An accelerator multiplies in the time that it takes to start a kernel: its
# limits are estimates from times on an H200. In half precision a CPU's products gain more than its other operations.
_SMALL = {"cpu": (2**18, 2**21)}
_SMALL_ELSEWHERE = (2**22, 2**29)
# The same with the fast rotation, whose structure costs many more operations.
_SMALL_FAST = {"cpu": (2**21, 2**24)}
_SMALL_FAST_ELSEWHERE = (2**24, 2**33)
# For at most so many classes, in sides of the rotation's grid, the rotation costs more than a matrix at any N.
_FEW_CLASSES = 8
_TURNED = 2**20  # K d up to which a layer with a fast rotation holds its matrix for compilers
# K d up to which `s W` is kept for stored rows. Above, W is read as it is, and its product takes so long that the
# scale may follow it.
_KEPT = 2**14
# Devices that start a kernel in less time than Python takes for an autograd function that saves some.
_QUICK = ("cpu",)
# Features over a batch up to which a CPU multiplies a learnt scale by them rather than by the logits, and casts them to
# the dtype of large stored rows rather than the rows to theirs.
_FEW = 2**12


class FixedClassifier(NamedFrame):
    """Logits `s W h + b` with fixed unit rows W: bias, scale, rotation and checkpoints. A subclass gives the rows.

    Arguments and shapes are those of `ETFClassifier`; `rotations` are those that a subclass accepts.

    The state dict names its frame, and the state of another frame is refused. States of version 0.1.0 name none: for
    these the frame is recognised by the buffers.

    Where a structured product would be slower than a matrix, the layer multiplies by its matrix `s W`, which it builds
    at the first call and again when scale, signs, dtype or device change: K d numbers at most, as in `nn.Linear`, but
    without gradient or optimiser state, and neither in state dicts nor in pickles or copies. Two changes go unnoticed:
    one through `.data` on an accelerator, and one of the signs of a fast rotation in place after `torch.compile` has
    compiled the layer (`load_state_dict` is noticed). After them, call `layer.to(layer.scale.device)`.

    Raises:
        InputError: a scale that is not positive and finite, an axis that is not negative, or an unknown rotation.
    """

    rotations: tuple[str, ...] = ("none", "fast")
    _stored = False  # whether the rows are in a buffer
    _keeps = False  # whether the features of the last pass in training mode are kept, to follow their means
    _kept: Tensor | None = None
    _ready: Ready | None = None  # the matrix for the next batch, if that is like the last one
    _turned: tuple[Tensor, Tensor] | None = None  # the signs of a fast rotation and the matrix W made from them
    _turned_from: Source | None = None  # the signs as they were then
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        rotation: str = "none",
        seed: int = 0,
        axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count(num_classes, "num_classes", 2)
        check_count(in_features, "in_features", 1)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"expected scale to be positive and finite, got {scale}")
        if rotation not in self.rotations:
            raise InputError(f"expected rotation {' or '.join(map(repr, self.rotations))}, got {rotation!r}")
        if not isinstance(axis, int) or isinstance(axis, bool) or axis >= 0:
            raise InputError(
                f"expected axis counted from the end, such as -1, or -3 for maps (N, d, H, W), got {axis!r}"
            )
        self.axis = axis
        self.rotation_name = rotation
        self.in_features = in_features
        self.num_classes = num_classes
        dtype = dtype or torch.get_default_dtype()
        value = torch.tensor(float(scale), device=device, dtype=dtype)
        if learn_scale:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype)) if bias else None
        )
        self.rotation = FastRotation(in_features, seed, device=device) if rotation == "fast" else None
        self._constants = Constants()
        self.register_load_state_dict_post_hook(_make_again)  # once the signs are read too

    @property
    def out_features(self) -> int:
        """K, under the name that `nn.Linear` has for it."""
        return self.num_classes

    @property
    def weight(self) -> Tensor:
        """(K, d) the matrix `s W` of the layer, computed on each access."""
        with without_autocast(self.scale.device):
            rows = self._rows()
            return self.scale * (rows if self.rotation is None else self.rotation.inverse(rows))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) features to (..., K) logits."""
        ready = self._ready if not is_plain() else None  # a compiler is not to look at what is ready
        # nn.Module finds parameters and buffers slowly, by a failed look-up: with ten classes that is a tenth of all.
        scale: Tensor = (self._buffers if "scale" in self._buffers else self._parameters)["scale"]  # type: ignore
        # Private, but the public question is one for each device, and wrong for devices without autocast.
        autocast = torch._C._is_any_autocast_enabled()
        if ready is not None and not autocast and ready.serves(features, scale, self._source()):
            if self._keeps and self.training:
                self.__dict__["_kept"] = features.detach()
            bias = self._parameters["bias"]
            if not ready.learnt:
                return F.linear(features, ready.matrix, bias)
            return _quick(features, ready.matrix, scale, bias)
        if features.dim() < -self.axis or features.shape[self.axis] != self.in_features:
            where = "" if self.axis == -1 else f" at axis {self.axis}"
            raise InputError(f"expected features of dimension {self.in_features}{where}, got {tuple(features.shape)}")
        features = self._last(features)
        if self._keeps and self.training:
            self._kept = features.detach()
        if autocast and not self._stored:
            with without_autocast(features.device):  # without stored rows, logits keep their dtype
                logits = self._logits(features, scale)
        else:
            logits = self._logits(features, scale)
        return logits if self.axis == -1 else logits.movedim(-1, self.axis)

    def _logits(self, features: Tensor, scale: Tensor) -> Tensor:
        """The logits of (..., d) features."""
        dtype, device, learnt = features.dtype, features.device.type, scale.requires_grad
        if is_plain():
            return self._plain_logits(features, self._parameters["bias"], scale)
        bias, most = _cast(self._parameters["bias"], dtype), self._most(dtype, device)
        if features.numel() > most:
            if not learnt:
                return self._product(self._rotated(features), bias, scale)
            return Scaled.apply(self._product(self._rotated(features), None, None), bias, scale)
        matrix, whole = self._matrix(features, scale)
        if whole or (learnt and device in _QUICK and dtype is not torch.float16):  # in which s h may be out of range
            self._make_ready(matrix, scale, bias, dtype, most)
        if whole:
            return F.linear(features, matrix, bias)
        if matrix.dtype is dtype:
            if device in _QUICK and dtype is not torch.float16:  # as the next batch, to the last bit
                return _quick(features, matrix, scale, bias)
            logits = F.linear(features, matrix)
        else:
            logits = F.linear(features.to(matrix.dtype), matrix).to(dtype)
        if device not in _QUICK:
            return Scaled.apply(logits, _cast(bias, logits.dtype), scale)
        return _scaled(logits, scale, _cast(bias, logits.dtype))

    def _make_ready(self, matrix: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, most: float) -> None:
        """Have the next batch multiplied by this matrix at once, if it is like this batch."""
        source = self._source()
        lasts = not self._stored or matrix is source or self.num_classes * self.in_features <= _KEPT
        same = matrix.dtype is dtype and bias is self._parameters["bias"]
        if self.axis == -1 and lasts and same and is_kept(matrix, scale):
            self._ready = Ready(matrix, scale, source, scale.requires_grad, most)

    def _plain_logits(self, features: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
        """The logits by operations that compilers and transforms see through."""
        matrix = self._visible_matrix()
        if matrix is not None and matrix.numel() <= _SMALL["cpu"][0] and not scale.requires_grad:
            return F.linear(features, (matrix * scale).to(features.dtype), _cast(bias, features.dtype))
        logits = self._plain(features) if matrix is None else F.linear(features, matrix.to(features.dtype))
        if bias is None:
            return logits * scale.to(logits.dtype)
        return torch.addcmul(bias.to(logits.dtype), logits, scale.to(logits.dtype))

    def _most(self, dtype: torch.dtype, device: str) -> float:
        """The number of features over a batch up to which to multiply by the matrix; -1 for never."""
        if self._stored:
            return math.inf
        classes = self.num_classes
        if self.rotation_name == "fast":
            if classes <= _FEW_CLASSES * self.rotation.sides:  # type: ignore[union-attr]
                return math.inf
            held, work = _SMALL_FAST.get(device, _SMALL_FAST_ELSEWHERE)
        else:
            held, work = _SMALL.get(device, _SMALL_ELSEWHERE)
            if dtype.itemsize < 4:
                work *= 8
        return work // classes if classes * self.in_features <= held else -1

    def _source(self) -> Tensor | None:
        """The buffer that the rows are made from, if there is one."""
        rotation = self._modules.get("rotation")
        return None if rotation is None else rotation._buffers["signs"]

    def _matrix(self, features: Tensor, scale: Tensor) -> tuple[Tensor, bool]:
        """The (K, d) matrix `s W` and True, or W and False. What is made is kept until its sources change.

        Stored rows are taken as they are where a change of them might go unnoticed, or where nothing has to be made.
        """
        source, learnt, dtype = self._source(), scale.requires_grad, features.dtype
        if self._stored and source is not None:
            same = source.dtype is dtype and not learnt and self._constants.get("one", scale, None, _is_one, scale)
            if same or self.num_classes * self.in_features > _KEPT:
                few = features.numel() <= _FEW and features.device.type in _QUICK
                return source if few else source.to(dtype), same
        times = None if learnt else scale
        return self._constants.get((dtype, learnt), times, source, self._new_matrix, dtype, times), not learnt

    def _new_matrix(self, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
        rows = self._rows()
        rows = rows if self.rotation is None else self.rotation.inverse(rows)
        # In one piece: the rows may come as columns, with which a product in bfloat16 takes longer.
        return (rows if scale is None else scale * rows).to(dtype).contiguous()

    def _visible_matrix(self) -> Tensor | None:
        """W where compilers and transforms should multiply by it: the stored rows, or those of a small fast rotation.

        What a compiler sees cannot be built while it looks on, and cannot depend on versions.
        """
        if self._stored:
            return self._source()
        self._turn_if_changed()
        turned = self._turned
        return turned[1] if turned is not None and turned[0] is self._source() else None

    def _turn_if_changed(self) -> None:
        """Build the matrix for compilers again if the signs were changed in place; a compiler runs this as it is."""
        turned, source = self._turned, self._turned_from
        if turned is not None and turned[0] is self._source() and (source is None or not source.is_same(turned[0])):
            self._turn()

    # What `torch.compiler.assume_constant_result` sets (private), which loads the whole compiler: a second at start-up.
    _turn_if_changed._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _turn(self) -> None:
        """Build the matrix of a small fast rotation for compilers."""
        rotation, self._turned, self._turned_from = self.rotation, None, None
        if rotation is None or self.num_classes * self.in_features > _TURNED:
            return
        if self.num_classes <= _FEW_CLASSES * rotation.sides:
            with torch.inference_mode(False), torch.no_grad():
                self._turned = rotation.signs, rotation.inverse(self._rows())
            if is_kept(rotation.signs):
                self._turned_from = Source(rotation.signs)

    def _make_again(self) -> None:
        """Forget what was made from rows and scale, whatever versions say."""
        self._constants, self._ready = Constants(), None
        self._turn()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedClassifier:
        super()._apply(fn, recurse)
        self._make_again()  # torch may put the numbers of another device into the same parameter
        return self

    def _rotated(self, features: Tensor) -> Tensor:
        return features if self.rotation is None else self.rotation(features)

    def _last(self, features: Tensor) -> Tensor:
        """The features with their dimension d at the end."""
        return features if self.axis == -1 else features.movedim(self.axis, -1)

    def _rows(self) -> Tensor:
        """(K, d) unit rows of the frame before the fast rotation, in the dtype of the scale."""
        raise NotImplementedError

    def _product(self, features: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        """The logits `s W h + b` of rotated features by the structure, for eager tensors; without a scale s is 1."""
        raise NotImplementedError

    def _plain(self, features: Tensor) -> Tensor:
        """`W h` by operations that compilers and transforms see through."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, as `nn.Linear` shows its own."""
        axis = "" if self.axis == -1 else f", axis={self.axis}"
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, frame={self.frame!r}, "
            f"bias={self.bias is not None}, learn_scale={isinstance(self.scale, nn.Parameter)}, "
            f"rotation={self.rotation_name!r}{axis}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": Constants(), "_ready": None, "_turned": None, "_turned_from": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_constants", Constants())
        self.__dict__.setdefault("axis", -1)  # version 0.1.0 had none
        if "rotation_name" not in self.__dict__:  # a layer pickled whole by version 0.1.0
            turned = "nearest" if getattr(self, "nearest", None) is not None else "none"
            self.rotation_name = "fast" if self.rotation is not None else turned
        self._turn()


def _make_again(layer: FixedClassifier, _: Any) -> None:
    layer._make_again()


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return bias if bias is None or bias.dtype is dtype else bias.to(dtype)


def _quick(features: Tensor, matrix: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`s W h + b` for a learnt s, the quickest way for a few features or many."""
    if features.numel() <= _FEW:
        return F.linear(features * scale, matrix, bias)
    return _scaled(F.linear(features, matrix), scale, bias)


def _scaled(logits: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`s z + b` by autograd's own operations, the quickest of several on a CPU."""
    scaled = logits * scale.to(logits.dtype)
    return scaled if bias is None else scaled + bias


def _is_one(scale: Tensor) -> bool:
    """Whether a scale is 1, where looking does not wait for a device."""
    return scale.device.type == "cpu" and bool(scale == 1)
