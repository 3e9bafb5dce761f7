"""`evaluate`: one edited model, or a server, beside its base."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import FiguresOption, ServerKeyOption, ServerModelOption, require_writable
from iconoclast.cli.console import write_figures
from iconoclast.errors import SettingsError
from iconoclast.peers import PEER


def evaluate(
    model: Annotated[
        str | None,
        Argument(
            help=f"Model, adapter or run folder (RUN:N means its trial N), hub id, or {PEER} journal; not with --server."
        ),
    ] = None,
    server: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="OpenAI-compatible endpoint to measure, such as http://localhost:8080/v1; it is sent all prompts.",
        ),
    ] = None,
    server_model: ServerModelOption = None,
    server_key_variable: ServerKeyOption = None,
    against: Annotated[str | None, Option(help="Its base model. Unset: the one that the settings name.")] = None,
    config: Annotated[
        Path | None, Option(help="Settings file (TOML) with prompts and markers. Unset: those of a run.")
    ] = None,
    thinking: Annotated[
        str | None, Option(metavar="off|on|both", help="Let models think first, or not. Unset: as the settings say.")
    ] = None,
    json_file: FiguresOption = None,
) -> None:
    """Measure an edited model, whoever made it, or a server, beside its base.

    Uses the report prompts of the settings, or the select prompts if there are none. A run or journal can be
    followed by a colon and the number of a trial.
    """
    from iconoclast.cli.comparisons import by_thinking, served, settings_from, shown, understood
    from iconoclast.runs.documents import Evaluation

    require_writable(json_file)
    if (model is None) == (server is None):
        raise SettingsError("Name a model or, with --server, the URL of an endpoint.")
    if server is None:
        subjects, settings = understood([str(model)], config)
    else:
        settings = settings_from(config, [])
        subjects = [served(server, server_model, server_key_variable)]
    first, *others = [
        Evaluation.of(shown(subjects, each, against, sample_count=0)) for each in by_thinking(settings, thinking)
    ]
    write_figures(json_file, first.model_copy(update={"with_thoughts": others[0] if others else None}))
