"""`verify`: an export checked against its papers."""

from pathlib import Path
from typing import Annotated

from typer import Option

from iconoclast.cli.arguments import ExportArgument, require_writable
from iconoclast.cli.console import say, shown_progress, write_figures
from iconoclast.errors import MeasurementError


def verify(
    export_folder: ExportArgument,
    base: Annotated[str | None, Option(help="Base model. Unset: the one that the export names.")] = None,
    config: Annotated[
        Path | None, Option(help="Settings file that names the prompts, as that of the run does.")
    ] = None,
    measure: Annotated[bool, Option(help="Also measure the scores again.")] = True,
    json_file: Annotated[Path | None, Option("--json", help="File for the result.")] = None,
) -> None:
    """Check that an export is what its papers say: files, tensors against the base model, scores.

    Ends with an error if it is not.
    """
    from iconoclast.config.layers import load_settings
    from iconoclast.runs.verify import verify as verified

    require_writable(json_file)
    prompts = None if config is None else load_settings({}, config).settings
    with shown_progress() as progress:
        checks = verified(export_folder, base, measure, prompts, progress)
    marks = {True: "as declared", False: "NOT AS DECLARED", None: "not checked"}
    for check in checks:
        say(f"{check.name}: {marks[check.passed]}. {check.detail}")
    write_figures(json_file, {"checks": [check.document() for check in checks]})
    if any(check.passed is None for check in checks):
        say("Not everything was checked: what was not proves nothing.")
    if any(check.passed is False for check in checks):
        raise MeasurementError(f"{export_folder} is not what its papers say.")
