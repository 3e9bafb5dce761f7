"""The steps of a run as functions, for notebooks and scripts. Their examples build on one another and on this:

>>> import iconoclast as ic
>>> lm = ic.load_model("demo")
>>> benign = ic.PromptSet.load("builtin:everyday/benign", "fit[:16]")
>>> target = ic.PromptSet.load("builtin:everyday/target", "fit[:16]")
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

from torch import Tensor

from iconoclast.config.schema import Settings
from iconoclast.directions import estimators
from iconoclast.directions.estimators import Directions, DirectionSpec
from iconoclast.edits.edit import Edit, EditError
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.errors import SettingsError
from iconoclast.models.anatomy import site_directions
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import affordable_rows
from iconoclast.models.residuals import last_token_residuals
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.registry import require_known
from iconoclast.runs.export import export_run
from iconoclast.runs.exported import Exported
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.search.pareto import Front, Trial
from iconoclast.vocabulary import COMPONENTS, METHODS, DirectionMethod, ExportFormat, RowNormalization


def residuals(lm: LanguageModel, prompts: PromptSet) -> Tensor:
    """Return the residual stream after every layer at the last token of each prompt: float32 [n, L, d], on the CPU.

    n is the number of prompts, L of layers, d the hidden size. The final norm is not applied.

    >>> ic.residuals(lm, target).shape == (16, lm.layers, lm.hidden_size)
    True

    Raises:
        ModelError: the chat template fails or leaves out a prompt, or a layer returns no hidden states.
        MeasurementError: not even one prompt fits into memory.
    """
    ids = lm.encode(prompts.prompts)
    return last_token_residuals(lm, ids, affordable_rows(lm, max(map(len, ids)), 0, 512))


def estimate_directions(
    lm: LanguageModel,
    benign: PromptSet,
    target: PromptSet,
    *,
    methods: Sequence[DirectionMethod | str] = METHODS,
    subspace_rank: int = 0,
    orthogonalize: bool = True,
    variance_floor: float = 1e-6,
) -> Directions:
    """Estimate the directions from benign to target prompts at every layer, kept out of what benign prompts use.

    The mean difference is that of Arditi et al. 2024, arXiv:2406.11717; docs/methods.md has the formulas of all methods.

    >>> directions = ic.estimate_directions(lm, benign, target, subspace_rank=4)
    >>> directions.resolve(ic.DirectionSpec("median")).shape == (lm.layers, lm.hidden_size)
    True

    Args:
        methods: estimators to use: mean, median, geometric_median, variance, hybrid, or one of an installed package.
        subspace_rank: number of principal directions of the benign residuals to keep out of every direction; the setting
            `benign_subspace_rank`, whose default is 8.
        orthogonalize: keep the mean of the benign residuals out too; the setting `orthogonalize_direction`.
        variance_floor: added to the pooled variance of the method variance; the setting `direction_variance_floor`.

    Raises:
        DirectionError: an unknown method, fewer than two prompts on a side, a subspace rank larger than the data allows, or
            prompt sets with the same residuals at some layer.
        ModelError, MeasurementError: as `residuals`.
    """
    return estimators.estimate_directions(
        residuals(lm, benign),
        residuals(lm, target),
        methods=methods,
        subspace_rank=subspace_rank,
        orthogonalize=orthogonalize,
        variance_floor=variance_floor,
    )


def make_edit(
    lm: LanguageModel,
    directions: Directions,
    profiles: Mapping[str, Profile],
    direction: DirectionSpec | None = None,
    row_normalization: RowNormalization = "pre",
) -> Edit:
    """Make the edit of `lm` along one of its directions. The model stays as it is.

    >>> mountain = ic.Profile.triangle(peak=1.2, position=lm.layers / 2, span=lm.layers / 2)
    >>> edit = ic.make_edit(lm, directions, {"attn.o_proj": mountain}, ic.DirectionSpec(scope="global", index=2))

    Args:
        directions: of this model, as `estimate_directions` returns them.
        profiles: component (attn.o_proj or mlp.down_proj) → strength λ of every layer, without unit: 1 removes the
            direction. A component that is left out is not edited.
        direction: which of the directions; unset, each layer's own difference of means.
        row_normalization: none, pre or full; see `Edit`.

    Raises:
        EditError: an unknown component or row normalisation.
        DirectionError: the direction was not estimated, its index is outside the layers, or nothing is left of it without
            the benign subspace.
        ModelError: the model has no editable writers, or parts that an edit of them would miss.
    """
    for component in profiles:
        require_known(component, COMPONENTS, "component", EditError)
    resolved = directions.resolve(direction or DirectionSpec())
    return Edit.build(site_directions(lm.writers(), resolved), profiles, row_normalization)


def applied(lm: LanguageModel, edit: Edit) -> AbstractContextManager[None]:
    """Return a context in which `lm.model` behaves as edited. No weight is touched.

    >>> with ic.applied(lm, edit):
    ...     edited = ic.residuals(lm, target)
    >>> bool((edited == ic.residuals(lm, target)).all())
    False

    Raises:
        ModelError: the edit is for another model, or the model has parts that an edit would miss.
    """
    return LiveEdits(lm.writers(), [edit]).applied()


def search(settings: Settings, progress: Progress | None = None) -> list[Trial]:
    """Run or continue the search that `settings` describe, and return the Pareto front. All results are in the run folder.

    >>> front = ic.search(ic.Settings(model="demo", n_trials=4, study_checkpoint_dir="demo-run"))
    >>> all(trial.index < 4 for trial in front)
    True

    Args:
        settings: what to search on and how; `model` has to be set. `study_checkpoint_dir` is the run folder.
        progress: told how far the work is; unset, nothing is shown.

    Raises:
        UserError: a setting, prompt set, model or folder cannot be used (SettingsError, PromptsError, ModelError,
            DirectionError, RunFolderError); nothing was written then.
        MeasurementError: not even one prompt fits into memory.
    """
    with started_run(settings, progress) as run:
        run.optimize(settings.n_trials, progress)
        run.finish(progress)
        return Front(run.front())


def open_run(run: Path | str, trial: str = "best") -> SavedRun:
    """Open a run folder and one of its trials, without loading the model. A notebook shows the run as a table.

    >>> opened = ic.open_run("demo-run")
    >>> opened.edit(lm).sites == opened.edit(lm).scaled(0.5).sites
    True

    Args:
        trial: best, or the number of a completed trial.

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
    """Export a trial of a run folder as an adapter, merged weights or a GGUF file, and measure what was written.

    >>> exported = ic.export("demo-run", "demo-adapter")
    >>> exported.exported.refusals.n == exported.base.refusals.n
    True

    Args:
        to: a folder that does not exist yet or is empty; it appears when the export is complete.
        trial: best, or the number of a completed trial.
        format: adapter (for PEFT), merged (for transformers) or gguf (for llama.cpp, whose `convert_hf_to_gguf.py` must be
            on the PATH; `iconoclast export` has more options).
        progress: told how far the work is; unset, nothing is shown.

    Raises:
        SettingsError: an unknown format.
        RunFolderError: there is no run, no such trial, or `to` is in use or cannot be written.
        ModelError: the base model cannot be loaded, or llama.cpp's converter is missing or fails.
        MeasurementError: not even one prompt fits into memory.
    """
    require_known(format, get_args(ExportFormat), "export format", SettingsError)
    return export_run(Path(run), trial, format, Path(to), progress)
