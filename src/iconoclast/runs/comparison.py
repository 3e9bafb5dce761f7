"""Edited models beside their base and beside one another, on the same prompts, with paired tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from iconoclast.config.schema import Settings
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.evaluation.examination import Examination, ExaminedPrompts, paired
from iconoclast.evaluation.examiner import Examiner
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.runs.documents import SETS, ComparedModel, ComparisonDocument, Decision, Pair, PromptSets, Sample, Seen
from iconoclast.runs.judging import cost, judges_of
from iconoclast.runs.report import samples
from iconoclast.runs.splits import Prompts
from iconoclast.runs.subjects import Opened, Subject
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import decided

Ask = Callable[[Opened, Examiner, Workbench], None]
"""What asks a subject more than it is examined for."""


@dataclass(frozen=True)
class Comparison:
    """Subjects beside their base model, on the same prompts.

    Attributes:
        prompts: the prompt sets, for JSON.
        noise_floor: KL in nats under which two models are equal.
        examinations: of the subjects, in their order.
        seen: per subject, how many of the prompts fitted or chose it.
    """

    base_name: str
    sample: ExaminedPrompts
    prompts: PromptSets
    noise_floor: float
    base: Examination
    subjects: Sequence[Subject]
    examinations: Sequence[Examination]
    seen: Sequence[Seen]

    def ranking(self) -> list[Examination]:
        """Return the subjects, best first: fewer failures, then fewer overrefusals, then lower first-token KL."""
        return sorted(self.examinations, key=lambda e: e.scores.key)

    def _pair(self, a: Examination, b: Examination) -> Pair:
        tests, found = paired(a, b), verdict(a, b, self.noise_floor)
        by = {"kl_divergence": "first_token_kl"}.get(found.decided_by or "", found.decided_by)
        p_value = None if by is None else getattr(tests, by).p_value
        return Pair(first=a.name, second=b.name, verdict=found.model_copy(update={"p_value": p_value}), paired=tests)

    def document(self, sample_count: int = 0) -> ComparisonDocument:
        """Return comparison.json, with `sample_count` responses to every kind of prompt."""
        return ComparisonDocument(
            model=self.base_name,
            split=self.sample.split,
            prompts=self.prompts,
            kl_noise_floor=self.noise_floor,
            base_metrics=self.base.metrics(),
            subjects=[
                ComparedModel(
                    name=examination.name,
                    **subject.document(self.base_name),
                    seen=seen,
                    metrics=examination.metrics(),
                    against_base=paired(self.base, examination),
                )
                for subject, examination, seen in zip(self.subjects, self.examinations, self.seen, strict=True)
            ],
            ranking=[examination.name for examination in self.ranking()],
            pairs=[self._pair(a, b) for a, b in combinations(self.examinations, 2)],
            samples=self.samples(sample_count),
        )

    def samples(self, count: int) -> list[Sample]:
        """Pair the responses to the first `count` prompts of every kind."""
        rows = samples([self.base, *self.examinations])
        return [row for kind in SETS for row in [r for r in rows if r.set == kind][:count]]


def seen_by(subject: Subject, sample: ExaminedPrompts, prompts: Prompts) -> Seen:
    """Count the sampled prompts that fitted or chose the subject."""
    try:
        sets = subject.seen(prompts)
    except PromptsError as error:
        return Seen(unknown=str(error).rstrip("."))
    if sets is None:
        return Seen(unknown="its files do not say, or its prompts are others now")
    theirs = PromptSet(tuple(prompt for each in sets for prompt in each), "what it has seen")
    return Seen(sample.target.overlap(theirs), sample.benign.overlap(theirs))


def verdict(first: Examination, second: Examination, noise_floor: float) -> Decision:
    """Decide who is better by (failures, overrefusals, first-token KL), and by which; KL within noise is equal."""
    criterion = decided(first.scores.key, second.scores.key, noise_floor)
    if criterion is None:
        return Decision()
    better = min(first, second, key=lambda examination: examination.scores.key)
    return Decision(better=better.name, decided_by=criterion)


def settings_for(subjects: Sequence[Subject]) -> Settings:
    """Return the settings of the first run, or else of the first other tool's journal, among the subjects.

    Raises:
        SettingsError: no subject says with what settings it was made.
    """
    for subject in sorted(subjects, key=lambda each: each.translated):
        if (settings := subject.settings()) is not None:
            return settings
    raise SettingsError("The prompts are not known: give a settings file with --config.")


def compare(
    subjects: Sequence[Subject],
    settings: Settings,
    against: str | None = None,
    progress: Progress | None = None,
    ask: Ask = lambda opened, examiner, bench: None,
) -> Comparison:
    """Examine the subjects and their base model on the report prompts, or on the select prompts if there are none.

    Args:
        against: the base model; unset, the one in the settings.
        ask: asks every subject more, before it is examined.

    Raises:
        UserError: a model, prompt set or judge cannot be used.
    """
    progress = progress or Silent()
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise SettingsError(
            f"Two subjects have the same name: {', '.join(names)}. Give every model once, in folders of different names."
        )
    if against is None and settings.model is None:
        raise SettingsError("No base model is named. Give it with --against, or set model in the settings file.")
    if settings.response_prefix is None and any(subject.served for subject in subjects):
        settings = settings.model_copy(update={"response_prefix": ""})  # no server can be told how to begin
    if settings.thinking == "on" and any(subject.served for subject in subjects):
        raise SettingsError("A served model is measured without thoughts. Set thinking to off.")
    prompts = Prompts.load(settings)
    judges, asked = judges_of(settings), prompts.reported
    sizes = len(asked.target) + len(asked.benign) + len(asked.borderline or ())
    for line in cost(judges, {f"of {1 + len(subjects)} models": (1 + len(subjects)) * sizes}):
        progress.note(line)
    with Workbench.open(settings, against, progress=progress) as bench:
        bench.use(prompts, judges=judges)
        bench.find_response_prefix(progress)
        bench.require_room()
        seen = [seen_by(subject, bench.sample, prompts) for subject in subjects]
        examiner = bench.examiner()
        base = examiner.examined_base(progress)
        examinations = [_examined(subject, examiner, bench, progress, ask) for subject in subjects]
        noise = bench.evaluator("report").noise_floor()
    name = against or settings.model or ""
    return Comparison(name, bench.sample, prompts.document(), noise, base, subjects, examinations, seen)


def _examined(subject: Subject, examiner: Examiner, bench: Workbench, progress: Progress, ask: Ask) -> Examination:
    """Open a subject, examine it and let it go: nothing may hold its model while the next one is loaded."""
    progress.start(f"Loading {subject.name}", 0)
    with subject.opened(examiner, bench, progress) as opened:
        ask(opened, examiner, bench)
        return opened.examine()
