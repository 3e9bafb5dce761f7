"""The study: ask for a batch of trials, measure them together, tell; kept in a journal and resumable."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from iconoclast.documents import Plain
from iconoclast.errors import RunFolderError
from iconoclast.layout import FITS
from iconoclast.scores import Bounds, Scores
from iconoclast.search import sharing
from iconoclast.search.objective import Minimised
from iconoclast.search.optuna_internals import id_of, new_trial, set_state
from iconoclast.search.pareto import Trial
from iconoclast.search.sampler import Memory, Sampler
from iconoclast.search.sharing import Crew, handed_back_if_broken_off, is_ours, limit
from iconoclast.search.space import EditParameters, FittedParameters, SearchSpace
from iconoclast.search.storage import answering, open_storage

STUDY_NAME = "iconoclast"
OUTCOMES = "outcomes"
PINNED = "settings"
FITTED = "fitted"

Outcome = Scores | Bounds
"""Outcome of a trial: its scores, or the bounds known when it was pruned."""


@dataclass(frozen=True)
class Pruned:
    """A trial that was stopped, and what was known of it by then."""

    index: int
    parameters: EditParameters
    bounds: Bounds


FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Plan:
    """Numbers by which a study proposes its trials.

    Attributes:
        seed: decides what is drawn.
        startup_trials: trials before the sampler learns, all but the standard ones random.
        batch: trials measured together; a quarter as many before the sampler learns.
    """

    seed: int = 0
    startup_trials: int = 8
    batch: int = 4


@dataclass
class Study:
    """An Optuna study of edits, in a journal file unless another storage is named.

    Trial n of seed s is sampled by a sampler seeded from (s, n) that has seen the trials before its batch, so a study
    that was interrupted goes on with the trials it would have had. Several processes can share a study; then what a
    sampler has seen depends on who was faster.
    """

    study: optuna.Study
    space: SearchSpace
    plan: Plan
    fits: Path
    _entries: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _read: dict[int, Outcome] = field(default_factory=dict, init=False, repr=False, compare=False)
    _made: dict[int, Trial] = field(default_factory=dict, init=False, repr=False, compare=False)
    _remembered: tuple[int, Memory] = field(default=(0, Memory()), init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        journal: Path,
        space: SearchSpace,
        plan: Plan,
        *,
        pinned: Mapping[str, Any] | None = None,
        storage: str | None = None,
        objectives: int = 2,
    ) -> "Study":
        """Open the study in `journal`, or begin it.

        Args:
            pinned: settings under which its trials can be compared; a study made with others is refused.
            storage: URL of a database or server that keeps the study in the journal's place.
            objectives: how many numbers are minimised.

        Raises:
            RunFolderError: the journal is damaged, or the study was made with other settings.
            SettingsError: the storage cannot be used.
        """
        wanted = json.loads(json.dumps(dict(pinned or {}), default=str))
        study = _load(journal, storage)
        if study is None:
            study = optuna.create_study(
                storage=open_storage(journal, storage),
                study_name=_name(journal, storage),
                directions=["minimize"] * objectives,
                load_if_exists=True,
            )
        opened = cls(study, space, plan, journal.parent / FITS)
        opened.pin(PINNED, wanted)
        return opened

    def pin(self, name: str, wanted: Mapping[str, Any]) -> None:
        """Keep what must not change within the study; raise RunFolderError if it was something else before."""
        found = self.study.user_attrs.get(name)
        if found is None:
            self.study.set_user_attr(name, wanted)
        elif found != wanted:
            changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise RunFolderError(
                f"{self.fits.parent} holds a study made with other {name} ({', '.join(changed)}). "
                f"Give the same {name} to continue it, or another folder with --out."
            )

    @classmethod
    def read(cls, journal: Path, space: SearchSpace, storage: str | None = None) -> "Study":
        """Open an existing study for reading.

        Raises:
            RunFolderError: there is no study.
            SettingsError: the storage cannot be used.
        """
        study = _load(journal, storage)
        if study is None:
            raise RunFolderError(f"{storage or journal} holds no study of this program.")
        return cls(study, space, Plan(), journal.parent / FITS)

    def trials(self) -> list[Trial]:
        """Return all completed trials, by number; raise RunFolderError if the journal does not hold their scores."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        outcomes = self._outcomes()
        if any(trial.number not in outcomes for trial in trials):
            raise RunFolderError("The study has trials without outcomes: another version made it. Begin a new run.")
        wanted = self.space.distributions().keys()
        if any(trial.params.keys() != wanted for trial in trials):
            raise RunFolderError(
                "The study has trials without parameters: the journal is damaged. Restore it from a copy."
            )
        found = {
            trial.number: self._trial(trial, scores)
            for trial in trials
            if isinstance(scores := outcomes[trial.number], Scores)
        }
        for trial in self._fitted():
            entry = trial.user_attrs[FITTED]
            start = EditParameters.from_document(entry["start"])
            parameters = FittedParameters(start, entry["trial"], entry["scale"], self.fits / entry["file"])
            found[trial.number] = Trial(trial.number, parameters, Scores.from_document(entry["scores"]))
        return [found[number] for number in sorted(found)]

    def _trial(self, trial: FrozenTrial, scores: Scores) -> Trial:
        """Make a trial of its parts, once for the same scores."""
        made = self._made.get(trial.number)
        if made is None or made.scores is not scores:
            made = self._made[trial.number] = Trial(trial.number, self.space.parameters(trial.params), scores)
        return made

    def pruned(self) -> list[Pruned]:
        """Return all pruned trials, by number."""
        outcomes = self._outcomes()
        return [
            Pruned(trial.number, self.space.parameters(trial.params), bounds)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
            if isinstance(bounds := outcomes.get(trial.number), Bounds)
        ]

    def add_fitted(self, parameters: FittedParameters, scores: Scores) -> None:
        """Add an edit that was fitted and measured; the sampler learns nothing from it, and it takes no trial's place."""
        entry = {
            "start": parameters.start.document(),
            "trial": parameters.trial,
            "scale": parameters.scale,
            "file": parameters.file.name,
            "scores": scores.document(),
        }
        self.study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FITTED: entry}))

    def _fitted(self) -> list[FrozenTrial]:
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [trial for trial in failed if FITTED in trial.user_attrs]

    @property
    def finished(self) -> int:
        """Number of trials that are done with: completed, or pruned because others beat them."""
        return len(self.study.get_trials(deepcopy=False, states=FINISHED))

    @property
    def fitted(self) -> int:
        """Number of trials that are fitted edits."""
        return len(self._fitted())

    def states(self) -> dict[str, int]:
        """Count the trials that are complete, pruned, being measured, and handed back by a process that could not."""
        outcomes = self._outcomes()

        def state(trial: FrozenTrial) -> TrialState:
            measured = outcomes.get(trial.number)
            if trial.state != TrialState.RUNNING or measured is None:
                return trial.state
            # An interruption came between measuring it and telling the sampler, which the next start does.
            return TrialState.COMPLETE if isinstance(measured, Scores) else TrialState.PRUNED

        found = [state(trial) for trial in self.study.get_trials(deepcopy=False)]
        names = ("COMPLETE", "PRUNED", "RUNNING", "WAITING")
        return {name.lower(): found.count(TrialState[name]) for name in names}

    def rate(self) -> float | None:
        """Return trials an hour, from the start of the first to the end of the last."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        begun = [trial.datetime_start for trial in trials if trial.datetime_start]
        ended = [trial.datetime_complete for trial in trials if trial.datetime_complete]
        seconds = (max(ended) - min(begun)).total_seconds() if begun and ended else 0.0
        return 3600 * len(trials) / seconds if seconds else None

    @answering()
    def run(
        self,
        n_trials: int,
        evaluate: Callable[[Sequence[EditParameters]], Sequence[Outcome]],
        objective: Minimised,
        told: Callable[[Mapping[int, Outcome]], None] = lambda outcomes: None,
        crew: Crew | None = None,
    ) -> None:
        """Measure trials until the study has `n_trials` of them, pruned ones included.

        An interruption loses only the batch being measured; the next call measures its trials again. A measured batch
        is in the journal as a whole or not at all.

        Args:
            n_trials: trials in total, those measured before included.
            evaluate: measures a batch.
            told: called with the outcomes of every finished batch, by number of the trial.
            crew: the processes that share the study, if others work on it too.

        Raises:
            RunFolderError: the journal cannot be written, or a storage elsewhere no longer answers.
        """
        self._tell(objective)  # a batch may have been interrupted after it was measured and before it was told
        while True:
            with nullcontext() if crew is None else handed_back_if_broken_off(self.study, crew, self._outcomes):
                batch = self._next_batch(n_trials) if crew is None else self._next_share(n_trials, crew)
                parameters = [self.space.parameters(trial.params) for trial in batch]
                measured = (
                    dict(zip((trial.number for trial in batch), evaluate(parameters), strict=True)) if batch else {}
                )
                outcomes = self._record(batch, measured, crew)
            if outcomes:
                self._tell(objective)
                told(outcomes)
            elif self.finished >= n_trials or crew is None:
                return
            else:
                crew.wait()
                self._tell(objective)  # batches that another process has measured and not told

    def _record(
        self, batch: Sequence[optuna.Trial], measured: Mapping[int, Outcome], crew: Crew | None
    ) -> dict[int, Outcome]:
        """Record the batch in one entry, without the trials that were taken from us meanwhile."""
        ours = [trial for trial in batch if crew is None or is_ours(self.study, trial, crew)]
        while ours:
            outcomes = {trial.number: measured[trial.number] for trial in ours}
            with suppress(UpdateFinishedTrialError):  # taken from us this very moment, and finished
                ours[0].set_user_attr(OUTCOMES, {str(n): _document(outcome) for n, outcome in outcomes.items()})
                return outcomes
            ours.pop(0)
        return {}

    def _outcomes(self) -> dict[int, Outcome]:
        """Read all outcomes, by number of the trial. Every batch is one entry of the journal, at its first trial.

        Each entry is read once; another object means that another process has written it anew.
        """
        for trial in self.study.get_trials(deepcopy=False):
            entry = trial.user_attrs.get(OUTCOMES)
            if entry is not None and self._entries.get(trial.number) is not entry:
                self._entries[trial.number] = entry
                self._read |= {int(number): _outcome(document) for number, document in entry.items()}
        return self._read

    def _tell(self, objective: Minimised) -> None:
        """Tell Optuna new outcomes; a pruned trial has no value, so the sampler ranks it behind all completed ones."""
        outcomes = self._outcomes()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            outcome = outcomes.get(trial.number)
            with suppress(UpdateFinishedTrialError):  # another process was faster
                if isinstance(outcome, Scores):
                    if outcome.violated and not trial.constraints:
                        optuna.Trial(self.study, id_of(trial)).set_constraint("violated", len(outcome.violated))
                    self.study.tell(trial.number, objective(outcome), skip_if_finished=True)
                elif outcome is not None:
                    self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)

    def _next_batch(self, n_trials: int) -> list[optuna.Trial]:
        """Return the next trials: those that an interruption left behind, and new ones up to the batch's end."""
        trials = self.study.get_trials(deepcopy=False)
        left = [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
        pending = left[: max(0, n_trials - self.finished)]
        for trial in pending:
            if trial.state == TrialState.WAITING:
                set_state(self.study, id_of(trial), TrialState.RUNNING)
        memory, number = self._memory(), len(trials)
        batch = [self._ask(trial.number, id_of(trial), memory) for trial in pending]
        end = min(limit(n_trials, trials), self._batch_end(min((trial.number for trial in pending), default=number)))
        batch += [self._ask(new, new_trial(self.study), memory) for new in range(number, end)]
        return batch

    def _next_share(self, n_trials: int, crew: Crew) -> list[optuna.Trial]:
        """Take this process's next trials: those that a lost process has left, then new ones."""
        sharing.take_from_lost(self.study, crew, self._outcomes())
        random = self.finished < self.plan.startup_trials
        until = self.plan.startup_trials if random else n_trials
        share = sharing.share(self.study, crew, n_trials, until, self.plan.batch)
        batch: list[optuna.Trial] = []
        for number, trial_id in sharing.claims(self.study, crew, n_trials, share):
            with suppress(UpdateFinishedTrialError):  # whoever was taken for lost has finished it after all
                batch.append(self._ask(number, trial_id, self._memory()))
        return batch

    def _batch_end(self, number: int) -> int:
        """Return the end of a trial's batch.

        The first trials have batches of their own, so that later trials learn from them, a quarter as wide, so that a
        front is there soon and prunes the rest.
        """
        random = self.plan.startup_trials
        if number < random:
            width = max(1, self.plan.batch // 4)
            return min(random, (number // width + 1) * width)
        return random + ((number - random) // self.plan.batch + 1) * self.plan.batch

    def _ask(self, number: int, trial_id: int, memory: Memory | None) -> optuna.Trial:
        """Give parameters to a new trial, or to one that an interruption left behind, perhaps with some of them."""
        standard = dict(enumerate(self.space.standard()[: self.plan.startup_trials])).get(number, {})
        self.study.sampler = Sampler(memory, _derived_seed(self.plan.seed, str(number)), standard)
        trial = optuna.Trial(self.study, trial_id)
        learnt = trial.relative_params  # drawn here and now
        for name, distribution in self.space.distributions().items():
            if name not in learnt:  # a sampler of its own, so that what is there already changes nothing
                self.study.sampler = Sampler(memory, _derived_seed(self.plan.seed, f"{number}/{name}"), standard)
            if isinstance(distribution, FloatDistribution):
                trial.suggest_float(name, distribution.low, distribution.high)
            else:
                trial.suggest_categorical(name, distribution.choices)
        return trial

    def _memory(self) -> Memory | None:
        """Return what the sampler learns from, None as long as trials are random; worked out anew if more are finished."""
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        if len(finished) < self.plan.startup_trials:
            return None
        if self._remembered[0] != len(finished):
            self._remembered = len(finished), Memory.of(finished)
        return self._remembered[1]


def _document(outcome: Outcome) -> Plain:
    return {"scores": outcome.document()} if isinstance(outcome, Scores) else {"at_least": asdict(outcome)}


def _outcome(document: Plain) -> Outcome:
    return (
        Scores.from_document(document["scores"]) if "scores" in document else Bounds.from_document(document["at_least"])
    )


def _load(journal: Path, storage: str | None) -> optuna.Study | None:
    opened = open_storage(journal, storage)
    try:
        return optuna.load_study(study_name=_name(journal, storage), storage=opened)
    except KeyError:
        if storage is None and journal.stat().st_size:
            raise RunFolderError(
                f"The journal {journal} is damaged: it holds no study. Restore it from a copy."
            ) from None
        return None


def _name(journal: Path, storage: str | None) -> str:
    """Name the study; a storage may keep those of many runs."""
    return STUDY_NAME if storage is None else f"{STUDY_NAME}/{journal.absolute().parent.name}"


def _derived_seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:4], "big")
