"""What runs, exports and comparisons write about themselves, as typed JSON, a module for each subject. No torch."""

import json
from pathlib import Path

from iconoclast.audit.document import AuditDocument
from iconoclast.documents import Document
from iconoclast.evaluation.capabilities import BenchmarkDocument
from iconoclast.layout import (
    AUDIT,
    BASELINE,
    COMPARISON,
    COMPARISON_SUMMARY,
    GEOMETRY,
    MANIFEST,
    SUMMARY,
    TOKENS,
    TRIAL_INFORMATION,
)
from iconoclast.runs.documents.comparison import (
    ComparedModel,
    ComparisonDocument,
    ComparisonSummary,
    Decision,
    Evaluation,
    Pair,
    Seen,
)
from iconoclast.runs.documents.export import ComposedTrial, Composition, DirectionOrigin, Together, TrialInformation
from iconoclast.runs.documents.figures import FirstToken, Geometry, ShownPrompt, TokenPrompt, TokenView
from iconoclast.runs.documents.manifest import Hardware, Manifest, ModelOrigin, Program, PromptSets, Rendering, Start
from iconoclast.runs.documents.report import (
    SETS,
    AxisCarried,
    RandomControl,
    Report,
    Sample,
    SampledResponse,
    SampledSet,
    WithThoughts,
)
from iconoclast.runs.documents.summary import Baseline, BatchSummary, Finalist, Finalists, Status
from iconoclast.runs.documents.trials import FitDocument, TrialDocument

__all__ = [
    "DOCUMENTS", "SETS", "AxisCarried", "Baseline", "BatchSummary", "ComparedModel", "ComparisonDocument",
    "ComparisonSummary", "ComposedTrial", "Composition", "Decision", "DirectionOrigin", "Evaluation", "Finalist", "Finalists", "FirstToken",
    "FitDocument", "Geometry", "Hardware", "Manifest", "ModelOrigin", "Pair", "Program", "PromptSets",
    "RandomControl", "Rendering", "Report", "Sample", "SampledResponse", "SampledSet", "Seen", "ShownPrompt",
    "Start", "Status", "Together", "TokenPrompt", "TokenView", "TrialDocument", "TrialInformation", "WithThoughts",
    "schemas",
]  # fmt: skip

DOCUMENTS: dict[str, type[Document]] = {
    AUDIT: AuditDocument,
    BASELINE: Baseline,
    "benchmark.json": BenchmarkDocument,
    COMPARISON: ComparisonDocument,
    COMPARISON_SUMMARY: ComparisonSummary,
    "evaluation.json": Evaluation,
    GEOMETRY: Geometry,
    MANIFEST: Manifest,
    SUMMARY: BatchSummary,
    TOKENS: TokenView,
    TRIAL_INFORMATION: TrialInformation,
}
"""File → what it holds; those of `benchmark --json` and `evaluate --json` have the name that the user gives."""


def schemas() -> dict[str, str]:
    """Return the JSON schema of every file of `DOCUMENTS`, as text: name of the schema's file → content."""
    return {
        f"{Path(name).stem}.schema.json": json.dumps(kind.model_json_schema(mode="serialization"), indent=2) + "\n"
        for name, kind in DOCUMENTS.items()
    }
