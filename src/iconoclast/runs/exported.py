"""What an export is and measures, as it was made or as its folder says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iconoclast.documents import Plain
from iconoclast.edits.approximation import Approximation
from iconoclast.errors import RunFolderError
from iconoclast.layout import quant_file
from iconoclast.runs.as_served import AsServed
from iconoclast.runs.documents import Composition, DirectionOrigin, TrialInformation
from iconoclast.runs.drift import beyond_noise
from iconoclast.scores import Scores
from iconoclast.vocabulary import Quantization


@dataclass(frozen=True)
class Exported:
    """An export and its scores, all on the same prompts.

    Attributes:
        prompts: which prompts the scores are of.
        live: scores of the edit applied live, as in the search.
        exported: scores of the export loaded from its files; None if it was not measured.
        approximations: error of every update where row normalisation full was made low-rank.
        remarks: what the files have otherwise than the base model, beside the edit.
        problem: in what the export measures farther from the live edit than noise allows; empty if in nothing.
        quantization: of the weights that `base` and `live` are of.
        directions: which ones the export of a quantised run uses.
        quants: scores of the further quantised files, by their type, where they were measured dequantised.
        served: what was measured of files as llama.cpp serves them.
        composed: the edits, if they are of several runs, and how they interfere.
    """

    folder: Path
    prompts: str
    base: Scores
    live: Scores
    exported: Scores | None
    approximations: Sequence[Approximation]
    remarks: Sequence[str] = ()
    problem: str = ""
    quantization: Quantization = "none"
    directions: DirectionOrigin | None = None
    quants: Mapping[str, Scores] = field(default_factory=dict)
    served: AsServed = field(default_factory=AsServed)
    composed: Composition | None = None

    @property
    def swallowed(self) -> list[str]:
        """Files in which, by more than chance, less than half of what the edit removes is gone."""
        base, live = self.base.failures, self.live.failures
        return [
            file
            for file, scores in (self.dequantised | dict(self.served.metrics)).items()
            if 2 * (base.count - scores.failures.count) < base.count - live.count and not live.near(scores.failures)
        ]

    @property
    def dequantised(self) -> dict[str, Scores]:
        """Scores of further files that were measured dequantised, by their name."""
        return {quant_file(name): scores for name, scores in self.quants.items()}

    @property
    def approximation_error(self) -> float:
        """Largest relative error of a site's update; 0 where all are exact."""
        return max((each.error for each in self.approximations), default=0.0)

    @property
    def sufficient_rank(self) -> int:
        """Rank at which every update would have an error under 1 %."""
        return max((each.sufficient_rank for each in self.approximations), default=1)

    def document(self) -> Plain:
        """Return the export and its scores as plain data, for JSON."""
        return {
            "folder": str(self.folder),
            "prompts": self.prompts,
            "base_metrics": self.base.document(),
            "live_metrics": self.live.document(),
            "export_metrics": None if self.exported is None else self.exported.document(),
            "approximation_error": self.approximation_error,
            "remarks": list(self.remarks),
            "problem": self.problem,
            "quantization": self.quantization,
            "quants": {name: scores.document() for name, scores in self.quants.items()},
            "served": {name: metrics.document() for name, metrics in self.served.metrics.items()},
            "served_by": self.served.by,
            "swallowed": self.swallowed,
            **({} if self.composed is None else {"composed": self.composed.document()}),
        }


def read_export(folder: Path, trial: int) -> Exported | None:
    """Return what was measured of the export in `folder`; None unless it is an export of this trial."""
    try:
        known = TrialInformation.of(folder)
    except RunFolderError:
        return None
    if known.trial.index != trial or known.export_metrics is None:
        return None
    return Exported(
        folder=folder,
        prompts=known.measured_on,
        base=known.base_metrics,
        live=known.live_metrics,
        exported=known.export_metrics,
        approximations=known.approximations,
        remarks=known.remarks,
        problem=beyond_noise(known.live_metrics, known.export_metrics, known.kl_noise_floor, "bfloat16"),
        quantization=known.quantization,
        directions=known.directions,
        quants=known.quants,
        served=AsServed(known.served_by, known.served),
        composed=known.composed,
    )
