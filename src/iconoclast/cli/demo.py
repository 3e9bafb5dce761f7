"""`demo`: search, both exports measured again, three responses side by side."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from iconoclast.cli.arguments import AsJsonOption
from iconoclast.cli.console import out, print_json, program, say, shown_progress
from iconoclast.cli.export import require_near
from iconoclast.cli.run import process_start, search, summary_of
from iconoclast.vocabulary import ExportFormat

if TYPE_CHECKING:
    from iconoclast.runs.exported import Exported


def demo(
    out_folder: Annotated[Path, Option("--out", help="Run folder; the exports go into it.")] = Path("demo-run"),
    n_trials: Annotated[int, Option(help="Trials in total.", min=1)] = 24,
    as_json: AsJsonOption = False,
) -> None:
    """Do the whole job: SmolLM2-135M-Instruct learns not to decline everyday requests.

    Searches, exports an adapter and merged weights, measures both again, and shows the responses side by side.
    """
    from iconoclast.config.schema import Settings
    from iconoclast.reports.tables import before_after_table

    settings = Settings(model="demo", n_trials=n_trials, study_checkpoint_dir=out_folder, exit_after_optimization=True)
    search(settings, samples=True, began=process_start())
    adapter, merged = _export_or_keep(out_folder, "adapter"), _export_or_keep(out_folder, "merged")
    columns = [("base model", adapter.base), ("edit, live", adapter.live)]
    columns += [("adapter export", adapter.exported or adapter.live), ("merged export", merged.exported or merged.live)]
    out.print(before_after_table("Before and after, on report prompts that chose nothing", columns))
    for exported in (adapter, merged):
        require_near(exported)
    here = shlex.quote(str(out_folder))
    say(f"Run folder: {out_folder}", f"Try it: {program()} chat {here}", f"See it: {program()} report {here} --open")
    if as_json:
        print_json({**summary_of(out_folder), "exports": [adapter.document(), merged.document()]})


def _export_or_keep(run_folder: Path, kind: ExportFormat) -> "Exported":
    """Export the best trial beside the run, unless an earlier demo has done so."""
    from iconoclast.runs.export import export_run
    from iconoclast.runs.exported import read_export
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.saved import SavedRun

    best = SavedRun.open(RunFolder(run_folder), "best").trial
    to, other = run_folder / kind, run_folder / f"{kind}-trial-{best.index}"
    for there in (to, other):
        if (kept := read_export(there, best.index)) is not None:
            say(f"The {kind} export in {there} is of this trial.")
            return kept
    to = other if to.exists() else to
    with shown_progress() as progress:
        result = export_run(run_folder, "best", kind, to, progress)
    say(f"Exported {kind} to {to}.")
    return result
