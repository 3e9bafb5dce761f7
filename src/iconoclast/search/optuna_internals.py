"""Parts of Optuna that it does not promise to keep: underscored names are used here and nowhere else."""

import copy
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState, create_trial


def number_of(study: optuna.Study, trial_id: int) -> int:
    """Return a trial's number in its study."""
    return study._storage.get_trial_number_from_id(trial_id)


def id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return a trial's id, unique in its storage as its number is in its study."""
    return trial._trial_id


def read_again(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
    """Read a trial from the storage, as another process may have changed it."""
    return study._storage.get_trial(trial._trial_id)


def new_trial(study: optuna.Study, attributes: dict[str, str] | None = None) -> int:
    """Begin a trial, with these attributes from its first moment on, and return its id; `Study.ask` reads all trials."""
    template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def waiting_trial(study: optuna.Study) -> int | None:
    """Take a waiting trial, which no other process can then take, and return its id."""
    return study._pop_waiting_trial_id()


def set_state(study: optuna.Study, trial_id: int, state: TrialState) -> None:
    """Set the state of a trial; `Study.tell` can only finish one."""
    study._storage.set_trial_state_values(trial_id, state)


def set_attribute(study: optuna.Study, trial_id: int, name: str, value: str) -> None:
    """Set an attribute of a trial by its id, for which a `Trial` would sample first."""
    study._storage.set_trial_user_attr(trial_id, name, value)


def knowing(study: optuna.Study, finished: Sequence[FrozenTrial]) -> optuna.Study:
    """Return the study as it would be with only these finished trials, for a sampler to learn from."""

    def get_trials(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in finished if states is None or trial.state in states]
        if states is None or TrialState.RUNNING in states:
            found += study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return found

    known = copy.copy(study)
    known._get_trials = get_trials  # type: ignore[method-assign]
    return known


def only_proposes(log: Mapping[str, Any]) -> bool:
    """Tell whether an operation of a journal begins a trial or gives it a parameter: nothing has been measured then."""
    begins = log["op_code"] == JournalOperation.CREATE_TRIAL
    draws = log["op_code"] in (JournalOperation.SET_TRIAL_PARAM, JournalOperation.SET_TRIAL_SYSTEM_ATTR)
    return draws or (begins and log.get("state", TrialState.RUNNING) == TrialState.RUNNING)
