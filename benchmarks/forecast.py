"""How good a run's forecast of its remaining time is: what it said at half-time, and what came.

    PYTHONPATH=. python benchmarks/forecast.py demo        # the demo model with few prompts and a fit: a minute
    PYTHONPATH=. python benchmarks/forecast.py tiny        # a random model of six layers, with more trials and steps
    PYTHONPATH=. python benchmarks/forecast.py search      # the random model without a fit

Time is the processor's, so that others who use the machine change nothing.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.progress import Phase, Silent
from iconoclast.runs import fits
from iconoclast.runs.forecast import Forecast
from iconoclast.runs.starting import started_run

SHARES = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)


class Recorder(Silent):
    """Remembers when which time was forecast."""

    def __init__(self) -> None:
        self.began = time.process_time()
        self.forecasts: list[tuple[float, float | None]] = []

    def show(self, name: str, value: str) -> None: ...

    def expect(self, phases: Sequence[Phase]) -> None:
        lefts = [phase.left for phase in phases]
        known = [left for left in lefts if left is not None]
        self.forecasts.append((time.process_time() - self.began, sum(known) if len(known) == len(lefts) else None))


def settings(case: str, folder: Path) -> Settings:
    """Settings of a case, with prompts few enough for a minute."""
    sizes = {"fit": 24, "select": 8, "report": 8}
    sets: dict[str, Any] = {}
    for role, ours in (("good", "benign"), ("bad", "target")):
        for split, infix in (("fit", ""), ("select", "evaluation_"), ("report", "report_")):
            source = PromptSource(dataset=f"builtin:everyday/{ours}", split=f"{split}[:{sizes[split]}]")
            sets[f"{role}_{infix}prompts"] = source
    options: dict[str, Any] = {
        "model": "demo", "n_trials": 8, "n_startup_trials": 4, "trials_per_batch": 4, "max_response_length": 24,
        "max_benign_response_length": 8, "fit_steps": 8, "fit_scales": [0.8, 1.0], "random_controls": 1,
        "benign_subspace_rank": 4,
    }  # fmt: skip
    if case != "demo":
        from tests.support.tiny import save_tiny, tiny_config

        model = save_tiny(folder / "model", tiny_config(hidden_size=64, intermediate_size=128, num_hidden_layers=6))
        options |= {"model": str(model), "dtypes": ["float32"], "n_trials": 48, "fit_steps": 40, "fit": case == "tiny"}
    return Settings(**options, **sets, study_checkpoint_dir=folder / "run")


def main(case: str) -> None:
    """Run the case and print what was forecast."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder, patch.object(Forecast.__init__, "__defaults__", (time.process_time,)):
        if case == "tiny":  # whatever a random model says counts as an answer, so that there is something to fit
            fits.SHORTEST = 1
            ResponseRules.label = lambda self, prompt, response: "complied"  # type: ignore[method-assign]
        chosen = settings(case, Path(folder))
        with started_run(chosen, recorder) as run:
            run.optimize(chosen.n_trials, recorder)
            run.finish(recorder)
            assert run.forecast is not None
            for s in run.forecast.stages:
                print(
                    f"{s.phase:8}{s.task:28}{s.work:8.0f} tokens {s.seconds:7.2f} s  {1e3 * s.seconds / s.work:6.3f} ms/token"
                )
    end = time.process_time() - recorder.began
    for share in SHARES:
        now, said = [each for each in recorder.forecasts if each[0] <= share * end][-1]
        came = end - now
        print(f"at {now / end:4.0%} of {end:.1f} s: {came:.1f} s came, forecast ", end="")
        print("nothing" if said is None else f"{said:.1f} s ({said / came - 1:+.0%})")


if __name__ == "__main__":
    main(sys.argv[1])
