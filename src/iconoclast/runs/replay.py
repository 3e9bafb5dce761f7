"""Make a recorded trial and measure it again, from the run folder alone."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

from pydantic import computed_field
from pydantic.dataclasses import dataclass

from iconoclast.config.schema import FIT_AND_SELECT, without_functions
from iconoclast.documents import Value
from iconoclast.edits.edit import Edit
from iconoclast.progress import Progress, Silent
from iconoclast.runs.documents import Manifest
from iconoclast.runs.drift import Drift, Grade, changed_origins, drift
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.manifest import this_start, weight_hashes
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.workbench import Workbench


@dataclass(frozen=True)
class Replay(Value):
    """A trial measured again, and its differences from the run: versions, machine, weights, prompts."""

    trial: int
    drifts: list[Drift]
    changed: list[str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def grade(self) -> Grade:
        """The worst grade."""
        return max((each.grade for each in self.drifts), key=get_args(Grade).index)


def replay(run: Path, which: str, progress: Progress | None = None, trust_remote_code: bool = False) -> Replay:
    """Apply a recorded trial again, measure it and the base model on the select prompts, and grade the drift.

    Args:
        which: number of the trial, or best.
        trust_remote_code: whether code of the model's repository may run; the run, perhaps a stranger's, is not asked.

    Raises:
        UserError: the run or trial does not exist, or its model or prompts are missing.
    """
    progress = progress or Silent()
    folder = RunFolder(run)
    saved = SavedRun.open(folder, which)
    settings = saved.settings.model_copy(update={"trust_remote_code": trust_remote_code})
    saved = replace(saved, settings=settings if trust_remote_code else without_functions(settings))
    baseline = folder.read_baseline()
    known = Manifest.read(folder.manifest) if folder.manifest.is_file() else None
    with saved.opened(progress) as bench:
        bench.require_room()
        changed = ["the run has no manifest to compare with"]
        if known is not None:
            changed = _changed(known, bench)
        evaluator = bench.evaluator("select")
        evaluator.leave_out_lower_layers()
        # One after the other: the run has measured the base model so, and thus it measures the same.
        edits = (Edit.nothing(), bench.edit(saved.trial.parameters))
        base, edited = (evaluator.measure([edit], progress)[0] for edit in edits)
    noise = baseline.kl_noise_floor
    drifts = [
        drift("base model", saved.base, base, noise),
        drift(f"trial {saved.trial.index}", saved.trial.scores, edited, noise),
    ]
    return Replay(saved.trial.index, drifts, changed)


def _changed(known: Manifest, bench: Workbench) -> list[str]:
    changed = changed_origins(known.starts[-1], this_start())
    if known.model.weights != weight_hashes(bench.lm.path):
        changed.append("the weights of the model")
    now = bench.prompts.document()
    others = [n for n, each in known.prompts.items() if now.get(n, {}).get("sha256") != each.get("sha256")]
    changed += [f"the prompts {name}" for name in others]
    same = [name for name in FIT_AND_SELECT if name not in others]
    return changed + (known.rendering.differences(bench.rendering(), same) if known.rendering else [])
