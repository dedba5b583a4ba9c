"""Ranks: the processes of a group of torch.distributed, what they agree on, and tensors joined over them.

Whatever a process does here, the others must do too. Every call of a user therefore begins with `agree`, one message of
fixed size: it carries the name of the call, its options and what is wrong with them on this rank. So ranks that were
called in different ways all end with the same error, and none waits for another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from neuralcollapse.errors import InputError

_MESSAGE_BYTES = 2048
_LONGEST_PROBLEM = 1200  # characters, so that the message has room for the options


class Ranks:
    """The processes of a group.

    Attributes:
        group: the process group; None for all processes.
        rank: the number of this process in the group.
        size: the number of processes.
    """

    def __init__(self, group: Any = None) -> None:
        """`group` may also be a `DeviceMesh` of one dimension."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise InputError(
                "expected the processes of torch.distributed, got none: call torch.distributed.init_process_group first"
            )
        self.group = group.get_group() if hasattr(group, "get_group") else group
        try:
            self.rank = torch.distributed.get_rank(self.group)
            config = str(torch.distributed.get_backend_config(self.group))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"expected group as a process group or None, got {self.group!r}: {error}") from None
        if self.rank < 0:
            raise InputError("expected a process of the group, got one outside it: call this on its members alone")
        self.size = torch.distributed.get_world_size(self.group)
        self._backends = config  # such as "cpu:gloo,cuda:nccl"

    def agree(self, call: str, problem: str = "", **options: Any) -> None:
        """Raise on every rank unless all make the same call with the same options, and none has a problem.

        Options are compared as JSON.

        Raises:
            InputError: the same on every rank.
        """
        self.exchange(call, problem, options)

    def exchange(self, call: str, problem: str, options: dict[str, Any], own: Any = None) -> list[Any]:
        """As `agree`; returns `own` of every rank, a small value that JSON can hold."""
        text = json.dumps({"call": call, "problem": problem[:_LONGEST_PROBLEM], "options": options, "own": own})
        sent = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device="cpu")
        sent[: len(text)] = torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8)
        sent = self._moved(sent)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        torch.distributed.all_gather(received, sent, group=self.group)
        heard = [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in received]
        _raise_unless_alike(heard)
        return [each["own"] for each in heard]

    def total(self, values: Tensor) -> Tensor:
        """The sum of the ranks' values, of the same shape on each."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def most(self, value: float) -> float:
        """The largest of the ranks' numbers."""
        return float(
            self._reduced(torch.tensor(value, dtype=torch.float64, device="cpu"), torch.distributed.ReduceOp.MAX)
        )

    def sent(self, values: Tensor, source: int) -> Tensor:
        """The values of the rank `source`; the others give a tensor of the same shape and dtype, which is overwritten.

        They travel as bytes, so that every dtype can.
        """
        if values.numel() == 0:
            return values
        held = values.contiguous()
        moved = self._moved(held)
        # by its number among all processes: torch 2.5 does not take that in the group
        among_all = source if self.group is None else torch.distributed.get_global_rank(self.group, source)
        torch.distributed.broadcast(moved.view(-1).view(torch.uint8), src=among_all, group=self.group)
        return moved.to(values.device)

    def gathered(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, one rank after the other; `sizes` are their numbers."""
        whole = rows.new_empty(sum(sizes), *rows.shape[1:])
        for source, (part, size) in enumerate(zip(whole.split(list(sizes)), sizes, strict=True)):
            if size:
                part.copy_(self.sent(rows if source == self.rank else part, source))
        return whole

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        moved = self._moved(values.contiguous())
        torch.distributed.all_reduce(moved, how, group=self.group)
        return moved.to(values.device)

    def _moved(self, values: Tensor) -> Tensor:
        """The values where the group can send them from: NCCL sends nothing from the CPU."""
        if f"{values.device.type}:" in self._backends:
            return values
        return values.to(self._backends.partition(":")[0])


def _raise_unless_alike(heard: list[dict[str, Any]]) -> None:
    """Raise an error that names the first rank which has a problem, or differs from the first one."""
    problems = [each["problem"] for each in heard]
    for rank, problem in enumerate(problems):
        if problem:
            raise InputError(problem if set(problems) == {problem} else f"rank {rank}: {problem}")
    first = heard[0]
    for rank, each in enumerate(heard):
        if each["call"] != first["call"]:
            raise InputError(
                f"expected every rank to make the same call, got {first['call']} on rank 0 and {each['call']} on rank "
                f"{rank}: make the same calls on all ranks, with a batch of no rows where a rank has none left"
            )
        for name, value in first["options"].items():
            if each["options"][name] != value:
                raise InputError(
                    f"expected the same {name} on every rank, got {value} on rank 0 and {each['options'][name]} on "
                    f"rank {rank}: give all ranks the same"
                )
