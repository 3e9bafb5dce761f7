"""Runs and exports, told by their marks: what lies at a path, and the runs below a folder. Loads nothing heavy."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from iconoclast.errors import RunFolderError
from iconoclast.layout import CLUSTER, CONFIG, FITS, TRIAL_INFORMATION, WORKERS

INSIDE = {FITS, WORKERS, CLUSTER}
"""Folders in a run's folder that hold no other runs."""


def kind_of(path: Path) -> Literal["run", "export"] | None:
    """Return what a folder holds; an export holds the settings of its run, too, and is not one."""
    if (path / TRIAL_INFORMATION).is_file():
        return "export"
    return "run" if (path / CONFIG).is_file() else None


def require_run(path: Path) -> None:
    """Raise RunFolderError if an export is given where a run has to be; whoever reads the run finds out if there is none."""
    if kind_of(path) == "export":
        raise RunFolderError(f"{path} is an export. Give the run folder that it was made from.")


def runs_below(folder: Path, mark: str = CONFIG) -> list[Path]:
    """Return the folders of runs, this one or below, in order; hidden folders and exports are not entered.

    Args:
        mark: file by which a run is known, such as its summary, which other tools' runs have as well.
    """
    return sorted(_marked(folder, mark))


def _marked(folder: Path, mark: str) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        if TRIAL_INFORMATION in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name[0] != "." and not (CONFIG in files and name in INSIDE)]
        if mark in files:
            yield Path(where)
