"""Constants: tensors made from others once, and made again when those change."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

# A source up to so many bytes is compared number by number, where that waits for no device.
_COMPARED = 2**16


class Source:
    """A tensor that something was made from, as it was then.

    A change in place bumps the version of a tensor, but not one through its `.data`: on a CPU the numbers of a small
    tensor are therefore compared too. This takes less than a microsecond for a scalar or the signs of a rotation.

    Raises:
        RuntimeError: the tensor counts no versions (it was made in inference mode).
    """

    __slots__ = ("numbers", "place", "tensor", "version", "view")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Private, but what autograd itself uses to notice that a tensor was changed in place.
        self.version = tensor._version
        self.view = None
        if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes <= _COMPARED:
            # Shares the memory, and reads it without dispatching an operation. NumPy has no bfloat16: hence bytes.
            self.view = tensor.detach().reshape(-1).view(torch.uint8).numpy()
            self.place, self.numbers = tensor.data_ptr(), self.view.tobytes()

    def is_same(self, tensor: Tensor) -> bool:
        """Whether this is the tensor, and holds what it held."""
        if tensor is not self.tensor:
            return False
        if self.view is None:
            return tensor._version == self.version
        return self.view.tobytes() == self.numbers and tensor.data_ptr() == self.place


class Ready:
    """A matrix and all that decides whether the next batch is multiplied by it as it is.

    With ten classes the time of a layer is that of Python: this is asked first, and takes a microsecond or two.

    Attributes:
        matrix: (K, d) `s W`, or W where the scale is learnt.
        learnt: whether it is.
        scale: the scale that is in the matrix.
        rows: what W was made from; None if it follows from K and d, or if the matrix is the stored rows themselves.
        most: the largest number of features, over a batch, for which a product with a matrix is fastest.
    """

    __slots__ = ("dtype", "learnt", "matrix", "most", "rows", "scale", "shape")

    def __init__(self, matrix: Tensor, scale: Tensor, rows: Tensor | None, learnt: bool, most: float) -> None:
        self.matrix, self.learnt, self.most = matrix, learnt, most
        self.dtype, self.shape = matrix.dtype, matrix.shape[-1:]
        self.scale = None if learnt else Source(scale)
        self.rows = None if rows is None or rows is matrix else Source(rows)

    def serves(self, features: Tensor, scale: Tensor, rows: Tensor | None) -> bool:
        """Whether features, outside autocast and transforms, have their logits by this matrix."""
        return (
            features.dtype is self.dtype
            and features.shape[-1:] == self.shape
            and features.numel() <= self.most
            and scale.requires_grad is self.learnt
            and (self.scale is None or self.scale.is_same(scale))
            and (rows is None or rows is self.matrix or (self.rows is not None and self.rows.is_same(rows)))
        )


class Constants:
    """Values by name, each with the tensor that it was made from."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[Source | None, Source | None, Any]] = {}

    def get(
        self, name: Hashable, first: Tensor | None, second: Tensor | None, build: Callable[..., Any], *arguments: Any
    ) -> Any:
        """The value of a name: `build(*arguments)`, unless it is there and its sources, at most two, are unchanged.

        From sources that count no versions (tensors made in inference mode) it is built each time.
        """
        held = self._held.get(name)
        if held is not None and _is_same(held[0], first) and _is_same(held[1], second):
            return held[2]
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training later
            value = build(*arguments)
        if is_kept(*(source for source in (first, second) if source is not None)):
            sources = [None if source is None else Source(source) for source in (first, second)]
            self._held[name] = (*sources, value)
        return value


def is_kept(*tensors: Tensor) -> bool:
    """Whether what is made from tensors may be kept: not from those of a tracer, a transform or inference mode."""
    # Private: nothing public says that a tensor is one of `torch.func`.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return all(
        type(each) in (Tensor, nn.Parameter) and not wrapped(each) and not each.is_inference() for each in tensors
    )


def _is_same(source: Source | None, tensor: Tensor | None) -> bool:
    return source is None if tensor is None else source is not None and source.is_same(tensor)
