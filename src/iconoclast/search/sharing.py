"""Many processes on one study: how they divide its trials, and who takes over those of a lost process."""

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from iconoclast.search import optuna_internals as internals

OWNER = "worker"


class Crew(Protocol):
    """One of the processes that share a study."""

    name: str
    """Its name, which no other process ever had."""

    dead_after: float
    """Seconds after which an unnamed trial counts as left by a process that died before it could put its name on it."""

    def size(self) -> int:
        """Return the number of processes."""

    def lost(self, names: Collection[str]) -> set[str]:
        """Return those of the named processes that will not go on."""

    def wait(self) -> None:
        """Let some time pass while the others measure the rest."""


def share(study: optuna.Study, crew: Crew, n_trials: int, together: int, batch: int) -> int:
    """Count the trials that a process should take, so that at the beginning and at the end all have some.

    Args:
        n_trials: trials in total.
        together: trials that can be measured at once without learning from each other.
        batch: the most that one process takes.
    """
    trials = study.get_trials(deepcopy=False)
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    open_trials = waiting + max(0, limit(n_trials, trials) - len(trials))
    return min(batch, -(-min(open_trials, together) // max(1, crew.size())))


def claims(study: optuna.Study, crew: Crew, n_trials: int, share: int) -> Iterator[tuple[int, int]]:
    """Take up to `share` trials, one at a time as they are asked for; yield number and id of each."""
    for _ in range(share):
        trial_id = claim(study, crew)
        number = internals.number_of(study, trial_id)
        if number >= limit(n_trials, study.get_trials(deepcopy=False)[:number]):
            with suppress(UpdateFinishedTrialError):
                # Others have asked for the last ones meanwhile.
                study.tell(number, state=TrialState.FAIL)
                return
        else:
            yield number, trial_id


def claim(study: optuna.Study, crew: Crew) -> int:
    """Put our name on a trial that was handed back, or on a new one; return its id."""
    trial_id = internals.waiting_trial(study)
    if trial_id is None:
        return internals.new_trial(study, {OWNER: crew.name})
    with suppress(UpdateFinishedTrialError):
        internals.set_attribute(study, trial_id, OWNER, crew.name)
    return trial_id


def is_ours(study: optuna.Study, trial: optuna.Trial, crew: Crew) -> bool:
    """Check that a trial is still to be measured, and by us: others may have taken us for lost."""
    known = internals.read_again(study, trial)
    return known.state == TrialState.RUNNING and _owner(known) == crew.name


def take_from_lost(study: optuna.Study, crew: Crew, measured: Container[int]) -> None:
    """Hand back the unmeasured trials of processes that will not go on."""
    running = [t for t in _running(study) if t.number not in measured]
    lost = crew.lost({_owner(trial) for trial in running} - {""})
    for trial in running:
        if _is_left(trial, lost, crew.dead_after):
            known = internals.read_again(study, trial)  # another process may have been faster
            if (known.state, _owner(known)) == (trial.state, _owner(trial)):
                hand_back(study, internals.id_of(trial))


@contextmanager
def handed_back_if_broken_off(
    study: optuna.Study, crew: Crew, measured: Callable[[], Container[int]]
) -> Iterator[None]:
    """Give our trials to the rest of the crew if the work in this context is broken off."""
    with ExitStack() as broken_off:
        broken_off.callback(_hand_all_back, study, crew, measured)
        yield
        broken_off.pop_all()


def _hand_all_back(study: optuna.Study, crew: Crew, measured: Callable[[], Container[int]]) -> None:
    numbers = measured()
    for trial in _running(study):
        if _owner(trial) == crew.name and trial.number not in numbers:
            hand_back(study, internals.id_of(trial))


def hand_back(study: optuna.Study, trial_id: int) -> None:
    """Let the next process that asks have a trial."""
    with suppress(UpdateFinishedTrialError):
        internals.set_attribute(study, trial_id, OWNER, "")
        internals.set_state(study, trial_id, TrialState.WAITING)


def limit(n_trials: int, trials: Sequence[FrozenTrial]) -> int:
    """Return the first number that is too high, not counting trials that nobody will measure."""
    return n_trials + sum(trial.state == TrialState.FAIL for trial in trials)


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _owner(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(OWNER, ""))


def _is_left(trial: FrozenTrial, lost: Collection[str], dead_after: float) -> bool:
    """Check that a running trial has been abandoned."""
    if owner := _owner(trial):
        return owner in lost
    started = trial.datetime_start or datetime.min
    return datetime.now() - started > timedelta(seconds=dead_after)
