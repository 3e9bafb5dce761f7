"""The time that a run still takes, from the rates of what it has done."""

import pytest

from iconoclast.config.schema import Settings
from iconoclast.progress import Phase, Silent
from iconoclast.runs.forecast import Forecast, Stage
from iconoclast.runs.starting import started_run
from iconoclast.vocabulary import Dtype


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Board(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.figures: dict[str, str] = {}
        self.phases: list[Phase] = []

    def start(self, task: str, total: int) -> None:
        self.tasks.append(task)

    def show(self, name: str, value: str) -> None:
        self.figures[name] = value

    def expect(self, phases: list[Phase]) -> None:
        self.phases = phases


def begun(*stages: Stage) -> tuple[Forecast, Clock]:
    clock = Clock()
    return Forecast(Board(), stages, clock), clock


def passed(forecast: Forecast, clock: Clock, seconds: float, steps: int) -> None:
    clock.now += seconds
    forecast.advance(steps)


def test_nothing_is_said_before_anything_is_measured() -> None:
    forecast, _ = begun(Stage("Set-up", "Measuring", "respond", 10), Stage("Search", "Trials", "trial", 100))
    forecast.start("Loading a model", 0)
    assert forecast.left() is None


def test_what_has_not_begun_goes_at_the_rate_of_its_kind_or_of_one_like_it() -> None:
    forecast, clock = begun(
        Stage("Set-up", "Measuring", "respond", 10),
        Stage("Search", "Trials", "trial", 100),
        Stage("Report", "Examining", "respond", 20),
    )
    forecast.start("Measuring 1 edit", 4)
    passed(forecast, clock, 5, 4)  # half a second a token
    assert forecast.left() == pytest.approx(50 + 10)
    forecast.start("Trials", 10)
    passed(forecast, clock, 10, 5)  # a fifth of a second a token, which what was expected hardly changes any more
    assert forecast.left() == pytest.approx(50 * 0.2 + 10, rel=0.15)
    passed(forecast, clock, 10, 5)
    assert forecast.left() == pytest.approx(10)


def test_other_tasks_take_none_of_a_stage_s_time_and_skipped_ones_count_for_nothing() -> None:
    forecast, clock = begun(
        Stage("Set-up", "Collecting", "read", 10),
        Stage("Search", "Trials", "trial", 10),
        Stage("Report", "Measuring", "trial", 10),
    )
    forecast.start("Trials", 2)
    passed(forecast, clock, 3, 2)
    forecast.start("Judging", 5)
    passed(forecast, clock, 100, 5)
    assert forecast.left() == pytest.approx(3)
    forecast.start("Measuring 2 edits", 1)
    passed(forecast, clock, 3, 1)
    assert forecast.left() == 0
    assert isinstance(forecast.progress, Board)
    assert [phase.name for phase in forecast.progress.phases] == ["Search", "Report"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_comes_by_all_its_stages_and_shows_its_figures(tiny_settings: Settings, dtype: Dtype) -> None:
    board, given = Board(), {"fit": False, "random_controls": 1, "dtypes": [dtype]}
    with started_run(tiny_settings.model_copy(update=given), board) as run:
        run.optimize(tiny_settings.n_trials, board)
        run.finish(board)
        assert run.forecast is not None
        assert all(stage.seconds for stage in run.forecast.stages)
        assert [stage.task for stage in run.forecast.stages] == [
            "Collecting residuals", "Measuring", "Trials", "Examining base", *(["Reading with other"] if dtype == "bfloat16" else []),
            "Examining trial", "Measuring",
        ]  # fmt: skip
    assert [phase.name for phase in board.phases] == ["Set-up", "Search", "Report"]
    assert {"Base model", "Noise floor", "Trials", "Best so far"} <= board.figures.keys()
    assert board.figures["Trials"].startswith("6 of 6")
    assert "%" in board.figures["Best so far"]
