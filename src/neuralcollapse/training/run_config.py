"""The configuration of a run folder: how it is read, and which code and files it names."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from neuralcollapse.errors import InputError
from neuralcollapse.networks.external import untrusted_code
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig, check_names, completed

_WITH_PATHS = ("idx", "imagefolder", "mnist", "fashion-mnist", "cifar10", "cifar100", "hf", "transformers")

_OF_OTHER_LOOPS = {"unit", "layer"}  # entries of the configuration that a Recorder writes for a loop of its own


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration of a run."""
    found = read_mapping(run.path / "config.yaml")
    if _OF_OTHER_LOOPS & set(found):
        raise InputError(_other_loop(run.path))
    values = completed(found)
    check_names(values, str(run.path / "config.yaml"))
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise InputError(f"{run.path / 'config.yaml'}: {error}") from None


def _other_loop(path: Path) -> str:
    """How to go on with a run that no `train` began."""
    if (path / "checkpoints.json").is_file():
        return (
            f"{path} is of measured checkpoints, and the command that made it adds new ones: 'neuralcollapse measure "
            f"--network NAME --data DATA --checkpoints GLOB --out {path}'"
        )
    return (
        f"{path} is of a training loop in Python, which alone has its weights and optimiser: go on there, with "
        f"nc.Recorder(..., out={str(path)!r}, resume=True), or from a checkpoint of Lightning or the Trainer"
    )


def needs_trust(config: TrainConfig) -> str | None:
    """What training or measuring by a configuration would import or load beyond installed libraries, or None."""
    code = untrusted_code(config.network, config.network_options)
    hub = config.data.startswith("hf:") or ("/" in config.data and ":" not in config.data)
    if code is None and hub and int(version("datasets").split(".")[0]) < 4:  # later ones run no scripts of data sets
        return f"load the data set {config.data}, which may come with a script"
    return code


def check_trusted(config: TrainConfig, run: RunFolder, trust_code: bool) -> None:
    """Raise if the configuration of a run folder asks for code, unless the user trusts it."""
    code = needs_trust(config)
    if code is not None and not trust_code:
        raise InputError(
            f"{run.path / 'config.yaml'} asks to {code}, and a run folder is data: if you trust it, allow that with "
            "--trust-code (trust_code=True)"
        )


def named_paths(config: TrainConfig) -> list[Path]:
    """The files and folders that a configuration names."""
    found = [config.data] if config.data.startswith((".", "/", "~")) else []
    for name in (config.data, config.network):
        kind, colon, place = name.partition(":")
        found += [place] if colon and kind in _WITH_PATHS else []
    return [path for path in (Path(place).expanduser() for place in found) if path.parts and path.exists()]
