"""`evaluate`: one model beside its base."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import FiguresOption, require_writable
from iconoclast.cli.console import write_figures


def evaluate(
    model: Annotated[str, Argument(help="Model, adapter or run folder, hub id, or heretic journal.")],
    against: Annotated[str | None, Option(help="Its base model. Unset: the one that the settings name.")] = None,
    config: Annotated[
        Path | None, Option("--config", help="Settings file (TOML) with prompts and markers. Unset: those of a run.")
    ] = None,
    json_file: FiguresOption = None,
) -> None:
    """Measure an edited model, whoever made it, beside its base.

    Uses the report prompts of the settings, or the evaluation prompts if there are none. A run or journal can be
    followed by a colon and the number of a trial.
    """
    from iconoclast.cli.comparisons import compared, print_comparison, understood

    require_writable(json_file)
    subjects, settings = understood([model], config)
    comparison = compared(subjects, settings, against)
    document = comparison.document()
    print_comparison(comparison, document, 0)
    shared = {key: value for key, value in document.items() if key not in ("subjects", "ranking", "pairs")}
    write_figures(json_file, {**shared, "subject": document["subjects"][0]})
