"""The structured products `s W h + b` of the simplex and the orthoplex, each a single autograd function.

Both directions take at most four kernels: the centring is its own transpose, so either is a mean and a fused
multiply-add. The functions are for eager tensors. Compilers, `torch.func` and second derivatives take the plain
operations of `simplex_plain` and `orthoplex_plain`, which say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from neuralcollapse.geometry.frames import drop_ones
from neuralcollapse.geometry.precision import without_autocast
from neuralcollapse.heads.constants import is_kept

# Both are private: nothing public says whether vmap, grad or jvp of torch.func is active, or a level of forward-mode
# derivatives. An autograd function in the style that costs least supports neither.
_transforms_active = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # of `autograd.grad` with is_grads_batched
_is_compiling = torch.compiler.is_compiling
_is_traced = torch._C._is_tracing  # private, but what `torch.jit.is_tracing` asks, some calls later
_READ_AT_ONCE = ("cpu",)  # devices from which a number is read without waiting


def is_plain() -> bool:
    """Whether plain operations are wanted: a compiler, a tracer, a transform or forward-mode derivatives look on."""
    return _is_compiling() or _transforms_active() or _is_traced() or forward_ad._current_level >= 0


def is_differentiated(pull: Tensor) -> bool:
    """Whether a backward pass is itself differentiated or mapped: then it has to consist of plain operations."""
    return torch.is_grad_enabled() or _transforms_active() or _is_batched(pull)


# The simplex: class k has the `block` features from k * block on, or d = K-1 features lie in the sum-free vectors


def simplex_plain(features: Tensor, num_classes: int, block: int) -> Tensor:
    """The centred means of each class's features: (..., d) to (..., K), without the length of the rows."""
    if features.shape[-1] == num_classes - 1:
        return drop_ones(features)
    if block > 1:  # a sum of many features may overflow in float16, their mean cannot
        features = features.unfold(-1, block, block).mean(-1)
    if features.shape[-1] > num_classes:
        features = features[..., :num_classes]
    return features - features.mean(-1, keepdim=True)


def simplex_transposed(pull: Tensor, dim: int, block: int) -> Tensor:
    """The transpose of `simplex_plain`: (..., K) to (..., d)."""
    num_classes = pull.shape[-1]
    if dim == num_classes - 1:
        root = math.sqrt(num_classes)
        last, rest = pull[..., -1:], pull[..., :-1]
        return rest + (last / root - rest.sum(-1, keepdim=True) / (root * (root - 1)))
    centred = pull - pull.mean(-1, keepdim=True)
    if block > 1:
        centred = (centred / block).repeat_interleave(block, -1)
    return F.pad(centred, (0, dim - num_classes * block))


class SimplexConstants(NamedTuple):
    """What `Simplex` takes, from the length of the rows.

    Attributes:
        gain: the factor of a logit, forward; `of_mean` is that of the mean, `of_feature` that of a gradient, backward.
        row: (K,) the transposed mean, times its factor.
        alpha: the gain as a number, where reading it does not wait for a device.
    """

    gain: Tensor
    of_mean: Tensor
    of_feature: Tensor
    row: Tensor
    alpha: float | None


def simplex_constants(gain: Tensor, num_classes: int, dim: int, block: int, dtype: torch.dtype) -> SimplexConstants:
    """The constants for K classes with `block` of d features each."""
    if dim >= num_classes:
        mean = -gain
        back = (mean / (block * num_classes)).expand(num_classes)
    else:
        root = math.sqrt(num_classes)
        row = gain.new_full((num_classes,), -1 / (root * (root - 1)))
        row[-1] = 1 / root
        back = gain * row
        mean = (back * dim).to(dtype)
    alpha = float(gain) if gain.device.type in _READ_AT_ONCE and is_kept(gain) else None
    return SimplexConstants(gain, mean, gain / block, back.to(dtype).contiguous(), alpha)


class Simplex(torch.autograd.Function):
    """`gain * simplex_plain(h) + b`; the constants are those of `simplex_constants`."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, bias: Tensor | None, constants: SimplexConstants, num_classes: int, block: int
    ) -> Tensor:
        """The logits."""
        ctx.constants, ctx.dim, ctx.block = constants, features.shape[-1], block
        gain, of_mean = constants.gain, constants.of_mean
        used = _blocks(features, num_classes, block)
        if block > 1:
            used = used.mean(-1)
        mean = used.mean(-1, keepdim=True)
        if ctx.dim >= num_classes:
            centred = used - mean
            # Into the same memory: on a CPU, new memory costs a third of the time.
            return centred.mul_(gain) if bias is None else torch.addcmul(bias, centred, gain, out=centred)
        logits = mean * of_mean if bias is None else torch.addcmul(bias, mean, of_mean)
        logits[..., : ctx.dim].addcmul_(used, gain)
        return logits

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of what `forward` takes."""

        def plain() -> Tensor:
            return simplex_transposed(pull * ctx.constants.gain, ctx.dim, ctx.block)

        return *_gradients(ctx, pull, plain, lambda: _simplex_back(ctx, pull)), None, None, None


def _simplex_back(ctx: Any, pull: Tensor) -> Tensor:
    """The gradient of the features for `Simplex`."""
    constants: SimplexConstants = ctx.constants
    num_classes, dim, block = pull.shape[-1], ctx.dim, ctx.block
    whole = dim == num_classes * block
    if whole and constants.alpha is not None and pull.dtype.itemsize < 4:  # where a CPU's products of vectors are slow
        mean = pull.mean(-1, keepdim=True).mul_(-constants.alpha / block)
    else:
        mean = (pull @ constants.row)[..., None]
    if dim <= num_classes:
        return _plus(mean, pull[..., :dim], constants, 1)
    features = (pull.new_empty if whole else pull.new_zeros)((*pull.shape[:-1], dim))
    into = _blocks(features, num_classes, block)
    if block > 1:
        mean, pull = mean[..., None], pull[..., None].expand(into.shape)
    _plus(mean, pull, constants, block, into)
    return features


def _plus(mean: Tensor, pull: Tensor, constants: SimplexConstants, block: int, out: Tensor | None = None) -> Tensor:
    """`mean + pull * gain / block` in one operation; on a CPU addcmul with a column takes four times as long as add."""
    if constants.alpha is None:
        return torch.addcmul(mean, pull, constants.of_feature, out=out)
    return torch.add(mean, pull, alpha=constants.alpha / block, out=out)


def _blocks(features: Tensor, num_classes: int, block: int) -> Tensor:
    """A view of the features that are used: (..., K), or (..., K, block) for more than one a class."""
    used = features if features.shape[-1] <= num_classes * block else features[..., : num_classes * block]
    return used if block == 1 else used.unfold(-1, block, block)


# The orthoplex: classes 2i and 2i+1 have the logits h_i and -h_i


def orthoplex_plain(features: Tensor, num_classes: int) -> Tensor:
    """(..., d) to (..., K), without the length of the rows."""
    used = features[..., : (num_classes + 1) // 2]
    return torch.stack([used, -used], -1).flatten(-2)[..., :num_classes]


def orthoplex_transposed(pull: Tensor, dim: int) -> Tensor:
    """The transpose of `orthoplex_plain`: (..., K) to (..., d)."""
    even, odd = pull[..., 0::2], pull[..., 1::2]
    return F.pad(even - F.pad(odd, (0, even.shape[-1] - odd.shape[-1])), (0, dim - even.shape[-1]))


class Orthoplex(torch.autograd.Function):
    """`gain * orthoplex_plain(h) + b`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, bias: Tensor | None, gain: Tensor, num_classes: int) -> Tensor:
        """The logits."""
        ctx.gain, ctx.dim = gain, features.shape[-1]
        pairs = num_classes // 2
        logits = features.new_empty((*features.shape[:-1], num_classes))
        even, odd = logits[..., 0::2], logits[..., 1::2]
        if bias is None:
            torch.mul(features[..., : num_classes - pairs], gain, out=even)
            torch.neg(even[..., :pairs], out=odd)
        else:
            torch.addcmul(bias[0::2], features[..., : num_classes - pairs], gain, out=even)
            torch.addcmul(bias[1::2], features[..., :pairs], gain, value=-1, out=odd)
        return logits

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of what `forward` takes."""

        def plain() -> Tensor:
            return orthoplex_transposed(pull * ctx.gain, ctx.dim)

        return *_gradients(ctx, pull, plain, lambda: _orthoplex_back(ctx, pull)), None, None


def _orthoplex_back(ctx: Any, pull: Tensor) -> Tensor:
    """The gradient of the features for `Orthoplex`."""
    pairs, used = pull.shape[-1] // 2, (pull.shape[-1] + 1) // 2
    whole = ctx.dim == used
    features = (pull.new_empty if whole else pull.new_zeros)((*pull.shape[:-1], ctx.dim))
    torch.mul(pull[..., 0::2], ctx.gain, out=features[..., :used])
    features[..., :pairs].addcmul_(pull[..., 1::2], ctx.gain, value=-1)
    return features


class Scaled(torch.autograd.Function):
    """`scale * logits + b`: as `torch.addcmul`, whose gradients take twice the kernels."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
        """The logits."""
        ctx.save_for_backward(logits, scale)
        return logits * scale if bias is None else torch.addcmul(bias, logits, scale)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of what `forward` takes."""
        logits, scale = ctx.saved_tensors
        back = pull * scale if ctx.needs_input_grad[0] else None
        bias = _sum_of_rows(pull) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[2]:
            return back, bias, None
        if is_differentiated(pull) or pull.dtype.itemsize < 4:  # a product of many half-precision numbers adds up in it
            length = (pull * logits).sum()
        else:
            length = torch.dot(pull.flatten(), logits.flatten())
        return back, bias, length.to(scale.dtype)


def _gradients(
    ctx: Any, pull: Tensor, plain: Callable[[], Tensor], at_once: Callable[[], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Those of the features, in plain operations where they are differentiated themselves, and of the bias."""
    bias = _sum_of_rows(pull) if ctx.needs_input_grad[1] else None
    if not ctx.needs_input_grad[0]:
        return None, bias
    with without_autocast(pull.device):  # `backward()` may be called inside it
        return (plain() if is_differentiated(pull) else at_once()), bias


def _sum_of_rows(pull: Tensor) -> Tensor:
    return pull if pull.dim() == 1 else pull.sum(tuple(range(pull.dim() - 1)))
