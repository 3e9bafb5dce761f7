"""The report of a run: its best trial and its base model, examined once on prompts that chose nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from torch import Tensor

from iconoclast.config.layers import secret
from iconoclast.config.schema import Settings
from iconoclast.directions.estimators import Directions
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.examination import Control, Examination, Sample, Variant, paired
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.judges.cache import CachedJudge
from iconoclast.evaluation.judges.chat import ChatJudge
from iconoclast.evaluation.judges.classifier import ClassifierJudge
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.files import write_whole
from iconoclast.models.language_model import LanguageModel
from iconoclast.privacy import portable
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.runs.splits import Prompts
from iconoclast.search.pareto import Trial

COPIES_OF_SEED = 1000
"""Seeds of random controls are seed · this + number, so that runs of neighbouring seeds share none."""


def rules_of(settings: Settings) -> ResponseRules:
    """The rules by which the settings read responses."""
    return ResponseRules(settings.refusal_markers, settings.disclaimer_markers, settings.soft_refusal_markers)


def options_of(settings: Settings) -> MeasureOptions:
    """Lengths and batch widths of the settings."""
    return MeasureOptions(
        settings.max_response_length,
        settings.max_benign_response_length,
        settings.batch_size,
        settings.max_batch_size,
        settings.weights_of_axes,
    )


def evaluator_of(
    settings: Settings, lm: LanguageModel, target: PromptSet, benign: PromptSet, reference: Tensor | None = None
) -> Evaluator:
    """The evaluator that the settings describe."""
    return Evaluator(lm, target, benign, rules_of(settings), options_of(settings), settings.components, reference)


def judges_of(settings: Settings) -> list[Judge]:
    """The judges that the settings name; what they said before is taken from the user's cache.

    Raises:
        UserError: a judge cannot be used.
    """
    judges: list[Judge] = []
    if settings.judge_classifier is not None:
        c = settings.judge_classifier
        judges.append(ClassifierJudge(c.model, c.refusal_labels, c.pair))
    if settings.judge_chat is not None:
        chat = settings.judge_chat
        key = secret(chat.api_key_variable) if chat.api_key_variable else None
        judges.append(ChatJudge(chat.url, chat.model, key, chat.concurrency, chat.timeout))
    return [CachedJudge(judge, user_cache_path("iconoclast") / "verdicts.sqlite") for judge in judges]


def sample_of(prompts: Prompts) -> Sample:
    """The prompts that are reported on: the report prompts, or the selection prompts if there are none."""
    if prompts.target_report is not None and prompts.benign_report is not None:
        return Sample(prompts.target_report, prompts.benign_report, prompts.borderline_report, "report")
    return Sample(prompts.target_evaluation, prompts.benign_evaluation, prompts.borderline_report, "selection")


def examiner_of(settings: Settings, base: Variant, sample: Sample, judges: Sequence[Judge]) -> Examiner:
    """The examiner that the settings describe."""
    return Examiner(base, sample, rules_of(settings), options_of(settings), judges)


def measured_with(settings: Settings) -> dict[str, Any]:
    """The settings that a report depends on and a trial does not: when they change, the report is measured again."""
    names = {"random_controls", "judge_classifier", "judge_chat"}
    document: dict[str, Any] = portable(settings.model_dump(mode="json", include=names))
    return document


def report(
    settings: Settings,
    lm: LanguageModel,
    prompts: Prompts,
    directions: Directions,
    best: Trial,
    judges: Sequence[Judge],
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What batch_summary.json says under `report`, and the responses, prompt by prompt."""
    sample = sample_of(prompts)
    writers = lm.writers(settings.components)
    edit = best.parameters.edit(directions, writers, settings.row_normalization)
    examiner = examiner_of(settings, Variant("base model", lm), sample, judges)
    base = examiner.examined_base(progress)
    live = Variant(f"trial {best.index}", lm, LiveEdits(writers, [edit]).applied)
    edited = examiner.examine(live, progress)
    document = {
        "trial": best.index,
        "split": sample.split,
        "overlap": prompts.overlaps(with_report=True),
        "measured_with": measured_with(settings),
        "base_metrics": base.document(),
        "metrics": edited.document(),
        "paired": paired(base, edited),
    }
    if settings.random_controls:
        control = _control(settings, lm, sample, directions, best, (base, edited), progress)
        document["random_control"] = control.document()
    return document, list(samples([base, edited]))


def _control(
    settings: Settings,
    lm: LanguageModel,
    sample: Sample,
    directions: Directions,
    best: Trial,
    examined: tuple[Examination, Examination],
    progress: Progress,
) -> Control:
    """What random directions do at the strengths of the best trial."""
    writers = lm.writers(settings.components)
    seeds = [settings.seed * COPIES_OF_SEED + number for number in range(settings.random_controls)]
    edits = [best.parameters.edit(directions.randomized(seed), writers, settings.row_normalization) for seed in seeds]
    evaluator = evaluator_of(settings, lm, sample.target, sample.benign)
    base, edited = (examination.scores for examination in examined)
    return Control.of(base, edited, evaluator.measure(edits, progress))


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
