"""One run of an experiment: `run_one` from Python or as a job, `python -m neuralcollapse.reproduce.one_run` for `jobs`.

python -m neuralcollapse.reproduce.one_run FOLDER RUN [show]
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from neuralcollapse.errors import InputError
from neuralcollapse.reproduce.finish import finish
from neuralcollapse.reproduce.jobs import IN_USE
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.runs.locks import InUse
from neuralcollapse.training.resume import Stopped


def run_one(folder: str | Path, name: str, *, progress: bool = False) -> Path | None:
    """Run one run of an experiment, or go on with it; once no run is missing, write the experiment's page.

    Meant for schedulers: call it for each run, in any order, anywhere that sees the folder, as often as you like. A run
    that is whole is left as it is. `neuralcollapse reproduce NAME --out FOLDER --only` makes the folder, and
    `ExperimentFolder.open(folder).missing()` are the runs to call it for.

    Args:
        folder: of an experiment, which `ExperimentFolder.create` or `neuralcollapse reproduce` has made.
        name: of the run, as its folder is called.
        progress: print a line for each epoch.

    Returns:
        The page, where this was the last run; None while others are missing.

    Raises:
        InputError: the folder holds no experiment, the experiment no such run, or the run fails.
        InUse: another process has the run.
        Stopped: a signal came; the state is in the folder.
    """
    experiment = ExperimentFolder.open(folder)
    experiment.take(name, progress=progress)
    return finish(experiment)


def main(path: str, name: str, progress: str = "") -> int:
    """One run of an experiment's folder, in this process; whoever waits for all of them writes the page."""
    try:
        ExperimentFolder.open(path).take(name, progress=bool(progress))
    except InUse:
        return IN_USE
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt as interrupt:
        return 128 + getattr(interrupt, "signum", signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
