"""What an export says of itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field

from iconoclast.documents import UNLESS_EMPTY, UNLESS_NONE, Document, Part, require_known_schema
from iconoclast.edits.approximation import Approximation
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.capabilities import Capabilities
from iconoclast.evaluation.metrics import Metrics
from iconoclast.layout import TRIAL_INFORMATION
from iconoclast.runs.documents.manifest import PromptSets
from iconoclast.runs.documents.trials import TrialDocument
from iconoclast.scores import Scores
from iconoclast.version import __version__
from iconoclast.vocabulary import ExaminedSplit, ExportFormat, Quantization, RowNormalization


class DirectionOrigin(Part):
    """Which directions an export of a quantised run uses: those found in the run, or those of the full weights.

    Attributes:
        found_in: quantisation of the run.
        kept: why the run's directions were used; empty if they were estimated again on the full weights.
        cosines: cosine of the run's and the used direction, by layer; empty if they were not estimated again.
    """

    found_in: Quantization
    kept: str = ""
    cosines: list[float] = Field(default=[])

    def __str__(self) -> str:
        """Say it in a sentence."""
        if self.kept:
            return f"The directions are those found in the run's {self.found_in} weights: {self.kept}."
        seen = [each for each in self.cosines if each]  # zero where a layer does not see the prompts
        span = f"{min(seen, default=0):.2f} to {max(seen, default=0):.2f}"
        return (
            f"The run searched in {self.found_in} weights. The directions used here were estimated again on the full weights; "
            f"by layer, their cosine with the run's is {span}."
        )


class ComposedTrial(Part):
    """One of several edits that were exported together: its run and number, the trial, and the prompts of its behaviour."""

    name: str
    trial: TrialDocument
    row_normalization: RowNormalization
    prompts: PromptSets
    split: ExaminedSplit


class Together(Part):
    """Scores of every behaviour, each on its own prompts, under some of the edits, named by their places."""

    edits: list[int]
    scores: list[Scores]


class Composition(Part):
    """Edits one after the other, and how they interfere: none of them, each alone, each pair, all."""

    trials: list[ComposedTrial]
    together: list[Together]

    def named(self, edits: Sequence[int]) -> str:
        """Name some of the edits, for people."""
        return " + ".join(self.trials[i].name for i in edits) or "base model"

    @property
    def interference(self) -> list[str]:
        """Say, pair by pair, which behaviour's failures lie outside the intervals of what its edit does alone."""
        rows = {tuple(row.edits): row.scores for row in self.together}
        found = []
        for pair in [edits for edits in rows if len(edits) == 2]:
            for i in pair:
                alone, both = rows[(i,)][i].failures, rows[pair][i].failures
                if not (alone.near(both)):
                    other = self.trials[sum(pair) - i].name
                    found.append(
                        f"{self.trials[i].name}: {alone.with_interval} {rows[pair][i].failing} alone, "
                        f"{both.with_interval} with {other}"
                    )
        return found


class TrialInformation(Document):
    """trial_information.json of an export: the trial, what was measured of its export, versions.

    Attributes:
        trial: the exported trial.
        base_model: the base model, without the folders of a local path.
        format: adapter, merged or gguf.
        directions: which ones the export of a quantised run uses.
        measured_on: which prompts the scores below are of, in words.
        export_metrics: scores of the export itself; None if it was not measured.
        quantization: of the weights that base and live scores are of.
        approximations: error of every matrix's update, where it is not exact.
        remarks: what the files have otherwise than the base model, beside the edit.
        quants: scores of further quantised GGUF files, by their type, where they were measured dequantised.
        served: what was measured of GGUF files as llama.cpp's llama-server serves them, by their name.
        served_by: the version of llama-server.
        composed: the edits of several runs, if the export holds more than one; `trial` and the scores above are then of
            the first one's run and prompts, the scores with all edits.
        capabilities: what lm-eval has measured of the trial, applied live, if the user has had it measured.
    """

    what: ClassVar[str] = TRIAL_INFORMATION

    iconoclast_version: str = __version__
    trial: TrialDocument
    base_model: str
    format: ExportFormat
    quantization: Quantization = "none"
    directions: DirectionOrigin | None = UNLESS_NONE
    row_normalization: RowNormalization
    response_prefix: str
    packages: Mapping[str, str] = Field(default={})
    prompts: PromptSets = Field(default={})
    measured_on: str
    kl_noise_floor: float
    base_metrics: Scores
    live_metrics: Scores
    export_metrics: Scores | None
    approximation_error: float = 0.0
    approximations: list[Approximation] = Field(default=[])
    remarks: list[str] = Field(default=[], exclude_if=lambda value: not value)
    quants: Mapping[str, Scores] = UNLESS_EMPTY
    served: Mapping[str, Metrics] = UNLESS_EMPTY
    served_by: str = Field(default="", exclude_if=lambda value: not value)
    composed: Composition | None = UNLESS_NONE
    capabilities: Capabilities | None = UNLESS_NONE

    @classmethod
    def of(cls, export: Path) -> Self:
        """Read what stands in an export's folder; raise RunFolderError if it is none, or from a newer version."""
        file = export / TRIAL_INFORMATION
        try:
            content = json.loads(file.read_bytes())
            require_known_schema(file, content)
            return cls.model_validate(content)
        except (OSError, ValueError, RecursionError):
            raise RunFolderError(
                f"{export} is not an export: {TRIAL_INFORMATION} is missing or damaged. Give a folder that `iconoclast export` wrote."
            ) from None
