"""The page of a run, written from a script."""

from __future__ import annotations

from pathlib import Path

from neuralcollapse.errors import InputError
from neuralcollapse.runs.folder import RunFolder


def write_page(run: str | Path | RunFolder, out: str | Path | None = None) -> Path:
    """Write the page of a run folder, as `neuralcollapse report` does.

    Args:
        run: the folder.
        out: the file; report.html in the run folder when not given.

    Returns:
        The file.

    Raises:
        InputError: no run or no records there, damaged files, a file that cannot be written, or packages missing.
    """
    try:
        from neuralcollapse.report import single
    except ImportError as error:
        raise InputError(f"the page needs more packages ({error}): pip install 'neuralcollapse[train]'") from None
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    return single.write_page(folder, None if out is None else Path(out))
