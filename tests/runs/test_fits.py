"""Fitted edits are trials like others: kept, continued after an interruption, exported, replayed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.fitting.fit import FitOptions
from iconoclast.progress import Silent
from iconoclast.runs import fits
from iconoclast.runs.export import export_run
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.pipeline import Run
from iconoclast.runs.replay import replay
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.search.space import FittedParameters
from iconoclast.vocabulary import Quantization
from tests.support.tiny import save_tiny, tiny_config

SCALES = [0.5, 1.0]


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run with prompts enough for a fit; whatever a random model says counts as an answer."""
    monkeypatch.setattr(ResponseRules, "label", lambda self, prompt, response: "complied")
    file = tmp_path / "fit.txt"
    file.write_text("\n".join(f"Please play song {n}" for n in range(10)))
    more = {"bad_prompts": PromptSource(dataset=str(file)), "fit_steps": 7, "fit_scales": SCALES}
    good = tmp_path / "good.txt"
    good.write_text("\n".join(f"Who wrote song {n}?" for n in range(10)))
    return tiny_settings.model_copy(
        update={**more, "good_prompts": PromptSource(dataset=str(good)), "random_controls": 1}
    )


def finished(settings: Settings, progress: Silent | None = None) -> Run:
    with started_run(settings, progress) as run:
        run.optimize(settings.n_trials, progress)
        run.finish(progress)
        run.trials()
        return run


def fitted(run: Run) -> list[Any]:
    return [trial for trial in run.trials() if isinstance(trial.parameters, FittedParameters)]


def edit_of(settings: Settings, run: Run, index: int) -> Edit:
    folder = RunFolder(run.folder.path)
    return SavedRun.open(folder, str(index)).edit(run.bench.lm)


def test_fitted_edits_are_trials_after_the_searched_ones(settings: Settings) -> None:
    run = finished(settings)
    trials = fitted(run)
    assert [trial.index for trial in trials] == [6, 7]
    assert [trial.parameters.scale for trial in trials] == SCALES
    summary = run.folder.read_summary()
    assert summary is not None
    assert (summary.fitted_trials, summary.finished_trials) == (2, 6)
    half, whole = (edit_of(settings, run, trial.index) for trial in trials)
    assert half.strengths == {site: 0.5 * strength for site, strength in whole.strengths.items()}
    start = edit_of(settings, run, trials[0].parameters.trial)
    assert any(not torch.equal(start.directions[site], whole.directions[site]) for site in whole.sites)


class Phases(Silent):
    """Keeps what was begun, and how many steps it was to take."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []

    def start(self, description: str, total: int) -> None:
        self.begun.append((description, total))


@pytest.mark.parametrize(("steps", "prompts"), [(7, 20), (1, 18)])
def test_a_short_fit_asks_for_what_it_uses(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: int, prompts: int
) -> None:
    monkeypatch.setattr(FitOptions, "benign", 5)
    progress = Phases()
    finished(settings.model_copy(update={"fit_steps": steps}), progress)
    assert ("Collecting the base model's responses to fit on", prompts) in progress.begun


def test_a_best_scale_at_the_end_of_its_range_is_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(settings.model_copy(update={"fit_scales": [0.5, 0.7, 1.0]}))
    low, middle, high = fitted(run)
    for trial, said in ((low, 1), (middle, 0), (high, 1)):
        monkeypatch.setattr(run, "best", lambda trial=trial: trial)
        assert sum("end of fit_scales" in line for line in run._edges()) == said


def test_a_second_start_fits_nothing_again(settings: Settings) -> None:
    finished(settings)
    again = finished(settings.model_copy(update={"n_trials": 8}))
    assert len(fitted(again)) == 2 and again.study.finished == 8


def test_without_fit_there_are_no_fitted_trials(settings: Settings) -> None:
    run = finished(settings.model_copy(update={"fit": False}))
    assert not fitted(run) and not run.folder.fits.exists()


class BrokenOff(Silent):
    """Stops at a step of the fit."""

    def __init__(self, stop: int) -> None:
        self.left, self.fitting = stop, False

    def start(self, task: str, total: int) -> None:
        self.fitting = task.startswith("Fitting")

    def advance(self, steps: int = 1) -> None:
        self.left -= self.fitting
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stop", [3, 6]
)  # in the first round of three steps, which leaves no state; in the second, after the first's
def test_a_fit_that_is_broken_off_ends_at_the_same_edit(settings: Settings, tmp_path: Path, stop: int) -> None:
    whole = finished(settings)
    other = settings.model_copy(update={"study_checkpoint_dir": tmp_path / "other"})
    with pytest.raises(KeyboardInterrupt):
        finished(other, BrokenOff(stop))
    assert len(list((tmp_path / "other" / "fits").glob("*.state"))) == (stop > 3)
    resumed = finished(other)
    assert not list(resumed.folder.fits.glob("*.state"))
    one, two = (edit_of(settings, run, 7) for run in (whole, resumed))
    assert one.strengths == two.strengths
    assert all(torch.equal(one.directions[site], two.directions[site]) for site in one.sites)


def test_a_damaged_state_of_a_fit_is_said_in_a_line(settings: Settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        finished(settings, BrokenOff(6))
    assert settings.study_checkpoint_dir is not None
    (state,) = (settings.study_checkpoint_dir / "fits").glob("*.state")
    for content in (state.read_bytes()[:500], b"[", b""):
        state.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"is damaged\. Delete it: the same command"):
            finished(settings)
    state.unlink()
    assert len(fitted(finished(settings))) == 2


def test_a_fitted_trial_is_exported_and_replayed(settings: Settings, tmp_path: Path) -> None:
    run = finished(settings)
    exported = export_run(run.folder.path, "7", "adapter", tmp_path / "adapter", Silent())
    assert exported.exported is not None
    assert exported.exported.kl_divergence == pytest.approx(exported.live.kl_divergence, abs=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "fitted by gradient" in card and "not trained further" not in card
    assert replay(run.folder.path, "7").grade != "changed"


def test_short_answers_are_examples_where_no_refusal_is_marked(tiny_settings: Settings) -> None:
    """A short answer may be a refusal that no phrase knows; where one is to be brief, it is the best."""
    assert fits.shortest_example(tiny_settings) == fits.SHORTEST_OTHERWISE
    for strengthen, wanted in ((False, fits.SHORTEST), (True, fits.SHORTEST_REFUSAL)):
        assert fits.shortest_example(Settings(behavior="everyday", strengthen=strengthen)) == wanted
    assert fits.shortest_example(Settings(behavior="wordiness")) == 1


def test_too_few_responses_are_no_examples(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseRules, "label", lambda self, prompt, response: "refusal")
    notes: list[str] = []

    class Noted(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    assert not fitted(finished(settings, Noted()))
    assert any(note.startswith("Nothing is fitted") for note in notes)


@pytest.mark.parametrize("quantization", ["bnb_4bit", "bnb_8bit"])
def test_gradients_of_a_quantised_base_reach_the_edit(
    settings: Settings, tmp_path: Path, quantization: Quantization
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=128))
    run = finished(settings.model_copy(update={"model": str(folder), "quantization": quantization}))
    (losses,) = (json.loads(file.read_text()) for file in (run.folder.path / "fits").glob("*.json"))
    assert len(losses) == 7 and losses[-1]["loss"] < losses[0]["loss"]
    trial = fitted(run)[-1]
    start, whole = (edit_of(run.settings, run, index) for index in (trial.parameters.trial, trial.index))
    assert all(float((start.directions[site] - v).norm()) > 1e-4 for site, v in whole.directions.items())
