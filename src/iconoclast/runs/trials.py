"""The trials of a run: sampled, chosen by name, written to documents."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from iconoclast.config.schema import Settings
from iconoclast.errors import RunFolderError
from iconoclast.goals import Objectives
from iconoclast.runs.documents import Finalists, FitDocument, TrialDocument
from iconoclast.runs.pinned import judged_with
from iconoclast.search.pareto import Trial, best_trial, pareto_front
from iconoclast.search.space import FittedParameters, SearchSpace


def search_space(settings: Settings, layers: int) -> SearchSpace:
    """Return the search space that the settings describe."""
    methods, scopes = settings.direction_methods, settings.direction_scopes
    return SearchSpace(layers, settings.components, methods, scopes, settings.strengthen)


def front_of(trials: Sequence[Trial], settings: Settings) -> list[Trial]:
    """Return the Pareto front of the settings' objectives."""
    return pareto_front(trials, Objectives(settings.objectives))


def finalists_of(trials: Sequence[Trial], settings: Settings) -> list[Trial]:
    """Return the trials of the front that judges choose among: the best by the objectives, the best of the others, …"""
    left, found = front_of(trials, settings), list[Trial]()
    while left and len(found) < settings.judged_finalists:
        best = best_trial(left, settings.kl_divergence_target, Objectives(settings.objectives))
        assert best is not None
        found.append(best)
        left.remove(best)
    return found


def chosen_by_judges(trials: Sequence[Trial], settings: Settings, judged: Finalists | None) -> Trial | None:
    """Return the trial that judges have chosen; None unless they were the settings' and chose among the finalists of now."""
    if judged is None or judged.judged_with != judged_with(settings):
        return None
    finalists = finalists_of(trials, settings)
    if [each.trial for each in judged.finalists] != [trial.index for trial in finalists]:
        return None
    return next((trial for trial in finalists if trial.index == judged.chosen), None)


def best_of(trials: Sequence[Trial], settings: Settings, judged: Finalists | None = None) -> Trial | None:
    """Return the best trial, None if there is none: the one that judges have chosen, or else by the objectives."""
    chosen = chosen_by_judges(trials, settings, judged)
    return chosen or best_trial(
        front_of(trials, settings), settings.kl_divergence_target, Objectives(settings.objectives)
    )


def choose_trial(
    trials: Sequence[Trial], which: str, settings: Settings, where: Path, judged: Finalists | None = None
) -> Trial:
    """Return the best trial or the one of a number; raise RunFolderError if it is not completed."""
    if which == "best":
        best = best_of(trials, settings, judged)
        if best is None:
            raise RunFolderError(f"{where} has no completed trial yet. Continue the run first.")
        return best
    found = next((trial for trial in trials if str(trial.index) == which), None)
    if found is None:
        numbers = ", ".join(str(trial.index) for trial in trials) or "none yet"
        raise RunFolderError(
            f'{where} has no completed trial "{which}" (a pruned one has no scores). Give best or one of these: {numbers}.'
        )
    return found


def trial_document(trial: Trial) -> TrialDocument:
    """Write down a trial."""
    parameters, fit = trial.parameters, None
    if isinstance(parameters, FittedParameters):
        fit = FitDocument(start=parameters.trial, scale=parameters.scale, file=parameters.file.name)
        parameters = parameters.start
    direction = parameters.direction
    scores = {field.name: getattr(trial.scores, field.name) for field in fields(trial.scores)}
    return TrialDocument(
        **scores,
        index=trial.index,
        direction_method=direction.method,
        direction_scope=direction.scope,
        direction_index=direction.index if direction.scope == "global" else None,
        direction_blend=direction.blend if direction.method == "hybrid" else None,
        parameters=parameters.profiles,
        fit=fit,
    )
