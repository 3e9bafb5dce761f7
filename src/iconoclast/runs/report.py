"""The report of a run: its best trial and its base model, examined once on prompts that chose nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iconoclast.config.schema import Settings
from iconoclast.constraints import violated
from iconoclast.documents import Plain
from iconoclast.evaluation.examination import Examination, paired
from iconoclast.evaluation.metrics import Metrics
from iconoclast.files import write_whole
from iconoclast.goals import TOKEN_KL
from iconoclast.privacy import portable
from iconoclast.progress import Progress
from iconoclast.runs.documents import SETS, AxisCarried, RandomControl, Report, Sample, SampledResponse, WithThoughts
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial

COPIES_OF_SEED = 1000
"""Seeds of random controls are seed · this + number, so that runs of neighbouring seeds share none."""


def measured_with(settings: Settings) -> Plain:
    """Return the settings on which a report depends but not a trial: when they change, the report is measured again."""
    names = {"random_controls", "judge_classifier", "judge_chat"}
    if settings.judges:  # the setting is younger than reports that are valid still
        names.add("judges")
    if settings.thinking != "off":
        names |= {"thinking", "max_thought_length"}
    document: Plain = portable(settings.model_dump(mode="json", include=names))
    return document


def report(bench: Workbench, best: Trial, progress: Progress, before: Scores) -> tuple[Report, list[Sample]]:
    """Examine the base model and the best trial; return the report and the responses behind it.

    Args:
        before: the base model's scores on the select prompts. Perplexities and tasks do not depend on prompts, so the
            search's own figures stand.
    """
    examiner = bench.examiner()
    base = examiner.examined_base(progress)
    edited = examiner.examine(bench.live(f"trial {best.index}", bench.edit(best.parameters)), progress)
    base_metrics, metrics = (
        _with_model_scores(examined.metrics(), known) for examined, known in ((base, before), (edited, best.scores))
    )
    thoughtful = _with_thoughts(bench, best, progress) if bench.settings.thinking == "both" else None
    measured = Report(
        trial=best.index,
        split=bench.sample.split,
        overlap=bench.prompts.overlaps(with_report=True),
        measured_with=measured_with(bench.settings),
        base_metrics=base_metrics,
        metrics=replace(metrics, violated=violated(bench.settings.constraints, metrics, base_metrics)),
        paired=paired(base, edited),
        rendering=bench.rendering(),
        random_control=_control(bench, best, (base, edited), progress),
        with_thoughts=thoughtful and thoughtful[0],
        axes=AxisCarried.of(base_metrics, metrics),
    )
    return measured, samples([base, edited, *(thoughtful[1] if thoughtful else ())])


def _with_thoughts(bench: Workbench, best: Trial, progress: Progress) -> tuple[WithThoughts, list[Examination]]:
    """Examine both again, thinking first."""
    own = bench.thoughtful(progress)
    examiner, edit = own.examiner(), own.edit(best.parameters)
    live = own.live(f"trial {best.index}, with thoughts", edit)
    found = [
        replace(examiner.examined_base(progress), name="base model, with thoughts"),
        examiner.examine(live, progress),
    ]
    metrics = [each.metrics() for each in found]
    prefix = own.lm.response_prefix
    return WithThoughts(
        response_prefix=prefix, base_metrics=metrics[0], metrics=metrics[1], paired=paired(*found)
    ), found


def _with_model_scores(metrics: Metrics, known: Scores) -> Metrics:
    """Add the scores of the model itself: KL over tokens as examined, others as the search has measured them."""
    own = {name: value for name, value in known.own.items() if name not in metrics.own}
    intervals = {name: interval for name, interval in known.intervals.items() if name in own}
    if TOKEN_KL in own:
        own[TOKEN_KL], intervals[TOKEN_KL] = metrics.token_kl.value, metrics.token_kl.interval
    return replace(metrics, own={**metrics.own, **own}, intervals={**metrics.intervals, **intervals})


def _control(
    bench: Workbench, best: Trial, examined: tuple[Examination, Examination], progress: Progress
) -> RandomControl | None:
    """Measure random directions at the best trial's strengths, if the settings ask for it."""
    if not bench.settings.random_controls:
        return None
    assert bench.directions is not None
    first = bench.settings.seed * COPIES_OF_SEED
    random = map(bench.directions.randomized, range(first, first + bench.settings.random_controls))
    edits = [bench.edit(best.parameters, directions) for directions in random]
    base, edited = (examination.scores for examination in examined)
    return RandomControl.of(base, edited, bench.evaluator("report").measure(edits, progress))


def samples(examinations: Sequence[Examination]) -> list[Sample]:
    """Pair every prompt with the responses of all models."""
    return [
        Sample(
            set=name,
            prompt=answers[0].prompt,
            responses={
                e.name: SampledResponse(
                    response=a.response,
                    label=a.label,
                    judged=a.judged,
                    thoughts=a.thought and a.thought.text,
                    label_of_thoughts=a.thought and a.thought.label,
                )
                for e, a in zip(examinations, answers, strict=True)
            },
        )
        for name in SETS
        for answers in zip(*(getattr(e, name) for e in examinations), strict=True)
    ]


def write_samples(file: Path, rows: Sequence[Sample]) -> None:
    """Write samples as JSON lines, in one step."""
    write_whole(file, "".join(json.dumps(row.document(), ensure_ascii=False) + "\n" for row in rows).encode())
