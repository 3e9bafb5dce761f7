"""The token view: what is kept of every token is the model's own, with and without the edit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Silent
from iconoclast.runs.documents import TokenView
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.tokens import LIKELIEST, MOST_TOKENS, SHOWN, edited_directions, token_view
from iconoclast.vocabulary import Site
from tests.support.entry_point import iconoclast


@pytest.fixture
def folder(tiny_settings: Settings) -> RunFolder:
    with started_run(tiny_settings, Silent()) as run:
        run.optimize(2)
        run.finish()
        return run.folder


def test_a_run_keeps_what_its_best_trial_does_to_tokens(folder: RunFolder) -> None:
    view, saved = TokenView.read(folder.tokens), SavedRun.open(folder, "best")
    assert view.trial == saved.trial.index and view.layers
    assert [prompt.set for prompt in view.prompts] == ["target"] * 2 + ["benign"] * SHOWN["benign"]
    with saved.opened() as bench:
        edit, lm = bench.edit(saved.trial.parameters), bench.lm
        layers, directions = edited_directions(edit)
        assert layers == view.layers
        prompt = bench.sample.target.prompts[0]
        ids = torch.tensor(lm.encode([prompt]))
        variants = {"base": bench.live("base", Edit.nothing()), "edited": bench.live("edited", edit)}
        inner = layers.index(next(layer for layer in layers if layer < lm.layers - 1))
        unit = None
        for name, variant in variants.items():
            with variant.applied(), torch.inference_mode():
                output = lm.model(input_ids=ids, output_hidden_states=True)
            residuals = output.hidden_states[layers[inner] + 1][0].float()
            unit = residuals.norm(dim=-1).median() if unit is None else unit
            told = getattr(view.prompts[0], name)[inner]
            assert told == pytest.approx((residuals @ directions[inner] / unit)[-MOST_TOKENS:].tolist(), abs=2e-3)
            odds = output.logits[0, -1].float().softmax(-1)
            likeliest = view.prompts[0].first if name == "base" else []
            for first, token in zip(likeliest, odds.topk(LIKELIEST).indices.tolist(), strict=False):
                assert first.token == lm.token_text(token)
                assert first.base == pytest.approx(float(odds[token]), abs=1e-4)
    assert any(prompt.base != prompt.edited for prompt in view.prompts)


def test_another_trial_is_measured_when_it_is_asked_for(folder: RunFolder) -> None:
    best = TokenView.read(folder.tokens).trial
    other = next(trial.index for trial in SavedRun.open(folder, "best").trials if trial.index != best)
    page = folder.path / "report.html"
    hint = "report RUN --tokens"
    assert iconoclast("report", f"{folder.path}:{other}").code == 0 and hint in page.read_text()
    assert iconoclast("report", f"{folder.path}:{other}", "--tokens").code == 0
    assert TokenView.read(folder.tokens).trial == other
    assert hint not in page.read_text() and 'id="figure-tokens"' in page.read_text()


def test_only_a_run_has_tokens_to_measure(tmp_path: Path) -> None:
    assert "holds no run" in iconoclast("report", tmp_path, "--tokens").complaint


def test_the_direction_of_a_layer_weighs_its_sites() -> None:
    x, y = torch.eye(2)
    sites = [Site(0, "attn.o_proj", "a"), Site(0, "mlp.down_proj", "b"), Site(2, "mlp.down_proj", "c")]
    edit = Edit(dict(zip(sites, (x, y, y), strict=True)), dict(zip(sites, (3.0, 4.0, -1.0), strict=True)))
    layers, directions = edited_directions(edit)
    assert layers == [0, 2]
    assert torch.allclose(directions, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert edited_directions(Edit.nothing())[0] == []


def test_an_edit_of_nothing_has_no_tokens_to_show(tiny_settings: Settings, folder: RunFolder) -> None:
    saved = SavedRun.open(folder, "best")
    with saved.opened() as bench:

        class Nothing:
            def edit(self, *_: object) -> Edit:
                return Edit.nothing()

        view = token_view(bench, replace(saved.trial, parameters=Nothing()))  # type: ignore[arg-type]
    assert view.prompts == []


def test_a_token_has_a_name_even_if_it_is_part_of_a_character(tiny_lm: LanguageModel) -> None:
    tokens = tiny_lm.tokenizer.encode("é", add_special_tokens=False)
    assert len(tokens) == 2 and [tiny_lm.token_text(token) for token in tokens] == ["Ã", "©"]
