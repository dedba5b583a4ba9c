"""The state of a run under fsdp2: a folder of torch.distributed.checkpoint, in which each process keeps its parts.

It is written to a temporary folder and renamed. state.pt, which is written after it, names it with the checksum of each
of its files, so that a state is whole or is not there. Any number of processes reads it: each its own rows.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neuralcollapse.capture.team import Team
from neuralcollapse.checkpoints.distributed import DistributedFolder, file_inside
from neuralcollapse.checks import is_dtensor
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs.folder import RunFolder

_Value = TypeVar("_Value")
_NETWORK, _OPTIMIZER = "network.", "optimizer."  # before names; those of an optimiser are no weights to other readers
_CHUNK = 2**24


@dataclass(frozen=True)
class Parts:
    """A folder with the parts of a state, as state.pt names it.

    Attributes:
        folder: where it is.
        files: the SHA-256 of each of its files.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def named(cls, run: RunFolder, entry: Mapping[str, Any]) -> Parts:
        """The parts that the entry `parts` of a state names.

        Raises:
            ValueError: it is no such entry, or files are missing.
        """
        name, files = entry.get("folder"), entry.get("files")
        if not isinstance(name, str) or not re.fullmatch("[0-9]{5,12}", name) or not isinstance(files, dict):
            raise ValueError("it names no folder of parts")
        folder = run.parts / name
        missing = [file for file in files if not isinstance(file, str) or not (folder / file).is_file()]
        if missing or not files:
            raise ValueError(f"{folder} has no file {missing[0]!r:.60}" if missing else f"{folder} is empty")
        return cls(folder, files)

    def whole(self) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """The network's tensors by name and the optimiser's by number and name, whole."""
        with self._reading():
            self._check(sorted(self.files))
            parts = DistributedFolder(self.folder)
            weights = {name.removeprefix(_NETWORK): value for name, value in parts.weights().items()}
            return weights, _by_number({name: parts.rows(name) for name in parts.names if _of_optimizer(name)})

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
        """Load this process's rows into a network that is split, and return those of the optimiser's state.

        All processes must call this; what is wrong in one is raised in all. Each checks its share of the files.
        """
        team = Team.of(network, sharded=True)

        def read() -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
            with self._reading():
                self._check(sorted(self.files)[team.rank :: team.size])
                parts = DistributedFolder(self.folder)
                own = network.state_dict()
                weights = {name: _rows_like(value, parts, _NETWORK + name) for name, value in own.items()}
                like = [value for group in optimizer.param_groups for value in group["params"]]
                saved = filter(_of_optimizer, parts.names)
                return weights, _by_number({name: _rows_like(like[_number(name)], parts, name) for name in saved})

        found = _in_all(team, read)
        network.load_state_dict(found[0])
        return found[1]

    def _check(self, names: Iterable[str]) -> None:
        for name in names:
            if _digest(file_inside(self.folder, name)) != self.files[name]:
                raise ValueError(f"{name} was changed or damaged since it was written")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Inside, any error says that the parts cannot be read."""
        try:
            yield
        except Exception as error:  # a damaged file can raise any error
            raise InputError(
                f"the state in {self.folder} is of another network, or damaged ({one_line(error)}): delete state.pt to "
                "train the run from its start"
            ) from None


def write_parts(run: RunFolder, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Write this process's parts of a network and its optimiser's state.

    All processes must call this, and get the entry `parts` of the state that names what was written. What they have in
    common, such as running means, is that of the first.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    team = Team.of(network, sharded=True)
    first = team.rank == 0
    content = {name: value for name, value in _all_tensors(network, optimizer) if first or is_dtensor(value)}
    name = team.exchanged(lambda: run.new_parts() if first else "")[0]
    place = run.parts / f".{name}.tmp"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")
            dcp.save(content, storage_writer=dcp.FileSystemWriter(place))
    except CheckpointException as error:  # with what each process met, which is what its reader knows
        raise next(iter(error.failures.values()))[0] from None
    own = [*place.glob(f"__{team.rank}_*.distcp"), *([place / ".metadata"] if first else [])]
    digests = team.exchanged(lambda: {file.name: _digest(file) for file in own})
    if first:
        os.rename(place, run.parts / name)
    return {"folder": name, "files": {file: value for each in digests for file, value in each.items()}}


def without_parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict without what `write_parts` writes."""
    kept = {
        number: {name: value for name, value in values.items() if not is_dtensor(value)}
        for number, values in state["state"].items()
    }
    return {**state, "state": kept}


def joined(state: Mapping[str, Any], tensors: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Any]:
    """An optimiser's state dict with what `without_parts` took out of it."""
    own: Mapping[int, Mapping[str, Any]] = state.get("state") or {}
    values = {number: {**own.get(number, {}), **tensors.get(number, {})} for number in {*own, *tensors}}
    return {**state, "state": values}


def split_like(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict with this process's rows of each tensor that is as large as a split parameter."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]

    def rows(value: Any, parameter: Any) -> Any:
        alike = isinstance(value, Tensor) and is_dtensor(parameter) and value.shape == parameter.shape
        return _own(parameter, value.__getitem__) if alike and not is_dtensor(value) else value

    values = {
        number: {name: rows(value, parameters[number]) for name, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return {**state, "state": values}


def _all_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, Tensor]]:
    yield from ((_NETWORK + name, value) for name, value in network.state_dict().items())
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if is_dtensor(value):
                yield f"{_OPTIMIZER}{number}.{name}", value


def _of_optimizer(name: str) -> bool:
    return name.startswith(_OPTIMIZER)


def _number(name: str) -> int:
    return int(name.split(".")[1])


def _by_number(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        found.setdefault(_number(name), {})[name.split(".", 2)[2]] = value
    return found


def _rows_like(value: Tensor, parts: DistributedFolder, name: str) -> Tensor:
    """What a process that has `value` has of the tensor of that name."""
    if parts.shape(name) != tuple(value.shape):
        raise ValueError(f"{name} has the shape {parts.shape(name)}, expected {tuple(value.shape)}")
    return (
        _own(value, lambda place: parts.rows(name, place.start, place.stop)) if is_dtensor(value) else parts.rows(name)
    )


def _own(value: Any, read: Callable[[slice], Tensor]) -> Tensor:
    """A tensor that is split as `value` is, with this process's rows as `read` gives them."""
    found: Any = torch.empty_like(value, requires_grad=False)
    local = found.to_local()
    size = -(-value.shape[0] // value.device_mesh.size())  # as torch.chunk deals the rows
    start = min(value.shape[0], size * value.device_mesh.get_local_rank())
    local.copy_(read(slice(start, start + local.shape[0])))
    return found


def _in_all(team: Team, make: Callable[[], _Value]) -> _Value:
    """What `make` gives in this process; an error in one process is raised in all."""
    made: list[_Value] = []
    team.exchanged(lambda: made.append(make()))
    return made[0]


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while content := opened.read(_CHUNK):
            found.update(content)
    return found.hexdigest()
