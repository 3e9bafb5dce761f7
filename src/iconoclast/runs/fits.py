"""The fit of a run: from its strongest trial to fitted trials. It goes on where it was broken off."""

import hashlib
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import save_edit
from iconoclast.files import write_whole
from iconoclast.fitting.examples import Example, Examples
from iconoclast.fitting.fit import Fit, FitOptions
from iconoclast.fitting.objective import Kind, Objective
from iconoclast.models.decoding import decode
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.packed import unpacked
from iconoclast.progress import Progress
from iconoclast.prompts import Prompt
from iconoclast.runs.workbench import Workbench
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters, FittedParameters

BENIGN_TOKENS = 24
"""Tokens of the base model's own benign responses that must stay as likely."""

TARGET_TOKENS = 40
"""Tokens of target responses that are looked at."""

OPENING = 10
"""Tokens of a target response that count as its opening."""

SHORTEST = 20
"""Tokens that a target response must have to be an example."""

FEWEST = 8
"""Examples of each kind that a fit needs."""

SAVED_EVERY = 5
"""Steps between two states in the run folder: so many are lost at most."""

WIDTH = 8
"""Sequences that gradients need as much memory for as reading needs for one, about."""

FIT_SETTINGS = {"fit_steps", "fit_rate", "fit_examples", "fit_opening_weight", "fit_continuation_weight"}


def start_of_fit(settings: Settings, trials: Sequence[Trial]) -> Trial | None:
    """The trial to fit from: the one of an earlier fit with the same settings, else the strongest that was searched.

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
    about = json.dumps(settings.model_dump(mode="json", include=FIT_SETTINGS), sort_keys=True)
    return f"{start}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


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
        if not self.parameters.file.is_file():
            examples = self._examples(progress)
            if examples is None:
                return []
            with unpacked(self.bench.lm.model):
                self._fit(examples, progress)
        return [replace(self.parameters, scale=scale) for scale in self.bench.settings.fit_scales]

    def _fit(self, examples: dict[Kind, Examples], progress: Progress) -> None:
        s, bench = self.bench.settings, self.bench
        self.folder.mkdir(exist_ok=True)
        objective = Objective.standard(s.fit_opening_weight, s.fit_continuation_weight, OPENING)
        longest = max(len(e.prompt) + len(e.response) for each in examples.values() for e in each.examples)
        rows = max(1, affordable_rows(bench.lm, longest, s.batch_size, s.max_batch_size) // WIDTH)
        options = FitOptions(s.fit_steps, s.fit_rate, rows=min(rows, 24), seed=s.seed)
        writers = bench.lm.writers(s.components)
        fit = Fit(bench.lm, writers, bench.edit(self.start.parameters), examples, objective, options)
        state = self.parameters.file.with_suffix(".state")
        if state.is_file():
            fit.resume(torch.load(state, weights_only=True))
        progress.start(f"Fitting the edit of trial {self.start.index}", options.steps - fit.step)
        while fit.step < options.steps:
            for _ in fit.run(SAVED_EVERY):
                progress.advance()
            buffer = io.BytesIO()
            torch.save(fit.state(), buffer)
            write_whole(state, buffer.getvalue())
        first, last = fit.curve[0], fit.curve[-1]
        terms = (f"{name} {first[name]:.4f} → {last[name]:.4f}" for name in last if name != "loss")
        progress.note(f"Fitted in {fit.step} steps: {', '.join(terms)}; cosine to the start {fit.cosine():.2f}.")
        write_whole(self.parameters.file.with_suffix(".json"), json.dumps(fit.curve).encode())
        save_edit(fit.edit(), self.parameters.file)
        state.unlink()

    def _examples(self, progress: Progress) -> dict[Kind, Examples] | None:
        """Let the base model answer benign prompts, and the start the target prompts."""
        bench, s = self.bench, self.bench.settings
        benign, target = (
            random.Random(f"{s.seed}/{name}").sample(each.prompts, min(len(each), s.fit_examples))
            for name, each in (("benign", bench.prompts.benign), ("target", bench.prompts.target))
        )
        progress.start("Collecting responses to fit on", len(benign) + len(target))
        own = self._responses(Edit.nothing(), benign, BENIGN_TOKENS, progress)
        without = self._responses(bench.edit(self.start.parameters), target, TARGET_TOKENS + 8, progress)
        texts = [str(bench.lm.tokenizer.decode(tokens, skip_special_tokens=True)) for _, tokens in without]
        complied = [
            (prompt, tokens[:TARGET_TOKENS])
            for each, (prompt, tokens), text in zip(target, without, texts, strict=True)
            if len(tokens) >= SHORTEST and bench.rules.label(each.text, text) == "complied"
        ]
        kinds: dict[Kind, list[Example]] = {
            "benign": [Example(tuple(prompt), tuple(tokens)) for prompt, tokens in own if tokens],
            "target": [Example(tuple(prompt), tuple(tokens)) for prompt, tokens in complied],
        }
        if min(map(len, kinds.values())) < FEWEST:
            progress.note(
                f"Nothing is fitted: trial {self.start.index} gives {len(complied)} whole responses without the behaviour to "
                f"{len(target)} target prompts, and a fit needs {FEWEST}. More trials may find a stronger edit."
            )
            return None
        with unpacked(bench.lm.model):
            return {kind: Examples(bench.lm, examples, 32) for kind, examples in kinds.items()}

    def _responses(
        self, edit: Edit, prompts: Sequence[Prompt], length: int, progress: Progress
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of every prompt and of the response to it."""
        bench, s = self.bench, self.bench.settings
        ids = bench.lm.encode(prompts)
        live = LiveEdits(bench.lm.writers(s.components), [edit], [0] * len(ids)) if edit.sites else None
        rows = Rows(affordable_rows(bench.lm, max(map(len, ids)) + length, s.batch_size, s.max_batch_size))
        responses = rows.adaptively(lambda n: decode(bench.lm, ids, length, n, live, advance=progress.advance))
        return list(zip(ids, responses, strict=True))
