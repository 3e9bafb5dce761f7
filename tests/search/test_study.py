"""The study: reproducible, resumable after any interruption, and kept in a journal that survives a crash."""

import contextlib
import os
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from iconoclast.errors import RunFolderError
from iconoclast.scores import Bounds, Count, Scores, beaten
from iconoclast.search import sharing
from iconoclast.search.objective import Objective
from iconoclast.search.pareto import Trial, pareto_front
from iconoclast.search.space import EditParameters, SearchSpace
from iconoclast.search.storage import Journal
from iconoclast.search.study import Outcome, Plan, Study

SPACE = SearchSpace(8, ["attn.o_proj"], ["mean", "median", "hybrid"], ["global", "per_layer"])
OBJECTIVE = Objective(Scores(Count(18, 20), Count(0, 20), 3, 0.2, 0.0), 0.1, 0.32, 0.18, 0.42)
TOTAL, BATCH, STARTUP = 12, 4, 4  # the last batches are sampled by a model of the first ones


def scores_of(parameters: EditParameters) -> Scores:
    """What a model might answer, without a model: a strong edit in the right place refuses little and moves far."""
    profile = parameters.profiles["attn.o_proj"]
    strength = profile.max_weight * (1 - abs(profile.max_weight_position - 4) / 8)
    refusals = max(0, round(18 - 10 * strength - (parameters.direction.method == "mean")))
    return Scores(Count(refusals, 20), Count(0, 20), 1, 1 - refusals / 20, 0.03 * strength**2)


def evaluate(batch: Sequence[EditParameters]) -> list[Scores]:
    """Scores of a batch."""
    return [scores_of(parameters) for parameters in batch]


class Recorder:
    """An evaluation that remembers its batches, and is interrupted at some of them."""

    def __init__(self, interrupted: Sequence[int] = ()) -> None:
        self.batches: list[list[EditParameters]] = []
        self._interrupted = set(interrupted)

    def __call__(self, batch: Sequence[EditParameters]) -> list[Scores]:
        number = len(self.batches)
        self.batches.append(list(batch))
        if number in self._interrupted:
            raise KeyboardInterrupt
        return evaluate(batch)


def opened(folder: Path, **changes: object) -> Study:
    """The study of a folder."""
    options: dict[str, Any] = {"seed": 3, "startup_trials": STARTUP, "batch": BATCH, "pinned": {"model": "tiny"}}
    options |= changes
    plan = Plan(*(options.pop(name) for name in ("seed", "startup_trials", "batch")))
    folder.mkdir(exist_ok=True)
    return Study.open(folder / "study.jsonl", SPACE, plan, **options)


def run(study: Study, total: int = TOTAL, evaluation: Callable[..., Any] = evaluate) -> list[Trial]:
    """Run a study to the end: all of its trials."""
    study.run(total, evaluation, OBJECTIVE)
    return study.trials()


def run_until_done(folder: Path, evaluation: Callable[..., list[Scores]], total: int = TOTAL) -> list[Trial]:
    """Open and run, again and again, until nothing interrupts."""
    for _ in range(20):
        try:
            return run(opened(folder), total, evaluation)
        except KeyboardInterrupt:
            continue
    raise AssertionError("the study never ends")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """The trials of a study that nothing interrupts."""
    return run(opened(tmp_path_factory.mktemp("undisturbed")))


def test_a_study_has_the_trials_asked_for_in_order(undisturbed: list[Trial]) -> None:
    assert [trial.index for trial in undisturbed] == list(range(TOTAL))
    assert all(trial.scores == scores_of(trial.parameters) for trial in undisturbed)  # type: ignore[arg-type]


def test_no_trial_is_tried_twice(undisturbed: list[Trial]) -> None:
    assert len({repr(trial.parameters) for trial in undisturbed}) == TOTAL


def test_one_seed_is_one_study(undisturbed: list[Trial], tmp_path: Path) -> None:
    assert run(opened(tmp_path)) == undisturbed


def test_another_seed_is_another_study(undisturbed: list[Trial], tmp_path: Path) -> None:
    other = run(opened(tmp_path, seed=4))
    assert not {repr(t.parameters) for t in other[STARTUP:]} & {repr(t.parameters) for t in undisturbed[STARTUP:]}


def test_a_study_begins_with_standard_edits_of_every_scope_and_several_strengths(tmp_path: Path) -> None:
    trials = run(opened(tmp_path, startup_trials=10, batch=16))
    parameters = [trial.parameters for trial in trials]
    first = [SPACE.parameters(sample) for sample in SPACE.standard()]
    assert parameters[: len(first)] == first and len(first) == 8
    assert len(set(map(repr, parameters))) == TOTAL
    strengths = [(p.direction.scope, p.profiles["attn.o_proj"].max_weight) for p in first]
    assert strengths[:2] == [("global", 1.5), ("per_layer", 1.2)]
    assert strengths[2:5] == [("global", pytest.approx(1.5 * factor)) for factor in (0.7, 0.5, 1.2)]
    assert strengths[5:] == [("per_layer", pytest.approx(1.2 * factor)) for factor in (0.7, 0.5, 1.2)]


def test_no_standard_edit_comes_after_the_sampler_has_begun_to_learn(undisturbed: list[Trial]) -> None:
    standard = [SPACE.parameters(sample) for sample in SPACE.standard()]
    assert [trial.parameters for trial in undisturbed[:STARTUP]] == standard[:STARTUP]
    assert not {repr(trial.parameters) for trial in undisturbed[STARTUP:]} & set(map(repr, standard))


@pytest.mark.parametrize("layers", [1, 2, 30])
@pytest.mark.parametrize("strengthen", [False, True])
def test_standard_edits_lie_within_the_ranges(layers: int, strengthen: bool) -> None:
    space = replace(SPACE, layers=layers, strengthen=strengthen)
    for sample in space.standard():
        assert sample.keys() == space.distributions().keys()
        assert all(d._contains(d.to_internal_repr(sample[name])) for name, d in space.distributions().items())


def test_the_sampler_learns_from_the_scores(undisturbed: list[Trial], tmp_path: Path) -> None:
    def worst(batch: Sequence[EditParameters]) -> list[Scores]:
        return [
            Scores(Count(20 - s.refusals.count, 20), s.overrefusals, 0, 0.5, s.kl_divergence) for s in evaluate(batch)
        ]

    other = run(opened(tmp_path), evaluation=worst)
    assert [t.parameters for t in other[:STARTUP]] == [t.parameters for t in undisturbed[:STARTUP]]
    assert all(a.parameters != b.parameters for a, b in zip(other[STARTUP:], undisturbed[STARTUP:], strict=True))


@pytest.mark.parametrize(
    ("startup", "batch", "sizes"),
    [(4, 8, [2, 2, 8]), (5, 8, [2, 2, 1, 7]), (2, 8, [2, 8, 2]), (1, 1, [1] * 12), (20, 12, [3, 3, 3, 3])],
)
def test_first_trials_have_batches_of_their_own_a_quarter_as_wide(
    tmp_path: Path, startup: int, batch: int, sizes: list[int]
) -> None:
    recorder = Recorder()
    run(opened(tmp_path, startup_trials=startup, batch=batch), TOTAL, recorder)
    assert [len(batch) for batch in recorder.batches] == sizes


def test_trials_are_measured_in_batches_and_told_as_they_finish(tmp_path: Path) -> None:
    recorder = Recorder()
    told: list[Any] = []
    opened(tmp_path).run(10, recorder, OBJECTIVE, told.append)
    assert [len(batch) for batch in recorder.batches] == [1, 1, 1, 1, 4, 2]
    assert [list(outcomes) for outcomes in told] == [[0], [1], [2], [3], [4, 5, 6, 7], [8, 9]]
    assert [list(outcomes.values()) for outcomes in told] == list(map(evaluate, recorder.batches))


# Pruning.


class Pruning:
    """An evaluation that gives candidates up on half of what there is to know, if the study's front beats that."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.outcomes: list[Outcome] = []

    def __call__(self, batch: Sequence[EditParameters]) -> list[Outcome]:
        front = [trial.key for trial in pareto_front(self._study.trials())]
        measured = [
            bounds if beaten(bounds.key, front) else scores
            for scores in evaluate(batch)
            for bounds in [Bounds(scores.refusals.count // 2, 0, scores.kl_divergence)]
        ]
        self.outcomes += measured
        return measured


def test_pruned_trials_leave_the_front_as_it_is(tmp_path: Path) -> None:
    study = opened(tmp_path)
    pruning = Pruning(study)
    trials = run(study, 40, pruning)
    pruned = [t for t in study.study.trials if t.state == TrialState.PRUNED]
    assert study.finished == 40 and len(trials) + len(pruned) == 40
    assert 5 < len(pruned) < 35, "the test is about studies in which some trials are pruned"
    assert all(not trial.intermediate_values and trial.values is None for trial in pruned)
    assert {t.number for t in pruned} == {i for i, o in enumerate(pruning.outcomes) if isinstance(o, Bounds)}
    parameters = [SPACE.parameters(t.params) for t in study.study.trials]
    assert pareto_front([Trial(i, p, scores_of(p)) for i, p in enumerate(parameters)]) == pareto_front(trials)


@pytest.mark.parametrize("after", [1, 6, 11, 15])
def test_an_interrupted_study_that_prunes_goes_on_alike(tmp_path: Path, after: int) -> None:
    expected = run(study := opened(tmp_path / "whole"), 16, Pruning(study))
    study, told = opened(tmp_path / "parts"), 0

    def objective(scores: Scores) -> tuple[float, float]:
        nonlocal told
        told += 1
        if told == after:
            raise KeyboardInterrupt
        return OBJECTIVE(scores)

    with contextlib.suppress(KeyboardInterrupt):
        study.run(16, Pruning(study), objective)
    study = opened(tmp_path / "parts")
    assert run(study, 16, Pruning(study)) == expected


def test_the_sampler_survives_pruning(tmp_path: Path) -> None:
    def nearly_everything(batch: Sequence[EditParameters]) -> list[Outcome]:
        return [
            evaluate(batch)[0] if not study.trials() else Bounds(0, 0, 9.0),
            *[Bounds(0, 0, 9.0)] * (len(batch) - 1),
        ]

    study = opened(tmp_path)
    study.run(48, nearly_everything, OBJECTIVE)
    assert len(study.trials()) == 1 and study.finished == 48


def test_the_sampler_learns_from_pruned_trials(tmp_path: Path) -> None:
    """It avoids the side on which trials are pruned, whichever that is."""

    def proposed(folder: Path, pruned: Callable[[float], bool]) -> float:
        def measured(batch: Sequence[EditParameters]) -> list[Outcome]:
            return [
                Bounds(0, 0, 9.0)
                if pruned(p.profiles["attn.o_proj"].max_weight)
                else Scores(Count(9, 20), Count(0, 20), 0, 0.5, 0.2)
                for p in batch
            ]

        study = opened(folder)
        study.run(64, measured, OBJECTIVE)
        return statistics.fmean(t.params["attn.o_proj.max_weight"] for t in study.study.trials[32:])

    strong_pruned = proposed(tmp_path / "a", lambda weight: weight > 1.25)
    weak_pruned = proposed(tmp_path / "b", lambda weight: weight < 1.25)
    assert strong_pruned < 1.25 - 0.1 and weak_pruned > 1.25 + 0.1


def test_the_values_are_the_objectives(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for kept, trial in zip(study.study.trials, run(study, 4), strict=False):
        assert tuple(kept.values) == OBJECTIVE(trial.scores)
    assert all(tuple(t.values) == OBJECTIVE(scores_of(SPACE.parameters(t.params))) for t in study.study.trials)


# Interruptions.


@pytest.mark.parametrize("interrupted", [[0], [1], [2], [0, 1], [0, 1, 2], [1, 3], [0, 2, 4]])
def test_an_interrupted_study_has_the_trials_it_would_have_had(
    undisturbed: list[Trial], tmp_path: Path, interrupted: list[int]
) -> None:
    recorder = Recorder(interrupted)
    assert run_until_done(tmp_path, recorder) == undisturbed
    for number in interrupted:  # what an interruption lost is measured again, as it was
        assert recorder.batches[number + 1] == recorder.batches[number]
    assert len(recorder.batches) == len([1, 1, 1, 1, 4, 4]) + len(interrupted)


@pytest.mark.parametrize("after", range(BATCH))
def test_an_interruption_within_a_batch_loses_none(undisturbed: list[Trial], tmp_path: Path, after: int) -> None:
    study, told = opened(tmp_path), 0

    def objective(scores: Scores) -> tuple[float, float]:
        nonlocal told
        if told == BATCH + after:
            raise KeyboardInterrupt
        told += 1
        return OBJECTIVE(scores)

    with pytest.raises(KeyboardInterrupt):
        study.run(TOTAL, evaluate, objective)
    assert opened(tmp_path).trials() == undisturbed[: BATCH + after]
    assert opened(tmp_path).states()["running"] == 0  # the whole batch was measured, told or not
    recorder = Recorder()
    assert run(opened(tmp_path), TOTAL, recorder) == undisturbed
    assert [len(batch) for batch in recorder.batches] == [BATCH]


def interrupt_sampling(monkeypatch: pytest.MonkeyPatch, study: Study, at: int) -> None:
    """Make the study's storage raise when it is given its parameter number `at`."""
    storage, set_trial_param, given = study.study._storage, study.study._storage.set_trial_param, 0

    def guarded(*args: object) -> None:
        nonlocal given
        if given == at:
            raise KeyboardInterrupt
        given += 1
        set_trial_param(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "set_trial_param", guarded)


PARAMETERS = len(SPACE.distributions())


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(0, id="before the first trial"),
        pytest.param(2 * PARAMETERS, id="between two random trials"),
        pytest.param(2 * PARAMETERS + 3, id="within a random trial"),
        pytest.param(9 * PARAMETERS, id="between two learnt trials"),
        pytest.param(9 * PARAMETERS + 3, id="within a learnt trial"),
    ],
)
def test_an_interruption_while_trials_are_sampled_changes_nothing(
    undisturbed: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    study = opened(tmp_path)
    interrupt_sampling(monkeypatch, study, at)
    with pytest.raises(KeyboardInterrupt):
        run(study)
    assert run(opened(tmp_path)) == undisturbed


def test_an_evaluation_that_fails_leaves_its_batch(undisturbed: list[Trial], tmp_path: Path) -> None:
    def failing(batch: Sequence[EditParameters]) -> list[Scores]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        run(opened(tmp_path), evaluation=failing)
    assert opened(tmp_path).trials() == []
    assert run(opened(tmp_path)) == undisturbed


# How many trials.


def test_the_number_of_trials_is_the_total(undisturbed: list[Trial], tmp_path: Path) -> None:
    assert run(opened(tmp_path), 4) == undisturbed[:4]
    assert run(opened(tmp_path), 8) == undisturbed[:8]
    recorder = Recorder()
    assert run(opened(tmp_path), 8, recorder) == undisturbed[:8]
    assert run(opened(tmp_path), 3, recorder) == undisturbed[:8]
    assert recorder.batches == []
    assert run(opened(tmp_path), TOTAL) == undisturbed


@pytest.mark.parametrize("total", [1, 5, 9])
def test_a_total_that_fills_no_batch_is_met_exactly(undisturbed: list[Trial], tmp_path: Path, total: int) -> None:
    assert run_until_done(tmp_path, Recorder([0]), total) == undisturbed[:total]


def test_a_total_lowered_after_an_interruption_is_met_exactly(undisturbed: list[Trial], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(opened(tmp_path), TOTAL, Recorder([0]))
    assert run(opened(tmp_path), 2) == undisturbed[:2]


def test_the_width_of_a_batch_may_change(tmp_path: Path) -> None:
    run(opened(tmp_path, batch=4), 4)
    recorder = Recorder([1])
    with pytest.raises(KeyboardInterrupt):
        run(opened(tmp_path, batch=2), 10, recorder)
    trials = run(opened(tmp_path, batch=3), 10, recorder)
    assert [t.index for t in trials] == list(range(10))
    assert len({repr(t.parameters) for t in trials}) == 10


# The journal.


def test_a_study_can_be_read_without_its_settings(undisturbed: list[Trial], tmp_path: Path) -> None:
    run(opened(tmp_path))
    assert Study.read(tmp_path / "study.jsonl", SPACE).trials() == undisturbed


@pytest.mark.parametrize("part", ['{"op_code":5,"worker_id":"', "{", '{"op_code":6}'])
def test_a_last_line_that_a_crash_left_unfinished_is_survived(
    undisturbed: list[Trial], tmp_path: Path, part: str
) -> None:
    run(opened(tmp_path), 8)
    with (tmp_path / "study.jsonl").open("a") as journal:
        journal.write(part)
    assert opened(tmp_path).trials() == undisturbed[:8]
    assert run(opened(tmp_path)) == undisturbed
    assert opened(tmp_path).trials() == undisturbed


@pytest.mark.parametrize("lines", [1, 2, 10, 20, 40, 80])
def test_a_journal_that_lost_its_end_is_continued(undisturbed: list[Trial], tmp_path: Path, lines: int) -> None:
    run(opened(tmp_path), 8)
    journal = tmp_path / "study.jsonl"
    written = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(written[:-lines]) + written[-lines][:7])
    left = opened(tmp_path).trials()
    assert left == undisturbed[: len(left)]
    trials = run(opened(tmp_path))
    assert [t.index for t in trials] == list(range(TOTAL))
    assert trials[: len(left)] == left
    backend = Journal(journal)
    assert list(backend.read_logs(0)) and backend.torn == 1  # left out by everybody who reads on


def test_reading_leaves_the_time_of_a_journal_as_it_is(tmp_path: Path) -> None:
    opened(tmp_path)
    journal = tmp_path / "study.jsonl"
    os.utime(journal, (0, 0))
    assert opened(tmp_path).trials() == []
    assert journal.stat().st_mtime == 0


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    pinned = {"model": "tiny", "seed": 3, "components": ["attn.o_proj"]}
    opened(tmp_path, pinned=pinned)
    opened(tmp_path, pinned=dict(reversed(pinned.items())))
    with pytest.raises(RunFolderError, match=r"other settings \(components, seed\)"):
        opened(tmp_path, pinned=pinned | {"seed": 4, "components": ["mlp.down_proj"]})
    with pytest.raises(RunFolderError, match=r"other settings \(model\)"):
        opened(tmp_path, pinned={"seed": 3, "components": ["attn.o_proj"]})
    assert opened(tmp_path, pinned=pinned).trials() == []


def test_pinned_settings_are_compared_as_the_journal_writes_them(tmp_path: Path) -> None:
    opened(tmp_path, pinned={"components": ("a", "b"), "folder": tmp_path})
    opened(tmp_path, pinned={"components": ["a", "b"], "folder": str(tmp_path)})


def test_a_journal_without_a_study_cannot_be_read(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    journal.write_text("")
    with pytest.raises(RunFolderError, match="holds no study"):
        Study.read(journal, SPACE)


@pytest.mark.parametrize("damage", ["not json", '{"hello": 1}'])
@pytest.mark.parametrize("how", ["open", "read"])
def test_a_damaged_journal_is_an_error_that_says_so(tmp_path: Path, damage: str, how: str) -> None:
    run(opened(tmp_path), 4)
    journal = tmp_path / "study.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    lines[len(lines) // 2] = damage + "\n"
    journal.write_text("".join(lines))
    with pytest.raises(RunFolderError, match="is damaged"):
        opened(tmp_path) if how == "open" else Study.read(journal, SPACE)


def test_a_line_behind_a_torn_one_is_read_and_zeros_are_not(undisturbed: list[Trial], tmp_path: Path) -> None:
    run(opened(tmp_path), 8)
    journal = tmp_path / "study.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[3][:30] + lines[middle]  # as a writer leaves it who does not look at what is there
    lines.insert(5, b"\0" * 40 + b"\n")
    journal.write_bytes(b"".join(lines))
    assert run(opened(tmp_path)) == undisturbed


def test_a_full_disk_leaves_what_was_measured_as_it_was(
    undisturbed: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(opened(tmp_path), 8)
    study, before = opened(tmp_path), (tmp_path / "study.jsonl").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"No space left on device\. Make room"):
        run(study, 10)
    kept = (tmp_path / "study.jsonl").read_bytes()
    assert kept.startswith(before)
    assert b"outcomes" not in kept[len(before) :]  # trials that were only asked for
    monkeypatch.undo()
    assert run(opened(tmp_path)) == undisturbed


# Several processes.


class Shared:
    """A crew as a process sees it: who has been lost, and what happens while it waits."""

    def __init__(self, name: str, size: int = 2, lost: Sequence[str] = (), meanwhile: Callable[[], None] | None = None):
        self.name = name
        self.dead_after = 60.0
        self._size = size
        self._lost = lost
        self._meanwhile = meanwhile
        self.waited = 0

    def size(self) -> int:
        return self._size

    def lost(self, names: Collection[str]) -> set[str]:
        return set(names) & set(self._lost)

    def wait(self) -> None:
        self.waited += 1
        assert self.waited < 50, "waits for ever"
        if self._meanwhile:
            self._meanwhile()


def states(study: Study) -> list[str]:
    return [t.state.name for t in study.study.get_trials(deepcopy=False)]


def test_processes_share_a_study_and_measure_every_trial_once(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    recorders = Recorder(), Recorder()
    calls: list[Any] = []

    def evaluate(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
        if not calls:  # while the first one measures its first batch, the second one does all that is left
            calls.append(1)
            with contextlib.suppress(AssertionError):
                second.run(TOTAL, recorders[1], OBJECTIVE, crew=Shared("b"))
        return recorders[0](batch)

    first.run(TOTAL, evaluate, OBJECTIVE, crew=Shared("a"))
    assert first.finished == TOTAL and set(states(first)) <= {"COMPLETE", "PRUNED"}
    assert sum(map(len, recorders[0].batches)) + sum(map(len, recorders[1].batches)) == TOTAL
    assert recorders[0].batches and recorders[1].batches


def test_what_a_lost_process_has_left_is_measured_by_another(tmp_path: Path) -> None:
    killed = opened(tmp_path)

    def die(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
        raise RuntimeError  # and no chance to hand anything back

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(sharing, "hand_back", lambda study, trial_id: None)
        killed.run(TOTAL, die, OBJECTIVE, crew=Shared("a"))
    assert "RUNNING" in states(killed)

    waiting = Shared("b")
    waiting._meanwhile = lambda: setattr(waiting, "_lost", ["a"])  # its heart has not been heard for long enough
    recorder = Recorder()
    opened(tmp_path).run(TOTAL, recorder, OBJECTIVE, crew=waiting)
    assert waiting.waited == 1
    assert states(killed) == ["COMPLETE"] * TOTAL
    assert sum(map(len, recorder.batches)) == TOTAL


def test_a_trial_that_was_only_just_asked_for_is_left_alone(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.study.ask()  # by a process that has not said yet who it is
    crew = Shared("b")
    crew._meanwhile = lambda: setattr(crew, "dead_after", 0.0)
    study.run(TOTAL, Recorder(), OBJECTIVE, crew=crew)
    assert crew.waited == 1 and states(study) == ["COMPLETE"] * TOTAL


def test_an_interrupted_process_hands_its_batch_back(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study.run(TOTAL, Recorder([1]), OBJECTIVE, crew=Shared("a", 1))
    assert states(study).count("WAITING") > 0 and "RUNNING" not in states(study)
    parameters = [t.params for t in study.study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]
    other = opened(tmp_path)
    other.run(TOTAL, Recorder(), OBJECTIVE, crew=Shared("b"))
    assert states(other) == ["COMPLETE"] * TOTAL
    assert all(p in [t.params for t in other.study.get_trials(deepcopy=False)] for p in parameters)


def test_an_interrupted_process_hands_back_what_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(tmp_path)
    ask, asked = study._ask, []

    def interrupted(number: int, trial_id: int, memory: Any) -> optuna.Trial:
        asked.append(number)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(number, trial_id, memory)

    monkeypatch.setattr(study, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.run(TOTAL, Recorder(), OBJECTIVE, crew=Shared("a", 1))
    assert states(study) == ["WAITING"] * 2


def test_a_process_alone_continues_what_several_have_left(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study.run(TOTAL, Recorder([1]), OBJECTIVE, crew=Shared("a", 1))
    trials = run(opened(tmp_path))
    assert [t.index for t in trials] == list(range(TOTAL))


def test_a_process_taken_for_lost_counts_nothing_twice(tmp_path: Path) -> None:
    slow, fast = opened(tmp_path), opened(tmp_path)
    calls: list[int] = []

    def evaluate(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
        if not calls:
            calls.append(1)
            fast.run(TOTAL, Recorder(), OBJECTIVE, crew=Shared("b", lost=["a"]))
        return Recorder()(batch)

    told: list[int] = []
    slow.run(TOTAL, evaluate, OBJECTIVE, told.extend, crew=Shared("a"))
    assert told == []
    assert states(slow) == ["COMPLETE"] * TOTAL
    assert len(slow.trials()) == TOTAL


def test_trials_that_too_many_have_asked_for_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = opened(tmp_path), opened(tmp_path)
    crew, faster = Shared("a", 1), Shared("b")
    claim = sharing.claim

    def raced(study: optuna.Study, crew: Shared) -> int:  # another process is always a little faster
        claim(other.study, faster)
        return claim(study, crew)

    monkeypatch.setattr(sharing, "claim", raced)
    crew._meanwhile = lambda: (monkeypatch.undo(), setattr(crew, "_lost", ["b"]))[0]
    study.run(TOTAL, Recorder(), OBJECTIVE, crew=crew)
    assert study.finished == TOTAL == len(study.trials())
    assert "RUNNING" not in states(study) and "FAIL" in states(study)
    run(opened(tmp_path), TOTAL + 4)
    assert opened(tmp_path).finished == TOTAL + 4
