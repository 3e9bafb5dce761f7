"""`compare`: several edited models beside their base and one another."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import AsJsonOption, SampleCountOption
from iconoclast.cli.console import print_json
from iconoclast.errors import SettingsError
from iconoclast.peers import PEER


def compare(
    models: Annotated[
        list[str],
        Argument(
            help=f"Runs (RUN:N means its trial N), exported or other models, adapters, {PEER} journals; two or more."
        ),
    ],
    against: Annotated[str | None, Option(help="Their base model. Unset: the one that the settings name.")] = None,
    config: Annotated[
        Path | None, Option(help="Settings file (TOML). Unset: those of the first run or journal.")
    ] = None,
    to: Annotated[Path | None, Option(help="Folder for comparison.json and summary.json.")] = None,
    sample_count: SampleCountOption = 3,
    as_json: AsJsonOption = False,
) -> None:
    """Measure several edited models of one base on the same prompts, with paired tests, and say which is better.

    Fewer refused or broken responses come first, then fewer overrefusals, then lower KL divergence. A run or journal
    can be followed by a colon and the number of a trial; without, its best trial is meant.
    """
    if len(models) < 2:
        raise SettingsError("Give two models or more. One is measured beside its base with `iconoclast evaluate`.")
    from iconoclast.cli.comparisons import make_folder, shown, understood, write_comparison

    subjects, settings = understood(models, config)
    if to is not None:
        make_folder(to)
    document = shown(subjects, settings, against, sample_count)
    if to is not None:
        write_comparison(document, to)
    if as_json:
        print_json(document.document())
