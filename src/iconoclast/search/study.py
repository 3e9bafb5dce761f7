"""The study: ask for a batch of trials, measure them together, tell; kept in a journal and resumable."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from iconoclast.errors import RunFolderError
from iconoclast.evaluation.measure import Bounds, Scores
from iconoclast.search.objective import Objective
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters, SearchSpace

STUDY_NAME = "iconoclast"
OUTCOMES = "outcomes"
PINNED = "settings"

Outcome = Scores | Bounds
"""What measuring a trial gave: its scores, or what was known when it was pruned."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Study:
    """An Optuna study of edits in a journal file.

    Trial n of seed s is sampled by a sampler seeded from (s, n) that has seen the trials before its batch, so a study
    that was interrupted goes on with the trials it would have had.
    """

    study: optuna.Study
    space: SearchSpace
    seed: int
    startup_trials: int
    batch: int

    @classmethod
    def open(
        cls,
        journal: Path,
        space: SearchSpace,
        *,
        seed: int = 0,
        startup_trials: int = 8,
        batch: int = 4,
        pinned: Mapping[str, Any] | None = None,
    ) -> "Study":
        """Open the study in `journal`, or begin it.

        Args:
            journal: JSON-lines file.
            space: what is sampled.
            seed: seed of the sampler.
            startup_trials: random trials before the sampler learns.
            batch: trials measured together.
            pinned: settings under which its trials can be compared; a study made with others is refused.

        Raises:
            RunFolderError: the journal is damaged, or the study was made with other settings.
        """
        wanted = json.loads(json.dumps(dict(pinned or {}), default=str))
        storage = _storage(journal)
        try:
            study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        except KeyError:  # there is none yet
            study = optuna.create_study(storage=storage, study_name=STUDY_NAME, directions=["minimize", "minimize"])
        found = study.user_attrs.get(PINNED)
        if found is None:
            study.set_user_attr(PINNED, wanted)
        elif found != wanted:
            changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise RunFolderError(
                f"{journal.parent} holds a study made with other settings ({', '.join(changed)}). "
                "Give the same settings to continue it, or another folder with --out."
            )
        return cls(study, space, seed, startup_trials, batch)

    @classmethod
    def read(cls, journal: Path, space: SearchSpace) -> "Study":
        """A study that exists, to look at.

        Raises:
            RunFolderError: the journal holds no study.
        """
        try:
            study = optuna.load_study(study_name=STUDY_NAME, storage=_storage(journal))
        except KeyError:
            raise RunFolderError(f"{journal} holds no study of this program.") from None
        return cls(study, space, 0, 1, 1)

    def trials(self) -> list[Trial]:
        """All completed trials, by number.

        Raises:
            RunFolderError: the journal does not say what was measured.
        """
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        outcomes = self._outcomes()
        if any(trial.number not in outcomes for trial in trials):
            raise RunFolderError("The study has trials without outcomes: another version made it. Begin a new run.")
        return [
            Trial(trial.number, self.space.parameters(trial.params), scores)
            for trial in trials
            if isinstance(scores := outcomes[trial.number], Scores)
        ]

    @property
    def finished(self) -> int:
        """How many trials are done with: completed, or pruned because others beat them."""
        return len(self.study.get_trials(deepcopy=False, states=FINISHED))

    def run(
        self,
        n_trials: int,
        evaluate: Callable[[Sequence[EditParameters]], Sequence[Outcome]],
        objective: Objective,
        told: Callable[[Mapping[int, Outcome]], None] = lambda outcomes: None,
    ) -> None:
        """Measure trials until the study has `n_trials` of them, those that were pruned included.

        An interruption loses the batch that is being measured and nothing else; its trials are measured again by the
        next call. A batch that was measured is in the journal as a whole or not at all.

        Args:
            n_trials: trials in total, those measured before included.
            evaluate: measures a batch.
            objective: scores → values.
            told: called with the outcomes of every finished batch, by number of the trial.
        """
        self._tell(objective)  # a batch that an interruption has caught between being measured and being told
        while batch := self._next_batch(n_trials):
            parameters = [self.space.parameters(trial.params) for trial in batch]
            outcomes = dict(zip((trial.number for trial in batch), evaluate(parameters), strict=True))
            batch[0].set_user_attr(OUTCOMES, {str(n): _document(outcome) for n, outcome in outcomes.items()})
            self._tell(objective)
            told(outcomes)

    def _outcomes(self) -> dict[int, Outcome]:
        """What was measured, by number of the trial. Every batch is one entry of the journal, at its first trial."""
        batches = [trial.user_attrs.get(OUTCOMES, {}) for trial in self.study.get_trials(deepcopy=False)]
        return {int(number): _outcome(document) for batch in batches for number, document in batch.items()}

    def _tell(self, objective: Objective) -> None:
        """Tell Optuna what was measured and not told yet.

        A trial that was pruned is told so, without any value: the sampler ranks it behind all completed ones.
        """
        outcomes = self._outcomes()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if isinstance(outcome := outcomes.get(trial.number), Scores):
                self.study.tell(trial.number, objective(outcome))
            elif outcome is not None:
                self.study.tell(trial.number, state=TrialState.PRUNED)

    def _next_batch(self, n_trials: int) -> list[optuna.Trial]:
        """The trials of the next batch: those an interruption left behind, and new ones up to the batch's end."""
        trials = self.study.get_trials(deepcopy=False)
        done = self.finished
        pending = [trial for trial in trials if trial.state == TrialState.RUNNING][: max(0, n_trials - done)]
        batch = [self._ask(trial.number, trial._trial_id) for trial in pending]
        number = len(trials)
        end = min(n_trials, self._batch_end(min((trial.number for trial in pending), default=number)))
        batch += [self._ask(new) for new in range(number, end)]
        return batch

    def _batch_end(self, number: int) -> int:
        """Where the batch of a trial ends. The random trials have batches of their own: others learn from them."""
        random = self.startup_trials
        if number < random:
            return min(random, (number // self.batch + 1) * self.batch)
        return random + ((number - random) // self.batch + 1) * self.batch

    def _ask(self, number: int, trial_id: int | None = None) -> optuna.Trial:
        """A new trial, or one that an interruption left behind, perhaps with a part of its parameters."""
        self.study.sampler = self._sampler(str(number))
        trial = self.study.ask() if trial_id is None else optuna.Trial(self.study, trial_id)
        _ = trial.relative_params  # what the sampler has learnt, drawn here and now
        for name, distribution in self.space.distributions().items():
            self.study.sampler = self._sampler(f"{number}/{name}")  # so that what is there already changes nothing
            trial._suggest(name, distribution)
        return trial

    def _sampler(self, what: str) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                multivariate=True,
                constant_liar=True,
                n_startup_trials=self.startup_trials,
                seed=_derived_seed(self.seed, what),
            )


def _document(outcome: Outcome) -> dict[str, Any]:
    return {"scores": outcome.as_dict()} if isinstance(outcome, Scores) else {"at_least": asdict(outcome)}


def _outcome(document: dict[str, Any]) -> Outcome:
    return Scores.from_dict(document["scores"]) if "scores" in document else Bounds(**document["at_least"])


class _KernelLock(JournalFileOpenLock):
    """A lock that the operating system releases when its holder dies; Optuna's own ones make the next process wait."""

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _storage(journal: Path) -> JournalStorage:
    if journal.is_file():
        _drop_torn_line(journal)
    try:
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=_KernelLock(journal)))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise RunFolderError(
            f"The journal {journal} is damaged: {error or type(error).__name__}. Restore it from a copy."
        ) from None


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line that a crash left unfinished: the next one would be appended to it and lost as well."""
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _derived_seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "big")
