"""`export-and-compare`: the best trial of a run as merged weights, beside that of another tool."""

from pathlib import Path
from typing import Annotated

from typer import Option

from iconoclast.cli.arguments import AsJsonOption, SampleCountOption
from iconoclast.cli.console import print_json, shown_progress
from iconoclast.cli.export import require_near
from iconoclast.errors import RunFolderError
from iconoclast.peers import PEER


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
