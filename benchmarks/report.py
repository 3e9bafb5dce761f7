"""Size and time of a run's report page with so many trials: the run's own, repeated.

    python benchmarks/report.py demo-run 24 200

Time is the processor's, so that others who use the machine change nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import optuna

from iconoclast import layout
from iconoclast.search.storage import Journal
from iconoclast.search.study import OUTCOMES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="run folder; it is left as it is")
    parser.add_argument("trials", type=int, nargs="+", help="trials that the page is to have, pruned ones included")
    arguments = parser.parse_args()
    optuna.logging.disable_default_handler()
    for trials in arguments.trials:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(shutil.copytree(arguments.run, Path(folder) / "run"))
            found = repeat_trials(run, trials)
            page, began = run / "report.html", os.times()
            subprocess.run(
                [sys.executable, "-m", "iconoclast", "report", run, "--to", page], check=True, capture_output=True
            )
            done = os.times()
            seconds = done.children_user + done.children_system - began.children_user - began.children_system
            print(f"{found} trials: {page.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s")


def repeat_trials(run: Path, most: int) -> int:
    """Add copies of a run's searched trials to its journal until it has so many; return their number."""
    storage = optuna.storages.JournalStorage(Journal(run / layout.JOURNAL))
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    outcomes = {number: each for trial in study.trials for number, each in trial.user_attrs.get(OUTCOMES, {}).items()}
    own = [trial for trial in study.trials if str(trial.number) in outcomes]
    for i in range(most - len(own)):
        copy, number = deepcopy(own[i % len(own)]), len(study.trials)
        copy.user_attrs = {OUTCOMES: {str(number): outcomes[str(copy.number)]}}
        study.add_trial(copy)
    return max(len(own), most)


if __name__ == "__main__":
    main()
