"""`export-and-compare`: the seed's script as a command."""

from pathlib import Path
from typing import Annotated

import typer

from iconoclast.cli.arguments import SampleCountOption
from iconoclast.cli.console import quiet_libraries
from iconoclast.cli.progress import shown_progress
from iconoclast.errors import RunFolderError


def export_and_compare(
    iconoclast_checkpoint: Annotated[
        Path, typer.Option("--iconoclast-checkpoint", help="iconoclast_study.jsonl of a run, or its folder.")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for the results; must not exist yet.")],
    heretic_checkpoint: Annotated[
        Path | None, typer.Option("--heretic-checkpoint", help="Journal of a heretic study to compare with.")
    ] = None,
    sample_count: SampleCountOption = 5,
) -> None:
    """Export the best trial of a run as merged weights, and compare it with the best trial of a heretic study.

    Writes iconoclast-best-merged/, comparison.json and summary.json into the output folder.
    """
    from iconoclast.cli.comparisons import compared, make_folder, print_comparison, write_comparison
    from iconoclast.runs.comparison import settings_for
    from iconoclast.runs.export import export_run
    from iconoclast.runs.subjects import PeerSubject, RunSubject, Subject, find_subject

    quiet_libraries()
    make_folder(output_dir)
    chosen = find_subject(str(iconoclast_checkpoint))
    if not isinstance(chosen, RunSubject):
        raise RunFolderError(
            f"{iconoclast_checkpoint} is neither the journal nor the folder of a run. Give iconoclast_study.jsonl."
        )
    # The export obeys the run in this, too: who exports somebody else's run has looked into its settings.
    trusted = {"trust_remote_code": chosen.saved.settings.trust_remote_code}
    settings = settings_for([chosen]).model_copy(update=trusted)
    subjects: list[Subject] = [chosen]
    if heretic_checkpoint is not None:
        other = find_subject(str(heretic_checkpoint), settings)
        if not isinstance(other, PeerSubject):
            raise RunFolderError(
                f"{heretic_checkpoint} is not a journal of heretic. Give the .jsonl file from its checkpoints folder."
            )
        subjects.append(other)
    merged = output_dir / "iconoclast-best-merged"
    with shown_progress() as progress:
        export_run(chosen.folder, str(chosen.saved.trial.index), "merged", merged, progress)
    subjects.insert(0, find_subject(str(merged)))
    comparison = compared(subjects, settings, None)
    document = comparison.document(sample_count)
    print_comparison(comparison, document, sample_count)
    write_comparison(document, output_dir)
