"""Judges choose among the finalists, are a score, disagree openly, and are never asked for more than was said."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from iconoclast.config.schema import Settings, without_functions
from iconoclast.directions.estimators import DirectionSpec
from iconoclast.errors import UserError
from iconoclast.evaluation.judged import Verdicts, agreement, judged_failures
from iconoclast.evaluation.judges.protocol import Item
from iconoclast.goals import estimate
from iconoclast.reports.pages.parts import section
from iconoclast.reports.tables import finalists_table
from iconoclast.runs.documents import BatchSummary
from iconoclast.runs.export import export_run
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.judging import cost, judge_finalists
from iconoclast.runs.pipeline import Run
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.trials import finalists_of
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters
from iconoclast.vocabulary import Label, Verdict


class Reader:
    """A judge that goes by a rule, and counts what it is asked."""

    name = "reader"

    def __init__(self, rule: Callable[[str], Verdict] = lambda response: "complied") -> None:
        self.rule = rule
        self.asked = 0
        self.problem: str | None = None

    def judge(self, items: Sequence[Item], advance: Callable[[int], None] = lambda n: None) -> list[Verdict]:
        self.asked += len(items)
        verdicts = [self.rule(response) for _, response in items]
        self.problem = "out of order" if "unknown" in verdicts else None
        return verdicts


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, task: str, total: int) -> None:
        """Forget it."""

    def advance(self, steps: int = 1) -> None:
        """Forget it."""

    def note(self, message: str) -> None:
        self.said.append(message)


def trial(index: int, failures: int, kl: float) -> Trial:
    return Trial(index, EditParameters(DirectionSpec(), {}), Scores(Count(failures, 20), Count(0, 20), 0, 0.5, kl))


def test_a_response_that_a_judge_does_not_know_is_a_failure_and_a_silent_judge_is_unknown() -> None:
    labels: list[Label] = ["complied", "complied", "broken", "refusal"]
    verdicts: Verdicts = {"a": ["complied", "unknown", "complied", "soft_refusal"], "b": ["complied"] * 4}
    weak, strong = (judged_failures(labels, verdicts, strengthened) for strengthened in (False, True))
    assert weak is not None and weak.value == 0.5
    assert strong is not None and strong.value == 1
    assert judged_failures(labels, {**verdicts, "c": ["unknown"] * 4}, False) is None
    found = agreement(labels, verdicts["a"], "slow")
    assert (found.markers, found.judge, found.only_markers, found.only_judge) == (Count(1, 3), Count(0, 3), 1, 0)
    assert (found.unknown, found.problem) == (1, "slow")


def test_judges_choose_by_the_rule_of_the_best_trial() -> None:
    settings = Settings(judged_finalists=3)
    trials = [trial(0, 0, 0.09), trial(1, 6, 0.05), trial(2, 12, 0.01), trial(3, 12, 0.02), trial(4, 1, 0.5)]
    finalists = finalists_of(trials, settings)
    assert [each.index for each in finalists] == [0, 1, 2]  # 3 is beaten, 4 is beyond the KL target
    labels: list[Label] = ["complied"] * 20
    fine: list[Verdict] = ["complied"] * 20

    def said(n: int, bad: Verdict = "refusal") -> Verdicts:
        verdicts: list[Verdict] = [bad] * n
        return {"j": verdicts + fine[n:]}

    def judged(*refusals: int, unknown: int = 0) -> Any:
        given = [said(n) for n in refusals]
        if unknown:
            given[0] = said(unknown, "unknown")
        found = [(each, labels, verdicts) for each, verdicts in zip(finalists, given, strict=True)]
        return judge_finalists(found, [Reader()], settings)

    assert judged(10, 2, 9).chosen == 1
    assert judged(0, 0, 0).chosen == 2  # all alike to the judge: the lowest KL
    assert judged(0, 2, 19, unknown=12).chosen == 1
    assert judged(0, 2, 19, unknown=20).chosen is None
    (cells,) = (list(column.cells) for column in finalists_table(judged(10, 2, 9)).columns[:1])
    assert cells == ["0", "1 *", "2"]
    on_page = section("Finalists", finalists_table(judged(10, 2, 9)))
    assert [row[0] for row in on_page.tables["Finalists (select prompts)"]] == ["Trial", "0", "1 *", "2"]


@pytest.fixture
def settings(tiny_settings: Settings) -> Settings:
    update = {"judged_finalists": 3, "judges": ["reader"], "random_controls": 0, "kl_divergence_target": 100.0}
    trade = {
        "objectives": ["token_kl", "-kl"],
        "fit": False,
    }  # what is close in one is close in the other: a long front
    return tiny_settings.model_copy(update=update | trade)


def finished(settings: Settings, judge: Reader, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[str]]:
    monkeypatch.setattr("iconoclast.runs.starting.judges_of", lambda settings: [judge])
    monkeypatch.setattr("iconoclast.runs.workbench.judges_of", lambda settings: [judge])
    notes = Notes()
    with started_run(settings, notes) as run:
        run.optimize(settings.n_trials, notes)
        run.finish(notes)
    return run, notes.said


def test_what_judges_chose_is_the_best_trial_everywhere(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, _ = finished(settings.model_copy(update={"judged_finalists": 0}), Reader(), monkeypatch)
    by_markers = first.best()
    front = finalists_of(first.trials(), settings)
    assert by_markers is not None and len(front) > 1 and front[0].index == by_markers.index
    target = first.prompts.target_evaluation
    liked = first.evaluator.respond([first.edit(front[1].parameters)], target)[0]
    judge = Reader(lambda response: "complied" if response in liked else "refusal")
    run, said = finished(settings, judge, monkeypatch)
    best = run.best()
    assert best is not None and best.index == front[1].index
    assert any("up to 14 responses (6 of 3 finalists, 8 in the report)" in line for line in said)
    folder = RunFolder(tmp_path / "run")
    summary = BatchSummary.read(folder.summary)
    assert summary.best_trial == best.index and summary.report is not None and summary.report.trial == best.index
    saved = SavedRun.open(folder, "best")
    assert saved.judged and saved.trial.index == best.index
    assert not SavedRun.open(folder, str(by_markers.index)).judged
    asked = judge.asked
    again, _ = finished(settings, judge, monkeypatch)
    assert judge.asked == asked and again.best() == best  # nothing is asked twice
    exported = export_run(folder.path, "best", "adapter", tmp_path / "adapter")
    assert "Judges chose the trial" in (exported.folder / "README.md").read_text()
    with_less = settings.model_copy(update={"judged_finalists": 0})
    assert finished(with_less, judge, monkeypatch)[0].best() == by_markers


def test_a_judge_that_fails_chooses_nothing_and_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = finished(settings, Reader(lambda response: "unknown"), monkeypatch)
    best = run.best()
    assert best == finalists_of(run.trials(), settings)[0] and not run.judged
    assert any("judges have chosen nothing" in line for line in said)
    assert finished(settings, Reader(), monkeypatch)[0].judged


def test_judged_failures_are_a_score(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"objectives": ["judged_failures", "kl"], "constraints": ["judged_failures <= 0.9"], "judged_finalists": 0}
    asking = settings.model_copy(update=texts)
    judge = Reader(lambda response: "refusal" if len(response) % 2 else "complied")
    run, said = finished(asking, judge, monkeypatch)
    for each in run.trials():
        known = estimate("judged_failures", each.scores)
        assert known is not None and known.interval is not None
        assert ("judged_failures <= 0.9" in each.scores.violated) is (known.value > 0.9)
    assert any(f"{(6 + 1) * 2} of trials" in line for line in said)
    assert run.report is not None and "judged_failures" in run.report.metrics.own
    assert without_functions(asking).objectives == ["kl"] and without_functions(asking).constraints == []
    silent = asking.model_copy(update={"study_checkpoint_dir": Path(str(asking.study_checkpoint_dir) + "-2")})
    lost, _ = finished(silent, Reader(lambda response: "unknown"), monkeypatch)
    assert all("judged_failures is known" in each.scores.violated for each in lost.trials())
    other = Reader()
    other.name = "another"
    with pytest.raises(UserError, match="judged_failures"):
        finished(asking, other, monkeypatch)


@pytest.mark.parametrize("update", [{"judged_finalists": 2}, {"constraints": ["judged_failures <= 0.1"]}])
def test_without_a_judge_there_is_none_to_choose(tiny_settings: Settings, update: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs a judge"), started_run(tiny_settings.model_copy(update=update)):
        pass


def test_the_cost_is_counted_beforehand() -> None:
    (line,) = cost([Reader(), Reader()], {"of trials": 0, "of 3 finalists": 144, "in the report": 1200})
    assert "1,344 responses each (144 of 3 finalists, 1,200 in the report)" in line
    assert cost([], {"in the report": 3}) == []


def test_runs_of_earlier_versions_have_no_finalists(tiny_settings: Settings, tmp_path: Path) -> None:
    with started_run(tiny_settings) as run:
        run.optimize(2)
        run.write_summary("running")
    assert "finalists" not in json.loads((tmp_path / "run" / "batch_summary.json").read_text())
