"""`plot`: the residuals of the fit prompts, and the trials of a run."""

from iconoclast.cli.arguments import AsJsonOption, RunArgument, run_and_trial
from iconoclast.cli.console import print_json, say, shown_progress
from iconoclast.runs.folder import RunFolder


def plot(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Draw the residuals of both prompt sets and all trials, as web pages in RUN/plots.

    The residuals are measured again and stay with the run, so that `iconoclast report` shows them too.
    """
    folder, trial = run_and_trial(run)
    from iconoclast.reports.pages.of_run import RunPage
    from iconoclast.runs.geometry import geometry
    from iconoclast.runs.saved import SavedRun

    run_folder = RunFolder(folder)
    with shown_progress() as progress, SavedRun.open(run_folder, trial).opened(progress) as bench:
        geometry(bench, *bench.residuals(progress)).write(run_folder.geometry)
    (folder / "plots").mkdir(exist_ok=True)
    written = []
    for name, page in RunPage.open(folder, trial).plots().items():
        file = folder / "plots" / name
        page.write(file)
        say(f"Wrote {file}")
        written.append(str(file))
    if as_json:
        print_json({"written": written})
