"""`evaluate`, `compare` and `export-and-compare`: one edited model beside its base, or several."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import (
    AsJsonOption,
    FiguresOption,
    SampleCountOption,
    ServerKeyOption,
    ServerModelOption,
    require_writable,
)
from iconoclast.cli.console import print_json, shown_progress, write_figures
from iconoclast.cli.export import require_near
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.peers import PEER


def evaluate(
    model: Annotated[
        str | None, Argument(help=f"Model, adapter or run folder, hub id, or {PEER} journal; not with --server.")
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

    Uses the report prompts of the settings, or the evaluation prompts if there are none. A run or journal can be
    followed by a colon and the number of a trial.
    """
    from iconoclast.cli.comparisons import by_thinking, served, shown, understood
    from iconoclast.runs.documents import Evaluation

    require_writable(json_file)
    if (model is None) == (server is None):
        raise SettingsError("Name a model or, with --server, the URL of an endpoint.")
    if server is None:
        subjects, settings = understood([str(model)], config)
    else:
        subjects, settings = served(server, server_model, server_key_variable, config)
    first, *others = [
        Evaluation.of(shown(subjects, each, against, sample_count=0)) for each in by_thinking(settings, thinking)
    ]
    write_figures(json_file, first.model_copy(update={"with_thoughts": others[0] if others else None}))


def compare(
    models: Annotated[
        list[str], Argument(help=f"Runs, exported or other models, adapters, {PEER} journals; two or more.")
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


def export_and_compare(
    iconoclast_checkpoint: Annotated[Path, Option(help="iconoclast_study.jsonl of a run, or its folder.")],
    output_dir: Annotated[Path, Option(help="Folder for the results; must not exist yet.")],
    peer_checkpoint: Annotated[
        Path | None, Option(f"--{PEER}-checkpoint", help=f"Journal of a {PEER} study to compare with.")
    ] = None,
    sample_count: SampleCountOption = 5,
    as_json: AsJsonOption = False,
) -> None:
    """Export the best trial of a run as merged weights, and compare it with that of another tool.

    Writes iconoclast-best-merged/, comparison.json and summary.json into the output folder.
    """
    from iconoclast.cli.comparisons import make_folder, shown, write_comparison
    from iconoclast.runs.comparison import settings_for
    from iconoclast.runs.export import export_run
    from iconoclast.runs.subjects import Named, Subject, find_peer, find_run, find_subject

    make_folder(output_dir)
    chosen = find_run(Named.of(str(iconoclast_checkpoint)))
    if chosen is None:
        raise RunFolderError(f"{iconoclast_checkpoint} is not a run's journal or folder. Give iconoclast_study.jsonl.")
    # The export obeys the run in this, too: who exports somebody else's run has looked into its settings.
    trusted = {"trust_remote_code": chosen.saved.settings.trust_remote_code}
    settings = settings_for([chosen]).model_copy(update=trusted)
    subjects: list[Subject] = [chosen]
    if peer_checkpoint is not None:
        other = find_peer(Named.of(str(peer_checkpoint), settings))
        if other is None:
            raise RunFolderError(f"{peer_checkpoint} is not a {PEER} journal. Give the .jsonl file of its checkpoints.")
        subjects.append(other)
    merged = output_dir / "iconoclast-best-merged"
    with shown_progress() as progress:
        exported = export_run(chosen.folder, str(chosen.saved.trial.index), "merged", merged, progress)
    subjects.insert(0, find_subject(str(merged)))
    document = shown(subjects, settings, None, sample_count)
    write_comparison(document, output_dir)
    if as_json:
        print_json(document.document())
    require_near(exported)
