"""Arguments that several commands take, and RUN:N."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast import layout
from iconoclast.cli.console import STANDARD_OUTPUT, program
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.runs.references import split_reference

CONFIG_HELP = "Settings file (TOML). Unset: the file that ICONOCLAST_CONFIG_TEMPLATE names, else ./config.toml."
ConfigOption = Annotated[Path | None, Option("--config", help=CONFIG_HELP)]
RunArgument = Annotated[str, Argument(metavar="RUN", help="Run folder; RUN:N means its trial N.")]
TrialOption = Annotated[
    str | None, Option("--trial", help="Number of the trial, or best.  [default: best]", show_default=False)
]
WithOption = Annotated[
    list[str] | None,
    Option("--with", metavar="RUN", help="Another run on the same model, or RUN:N, whose edit follows; repeatable."),
]
SampleCountOption = Annotated[int, Option("--sample-count", help="Responses shown of each kind.", min=0)]
FiguresOption = Annotated[Path | None, Option("--json", help="File for all figures as JSON; - prints them.")]
AsJsonOption = Annotated[bool, Option("--json", help="Print JSON.")]
PacmapOption = Annotated[
    bool,
    Option("--pacmap", help="Also project the residuals with PaCMAP (loads the model; needs the extra `research`)."),
]
ServerModelOption = Annotated[
    str | None, Option("--server-model", help="Name of the model there, if it serves several.")
]
ServerKeyOption = Annotated[
    str | None, Option("--server-key-variable", help="Environment variable that holds its key.")
]
LimitOption = Annotated[int | None, Option("--limit", help="At most this many items per task.", min=1)]
IncludePathOption = Annotated[Path | None, Option("--include-path", help="Folder with task files of your own.")]
ExportArgument = Annotated[Path, Argument(metavar="EXPORT", help="Folder of an export.")]


def run_and_trial(run: str, trial: str | None = None) -> tuple[Path, str]:
    """Return run folder and trial of RUN, RUN:N or --trial N; raise SettingsError if they name two trials."""
    source, named = split_reference(run)
    if named is not None and trial not in (None, named):
        raise SettingsError(f"{run} names trial {named}, and --trial names trial {trial}. Name one.")
    chosen = trial if named is None else named
    return Path(source), "best" if chosen is None else chosen


def separated(entries: Iterable[str]) -> list[str]:
    """Return the names of a repeatable option whose names are separated by commas."""
    return [name for entry in entries for name in entry.split(",") if name]


def require_no_trial(model: str) -> None:
    """Raise SettingsError if RUN:N stands where the files of a model have to be read."""
    run, trial = split_reference(model)
    if trial is not None and (Path(run) / layout.CONFIG).is_file():
        export = f"{program()} export {shlex.quote(run)} --trial {trial} --to FOLDER"
        raise SettingsError(f"{model} is a trial of a run, which holds no weights. Export it first: {export}")


def require_writable(file: Path | None) -> None:
    """Raise RunFolderError before a long measurement if its result could not be written."""
    if file is None or file == STANDARD_OUTPUT:
        return
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise RunFolderError(f"{file} cannot be written. Give a file in a folder that exists.")
