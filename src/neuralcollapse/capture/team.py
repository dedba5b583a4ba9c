"""Team: the processes of torch.distributed that measure together, pass by pass, none waiting for one that has ended.

Where weights are split, a forward pass needs all processes. Before each pass they tell each other whether they run one.
A process that has no batch left runs an earlier one again, or one that another process sends it, and forgets what
comes out. An error in one process is told in the same way, and is raised in all with one message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from neuralcollapse.capture.batches import mapped, to_device
from neuralcollapse.capture.processes import merged, summed
from neuralcollapse.errors import InputError, NumberedError, one_line
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.meshes import same_batches
from neuralcollapse.heads.split import has_split_weights

Value = TypeVar("Value")

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RUNS, _ENDED, _NEEDS, _FAILED = range(4)  # what a process tells the others before a pass


class HeadMismatch(InputError):
    """No head was named, and the logits are not made by the layer that was found but by the layer `name`."""

    def __init__(self, name: str, *, told: bool = False) -> None:
        super().__init__(f"the model's logits are made by {name!r}: name it")
        self.name = name
        self.told = told  # by all processes to all


class ToldError(NumberedError):
    """What went wrong in some process, as all of them were told."""


class _Failure(NamedTuple):
    """An error as it is told to the other processes."""

    kind: str
    text: str
    head: str | None

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        text = str(error) if isinstance(error, InputError) else one_line(error)
        kind = "" if isinstance(error, InputError) else type(error).__name__
        return cls(kind, text, error.name if isinstance(error, HeadMismatch) else None)

    def __str__(self) -> str:
        return f"{self.kind} ({self.text})" if self.kind else self.text


class Team:
    """The processes that measure together; a process on its own is a team of one.

    Attributes:
        size: the number of processes.
        joins: each has a share of the samples, and their sums are joined.
        in_step: no process can run the model without the others.
        inputs_on: the device on which the model takes its inputs.
    """

    def __init__(self, *, joins: bool, in_step: bool, device: torch.device | None = None) -> None:
        together = joins or in_step
        self.size = torch.distributed.get_world_size() if together else 1
        self.rank = torch.distributed.get_rank() if together else 0
        self.joins = joins
        self.in_step = in_step and self.size > 1
        self._leaders: list[int] = list(range(self.size))
        self.inputs_on = torch.device("cpu")
        self._last: Any = None  # the inputs of the last pass
        self._device = torch.device("cpu") if not together else _device(device)

    @classmethod
    def of(cls, model: object, *, sharded: bool) -> Team:
        """The team for a model, which is all processes if its weights are split or the samples are.

        Raises:
            InputError: the samples are to be split, and there are no processes.
        """
        if sharded and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise InputError(
                "expected several processes with sharded=True, got one without torch.distributed: call "
                "torch.distributed.init_process_group, or leave sharded out"
            )
        split = isinstance(model, nn.Module) and has_split_weights(model)
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        return cls(joins=bool(sharded), in_step=split, device=None if first is None else first.device)

    @property
    def counted(self) -> list[int]:
        """The processes whose samples count: one of those that get the same batches."""
        return [rank for rank in range(self.size) if self._leaders[rank] == rank]

    @property
    def shares_batches(self) -> bool:
        """Whether some processes share layers by tensor parallelism, and get the same batches."""
        return len(self.counted) < self.size

    def check_whole(self, layers: Mapping[str, Tensor]) -> None:
        """Raise if processes that share layers, and get the same batches, have seen other outputs of an inner layer.

        `layers` are the class means, by name.
        """
        if not self.shares_batches:
            return
        told = self.exchanged(lambda: {name: (means.shape[1], float(means.sum())) for name, means in layers.items()})
        for rank, leader in enumerate(self._leaders):
            for name, (dim, total) in told[rank].items():
                other_dim, other = told[leader].get(name, (dim, total))
                if dim != other_dim or not math.isclose(total, other, rel_tol=1e-6, abs_tol=1e-6):
                    raise InputError(
                        f"expected whole outputs of the layer {name!r}, got a part of its channels in each of the "
                        f"processes {leader} and {rank}, which share it by tensor parallelism: name a layer that gives "
                        "all of them, such as the one that ends the block"
                    )

    # What all processes are told

    def exchanged(self, make: Callable[[], Value]) -> list[Value]:
        """What each process makes, by rank; an error in one is raised in all."""
        made: Any = None
        failure: _Failure | None = None
        error: Exception | None = None
        try:
            made = make()
        except Exception as caught:
            if self.size == 1:
                raise
            error, failure = caught, _Failure.of(caught)
        if self.size == 1:
            return [made]
        everything: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everything, (failure, made))
        self._raise_first([each for each, _ in everything], error)
        return [value for _, value in everything]

    def agree(self, model: nn.Module | None, options: Callable[[], Mapping[str, object]]) -> None:
        """Make sure that all processes were called with the same options, and find which get the same batches.

        Raises:
            InputError: they were not, or one has a wrong option; in all processes.
        """
        if self.size == 1:
            options()
            return

        def facts() -> tuple[dict[str, str], int]:
            given = {name: repr(value) for name, value in options().items()}
            return given, self.rank if model is None or not self.in_step else same_batches(model)[0]

        told = self.exchanged(facts)
        first = told[0][0]
        for rank, (given, _) in enumerate(told):
            for name in sorted(first.keys() | given.keys()):
                if given.get(name) != first.get(name):
                    raise InputError(
                        f"expected the same options in all processes, got {name}={first.get(name, 'none'):.80} in "
                        f"process 0 and {given.get(name, 'none'):.80} in process {rank}: give all the same"
                    )
        self._leaders = [leader for _, leader in told]

    # A pass

    def before_pass(self, inputs: Any) -> None:
        """Wait until each process is about to run the model; called before each pass."""
        self._last = inputs
        if self.in_step:
            self._tell(_RUNS, inputs=inputs)

    def run(self, work: Callable[[], object], idle: Callable[[Any], object] | None = None) -> None:
        """Do this process's part of a pass over the data; returns when all have done theirs.

        Args:
            work: calls `before_pass` before each run of the model.
            idle: runs the model once on given inputs, without `before_pass`.

        Raises:
            InputError: the error of `work`, in whichever process it came.
        """
        if self.size == 1:
            work()
            return
        error: Exception | None = None
        try:
            work()
        except ToldError:
            raise
        except HeadMismatch as caught:
            if caught.told:
                raise
            error = caught
        except Exception as caught:
            error = caught
        while _RUNS in self._tell(_FAILED if error else _NEEDS if self._last is None else _ENDED, error):
            assert idle is not None
            try:
                idle(self._last)
            except Exception as caught:  # that of the network, which the others have met as well, and are about to tell
                error = caught

    def _tell(self, code: int, error: Exception | None = None, inputs: Any = None) -> list[int]:
        """What each process is about to do."""
        seen = _sum_of(inputs) if self.shares_batches and code == _RUNS else 0.0
        types = _types_of(inputs) if code == _RUNS else 0
        mine = torch.tensor([code, seen, types], dtype=torch.float64, device=self._device)
        told = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(told, mine)
        everything = torch.stack(told).tolist()
        codes = [int(each) for each, *_ in everything]
        if _FAILED in codes:
            failures: list[Any] = [None] * self.size
            torch.distributed.all_gather_object(failures, None if error is None else _Failure.of(error))
            self._raise_first(failures, error)
        running = [rank for rank, each in enumerate(codes) if each == _RUNS]
        for rank in running:  # what one network takes: otherwise some would fail within it, where the others wait
            if everything[rank][2] != everything[running[0]][2]:
                raise ToldError(
                    f"expected inputs of the same floating types in all processes, got others in process {rank} than "
                    f"in process {running[0]}: convert them alike"
                )
        for rank, leader in enumerate(self._leaders):
            if everything[rank] != everything[leader]:
                raise ToldError(
                    f"expected the same batches in the processes {leader} and {rank}, which share layers by tensor "
                    "parallelism, got others: give both the same loader, of the share of their data-parallel rank"
                )
        if _NEEDS in codes and _RUNS in codes:
            sender = codes.index(_RUNS)
            sent = [to_device(self._last, torch.device("cpu")) if self.rank == sender else None]
            torch.distributed.broadcast_object_list(sent, sender)
            if code == _NEEDS:
                self._last = to_device(sent[0], self.inputs_on)
        return codes

    def _raise_first(self, failures: Sequence[_Failure | None], mine: Exception | None) -> None:
        """Raise the failure of the first process that has one, if any has, with one message in all."""
        failed = [(rank, each) for rank, each in enumerate(failures) if each is not None]
        if not failed:
            return
        others = [(rank, each) for rank, each in failed if each.head is None]
        if not others:  # the layer that makes the logits was found: all begin again with that
            raise HeadMismatch(failed[0][1].head or "", told=True)
        rank, failure = others[0]
        everywhere = len(failed) == self.size and len({each for _, each in others}) == 1
        if everywhere and mine is not None:
            raise mine
        if mine is not None and not isinstance(mine, InputError):
            raise mine
        raise ToldError(f"process {rank}: {failure}")

    # Sums

    def summed(self, *values: float) -> list[float]:
        """Each number's sum over the processes whose samples count; as they are if the sums are not joined."""
        if not self.joins:
            return [float(value) for value in values]
        return summed(self._device, *(values if self.rank in self.counted else [0.0] * len(values)))

    def merged(self, moments: ClassMoments) -> ClassMoments:
        """The moments of the samples of all processes that count, joined in their order."""
        return merged(moments, self.counted) if self.joins else moments

    def from_first(self, tensor: Tensor | None, source: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of the process `source`, in all processes; what the others give is dropped."""
        sent = torch.empty(*shape, dtype=dtype, device=self._device)
        if self.rank == source:
            assert tensor is not None
            sent.copy_(tensor)
        torch.distributed.broadcast(sent, source)
        return sent if tensor is None else sent.to(tensor.device)


def _sum_of(inputs: Any) -> float:
    """A number that differs between batches, and is the same for the same one."""
    total = 0.0

    def add(tensor: Tensor) -> Tensor:
        nonlocal total
        total += float(tensor.detach().double().nan_to_num().sum())
        return tensor

    mapped(add, inputs)
    return total


def _types_of(inputs: Any) -> int:
    """A number for the floating types among the tensors of a batch."""
    found = set()

    def add(tensor: Tensor) -> Tensor:
        found.add(tensor.dtype)
        return tensor

    mapped(add, inputs)
    return sum(2**place for place, dtype in enumerate(_FLOATING) if dtype in found)


def _device(device: torch.device | None) -> torch.device:
    """Where small numbers are sent from: the CPU where its backend is there, so that nobody waits for a device."""
    backends = str(torch.distributed.get_backend_config()) + torch.distributed.get_backend()
    if "gloo" in backends or "mpi" in backends or device is None:
        return torch.device("cpu")
    if device.type == "cpu":  # offloaded weights
        kind = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
        return torch.device("cuda" if kind is None else kind.type)
    return device
