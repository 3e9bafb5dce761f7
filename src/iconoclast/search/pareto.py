"""The trials worth a look, and their order."""

from collections.abc import Sequence
from dataclasses import dataclass

from iconoclast.goals import Objectives
from iconoclast.notebook import table
from iconoclast.scores import Key, Scores, beaten
from iconoclast.search.space import AnyParameters

BY_DEFAULT = Objectives()


@dataclass(frozen=True)
class Trial:
    """A measured edit: its number in the study, and its scores on the select prompts."""

    index: int
    parameters: AnyParameters
    scores: Scores

    @property
    def key(self) -> Key:
        """The results by which it competes."""
        return self.scores.key

    def _repr_html_(self) -> str:
        """Tabulate its scores and parameters, for notebooks."""
        return table(f"Trial {self.index}", list(zip(COLUMNS, _cells(self), strict=True)))


class Front(list[Trial]):
    """Trials that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = [(trial.index, *_cells(trial)) for trial in self]
        return table(f"{len(self)} trials (select prompts)", rows, ("Trial", *COLUMNS))


COLUMNS = ("Refusals", "Broken", "Overrefusals", "KL, nats", "Compliance", "Direction", "Violates")


def _cells(trial: Trial) -> tuple[str, ...]:
    s = trial.scores
    counts = (s.refusals.with_interval, str(s.broken), s.overrefusals.with_interval)
    violated = ", ".join(s.violated) or "nothing"
    return *counts, f"{s.kl_divergence:.4f}", f"{s.compliance:.2f}", str(trial.parameters), violated


def pareto_front(trials: Sequence[Trial], objectives: Objectives = BY_DEFAULT) -> list[Trial]:
    """Return the trials that no other beats or equals in all objectives at once, in their order.

    By default that is failures, overrefusals and KL. Only trials that keep all constraints count, if any does.
    """
    front: list[Trial] = []
    kept = [trial for trial in trials if not trial.scores.violated] or trials
    keys = {trial.index: objectives.key(trial.scores) for trial in kept}
    for trial in sorted(kept, key=lambda t: (keys[t.index], t.index)):
        if not beaten(keys[trial.index], (keys[other.index] for other in front)):
            front.append(trial)
    return front


def best_trial(front: Sequence[Trial], kl_target: float, objectives: Objectives = BY_DEFAULT) -> Trial | None:
    """Return the trial of a front that is exported and reported; None for an empty front.

    Of the trials within the KL target (if KL is an objective and any is within it, else of all), it takes those whose
    first objective exceeds the best's by at most its standard error; of these, the best in the second, then in the
    next: by default in failures, overrefusals, KL. One failure more or less among a few prompts is chance, and would be
    paid for in KL (the rule of one standard error: Breiman et al., Classification and Regression Trees, 1984).
    """
    if not front:
        return None
    within = [t for t in front if objectives.within(t.scores, kl_target)] or front
    keys = {trial.index: objectives.key(trial.scores) for trial in within}
    lowest = min(within, key=lambda t: keys[t.index][0])
    most = objectives.compared[0].tolerated(lowest.scores)
    return min((t for t in within if keys[t.index][0] <= most), key=lambda t: (keys[t.index][1:], t.index))
