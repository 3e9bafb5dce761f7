"""The report of a run: its best trial and its base model, examined once on prompts that chose nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from iconoclast.config.schema import Settings
from iconoclast.evaluation.examination import Control, Examination, paired
from iconoclast.evaluation.judges import chat, classifier  # noqa: F401 - they register themselves
from iconoclast.evaluation.judges.cache import CachedJudge
from iconoclast.evaluation.judges.protocol import Judge, judges
from iconoclast.files import write_whole
from iconoclast.privacy import portable
from iconoclast.progress import Progress
from iconoclast.runs.workbench import Workbench
from iconoclast.search.pareto import Trial

COPIES_OF_SEED = 1000
"""Seeds of random controls are seed · this + number, so that runs of neighbouring seeds share none."""


def judges_of(settings: Settings) -> list[Judge]:
    """The judges that the settings name; what they said before is taken from the user's cache.

    Raises:
        UserError: a judge cannot be used.
    """
    own = {"classifier": settings.judge_classifier, "chat": settings.judge_chat}
    names = dict.fromkeys([*(name for name, asked in own.items() if asked), *settings.judges])
    made = [judges.get(name)(settings) for name in names]
    return [CachedJudge(judge, user_cache_path("iconoclast") / "verdicts.sqlite") for judge in made]


def measured_with(settings: Settings) -> dict[str, Any]:
    """The settings that a report depends on and a trial does not: when they change, the report is measured again."""
    names = {"random_controls", "judge_classifier", "judge_chat"}
    if settings.judges:  # the setting is younger than reports that are valid still
        names.add("judges")
    document: dict[str, Any] = portable(settings.model_dump(mode="json", include=names))
    return document


def report(
    bench: Workbench, best: Trial, judges: Sequence[Judge], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Examine the base model and the best trial: what batch_summary.json says under `report`, and the responses."""
    examiner = bench.examiner(judges)
    base = examiner.examined_base(progress)
    edited = examiner.examine(bench.live(f"trial {best.index}", bench.edit(best.parameters)), progress)
    document = {
        "trial": best.index,
        "split": bench.sample.split,
        "overlap": bench.prompts.overlaps(with_report=True),
        "measured_with": measured_with(bench.settings),
        "base_metrics": base.document(),
        "metrics": edited.document(),
        "paired": paired(base, edited),
    }
    if bench.settings.random_controls:
        document["random_control"] = _control(bench, best, (base, edited), progress).document()
    return document, list(samples([base, edited]))


def _control(bench: Workbench, best: Trial, examined: tuple[Examination, Examination], progress: Progress) -> Control:
    """Measure what random directions do at the strengths of the best trial."""
    assert bench.directions is not None
    first = bench.settings.seed * COPIES_OF_SEED
    random = map(bench.directions.randomized, range(first, first + bench.settings.random_controls))
    edits = [bench.edit(best.parameters, directions) for directions in random]
    base, edited = (examination.scores for examination in examined)
    return Control.of(base, edited, bench.evaluator("report").measure(edits, progress))


def samples(examinations: list[Examination]) -> Iterator[dict[str, Any]]:
    """Every prompt with the responses of all models, for JSON lines."""
    for name in ("target", "benign", "borderline"):
        for answers in zip(*(getattr(e, name) for e in examinations), strict=True):
            yield {
                "set": name,
                "prompt": answers[0].prompt,
                "responses": {
                    e.name: {
                        "response": a.response,
                        "label": a.label,
                        **({"judged": dict(a.judged)} if a.judged else {}),
                    }
                    for e, a in zip(examinations, answers, strict=True)
                },
            }


def write_samples(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write responses as JSON lines."""
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
