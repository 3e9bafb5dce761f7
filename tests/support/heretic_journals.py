"""Journals as heretic writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

SYSTEM = "Be brief."
PREFIX = "Well, "

SETTINGS: dict[str, Any] = {  # what heretic 1.4 writes
    "model": "some/model",
    "model_commit": None,
    "dtypes": ["auto"],
    "quantization": "none",
    "batch_size": 128,
    "max_response_length": 96,
    "response_prefix": PREFIX,
    "kl_divergence_target": 0.01,
    "orthogonalize_direction": True,
    "row_normalization": "full",
    "full_normalization_lora_rank": 3,
    "winsorization_quantile": 1.0,
    "n_trials": 3,
    "seed": 7,
    "refusal_markers": ["i cannot", "sorry"],
    "system_prompt": SYSTEM,
    "good_prompts": {"dataset": "good.txt", "commit": None, "split": None, "column": None, "prefix": "", "suffix": ""},
    "bad_prompts": {"dataset": "bad.txt", "split": "train[:400]", "column": "text", "prefix": "Now:", "suffix": "Go."},
    "good_evaluation_prompts": {"dataset": "some/hub", "commit": "abc", "split": "test[:100]", "column": "text"},
    "bad_evaluation_prompts": {"dataset": "some/hub", "split": "test", "column": "text", "system_prompt": "Be kind."},
}
PARAMETERS = {
    "attn.o_proj": {
        "max_weight": 1.2,
        "max_weight_position": 2.4,
        "min_weight": 0.3,
        "min_weight_distance": 1.7,
    },
    "mlp.down_proj": {
        "max_weight": 0.9,
        "max_weight_position": 3.0,
        "min_weight": 0.0,
        "min_weight_distance": 2.5,
    },
}


def attributes(refusals: int = 3, divergence: float = 0.1, **changes: Any) -> dict[str, Any]:
    """What heretic 1.4 writes of a trial."""
    return {
        "direction_index": None,
        "parameters": PARAMETERS,
        "kl_divergence": divergence,
        "refusals": refusals,
        "base_refusals": 13,
        "n_bad_prompts": 20,
        **changes,
    }


def write_journal(
    file: Path,
    trials: Sequence[Mapping[str, Any] | TrialState] = (),
    settings: Mapping[str, Any] = SETTINGS,
    name: str = "heretic",
) -> Path:
    """A journal as heretic leaves it; a state in place of a trial is one that did not complete."""
    storage = JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(storage=storage, study_name=name, directions=["minimize", "minimize"])
    study.set_user_attr("settings", json.dumps(settings))
    study.set_user_attr("finished", False)
    for index, what in enumerate(trials, 1):
        trial = study.ask()
        trial.set_user_attr("index", index)
        trial.suggest_float("direction_index", 1.2, 2.7)
        if isinstance(what, TrialState):
            if what != TrialState.RUNNING:
                study.tell(trial, state=what)
            continue
        for key, value in what.items():
            trial.set_user_attr(key, value)
        study.tell(trial, [0.1, 0.2])
    return file
