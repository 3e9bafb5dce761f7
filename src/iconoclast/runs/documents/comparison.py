"""Models beside their base and beside one another."""

from typing import ClassVar, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from iconoclast.documents import UNLESS_NONE, Document, Part, Plain, Value
from iconoclast.evaluation.metrics import MeanOverTokens, Metrics, Paired
from iconoclast.runs.documents.manifest import PromptSets
from iconoclast.runs.documents.report import Sample
from iconoclast.runs.documents.trials import TrialDocument
from iconoclast.scores import Count, Mean
from iconoclast.version import __version__
from iconoclast.vocabulary import Criterion, ExaminedSplit


@dataclass(frozen=True)
class Seen(Value):
    """Counts of the prompts that a model is examined on and that have fitted or chosen it, or why that is not known. They flatter it."""

    target: int = 0
    benign: int = 0
    unknown: str | None = None

    def said(self, name: str) -> str:
        """Say what it means for the figures of a model of that name; empty if nothing of it was seen."""
        if self.unknown:
            return f"{name}: whether these prompts have fitted or chosen it is not known ({self.unknown})."
        if self.target or self.benign:
            seen = f"{self.target} of the target prompts and {self.benign} of the benign ones"
            return f"{name} was fitted or chosen on {seen}: its figures flatter."
        return ""


class Decision(Part):
    """The better of two models, the criterion in which they differ first, and the p-value of that difference."""

    better: str | None = None
    decided_by: Criterion | None = None
    p_value: float | None = None


class Pair(Part):
    """Two models beside each other."""

    first: str
    second: str
    verdict: Decision
    paired: Paired


class Compared(Part):
    """What a compared model is; other tools say more of theirs (`caveats`, for one)."""

    model_config = ConfigDict(extra="allow")

    name: str
    tool: str | None
    trial: TrialDocument | Plain | None = UNLESS_NONE
    format: str | None = UNLESS_NONE
    caveats: list[str] | None = UNLESS_NONE
    seen: Seen


class ComparedModel(Compared):
    """A model that is compared, with everything that was measured."""

    metrics: Metrics
    against_base: Paired


class BesideBase(Document):
    """What a base model was, on which prompts, and how it was measured."""

    iconoclast_version: str = __version__
    model: str
    split: ExaminedSplit
    prompts: PromptSets
    kl_noise_floor: float
    base_metrics: Metrics


class ComparisonDocument(BesideBase):
    """comparison.json: models beside their base and beside one another."""

    what: ClassVar[str] = "comparison"

    subjects: list[ComparedModel]
    ranking: list[str]
    pairs: list[Pair]
    samples: list[Sample] = Field(default=[])


class Evaluation(BesideBase):
    """What `evaluate --json` writes: one model beside its base, perhaps once more with thoughts."""

    what: ClassVar[str] = "file of `iconoclast evaluate --json`"
    remedy: ClassVar[str] = "Measure again."

    subject: ComparedModel
    with_thoughts: "Evaluation | None" = UNLESS_NONE

    @classmethod
    def of(cls, compared: ComparisonDocument) -> Self:
        """Return what a comparison of one model says."""
        (subject,) = compared.subjects
        shared = {name: getattr(compared, name) for name in BesideBase.model_fields}
        return cls(**shared, subject=subject)


class MainFigures(Part):
    """The metrics that a summary names."""

    refusals: Count
    broken: Count
    overrefusals: Count
    first_token_kl: Mean
    token_kl: MeanOverTokens

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        """Take the main figures from all."""
        return cls(**{name: getattr(metrics, name) for name in cls.model_fields})


class Verdict(Decision):
    """The better of two models, by name."""

    first: str
    second: str


class SummarizedModel(Compared):
    """A model that is compared, with its main figures."""

    measured_here: MainFigures

    @classmethod
    def of(cls, compared: ComparedModel) -> Self:
        """Take the main figures of a compared model."""
        about = {name: value for name, value in compared if name not in ("metrics", "against_base")}
        return cls(**about, measured_here=MainFigures.of(compared.metrics))


class ComparisonSummary(Document):
    """summary.json: trials and verdicts of a comparison."""

    what: ClassVar[str] = "summary of a comparison"

    model: str
    about: str = (
        "A trial's own scores are of the prompts that chose it; quote what was measured here, on the split named here."
    )
    split: ExaminedSplit
    base: MainFigures
    ranking: list[str]
    verdicts: list[Verdict]
    subjects: list[SummarizedModel]

    @classmethod
    def of(cls, compared: ComparisonDocument) -> Self:
        """Return the summary of a comparison."""
        return cls(
            model=compared.model,
            split=compared.split,
            base=MainFigures.of(compared.base_metrics),
            ranking=compared.ranking,
            verdicts=[Verdict(first=pair.first, second=pair.second, **dict(pair.verdict)) for pair in compared.pairs],
            subjects=[SummarizedModel.of(each) for each in compared.subjects],
        )
