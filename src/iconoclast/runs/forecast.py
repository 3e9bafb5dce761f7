"""How long the rest of a run takes: the work of every task to come, at the rates that earlier tasks were measured to have.

Work is counted in tokens of prompts and responses. Each kind of work has its own rate, in seconds a token; a kind that has not been
measured yet is taken to go as a related one that has.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from iconoclast.config.schema import Settings
from iconoclast.evaluation.examination import ExaminedPrompts
from iconoclast.evaluation.rounding import ROUNDING_PROMPTS
from iconoclast.fitting.fit import FitOptions
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Board, Phase, Progress
from iconoclast.prompts import PromptSet
from iconoclast.runs.fits import BEHAVIOUR_TOKENS, BENIGN_TOKENS, PUSHES, TARGET_TOKENS
from iconoclast.runs.splits import Prompts

Kind = Literal["read", "respond", "trial", "gradient"]

RELATED: dict[Kind, tuple[Kind, float]] = {
    "gradient": ("read", 2.0),  # forward and back, less what prompts have in common, which is read once
    "trial": ("respond", 1.0),
    "read": ("respond", 1.0),
    "respond": ("trial", 1.0),
}
"""What a kind of work is like as long as it has not been measured, and how many times as long a token takes."""

EARLY = 0.05
"""Share of a task that must be measured before its own rate counts as much as what was expected of it."""


@dataclass
class Stage:
    """A task of the run.

    Attributes:
        phase: the part of the run that it belongs to.
        task: what its name as a task begins with.
        kind: the rate that it goes by.
        work: tokens.
        steps: steps as the task counts them. Unset: as many as it says when it starts.
        done: steps done.
        seconds: time that they took.
    """

    phase: str
    task: str
    kind: Kind
    work: float
    steps: int | None = None
    done: float = 0.0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Share that is done."""
        return min(1.0, self.done / self.steps) if self.steps else 0.0


class Forecast:
    """Passes progress on, and tells a board after every step how long the phases still take.

    Args:
        progress: what it is passed on to.
        stages: all tasks of the run, in their order; others can come between them.
        clock: tells the time in seconds.
    """

    def __init__(
        self, progress: Progress, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress = progress
        self.stages = list(stages)
        self._clock = clock
        self._begun = 0
        self._stage: Stage | None = None
        self._since = clock()

    def start(self, task: str, total: int) -> None:
        self._count(0)
        if self._stage is not None:
            self._stage.done = self._stage.steps = self._stage.steps or 1
        to_come = self.stages[self._begun :]
        self._stage = next((stage for stage in to_come if task.startswith(stage.task)), None)
        if self._stage is not None:
            skipped = to_come.index(self._stage)  # an earlier start has done it, or there is no need of it
            self.stages[self._begun : self._begun + skipped + 1] = [self._stage]
            self._begun += 1
            self._stage.steps = self._stage.steps or total
        self.progress.start(task, total)
        self._tell()

    def advance(self, steps: int = 1) -> None:
        self._count(steps)
        self.progress.advance(steps)
        self._tell()

    def note(self, message: str) -> None:
        self.progress.note(message)

    def show(self, name: str, value: str) -> None:
        if isinstance(self.progress, Board):
            self.progress.show(name, value)

    def expect(self, phases: Sequence[Phase]) -> None:
        if isinstance(self.progress, Board):
            self.progress.expect(phases)

    def replan(self, stages: Sequence[Stage]) -> None:
        """Put other tasks in the place of those that have not begun."""
        self.stages[self._begun :] = stages
        self._tell()

    def left(self) -> float | None:
        """Return the seconds that everything still takes; None as long as nothing is known of some of it."""
        return _sum(map(self._left, self.stages))

    def _count(self, steps: float) -> None:
        now = self._clock()
        if self._stage is not None:
            self._stage.seconds += now - self._since
            self._stage.done += steps
        self._since = now

    def _tell(self) -> None:
        phases = []
        for name in dict.fromkeys(stage.phase for stage in self.stages):
            stages = [stage for stage in self.stages if stage.phase == name]
            left, spent = _sum(map(self._left, stages)), sum(stage.seconds for stage in stages)
            done = all(stage.share == 1 for stage in stages)
            phases.append(Phase(name, 1.0 if done else spent / (spent + left) if spent and left else 0.0, left))
        self.expect(phases)

    def _left(self, stage: Stage) -> float | None:
        rate = self._rate(stage) if stage.share < 1 else 0.0
        return None if rate is None else (1 - stage.share) * stage.work * rate

    def _rate(self, stage: Stage) -> float | None:
        """Seconds a token of a stage: its own so far, or at its beginning rather what was expected; None if unknown."""
        expected = self._measured(stage.kind, [each for each in self.stages if each is not stage])
        own = stage.share * stage.work
        if not own:
            return expected
        weight = 0.0 if expected is None else EARLY * stage.work
        return ((expected or 0.0) * weight + stage.seconds) / (weight + own)

    def _measured(
        self, kind: Kind, stages: Sequence[Stage], factor: float = 1.0, asked: tuple[Kind, ...] = ()
    ) -> float | None:
        """Seconds a token of a kind in these stages, or of one that is like it; None if nothing is known."""
        same = [stage for stage in stages if stage.kind == kind and stage.share]
        work = sum(stage.share * stage.work for stage in same)
        if work:
            return factor * sum(stage.seconds for stage in same) / work
        other, times = RELATED[kind]
        return None if kind in asked else self._measured(other, stages, factor * times, (*asked, kind))


def _sum(seconds: Iterable[float | None]) -> float | None:
    known = list(seconds)
    return None if None in known else sum(each for each in known if each is not None)


def stages_of_run(settings: Settings, lm: LanguageModel, prompts: Prompts, trials: int, fits: bool) -> list[Stage]:
    """Return all tasks of a run with so many trials left.

    Args:
        fits: an edit will be fitted.
    """
    size = Sizes(settings, lm)
    selected = size.evaluated(prompts.selected)
    read = sum(map(size.tokens, (prompts.benign, prompts.target)))
    stages = [
        Stage("Set-up", "Collecting residuals", "read", read),
        Stage("Set-up", "Measuring", "respond", selected),
        Stage("Search", "Trials", "trial", selected * trials),
    ]
    return stages + (size.fit(prompts) if fits else []) + size.report(prompts)


@dataclass(frozen=True)
class Sizes:
    """Tokens of tasks under some settings."""

    settings: Settings
    lm: LanguageModel

    def tokens(self, prompts: PromptSet | None, response: int = 0, most: int | None = None) -> float:
        """Count the tokens of prompts with responses of a length, or of `most` of these prompts."""
        if not prompts:
            return 0.0
        number = len(prompts) if most is None else min(most, len(prompts))
        return number * (sum(map(len, self.lm.encode(prompts.prompts))) / len(prompts) + response)

    def evaluated(self, prompts: ExaminedPrompts) -> float:
        """Count the tokens of measuring an edit on a split."""
        s = self.settings
        return self.tokens(prompts.target, s.max_response_length) + self.tokens(
            prompts.benign, s.max_benign_response_length
        )

    def fit(self, prompts: Prompts) -> list[Stage]:
        """Return the tasks of a fit."""
        s = self.settings
        own = self.tokens(prompts.benign, 2 * BENIGN_TOKENS, s.fit_examples) + self.tokens(
            prompts.target, BEHAVIOUR_TOKENS, s.fit_examples
        )
        answers = self.tokens(prompts.target, s.max_response_length + TARGET_TOKENS, s.fit_examples)
        both = [min(len(each), s.fit_examples) for each in (prompts.benign, prompts.target)]
        options = FitOptions()
        step = self.tokens(prompts.benign, BENIGN_TOKENS, 1) * options.benign + self.tokens(
            prompts.target, TARGET_TOKENS, 1
        ) * (options.target + options.loops)
        stages = [Stage("Fit", "Collecting the base model's", "respond", own, sum(both))]
        length = -(-s.fit_steps // len(PUSHES))
        for begun in range(0, s.fit_steps, length):
            steps = min(length, s.fit_steps - begun)
            stages.append(Stage("Fit", "Collecting the edit's", "respond", answers, both[1]))
            stages.append(Stage("Fit", "Fitting", "gradient", step * steps, steps))
        measured = self.evaluated(prompts.selected) * len(s.fit_scales)
        return [*stages, Stage("Fit", "Measuring", "trial", measured)]

    def report(self, prompts: Prompts) -> list[Stage]:
        """Return the tasks of a report."""
        s, reported = self.settings, prompts.reported
        examined = self.evaluated(reported) + self.tokens(reported.borderline, s.max_benign_response_length)
        again = self.tokens(reported.benign, s.max_benign_response_length)
        rounded = 2 * self.tokens(reported.benign, s.max_benign_response_length, ROUNDING_PROMPTS)
        return [
            Stage("Report", "Examining base", "respond", examined + 3 * again),
            *[Stage("Report", "Reading with other", "read", rounded)] * (self.lm.dtype != "float32"),
            Stage("Report", "Examining trial", "respond", examined + 2 * again),
            *[Stage("Report", "Measuring", "trial", self.evaluated(reported) * s.random_controls)]
            * bool(s.random_controls),
        ]
