"""Edited models beside their base and beside one another, on the same prompts, with paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from iconoclast.config.schema import Settings
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.evaluation.examination import Examination, ExaminedPrompts, paired
from iconoclast.layout import SCHEMA_VERSION
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.runs.report import judges_of, samples
from iconoclast.runs.splits import Prompts
from iconoclast.runs.subjects import PeerSubject, RunSubject, Subject
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import decided
from iconoclast.version import __version__


@dataclass(frozen=True)
class Seen:
    """How many of the prompts that a model is examined on have fitted or chosen it. They flatter it.

    Attributes:
        target: of the target prompts.
        benign: of the benign prompts.
        unknown: why that is not known.
    """

    target: int = 0
    benign: int = 0
    unknown: str | None = None

    @classmethod
    def of(cls, subject: Subject, sample: ExaminedPrompts, prompts: Prompts) -> "Seen":
        """What a subject has seen of a sample of the prompts."""
        try:
            sets = subject.seen(prompts)
        except PromptsError as error:
            return cls(unknown=str(error).rstrip("."))
        if sets is None:
            return cls(unknown="its files do not say, or its prompts are others now")
        theirs = PromptSet(tuple(prompt for each in sets for prompt in each), "what it has seen")
        return cls(sample.target.overlap(theirs), sample.benign.overlap(theirs))


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        base_name: the base model.
        sample: the prompts.
        prompts: what the prompt sets are, for JSON.
        noise_floor: KL in nats under which two models are equal.
        base: the base model.
        subjects: what was compared with it.
        examinations: of the subjects, in their order.
        seen: which of the prompts fitted or chose each of the subjects, in their order.
    """

    base_name: str
    sample: ExaminedPrompts
    prompts: Mapping[str, Any]
    noise_floor: float
    base: Examination
    subjects: Sequence[Subject]
    examinations: Sequence[Examination]
    seen: Sequence[Seen]

    def ranking(self) -> list[Examination]:
        """The subjects, best first: fewer failures, then fewer overrefusals, then lower first-token KL."""
        return sorted(self.examinations, key=lambda e: e.scores.key)

    def _pair(self, a: Examination, b: Examination) -> dict[str, Any]:
        tests, found = paired(a, b), verdict(a, b, self.noise_floor)
        by = {"kl_divergence": "first_token_kl"}.get(found["decided_by"], found["decided_by"])
        found["p_value"] = None if by is None else tests[by]["p_value"]
        return {"first": a.name, "second": b.name, "verdict": found, "paired": tests}

    def document(self) -> dict[str, Any]:
        """comparison.json, without samples."""
        return {
            "schema_version": SCHEMA_VERSION,
            "iconoclast_version": __version__,
            "model": self.base_name,
            "split": self.sample.split,
            "prompts": self.prompts,
            "kl_noise_floor": self.noise_floor,
            "base_metrics": self.base.document(),
            "subjects": [
                {
                    "name": examination.name,
                    **subject.document(),
                    "seen": asdict(seen),
                    "metrics": examination.document(),
                    "against_base": paired(self.base, examination),
                }
                for subject, examination, seen in zip(self.subjects, self.examinations, self.seen, strict=True)
            ],
            "ranking": [examination.name for examination in self.ranking()],
            "pairs": [self._pair(a, b) for a, b in combinations(self.examinations, 2)],
        }

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Responses side by side, `count` of every kind of prompt, the first ones."""
        rows = list(samples([self.base, *self.examinations]))
        return [
            row for kind in ("target", "benign", "borderline") for row in [r for r in rows if r["set"] == kind][:count]
        ]


def verdict(first: Examination, second: Examination, noise_floor: float) -> dict[str, Any]:
    """Who is better in the order (failures, overrefusals, first-token KL), and what decided; KL closer than noise is equal."""
    criterion = decided(first.scores.key, second.scores.key, noise_floor)
    if criterion is None:
        return {"better": None, "decided_by": None}
    better = min(first, second, key=lambda examination: examination.scores.key)
    return {"better": better.name, "decided_by": criterion}


def settings_for(subjects: Sequence[Subject]) -> Settings:
    """The settings of the first run or journal of another tool among the subjects: its base model and its prompts.

    A folder can be a stranger's: it has no say in whether a model's code is run, or in where responses and keys are sent.

    Raises:
        SettingsError: there is none.
    """
    for subject in subjects:
        if isinstance(subject, RunSubject):
            own: dict[str, Any] = {"response_prefix": subject.saved.response_prefix}
            harmless = {"judge_chat": None, "judges": [], "trust_remote_code": False}
            return subject.saved.settings.model_copy(update=own | harmless)
    for subject in subjects:
        if isinstance(subject, PeerSubject):
            return subject.trial.settings()
    raise SettingsError("The prompts are not known: give a settings file with --config.")


def compare(
    subjects: Sequence[Subject], settings: Settings, against: str | None = None, progress: Progress | None = None
) -> Comparison:
    """Examine the subjects and their base model on the report prompts of the settings, or else the selection prompts.

    Args:
        subjects: what is compared.
        settings: prompts, markers, lengths, judges.
        against: the base model; unset, the one that the settings name.
        progress: told what goes on.

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
    prompts = Prompts.load(settings)
    judges = judges_of(settings)
    with Workbench.open(settings, against, progress=progress) as bench:
        bench.use(prompts)
        bench.find_response_prefix(progress)
        bench.require_room()
        seen = [Seen.of(subject, bench.sample, prompts) for subject in subjects]
        examiner = bench.examiner(judges)
        base = examiner.examined_base(progress)
        examinations = []
        for subject in subjects:
            progress.start(f"Loading {subject.name}", 0)
            with subject.opened(bench.lm, settings) as variant, bench.beside(variant.lm):
                examinations.append(examiner.examine(variant, progress))
                del variant  # or it would stay in memory while the next one is loaded
        noise = bench.evaluator("report").noise_floor()
    name = against or settings.model or ""
    return Comparison(name, bench.sample, prompts.document(), noise, base, subjects, examinations, seen)
