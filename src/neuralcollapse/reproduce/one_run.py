"""`python -m neuralcollapse.reproduce.one_run FOLDER RUN PROGRESS`: one run of an experiment, for `jobs`."""

from __future__ import annotations

import sys
from pathlib import Path

from neuralcollapse.errors import InputError
from neuralcollapse.reproduce.jobs import IN_USE
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.runs.locks import InUse
from neuralcollapse.training.resume import Stopped


def main(path: str, name: str, progress: str) -> int:
    """One run of an experiment's folder, in this process."""
    try:
        ExperimentFolder.open(Path(path)).take(name, progress=bool(progress))
    except InUse:
        return IN_USE
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
