"""`evaluate`: one model beside its base."""

from pathlib import Path
from typing import Annotated

import typer

from iconoclast.cli.arguments import FiguresOption, require_writable
from iconoclast.cli.console import out, quiet_libraries
from iconoclast.files import write_json
from iconoclast.reports.text import print_lines


def evaluate(
    model: Annotated[str, typer.Argument(help="Model, adapter or run folder, hub id, or heretic journal.")],
    against: Annotated[
        str | None, typer.Option("--against", help="Its base model. Unset: the one that the settings name.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file (TOML) with prompts and markers. Unset: those of a run."),
    ] = None,
    json_file: FiguresOption = None,
) -> None:
    """Measure an edited model, whoever made it, beside its base.

    Uses the report prompts of the settings, or the evaluation prompts if there are none. A run or journal can be
    followed by a colon and the number of a trial.
    """
    from iconoclast.cli.comparisons import compared, print_comparison, understood

    quiet_libraries()
    require_writable(json_file)
    subjects, settings = understood([model], config)
    comparison = compared(subjects, settings, against)
    document = comparison.document()
    print_comparison(comparison, document, 0)
    if json_file is not None:
        everything = document.model_dump(
            mode="json", by_alias=True, exclude={"subjects", "ranking", "pairs", "samples"}
        )
        write_json(json_file, {**everything, "subject": document.subjects[0].document()})
        print_lines(out, f"Wrote {json_file}")
