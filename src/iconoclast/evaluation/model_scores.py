"""Scores of a model itself that objectives and constraints name: KL over tokens, perplexity of a text, tasks of lm-eval."""

import difflib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import MeasurementError, SettingsError
from iconoclast.evaluation.base_responses import BaseResponses
from iconoclast.evaluation.benchmarks import BenchmarkOptions, evaluated, load_tasks
from iconoclast.evaluation.capabilities import Row, rows
from iconoclast.evaluation.examination import Variant
from iconoclast.evaluation.intervals import mean_interval
from iconoclast.evaluation.named import measure_of, measures, of_responses
from iconoclast.goals import BUILT_IN, JUDGED, NORMAL, PERPLEXITY, TOKEN_KL, Estimate, short
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.reading import continuation_logits
from iconoclast.progress import Progress, Silent
from iconoclast.vocabulary import Component

WINDOW = 256
"""Tokens of a text that are read together; the first of them is only read."""

WINDOWS = 32
"""Windows of a text that are read, at most."""

_TASK = re.compile(r"(?P<task>[^:\[\]]+)(:(?P<metric>\w+))?(\[:(?P<limit>[1-9]\d*)\])?")


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task of lm-eval: TASK, TASK:METRIC, TASK[:LIMIT] or TASK:METRIC[:LIMIT]; a task can be a file.

    Attributes:
        metric: unset, acc, or the task's first one if it has no acc.
        limit: so many items of it; unset, all.
    """

    task: str
    metric: str | None
    limit: int | None

    @classmethod
    def parse(cls, name: str) -> "TaskScore | None":
        """Read a name; None if it cannot be one of a task."""
        found = _TASK.fullmatch(name)
        return found and cls(found["task"], found["metric"], int(found["limit"]) if found["limit"] else None)

    @property
    def options(self) -> BenchmarkOptions:
        """Options with which lm-eval is asked for it."""
        return BenchmarkOptions([self.task], limit=self.limit)

    def of(self, results: Sequence[Row]) -> Estimate | None:
        """Find it among what lm-eval has measured of the task."""
        named = any(row.task == self.task for row in results)
        task = self.task if named or not results else results[0].task  # a file holds the task's name
        own = {row.metric: row.edited for row in results if row.task == task}
        figure = own.get(self.metric or ("acc" if "acc" in own else next(iter(own), "")))
        if figure is None or figure.value is None:
            return None
        half = None if figure.stderr is None else NORMAL * figure.stderr
        return Estimate(figure.value, None if half is None else (figure.value - half, figure.value + half))


def require_scores(names: Sequence[str]) -> None:
    """Find every score before a model is loaded.

    Raises:
        UserError: there is no such score, its file cannot be used, or two of them would go by the same name.
    """
    for name in names:
        if of_responses(name):
            measure_of(name)
        elif name.startswith(PERPLEXITY):
            text_of(name)
        elif name not in (TOKEN_KL, JUDGED):
            task_of(name)
    if twice := [name for name in names if [short(other) for other in names].count(short(name)) > 1]:
        raise SettingsError(f"{' and '.join(twice)} would both be called {short(twice[0])}. Rename one of them.")


def text_of(name: str) -> str:
    """Read the text of a perplexity; raise SettingsError if it cannot be read or is empty."""
    file = Path(name.removeprefix(PERPLEXITY)).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SettingsError(f"{name}: {file} cannot be read: {reason}. Give a text as {PERPLEXITY}FILE.") from None
    if len(text.split()) < 2:
        raise SettingsError(f"{name}: {file} holds no text.")
    return text


@cache
def task_of(name: str) -> tuple[TaskScore, Any]:
    """Return a task of lm-eval with its data; raise SettingsError or BenchmarkError if there is none of that name."""
    wanted, there = TaskScore.parse(name), importlib.util.find_spec("lm_eval") is not None
    known = _known_tasks() if there else []
    if wanted is None or not there or (wanted.task not in known and not Path(wanted.task).is_file()):
        ours = [*BUILT_IN, "kl", TOKEN_KL, JUDGED, *measures]
        near = difflib.get_close_matches(name if wanted is None else wanted.task, [*ours, *known], 1)
        raise SettingsError(
            f'There is no score "{name}".{f" Did you mean {near[0]}?" if near else ""} Use one of {", ".join(ours)}, '
            f"{PERPLEXITY}FILE, FILE.py:name, or a task of lm-eval as arc_easy[:100]"
            + ("." if there else " (pip install 'iconoclast-edit[benchmark]').")
        )
    tasks = load_tasks(wanted.options)
    if wanted.metric is not None and len(tasks["tasks"]) == 1:
        metrics = list(next(iter(tasks["tasks"].values())).higher_is_better())
        if wanted.metric not in metrics:
            raise SettingsError(f'{name}: the task has no metric "{wanted.metric}", but {", ".join(metrics)}.')
    return wanted, tasks


@cache
def _known_tasks() -> list[str]:
    from lm_eval.tasks import TaskManager

    return list(TaskManager().task_index)


@dataclass
class ModelScores:
    """A measurer of such scores of edits.

    Attributes:
        lm: the base model.
        benign: token ids of the benign prompts.
        names: the scores.
        length: tokens of the base model's responses that are read.
        limits: sequences per forward pass, and the most of them if that is 0.
        components: residual writers that edits may touch.
    """

    lm: LanguageModel
    benign: Sequence[list[int]]
    names: Sequence[str]
    length: int
    limits: tuple[int, int]
    components: Sequence[Component]

    def measure(self, edits: Sequence[Edit], progress: Progress | None = None) -> list[dict[str, Estimate | None]]:
        """Return the scores of every edit by their short names; None where one could not be measured."""
        progress = progress or Silent()
        variants = [self._variant(edit) for edit in edits]
        found: list[dict[str, Estimate | None]] = [{} for _ in edits]
        for name in self.names:
            if name == TOKEN_KL:
                values: Sequence[Estimate | None] = self._token_kl(variants, progress)
            elif name.startswith(PERPLEXITY):
                values = [self._perplexity(name, variant) for variant in variants]
            else:
                values = [_of_task(name, variant) for variant in variants]
            for scores, value in zip(found, values, strict=True):
                scores[short(name)] = value
        return found

    def _variant(self, edit: Edit) -> Variant:
        writers = self.lm.writers(self.components)
        return Variant("edit", self.lm, LiveEdits(writers, [edit]).applied if edit.sites else nullcontext)

    def _rows(self, tokens: int) -> Rows:
        return Rows(affordable_rows(self.lm, tokens, *self.limits))

    @cached_property
    def _along(self) -> BaseResponses:
        longest = max(map(len, self.benign)) + self.length
        return BaseResponses(Variant("base model", self.lm), self.benign, self.length, self._rows(longest))

    def _token_kl(self, variants: Sequence[Variant], progress: Progress) -> list[Estimate | None]:
        means = [mean_interval(read.divergences) for read in self._along.read(variants, progress)]
        return [Estimate(mean.value, mean.interval) for mean in means]

    @cached_property
    def _windows(self) -> Mapping[str, list[list[int]]]:
        texts = {name: text_of(name) for name in self.names if name.startswith(PERPLEXITY)}
        width = min(WINDOW, self.lm.context or WINDOW)
        found = {}
        for name, text in texts.items():
            ids = self.lm.tokenizer.encode(text[: 64 * WINDOW * WINDOWS])[: width * WINDOWS]
            windows = [ids[start : start + width] for start in range(0, len(ids), width)]
            found[name] = [window for window in windows if len(window) > 1]
        return found

    def _perplexity(self, name: str, variant: Variant) -> Estimate | None:
        """Return exp of the mean negative log-likelihood of a text's tokens, with the interval over its windows."""
        losses: dict[int, tuple[float, int]] = {}
        windows = self._windows[name]

        def run(rows: int) -> None:
            for start in range(0, len(windows), min(rows, 8)):
                some = windows[start : start + min(rows, 8)]
                with variant.applied():
                    logits = continuation_logits(variant.lm, [ids[:1] for ids in some], [ids[1:] for ids in some])
                for row, (ids, own) in enumerate(
                    zip(some, torch.split(logits, [len(ids) - 1 for ids in some]), strict=True)
                ):
                    logprobs = own.float().log_softmax(-1)
                    said = logprobs.gather(-1, torch.tensor(ids[1:], device=logprobs.device)[:, None])
                    losses[start + row] = -float(said.mean()), len(ids) - 1

        self._rows(WINDOW).adaptively(run)
        whole = sum(loss * n for loss, n in losses.values()) / sum(n for _, n in losses.values())
        if not math.isfinite(whole):
            return None
        spread = mean_interval([loss for loss, _ in losses.values()])
        low, high = (math.exp(min(whole + end - spread.value, 700)) for end in spread.interval)
        return Estimate(math.exp(min(whole, 700)), (low, high) if spread.n > 1 else None)


def _of_task(name: str, variant: Variant) -> Estimate | None:
    """Ask lm-eval; what it cannot measure is unknown."""
    wanted, tasks = task_of(name)
    try:
        with variant.applied():
            return wanted.of(rows(evaluated(name, nullcontext(variant.lm), tasks, wanted.options, Silent())))
    except MeasurementError:
        return None
