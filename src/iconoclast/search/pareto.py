"""The trials worth a look, and their order."""

from collections.abc import Sequence
from dataclasses import dataclass

from iconoclast.notebook import table
from iconoclast.scores import Key, Scores, beaten, no_more_than
from iconoclast.search.space import AnyParameters


@dataclass(frozen=True)
class Trial:
    """A measured candidate: its number in the study, and its scores on the selection prompts."""

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
        return table(f"{len(self)} trials (selection prompts)", rows, ("Trial", *COLUMNS))


COLUMNS = ("Refusals", "Broken", "Overrefusals", "KL, nats", "Compliance", "Direction", "Violates")


def _cells(trial: Trial) -> tuple[str, ...]:
    s = trial.scores
    counts = (s.refusals.with_interval, str(s.broken), s.overrefusals.with_interval)
    violated = ", ".join(s.violated) or "nothing"
    return *counts, f"{s.kl_divergence:.4f}", f"{s.compliance:.2f}", str(trial.parameters), violated


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats or equals in failures, overrefusals and KL at once, in that order.

    Only trials that keep all constraints count, if any does.
    """
    front: list[Trial] = []
    kept = [trial for trial in trials if not trial.scores.violated] or trials
    for trial in sorted(kept, key=lambda t: (t.key, t.index)):
        if not beaten(trial.key, (other.key for other in front)):
            front.append(trial)
    return front


def best_trial(front: Sequence[Trial], kl_target: float) -> Trial | None:
    """Return the trial of a front that is exported and reported; None for an empty front.

    Of the trials within the KL target (if any, else of all), it takes those whose failures exceed the best's by at most
    its standard error; of these, fewest overrefusals, then lowest KL divergence. One failure more or less among a few
    prompts is chance, and would be paid for in KL (the rule of one standard error: Breiman et al., Classification and
    Regression Trees, 1984).
    """
    if not front:
        return None
    within = [t for t in front if t.scores.kl_divergence <= kl_target] or front
    most = no_more_than(min((t.scores.failures for t in within), key=lambda failures: failures.count))
    return min((t for t in within if t.scores.failures.count <= most), key=lambda t: (t.key[1:], t.index))
