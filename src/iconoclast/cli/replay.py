"""`replay`: a recorded trial measured again."""

from typing import Annotated

from typer import Option

from iconoclast.cli.arguments import FiguresOption, RunArgument, TrialOption, require_writable, run_and_trial
from iconoclast.cli.console import say, shown_progress, write_figures
from iconoclast.errors import MeasurementError


def replay(
    run: RunArgument,
    trial: TrialOption = None,
    json_file: FiguresOption = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Let code of the model's repository run; the run is not asked.")
    ] = False,
) -> None:
    """Apply a recorded trial again, measure it, and grade the drift: exact, within noise, or changed.

    Names the versions, weights and prompts that differ from those of the run. Ends with an error if the scores changed.
    """
    folder, trial = run_and_trial(run, trial)
    from iconoclast.runs.replay import replay as replayed

    require_writable(json_file)
    with shown_progress() as progress:
        result = replayed(folder, trial, progress, trust_remote_code)
    for each in result.drifts:
        lines = "; ".join(each.differences) or "every score is the same number"
        say(f"{each.what}: {each.grade} ({lines})")
    if result.changed:
        say("Not as it was:", *(f"  {line}" for line in result.changed))
    else:
        say("Same versions, machine, weights and prompts as when the run was last started.")
    write_figures(json_file, result.document())
    if result.grade == "changed":
        raise MeasurementError(f"Trial {result.trial} of {folder} does not measure as it was recorded.")
