"""`plot`: the residuals of the fit prompts, and the trials of a run."""

from iconoclast.cli.arguments import AsJsonOption, PacmapOption, RunArgument, run_and_trial
from iconoclast.cli.console import print_json, say, shown_progress


def plot(run: RunArgument, pacmap: PacmapOption = False, as_json: AsJsonOption = False) -> None:
    """Draw the residuals of both prompt sets and all trials, as web pages in RUN/plots.

    Residuals that the run has not kept are measured, and stay with it, so that `iconoclast report` shows them too.
    """
    folder, trial = run_and_trial(run)
    from iconoclast.reports.pages.of_run import RunPage
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.geometry import complete_geometry
    from iconoclast.runs.saved import SavedRun

    run_folder = RunFolder(folder)
    saved = SavedRun.open(run_folder, trial)
    with shown_progress() as progress:
        complete_geometry(run_folder, saved, progress, pacmap=pacmap)
    (folder / "plots").mkdir(exist_ok=True)
    written = []
    for name, page in RunPage.open(folder, trial).plots().items():
        file = folder / "plots" / name
        page.write(file)
        say(f"Wrote {file}")
        written.append(str(file))
    if as_json:
        print_json({"written": written})
