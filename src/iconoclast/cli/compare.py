"""`compare`: several models beside their base."""

from pathlib import Path
from typing import Annotated

import typer

from iconoclast.cli.arguments import SampleCountOption
from iconoclast.cli.console import quiet_libraries
from iconoclast.errors import SettingsError


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Runs, exported or other models, adapters, heretic journals; two or more.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="Their base model. Unset: the one that the settings name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file (TOML). Unset: those of the first run or journal.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for comparison.json and summary.json.")] = None,
    sample_count: SampleCountOption = 3,
) -> None:
    """Measure several edited models of one base on the same prompts, with paired tests, and say which is better.

    Fewer refused or broken responses come first, then fewer overrefusals, then lower KL divergence. A run or journal
    can be followed by a colon and the number of a trial; without, its best trial is meant.
    """
    if len(models) < 2:
        raise SettingsError(
            "Give two models or more. One alone is measured beside its base with `iconoclast evaluate`."
        )
    from iconoclast.cli.comparisons import compared, make_folder, print_comparison, understood, write_comparison

    quiet_libraries()
    subjects, settings = understood(models, config)
    if to is not None:
        make_folder(to)
    comparison = compared(subjects, settings, against)
    document = comparison.document(sample_count)
    print_comparison(comparison, document, sample_count)
    if to is not None:
        write_comparison(document, to)
