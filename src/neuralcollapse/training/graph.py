"""A training step captured once as a CUDA graph and replayed on static inputs, and when that can be done."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # private, but the one place that torch documents it in

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.training.combinations import UNSCALED
from neuralcollapse.training.config import TrainConfig

_COPIES = ("aten::_to_copy", "aten::copy_")
_REHEARSALS = 3  # torch's own number for graphs: libraries make handles and choose algorithms in the first calls

WAITING = frozenset(
    {
        "aten::_linalg_check_errors",
        "aten::_local_scalar_dense",
        "aten::_unique",
        "aten::_unique2",
        "aten::bincount",
        "aten::equal",
        "aten::histc",
        "aten::is_nonzero",
        "aten::masked_select",
        "aten::nonzero",
        "aten::unique_consecutive",
        "aten::unique_dim",
    }
)
"""Operations whose result the processor must know before it goes on, so that no graph can hold them."""

_MASKED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # wait for how many are True


def refusal(config: TrainConfig, device: torch.device, world: int) -> str | None:
    """Why a run cannot train by CUDA graphs, as far as its options say; None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, got {device.type}"
    if world > 1:
        return f"it is for one process, got {world}"
    if config.strategy not in ("auto", "single_device"):
        return f"it is for one process, got strategy={config.strategy}"
    if config.optimizer == "lbfgs":
        return "the line search of lbfgs must know the loss before it goes on"
    if config.precision not in UNSCALED:
        return f"precision={config.precision} decides about each step by its gradients"
    if config.compile:
        return "compile makes kernels of its own"
    return None


class Recording(Protocol):
    """Something that records what a step does, and does it again."""

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step as it will be captured, so that what happens at first calls is over."""

    def capture(self, step: Callable[[], object]) -> None:
        """Record a step, which need not happen meanwhile; an earlier recording is dropped."""

    def replay(self) -> None:
        """Do what was recorded, on the tensors that the step had."""


class CudaRecording:
    """A recording as a CUDA graph."""

    def __init__(self, device: torch.device) -> None:
        # Libraries keep handles and workspaces for each stream, so rehearsals are on the stream of the capture.
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def rehearse(self, step: Callable[[], object]) -> None:
        """Run a step on the stream of the capture."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            step()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def capture(self, step: Callable[[], object]) -> None:
        """Record a step; nothing of it happens before `replay`."""
        self._graph = None  # its memory is free before the next one takes some
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            step()
        self._graph = graph

    def replay(self) -> None:
        """Start the recorded kernels on the current stream, and return."""
        assert self._graph is not None
        self._graph.replay()


class StaticStep:
    """Runs a step on batches of one shape by replaying a recording that reads static copies of them.

    What is a number in the step, such as the learning rate, is part of the recording: when `fixed`, which stands for
    all of these, is another value than before, the step is captured again. It is not captured before the first batch.

    Args:
        step: takes the static tensors and returns tensors, which each replay overwrites.
        recording: of the step.
        unchanged: a context that undoes what the rehearsals before the first capture do.
    """

    def __init__(
        self, step: Callable[..., Sequence[Tensor]], recording: Recording, unchanged: Callable[[], Any]
    ) -> None:
        self._step = step
        self._recording = recording
        self._unchanged = unchanged
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Sequence[Tensor] = ()
        self._fixed: Hashable = None
        self.captures = 0

    def __call__(self, inputs: Sequence[Tensor], fixed: Hashable) -> Sequence[Tensor]:
        """Run the step on a batch; the result is valid until the next call."""
        if not self._inputs:
            self._inputs = tuple(value.clone(memory_format=torch.preserve_format) for value in inputs)
            with self._unchanged():
                for _ in range(_REHEARSALS):
                    self._recording.rehearse(lambda: self._step(*self._inputs))
        else:
            for static, value in zip(self._inputs, inputs, strict=True):
                static.copy_(value, non_blocking=True)
        if self.captures == 0 or fixed != self._fixed:
            self._capture(fixed)
        self._recording.replay()
        return self._outputs

    def _capture(self, fixed: Hashable) -> None:
        own: list[RuntimeError] = []  # the step's; the end of its capture then raises another, which says nothing

        def step() -> None:
            try:
                self._outputs = self._step(*self._inputs)
            except RuntimeError as error:
                own.append(error)
                raise

        self._outputs = ()
        try:
            self._recording.capture(step)
        except RuntimeError as error:
            first = own[0] if own else error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise InputError(
                f"the training step cannot be captured as a CUDA graph ({one_line(first)}): train with --cuda-graph off"
            ) from None
        self._fixed = fixed
        self.captures += 1


@contextmanager
def unchanged(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Undo what steps inside do to weights, buffers, gradients, the optimiser's state and the random states.

    Weights, buffers and state are put back in place, those alone that differ: a layer may hold what it made from a
    buffer until that is written to, and would make it again inside of a capture. State that the optimiser did not have
    before becomes 0, which to SGD, Adam and AdamW is no state.
    """
    tensors = [*network.parameters(), *network.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    kept = [tensor.detach().clone() for tensor in tensors]
    states = _state_tensors(optimizer)
    before = {key: tensor.clone() for key, tensor in states.items()}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                if not torch.equal(tensor, old):
                    tensor.copy_(old)
            for key, tensor in _state_tensors(optimizer).items():
                tensor.copy_(before[key]) if key in before else tensor.zero_()
        for parameter in network.parameters():
            parameter.grad = None


def _state_tensors(optimizer: torch.optim.Optimizer | None) -> dict[tuple[int, str], Tensor]:
    if optimizer is None:
        return {}
    return {
        (id(parameter), name): value
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


class Watch(TorchDispatchMode):
    """Notes, inside, the operations that no graph can hold: those that wait, and copies between devices.

    Attributes:
        unfit: their names, in order.
        count: of all operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unfit: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func._schema.name  # private in torch's generated operations; there is no public name with "aten::"
        result = func(*args, **(kwargs or {}))
        places = {value.device.type for value in (*args, result) if isinstance(value, Tensor)}
        if name in WAITING or (name in _COPIES and len(places) > 1) or (name in _MASKED and _counts(args)):
            self.unfit.append(name)
        return result


def _counts(args: Any) -> bool:
    """Whether an indexing operation must know how many values its masks choose: not to give all of them one number."""
    masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    value = args[2] if len(args) > 2 else None
    return masked and not (value is not None and value.numel() == 1 and value.device.type == "cpu")


def unfit_operation(network: nn.Module, gradients: Callable[[], object]) -> str | None:
    """The first operation of a forward and backward pass that no graph can hold, found by running it.

    To be asked where the pass is to be captured: what waits differs from device to device. What happens in a first pass
    alone, such as making constants, is not in question.
    """
    watch = Watch()
    with unchanged(network):
        gradients()
        with watch:
            gradients()
    return watch.unfit[0] if watch.unfit else None
