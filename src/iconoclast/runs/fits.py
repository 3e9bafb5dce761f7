"""The fit of a run: from its strongest trial to fitted trials. It goes on where it was broken off."""

import hashlib
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import torch

from iconoclast.config.schema import MARKERS, Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import save_edit
from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole
from iconoclast.fitting.examples import Example, Examples, loop_of
from iconoclast.fitting.fit import Fit, FitOptions, Variables
from iconoclast.fitting.objective import Kind, Objective
from iconoclast.models.decoding import Callbacks, decode, turn_end
from iconoclast.models.gradients import ready_for_gradients
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.thinking import Thoughts
from iconoclast.progress import Progress, show
from iconoclast.prompts import Prompt
from iconoclast.runs.pinned import FIT_SETTINGS
from iconoclast.runs.workbench import Workbench
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters, FittedParameters
from iconoclast.vocabulary import Label

BENIGN_TOKENS = 32
"""Tokens of the base model's own benign responses that must stay as likely."""
TARGET_TOKENS = 40
"""Tokens of target responses that are looked at."""
OPENING = 10
"""Tokens of a target response that are learned if the base model's distribution is to hold after them; else all are."""
BEHAVIOUR_TOKENS = 16
"""Tokens in which the base model's own responses to target prompts show the behaviour."""
SHORTEST = 20
"""Tokens that a target response must have to be an example where refusals are marked: a shorter one may be one that is not."""
SHORTEST_REFUSAL = 4
"""The same of a refusal, from which an edit learns that strengthens the behaviour."""
SHORTEST_OTHERWISE = 1
"""The same where other behaviours are marked: where one is to be brief, the shortest answers are the best."""
FEWEST = 8
"""Examples of each kind that a fit needs."""
SAVED_EVERY = 10
"""Steps between two states in the run folder: so many are lost at most."""
WIDTH = 8
"""Sequences that gradients need as much memory for as reading needs for one, about."""
WIDEST = 12
"""Sequences of a forward and backward pass, at most."""
PUSHES = 1.0, 0.7, 0.5
"""Rounds of a fit, by what pushes the behaviour is worth in them. Each learns from what the edit that it begins with answers."""


def start_of_fit(settings: Settings, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial to fit from: the one of an earlier fit with the same settings, else the strongest that was searched.

    That is the one with fewest failures, then fewest overrefusals, then lowest KL divergence.
    """
    searched = {trial.index: trial for trial in trials if isinstance(trial.parameters, EditParameters)}
    for trial in trials:
        earlier = trial.parameters
        if isinstance(earlier, FittedParameters) and earlier.file.stem == name_of_fit(settings, earlier.trial):
            return searched[earlier.trial]
    return min(searched.values(), key=lambda trial: (trial.key, trial.index), default=None)


def name_of_fit(settings: Settings, start: int) -> str:
    """Name a fit by its start and by the settings that it depends on beside the run's pinned ones."""
    about = json.dumps(settings.model_dump(mode="json", include=set(FIT_SETTINGS)), sort_keys=True)
    return f"{start}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def shortest_example(settings: Settings) -> int:
    """Return the number of tokens that a target response must have to be an example."""
    if settings.strengthen:
        return SHORTEST_REFUSAL
    return SHORTEST if set(settings.refusal_markers) & set(MARKERS["refusal_markers"]) else SHORTEST_OTHERWISE


@dataclass
class FitStage:
    """The fit of one run.

    Args:
        bench: the opened model and prompts.
        folder: where fits are kept.
        start: the trial to begin with.
    """

    bench: Workbench
    folder: Path
    start: Trial

    @property
    def parameters(self) -> FittedParameters:
        """The fitted edit as the parameters of a trial, at scale 1."""
        assert isinstance(self.start.parameters, EditParameters)
        name = name_of_fit(self.bench.settings, self.start.index)
        return FittedParameters(self.start.parameters, self.start.index, 1.0, self.folder / f"{name}.safetensors")

    def run(self, progress: Progress) -> list[FittedParameters]:
        """Fit, or go on with it, and keep the edit; its copies at all scales, none if there is too little to learn from."""
        if not self.parameters.file.is_file() and not self._fit(progress):
            return []
        return [replace(self.parameters, scale=scale) for scale in self.bench.settings.fit_scales]

    def _fit(self, progress: Progress) -> bool:
        """Fit in rounds: the first find how the behaviour goes, the later ones what that costs least."""
        s, bench = self.bench.settings, self.bench
        self.folder.mkdir(exist_ok=True)
        objective = Objective.standard(
            opening=s.fit_opening_weight,
            preference=s.fit_preference_weight,
            continuation=s.fit_continuation_weight,
            opening_length=OPENING if s.fit_continuation_weight else TARGET_TOKENS,
            first=s.fit_first_token_weight,
            loops=s.fit_loop_weight,
            proximity=s.fit_proximity_weight,
        )
        options = FitOptions(s.fit_steps, s.fit_rate, readings=s.fit_readings, rows=self._rows(), seed=s.seed)
        writers = bench.lm.writers(s.components)
        fit = Fit(bench.lm, writers, bench.edit(self.start.parameters), {}, objective, options)
        file = self.parameters.file.with_suffix(".state")
        teachers = [fit.variables()]
        if file.is_file():
            teachers = _resumed(fit, file)
        lessons = Lessons(self, progress)
        for teacher in teachers:
            lessons.learn(fit.edit(teacher))
        if not lessons.enough():
            return False
        round_length = -(-s.fit_steps // len(PUSHES))
        while fit.step < options.steps:
            if fit.step >= round_length * len(teachers):
                teachers.append(fit.variables())
                lessons.learn(fit.edit())
            fit.examples, fit.push = lessons.examples(), PUSHES[len(teachers) - 1]
            progress.start(f"Fitting the edit of trial {self.start.index}", options.steps - fit.step)
            end = min(round_length * len(teachers), options.steps)
            while fit.step < end:
                with ready_for_gradients(bench.lm.model):
                    for losses in fit.run(min(SAVED_EVERY, end - fit.step)):
                        progress.advance()
                        show(progress, Fitting_loss=f"{losses['loss']:.4f}, at first {fit.curve[0]['loss']:.4f}")
                buffer = io.BytesIO()
                torch.save(fit.state() | {"teachers": teachers}, buffer)
                write_whole(file, buffer.getvalue())
        first, last = fit.curve[0], fit.curve[-1]
        terms = (f"{name} {first[name]:.4f} → {last[name]:.4f}" for name in last if name in first and name != "loss")
        progress.note(f"Fitted in {fit.step} steps: {', '.join(terms)}; cosine to the start {fit.cosine():.2f}.")
        write_whole(self.parameters.file.with_suffix(".json"), json.dumps(fit.curve).encode())
        save_edit(fit.edit(), self.parameters.file)
        file.unlink(missing_ok=True)
        return True

    def _rows(self) -> int:
        bench, s = self.bench, self.bench.settings
        sets = bench.prompts.benign, bench.prompts.target
        thoughts = s.max_thought_length if bench.lm.thinking else 0
        longest = TARGET_TOKENS + thoughts + max(len(ids) for each in sets for ids in bench.lm.encode(each.prompts))
        return min(WIDEST, max(1, affordable_rows(bench.lm, longest, s.batch_size, s.max_batch_size) // WIDTH))


def _resumed(fit: Fit, file: Path) -> list[Variables]:
    """Let a fit go on from its state; return the edits that it has learnt from. Raise RunFolderError if it is damaged."""
    try:
        state = torch.load(file, weights_only=True)
        fit.resume(state)
        return list(state["teachers"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError):
        raise RunFolderError(f"{file} is damaged. Delete it: the same command then begins this fit anew.") from None


class Lessons:
    """Responses that a fit learns from: the base model's own responses, and those of edits on the way.

    Args:
        stage: whose fit it is.
        progress: told what goes on.
    """

    def __init__(self, stage: FitStage, progress: Progress) -> None:
        self._bench = stage.bench
        self._start = stage.start.index
        self._progress = progress
        strengthen = self._bench.settings.strengthen
        self._wanted: Label = "refusal" if strengthen else "complied"
        self._shortest = shortest_example(self._bench.settings)
        s, prompts = self._bench.settings, self._bench.prompts
        self._benign, self._target = (
            random.Random(f"{s.seed}/{name}").sample(each.prompts, min(len(each), s.fit_examples, max(FEWEST, drawn)))
            for name, each, drawn in (
                ("benign", prompts.benign, s.fit_steps * FitOptions.benign),
                ("target", prompts.target, 2 * s.fit_steps * FitOptions.target),  # not every response is an example
            )
        )
        progress.start("Collecting the base model's responses to fit on", len(self._benign) + len(self._target))
        own = self._responses(Edit.nothing(), self._benign, BENIGN_TOKENS)
        self._own = [Example(tuple(ids), tuple(tokens)) for ids, tokens in own if tokens]
        self._own_examples: Examples | None = None  # they stay the same, so the base model is asked of them once
        base = self._responses(Edit.nothing(), self._target, BEHAVIOUR_TOKENS)
        self._behaviour = [
            tuple(tokens) if (self._label(prompt, tokens) == "refusal") is not strengthen else ()
            for prompt, (_, tokens) in zip(self._target, base, strict=True)
        ]
        # Where answers may be brief, that they end is a part of them.
        self._end = (turn_end(self._bench.lm),) if self._shortest == SHORTEST_OTHERWISE else ()
        self._answers: dict[int, Example] = {}
        self._loops: list[Example] = []

    def learn(self, teacher: Edit) -> None:
        """Let an edit answer the target prompts: whole answers are examples, and loops what to avoid."""
        self._progress.start("Collecting the edit's responses to fit on", len(self._target))
        responses = self._responses(teacher, self._target, self._bench.settings.max_response_length)
        for number, (prompt, (ids, tokens)) in enumerate(zip(self._target, responses, strict=True)):
            label = self._label(prompt, tokens)
            if label == self._wanted and len(tokens) >= self._shortest:
                ended = len(tokens) < self._bench.settings.max_response_length
                answer = tuple([*tokens, *self._end * ended][:TARGET_TOKENS])
                self._answers[number] = Example(tuple(ids), answer, self._behaviour[number])
            elif label == "broken" and (places := loop_of(tokens)):
                self._loops.append(Example(tuple(ids), tuple(tokens[: places[-1] + 1]), avoided=places))

    def enough(self) -> bool:
        """Check that there are examples enough, and say so if not."""
        if min(len(self._own), len(self._answers)) >= FEWEST:
            return True
        responses = "refusals" if self._wanted == "refusal" else "whole responses without the behaviour"
        self._progress.note(
            f"Nothing is fitted: trial {self._start} gives {len(self._answers)} {responses} to {len(self._target)} target prompts, and a fit needs {FEWEST}. More trials may find a stronger edit."
        )
        return False

    def examples(self) -> dict[Kind, Examples]:
        """Return the examples so far, with what the base model says of them."""
        answers = [self._answers[number] for number in sorted(self._answers)]
        lm = self._bench.lm
        with ready_for_gradients(lm.model):
            self._own_examples = self._own_examples or Examples(lm, self._own, 32)
            found: dict[Kind, Examples] = {"benign": self._own_examples, "target": Examples(lm, answers, 32)}
        if self._loops:
            found["loop"] = Examples(lm, self._loops, 32, base=False)
        return found

    def _label(self, prompt: Prompt, tokens: list[int]) -> Label:
        return self._bench.rules.label(prompt.text, self._bench.lm.text(tokens))

    def _responses(self, edit: Edit, prompts: Sequence[Prompt], length: int) -> list[tuple[list[int], list[int]]]:
        """Token ids of every prompt and of the response to it; thoughts stand before the response, with the prompt."""
        lm, s = self._bench.lm, self._bench.settings
        ids = lm.encode(prompts)
        live = LiveEdits(lm.writers(s.components), [edit], [0] * len(ids)) if edit.sites else None
        thoughts = Thoughts(lm, s.max_thought_length) if lm.thinking else None
        most, decided = (thoughts.longest(length), thoughts.deciding(length)) if thoughts else (length, None)
        rows = Rows(affordable_rows(lm, max(map(len, ids)) + most, s.batch_size, s.max_batch_size))
        responses = rows.adaptively(
            lambda n: decode(lm, ids, most, n, live, Callbacks(decided, advance=self._progress.advance))
        )
        found = list(zip(ids, responses, strict=True))
        return [_after_thoughts(thoughts, *each, length) for each in found] if thoughts else found


def _after_thoughts(thoughts: Thoughts, prompt: list[int], said: list[int], length: int) -> tuple[list[int], list[int]]:
    """Divide prompt and response where the answer begins that comes after thoughts; no answer if these do not end."""
    own, answer = thoughts.split(said)
    answer = answer or []
    blank = next((n for n in range(len(answer)) if thoughts.lm.text(answer[: n + 1]).strip()), len(answer))
    return [*prompt, *own, *answer[:blank]], answer[blank:][:length]
