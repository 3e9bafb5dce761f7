"""Fits against each other: what their loss is made of on examples that they have not seen.

    .venv/bin/python benchmarks/fitting.py --runs RUN ... --out FILE       # all arms; those in FILE are not fitted again
    .venv/bin/python benchmarks/fitting.py --runs RUN ... --out FILE --arms default "larger batches"

A RUN is the folder of a finished run with requests enough, for instance one that quality.py has made; several, of other
seeds, are several rounds. The examples are those that a fit of this run would begin with. Three fifths of them are fitted on, the
rest tells how low the fit comes: generated responses, of which a hundred say little, are not needed for that.

Arms push the behaviour more or less, which their losses alone confuse with how well they do it. Every arm is therefore
measured at several strengths, and its *cost* is what the terms that keep the model come to where those that push the behaviour
are as low as the first arm's are at strengths as they are, interpolated between these.
"""

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from iconoclast.directions.estimators import Directions
from iconoclast.directions.subspace import project_out
from iconoclast.files import write_json
from iconoclast.fitting.examples import Examples
from iconoclast.fitting.fit import Fit, FitOptions
from iconoclast.fitting.objective import Kind, Objective
from iconoclast.models.gradients import ready_for_gradients
from iconoclast.models.packed import packed
from iconoclast.progress import Silent
from iconoclast.runs.fits import PUSHES, FitStage, Lessons, start_of_fit
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.trials import search_space
from iconoclast.runs.workbench import Workbench

SHARE = 0.6
"""Share of the examples that are fitted on."""

SCALES = 0.5, 0.7, 1.0, 1.4
"""Factors of the strengths that are measured."""

WIDTH = 24
"""Sequences of a forward and backward pass."""


MULTIPLIER_RATE = 0.2
"""Share by which what pushes the behaviour grows, at most, in a step that keeps the budget."""


@dataclass(frozen=True)
class Arm:
    """One way to fit.

    Attributes:
        options: of the fit, where they are not the default.
        weights: of the loss, where they are not the default.
        standard: whether it begins with the first standard edit of the search, not with the run's best trial.
        examples: prompts of each kind that it is fitted on, at most.
        pushes: rounds of equal length, by what pushes the behaviour is worth in them.
        second: whether every site has a second direction, at first that of the other standard edit at a twentieth of its strength.
        begins: with the directions of the standard edit, such that are not kept out of the benign subspace, those from which
            the benign prompts' tasks are taken as well (`without_tasks`), or random ones.
        protected: whether directions and readings stay out of the benign subspace of their layer.
        budget: benign divergence in nats that a multiplier holds the fit to; what pushes then changes from step to step.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    standard: bool = True
    examples: int = 10_000
    pushes: Sequence[float] = PUSHES
    second: bool = False
    begins: Literal["standard", "everywhere", "without tasks", "random"] = "standard"
    protected: bool = False
    budget: float | None = None


LARGER = {"steps": 40, "benign": 24, "target": 16, "loops": 4}
ALL: dict[str, Any] = {"benign": 10_000, "target": 10_000, "loops": 10_000}
SMALLER = {"steps": 150, "benign": 6, "target": 4, "loops": 1}

ARMS = {
    "default": Arm({"steps": 80}),
    "from the best searched trial": Arm({"steps": 80}, standard=False),
    "larger batches, half the steps": Arm(LARGER),
    "smaller batches, twice the steps": Arm(SMALLER),
    "directions half as fast": Arm({"steps": 80, "direction_rate": 0.05}),
    "directions half as fast again": Arm({"steps": 80, "direction_rate": 0.15}),
    "40 steps, two directions a site": Arm({"steps": 40}, second=True),
    **{f"{steps} steps": Arm({"steps": steps}) for steps in (10, 20, 40)},
    "40 steps, half as many examples in each": Arm({"steps": 40, "benign": 6, "target": 4, "loops": 1}),
    "80 steps, a quarter": Arm({"steps": 80, "benign": 3, "target": 2, "loops": 1}),
    **{
        f"20 steps, {name}": replace(arm, options={"steps": 20, **arm.options})
        for name, arm in {
            "full weights throughout": Arm(pushes=(1.0,)),
            "a constraint in place of weights": Arm(pushes=(1.0,), budget=0.004),
            "two directions a site": Arm(second=True),
            "direction and reading are one": Arm({"readings": False}),
            "from directions not kept out of the benign subspace": Arm(begins="everywhere"),
            "from directions without the benign prompts' tasks": Arm(begins="without tasks"),
            "from random directions": Arm(begins="random"),
            "kept out of the benign subspace": Arm(protected=True),
            "ten tokens learned, then the base model's": Arm({}, {"continuation": 0.5, "opening_length": 10}),
            "without the likelihood of responses": Arm({}, {"opening": 0.0}),
            "without preference": Arm({}, {"preference": 0.0}),
            "without loops": Arm({}, {"loops": 0.0}),
            "without first tokens": Arm({}, {"first": 0.0}),
            **{f"{count} prompts of each kind": Arm(examples=count) for count in (16, 40, 80)},
        }.items()
    },
}
BRIEF = [
    name
    for name in ARMS
    if name.startswith(("10 steps", "20 steps", "40 steps", "80 steps")) and name != "40 steps, two directions a site"
]


def without_tasks(directions: Directions, bench: Workbench) -> Directions:
    """Take out of the directions what a ridge regression explains by the benign prompts' tasks.

    A task is a first word ("Describe", "Create") that eight prompts share; its concept is how the mean residual of these differs
    from that of all benign prompts, in every layer.
    """
    residuals = bench.residuals()[0].double()  # [n, L, d]
    words = [prompt.text.split()[0].lower() for prompt in bench.prompts.benign.prompts]
    tasks = [word for word, count in Counter(words).items() if count >= 8]
    groups = (residuals[[number for number, each in enumerate(words) if each == task]] for task in tasks)
    concepts = torch.stack([group.mean(0) - residuals.mean(0) for group in groups], dim=1)  # [L, tasks, d]
    gram = concepts @ concepts.mT
    ridge = 0.1 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(len(tasks))

    def residualized(raw: Tensor) -> Tensor:
        explained = torch.linalg.solve(gram + ridge, concepts @ raw.double()[..., None])
        rest: Tensor = raw - (concepts.mT @ explained)[..., 0].to(raw.dtype)
        return rest

    return replace(directions, raw={name: residualized(raw) for name, raw in directions.raw.items()})


class Laboratory:
    """A model, examples to fit on and examples to measure with."""

    def __init__(self, run: Path, held_out: int) -> None:
        saved = SavedRun.open(RunFolder(run), "best")
        self.bench = Workbench.load(saved.settings, directions=saved.directions)
        self.bench.start_responses_with(saved.response_prefix)
        searched = start_of_fit(saved.settings, saved.trials)
        assert searched is not None
        space = search_space(saved.settings, self.bench.lm.layers)
        first, other = (self.bench.edit(space.parameters(each)) for each in space.standard()[:2])
        self.starts = {False: self.bench.edit(searched.parameters), True: first}
        found = self.bench.directions
        assert found is not None
        self.basis, parameters = found.basis, space.parameters(space.standard()[0])
        others = {
            "everywhere": replace(found, basis=found.basis[..., :0]),
            "random": found.randomized(saved.settings.seed),
            "without tasks": without_tasks(found, self.bench),
        }
        self.others = {name: self.bench.edit(parameters, each) for name, each in others.items()}
        self.second = replace(other.scaled(0.05), row_normalization="none")
        with packed(self.bench.lm.model):
            lessons = Lessons(FitStage(self.bench, run, searched), Silent())
            lessons.learn(self.starts[False])
        answers = [lessons._answers[number] for number in sorted(lessons._answers)]
        self.parts: dict[Kind, Sequence[Any]] = {"benign": lessons._own, "target": answers, "loop": lessons._loops}
        self.measured = self.examples(
            {kind: part[round(SHARE * len(part)) :][:held_out] for kind, part in self.parts.items()}
        )

    def examples(self, parts: Mapping[Kind, Sequence[Any]]) -> dict[Kind, Examples]:
        with ready_for_gradients(self.bench.lm.model):
            return {
                kind: Examples(self.bench.lm, part, WIDTH, base=kind != "loop") for kind, part in parts.items() if part
            }

    def fit(self, arm: Arm) -> tuple[Fit, float]:
        """Fit; with the seconds that its steps took."""
        given = {kind: part[: min(arm.examples, round(SHARE * len(part)))] for kind, part in self.parts.items()}
        bench, options = self.bench, FitOptions(rows=WIDTH, **arm.options)
        writers = bench.lm.writers(bench.settings.components)
        objective = Objective.standard(**arm.weights)
        start = self.others.get(arm.begins, self.starts[arm.standard])
        start = start.followed_by(self.second) if arm.second else start
        fit = Fit(bench.lm, writers, start, self.examples(given), objective, options)
        began = time.perf_counter()
        with ready_for_gradients(bench.lm.model):
            for fit.push in arm.pushes:
                for losses in fit.run(-(-options.steps // len(arm.pushes))):
                    if arm.protected:
                        self.protect(fit)
                    if arm.budget is not None:
                        fit.push *= math.exp(MULTIPLIER_RATE * min(1.0, 1 - losses["benign divergence"] / arm.budget))
        return fit, time.perf_counter() - began

    def protect(self, fit: Fit) -> None:
        """Take out of a fit's directions and readings what lies in the benign subspace of their layer."""
        basis = self.basis[[site.layer for part in fit.start.parts for site in part.sites]]
        state = fit.state()
        for name in ("offsets", "readings"):
            state[name] = project_out(state[name], basis)
        fit.resume(state)

    def losses(self, fit: Fit, scale: float) -> dict[str, float]:
        """The default loss of a fit's edit and every term of it, on the examples that were not fitted on."""
        other = replace(
            fit, examples=self.measured, objective=Objective.standard(), options=replace(fit.options, **ALL)
        )
        state = fit.state()
        other.resume(state | {"strengths": scale * state["strengths"]})
        with ready_for_gradients(self.bench.lm.model):
            return other.gradient(0, WIDTH)


def parts_of(losses: Mapping[str, float]) -> tuple[float, float]:
    """What pushes the behaviour and what keeps the model, of the default loss."""
    terms = Objective.standard().terms
    pushed, kept = (sum(t.weight * losses.get(t.name, 0.0) for t in terms if t.pushes is it) for it in (True, False))
    return pushed, kept


def cost(losses: Mapping[str, Mapping[str, float]], pushed: float) -> float:
    """What the terms that keep the model come to where the others are as low as `pushed`; nan if they are at no strength."""
    points = sorted(parts_of(each) for each in losses.values())
    for (low, kept), (high, kept_there) in pairwise(points):
        if low <= pushed <= high:
            share = (pushed - low) / (high - low)
            return math.exp((1 - share) * math.log(kept) + share * math.log(kept_there))
    return math.nan


def print_costs(results: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> None:
    """A table of costs, a column a run."""
    print(f"\n| cost, nats | {' | '.join(results)} | times {arms[0]} |\n|{'---|' * (2 + len(results))}")
    wanted = {run: parts_of(done[arms[0]]["losses"]["1.0"])[0] for run, done in results.items()}
    first = {run: cost(done[arms[0]]["losses"], wanted[run]) for run, done in results.items()}
    for arm in arms:
        costs = {run: cost(done[arm]["losses"], wanted[run]) for run, done in results.items()}
        ratio = statistics.geometric_mean(costs[run] / first[run] for run in results)
        print(f"| {arm} | {' | '.join(f'{each:.4f}' for each in costs.values())} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--held-out", type=int, default=10_000, help="examples of each kind to measure with, at most")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    header: list[str] = []
    for run in arguments.runs:
        done = results.setdefault(run.name, {})
        laboratory = None
        for name in arguments.arms:
            if name not in done:
                laboratory = laboratory or Laboratory(run, arguments.held_out)
                fit, seconds = laboratory.fit(ARMS[name])
                done[name] = {
                    "seconds": seconds,
                    "losses": {str(scale): laboratory.losses(fit, scale) for scale in SCALES},
                }
                write_json(arguments.out, results)
            for scale, losses in done[name]["losses"].items():
                if not header:
                    header = list(losses)
                    print(f"| | run | seconds | scale | {' | '.join(header)} |\n|{'---|' * (4 + len(header))}")
                shown = " | ".join(f"{losses[term]:.4f}" for term in header)
                print(f"| {name} | {run.name} | {done[name]['seconds']:.0f} | {scale} | {shown} |", flush=True)
    print_costs({run.name: results[run.name] for run in arguments.runs}, arguments.arms)


if __name__ == "__main__":
    main()
