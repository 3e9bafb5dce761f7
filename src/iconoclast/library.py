"""The steps of a run as functions, for notebooks and scripts. Their examples build on one another and on this:

>>> import iconoclast as ic
>>> lm = ic.load_model("demo")
>>> benign = ic.PromptSet.load("builtin:everyday/benign", "fit[:16]")
>>> target = ic.PromptSet.load("builtin:everyday/target", "fit[:16]")
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from iconoclast.config.schema import Settings
from iconoclast.directions import estimators
from iconoclast.directions.estimators import Directions, DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.models.anatomy import site_directions
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import affordable_rows
from iconoclast.models.residuals import last_token_residuals
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.runs.export import export_run
from iconoclast.runs.exported import Exported
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.search.pareto import Front, Trial
from iconoclast.vocabulary import ExportFormat, RowNormalization


def residuals(lm: LanguageModel, prompts: PromptSet) -> Tensor:
    """Return the residual stream after every layer at the last token of each prompt: float32 [n, L, d], on the CPU.

    >>> ic.residuals(lm, target).shape == (16, lm.layers, lm.hidden_size)
    True
    """
    ids = lm.encode(prompts.prompts)
    return last_token_residuals(lm, ids, affordable_rows(lm, max(map(len, ids)), 0, 512))


def estimate_directions(lm: LanguageModel, benign: PromptSet, target: PromptSet, **options: Any) -> Directions:
    """Estimate directions from benign to target prompts; `options` as in `directions.estimators.estimate_directions`.

    >>> directions = ic.estimate_directions(lm, benign, target, subspace_rank=4)
    >>> directions.resolve(ic.DirectionSpec("median")).shape == (lm.layers, lm.hidden_size)
    True

    Raises:
        DirectionError: fewer than two prompts on a side, or a subspace rank larger than the data allows.
    """
    return estimators.estimate_directions(residuals(lm, benign), residuals(lm, target), **options)


def make_edit(
    lm: LanguageModel,
    directions: Directions,
    profiles: Mapping[str, Profile],
    direction: DirectionSpec | None = None,
    row_normalization: RowNormalization = "pre",
) -> Edit:
    """Make the edit of `lm` along one of its directions.

    >>> mountain = ic.Profile.triangle(peak=1.2, position=lm.layers / 2, span=lm.layers / 2)
    >>> edit = ic.make_edit(lm, directions, {"attn.o_proj": mountain}, ic.DirectionSpec(scope="global", index=2))

    Args:
        profiles: component (attn.o_proj, mlp.down_proj) → strength by layer.
        direction: which of the directions; unset, each layer's own difference of means.
        row_normalization: none, pre or full; see `Edit`.
    """
    resolved = directions.resolve(direction or DirectionSpec())
    return Edit.build(site_directions(lm.writers(), resolved), profiles, row_normalization)


def applied(lm: LanguageModel, edit: Edit) -> AbstractContextManager[None]:
    """Make `lm.model` behave as edited while this context lasts. No weight is touched.

    >>> with ic.applied(lm, edit):
    ...     edited = ic.residuals(lm, target)
    >>> bool((edited == ic.residuals(lm, target)).all())
    False
    """
    return LiveEdits(lm.writers(), [edit]).applied()


def search(settings: Settings, progress: Progress | None = None) -> list[Trial]:
    """Run or continue the search that `settings` describe, and return the Pareto front. All results are in the run folder.

    >>> front = ic.search(ic.Settings(model="demo", n_trials=4, study_checkpoint_dir="demo-run"))
    >>> all(trial.index < 4 for trial in front)
    True
    """
    with started_run(settings, progress) as run:
        run.optimize(settings.n_trials, progress)
        run.finish(progress)
        return Front(run.front())


def open_run(run: Path | str, trial: str = "best") -> SavedRun:
    """Open a run folder and one of its trials, without the model. A notebook shows the run as a table.

    >>> opened = ic.open_run("demo-run")
    >>> opened.edit(lm).sites == opened.edit(lm).scaled(0.5).sites
    True

    Raises:
        RunFolderError: there is no run, or no such trial.
    """
    return SavedRun.open(RunFolder(Path(run)), trial)


def export(
    run: Path | str,
    to: Path | str,
    trial: str = "best",
    format: ExportFormat = "adapter",
    progress: Progress | None = None,
) -> Exported:
    """Export a trial of a run folder as an adapter or merged weights, and measure what was written.

    >>> exported = ic.export("demo-run", "demo-adapter")
    >>> exported.exported.refusals.n == exported.base.refusals.n
    True
    """
    return export_run(Path(run), trial, format, Path(to), progress)
