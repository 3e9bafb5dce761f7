"""Batch summaries of many runs, ours and a peer's, in tests."""

import json
from pathlib import Path
from typing import Any

from iconoclast.reports.summary import Summary
from iconoclast.scores import Count, Scores


def scores(refusals: int, overrefusals: int = 0, kl: float = 0.05, n: int = 20) -> dict[str, Any]:
    return Scores(Count(refusals, n), Count(overrefusals, 64), 0, 0.5, kl).document()


def document(best: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A batch_summary.json whose trial 7 is the best one."""
    trials = [] if best is None else [{"index": 7, **best}, {"index": 2, **scores(5, kl=0.01)}]
    return {
        "schema_version": 1,
        "iconoclast_version": "0.1.0",
        "status": "complete",
        "model": "maker/model-1B",
        "completed_trials": 18,
        "pruned_trials": 6,
        "prompts": {},
        "base_metrics": scores(17, 1, 0.0),
        "best_trial": None if best is None else 7,
        "pareto_trials": trials,
        "report": None,
        **changes,
    }


def summary(best: dict[str, Any] | None = None, **changes: Any) -> Summary:
    return Summary.model_validate_json(json.dumps(document(best, **changes)))


def heretic(best: dict[str, Any] | None = None, **changes: Any) -> Summary:
    return summary(best, tool="heretic", heretic_version="1.2.0", **changes)


def saved(folder: Path, content: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "batch_summary.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file
