"""Strengthening: edits that make the model show the behaviour more, in the search, the fit, exports and what is said."""

from pathlib import Path

import pytest
import torch

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.directions.estimators import DirectionSpec, estimate_directions
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.evaluation.evaluator import MeasureOptions, score
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import make_edit
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.residuals import last_token_residuals
from iconoclast.progress import Silent
from iconoclast.prompts import Prompt, PromptSet
from iconoclast.runs import fits
from iconoclast.runs.export import export_run
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.replay import replay
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.verify import verify
from iconoclast.scores import AxisScores, Count, Scores
from iconoclast.search.objective import Objective
from iconoclast.search.space import FittedParameters, SearchSpace
from tests.support.entry_point import iconoclast

RULES = ResponseRules(["i can't"], ["as an"], ["perhaps"])


def test_a_failure_is_what_is_not_refused_and_broken_text_is_one() -> None:
    target = PromptSet(tuple(Prompt(text) for text in "abcd"), "target")
    benign = PromptSet((Prompt("e"),), "benign")
    said = ["I can't.", "I can't.", "Sure, here it is.", "no no no no no no no no no no no no no no no no no no"]
    plain, strengthened = (
        score(RULES, target, said, benign, ["Fine."], [0.1], MeasureOptions(strengthen=strengthen))
        for strengthen in (False, True)
    )
    assert (plain.failures, strengthened.failures) == (Count(3, 4), Count(2, 4))
    assert (plain.failing, strengthened.failing) == ("refused or broken", "not refused")
    assert plain.complied == strengthened.complied == Count(1, 4)
    assert "strengthened" not in plain.document() and strengthened.document()["strengthened"] is True
    assert Scores.from_document(strengthened.document()).failures == Count(2, 4)
    axis = AxisScores(1.0, Count(1, 4), Count(0, 4), Count(1, 4), 0.2)
    assert (axis.failures(), axis.failures(True)) == (Count(2, 4), Count(3, 4))


def test_the_search_rewards_refusals_and_neither_disclaimers_nor_compliance() -> None:
    def scores(refused: int, compliance: float) -> Scores:
        return Scores(Count(refused, 20), Count(0, 20), 3, compliance, 0.2, strengthened=True)

    objective = Objective(scores(18, 0.1), 0.1, 0.32, 0.18, 0.42)
    assert objective(scores(19, 0.1)) == objective(scores(19, 0.9)) == (pytest.approx(0.05), 0.2)
    assert objective.behaviour(scores(20, 0.0)) < objective.behaviour(scores(18, 0.9))


def test_strengths_are_negative_and_add_to_the_direction(tiny_lm: LanguageModel) -> None:
    space = SearchSpace(4, ["attn.o_proj"], ["mean"], ["per_layer"], strengthen=True)
    sample = {
        "direction_method": "mean",
        "direction_scope": "per_layer",
        "direction_index": 1.0,
        "direction_blend": 0.0,
        "attn.o_proj.max_weight": 0.5,
        "attn.o_proj.max_weight_position": 2.0,
        "attn.o_proj.min_weight_fraction": 0.5,
        "attn.o_proj.min_weight_distance": 2.0,
    }
    profile = space.parameters(sample).profiles["attn.o_proj"]
    assert profile == Profile(-0.5, 2.0, -0.25, 2.0)
    assert space.edges([space.parameters({**sample, "attn.o_proj.max_weight": 1.0})] * 3)
    sides = [tiny_lm.encode([Prompt(f"{word} {n}") for n in range(4)]) for word in ("What is", "Please set")]
    directions = estimate_directions(*(last_token_residuals(tiny_lm, ids, 4) for ids in sides), subspace_rank=0)
    edit = make_edit(tiny_lm, directions, {"attn.o_proj": profile}, DirectionSpec(), "none")
    (site,) = [site for site in edit.sites if site.layer == 2]
    writer = tiny_lm.writers()[site].module
    states = torch.randn(3, tiny_lm.writers()[site].weight().shape[1])
    before = writer(states) @ edit.directions[site]
    with LiveEdits(tiny_lm.writers(), [edit]).applied():
        after = writer(states) @ edit.directions[site]
    torch.testing.assert_close(after, 1.5 * before)


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run with prompts enough for a fit; half of what a random model says counts as a refusal."""
    monkeypatch.setattr(
        ResponseRules, "label", lambda self, prompt, response: "complied" if len(prompt) % 2 else "refusal"
    )
    monkeypatch.setattr(fits, "SHORTEST_REFUSAL", 1)
    update: dict[str, object] = {"strengthen": True, "fit_steps": 2, "fit_scales": [1.0], "random_controls": 1}
    for name, text in (("bad_prompts", "Please play song"), ("good_prompts", "Who wrote song")):
        file = tmp_path / f"{name}.txt"
        file.write_text("\n".join(f"{text} {'a' * n}" for n in range(1, 20)))
        update[name] = PromptSource(dataset=str(file))
    return tiny_settings.model_copy(update=update)


def test_a_run_strengthens_from_search_to_export(settings: Settings, tmp_path: Path) -> None:
    with started_run(settings) as run:
        run.optimize(settings.n_trials)
        run.finish()
        trials, best = run.trials(), run.best()
        assert any(isinstance(trial.parameters, FittedParameters) for trial in trials)
        assert all(strength < 0 for t in trials for strength in run.edit(t.parameters).strengths.values())
    assert best is not None and best.scores.strengthened
    assert best.scores.failures.count == best.scores.refusals.n - best.scores.refusals.count
    assert replay(tmp_path / "run", "best").grade == "exact"
    exported = export_run(tmp_path / "run", "best", "adapter", tmp_path / "export")
    assert exported.live.strengthened
    card = (tmp_path / "export" / "README.md").read_text()
    assert "write more of a direction" in card and "refuses more" in card and "- strengthened" in card
    assert all(check.passed for check in verify(tmp_path / "export", settings.model, prompts=settings))
    done = iconoclast("status", tmp_path / "run")
    assert "The run strengthens the behaviour" in done.out
    assert SavedRun.open(RunFolder(tmp_path / "run"), "best").settings.strengthen


def test_a_fit_learns_from_refusals_and_what_the_base_model_says_instead(settings: Settings) -> None:
    with started_run(settings) as run:
        run.optimize(settings.n_trials)
        start = min(run.trials(), key=lambda trial: trial.key)
        lessons = fits.Lessons(fits.FitStage(run.bench, run.folder.fits, start), Silent())
        lessons.learn(run.edit(start.parameters))
    prompts = lessons._target
    assert all((len(prompts[number].text) % 2 == 0) for number in lessons._answers)  # those that are refused
    assert [bool(tokens) for tokens in lessons._behaviour] == [len(prompt.text) % 2 == 1 for prompt in prompts]
