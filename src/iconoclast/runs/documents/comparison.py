"""Models beside their base and beside one another."""

from typing import ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from iconoclast.documents import UNLESS_NONE, Document, Part, Plain, Value
from iconoclast.evaluation.metrics import Metrics, Paired
from iconoclast.runs.documents.manifest import PromptSets
from iconoclast.runs.documents.report import Sample
from iconoclast.runs.documents.trials import TrialDocument
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


class ComparedModel(Part):
    """A model that is compared; other tools say more of theirs (`caveats`, for one)."""

    model_config = ConfigDict(extra="allow")

    name: str
    tool: str | None
    trial: TrialDocument | Plain | None = UNLESS_NONE
    format: str | None = UNLESS_NONE
    caveats: list[str] | None = UNLESS_NONE
    seen: Seen
    metrics: Metrics
    against_base: Paired


class ComparisonDocument(Document):
    """comparison.json: models beside their base and beside one another."""

    what: ClassVar[str] = "comparison"

    iconoclast_version: str = __version__
    model: str
    split: ExaminedSplit
    prompts: PromptSets
    kl_noise_floor: float
    base_metrics: Metrics
    subjects: list[ComparedModel]
    ranking: list[str]
    pairs: list[Pair]
    samples: list[Sample] = Field(default=[])
