"""Edits one after the other: live, adapter and merged weights agree, and the order counts where both edit one matrix."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from transformers import MixtralConfig

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import load_edit, save_edit
from iconoclast.models.anatomy import find_writers
from iconoclast.models.language_model import LanguageModel
from iconoclast.vocabulary import COMPONENTS, NORMALIZATIONS, RowNormalization, Site
from tests.edits.test_live import (
    FAMILIES,
    GEMMA,
    Writers,
    adapter_logits,
    live_logits,
    logits,
    merged_logits,
    random_edit,
    random_model,
    token_ids,
)

PAIRS = list(product(NORMALIZATIONS, NORMALIZATIONS))


def overlapping(writers: Writers, first: RowNormalization, second: RowNormalization) -> tuple[Edit, Edit]:
    """Two edits along directions that are not orthogonal; the second leaves out one site of the first."""
    one, other = random_edit(writers, first), random_edit(writers, second, seed=5, strength=0.9)
    near = {s: normalize(v + one.directions.get(s, v), dim=0) for s, v in other.directions.items()}
    sites = other.sites[1:]
    return one, Edit({s: near[s] for s in sites}, {s: other.strengths[s] for s in sites}, second)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_edits_in_turn_are_one_model_live_as_adapter_and_merged(
    tiny_lm: LanguageModel, first: RowNormalization, second: RowNormalization, tmp_path: Path
) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(3)
    one, other = overlapping(writers, first, second)
    both = one.followed_by(other)
    live = live_logits(model, writers, both, ids)
    for folder in ("first", "adapter", "merged", "in turn"):
        (tmp_path / folder).mkdir()
    # The definition: the first merged, and the second merged into that.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for edit in (one, other):
        for site in edit.sites:
            writers[site].stored.copy_(edit.applied_to(site, writers[site].stored))
    in_turn = logits(model, ids)
    model.load_state_dict(state)
    torch.testing.assert_close(live, in_turn, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        adapter_logits(model, writers, both, ids, tmp_path / "adapter", 32), live, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        merged_logits(model, writers, both, ids, tmp_path / "merged"), live, atol=1e-4, rtol=1e-4
    )
    assert (live - live_logits(model, writers, other.followed_by(one), ids)).abs().max() > 1e-3
    save_edit(both, tmp_path / "edit.safetensors")
    again = load_edit(tmp_path / "edit.safetensors")
    torch.testing.assert_close(live_logits(model, writers, again, ids), live)
    assert [part.sites for part in again.parts] == [one.sites, other.sites]


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2"])
def test_biases_and_transposed_weights_change_nothing_of_that(family: str, tmp_path: Path) -> None:
    model = random_model(FAMILIES[family])
    writers, ids = find_writers(model, COMPONENTS), token_ids(2)
    both = Edit.followed_by(*overlapping(writers, "pre", "none"))
    live = live_logits(model, writers, both, ids)
    for folder in ("adapter", "merged"):
        (tmp_path / folder).mkdir()
    torch.testing.assert_close(
        adapter_logits(model, writers, both, ids, tmp_path / "adapter", 3), live, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        merged_logits(model, writers, both, ids, tmp_path / "merged"), live, atol=1e-4, rtol=1e-4
    )


def test_experts_that_are_fused_are_edited_twice(tmp_path: Path) -> None:
    sizes = {key: value for key, value in GEMMA.items() if key not in ("head_dim", "sliding_window")}
    model = random_model(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2))
    writers, ids = find_writers(model, COMPONENTS), token_ids(2)
    both = Edit.followed_by(*overlapping(writers, "pre", "full"))
    live = live_logits(model, writers, both, ids)
    assert any(writer.fused for writer in writers.values())
    merged = merged_logits(model, writers, both, ids, tmp_path)
    torch.testing.assert_close(merged, live, atol=2e-4, rtol=1e-3)


def test_composed_edits_stand_beside_others_in_a_batch(tiny_lm: LanguageModel) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(1).expand(4, -1)
    one, other = overlapping(writers, "full", "pre")
    edits = [one.followed_by(other), Edit.nothing(), other, one]
    with LiveEdits(writers, edits, [0, 1, 2, 3]).applied(torch.arange(4)):
        together = logits(model, ids)
    for row, edit in enumerate(edits):
        torch.testing.assert_close(together[[row]], live_logits(model, writers, edit, ids[[row]]), atol=2e-5, rtol=1e-4)


def test_two_projections_are_not_their_sum(tiny_lm: LanguageModel) -> None:
    writers = tiny_lm.writers()
    site = max(writers)
    weight = writers[site].weight()
    u = normalize(torch.ones(32), dim=0)
    v = normalize(torch.ones(32) + torch.eye(32)[0] * 3, dim=0)
    first, second = (Edit({site: d}, {site: 1.0}, "none") for d in (u, v))
    left = first.followed_by(second).applied_to(site, weight)
    torch.testing.assert_close(v @ left, torch.zeros(weight.shape[1]), atol=1e-5, rtol=0)
    added = first.applied_to(site, weight) + second.applied_to(site, weight) - weight
    assert (v @ added).norm() > 0.1
    found = first.followed_by(second).factors(site, weight, None)
    assert found.rank == 2 and found.error == 0
    torch.testing.assert_close(weight + found.b @ found.a, left, atol=1e-5, rtol=1e-4)


def test_strengths_of_all_parts_are_scaled() -> None:
    site = Site(0, "attn.o_proj", "a")
    edit = Edit({site: torch.ones(1)}, {site: 1.0}, "none")
    assert [part.strengths[site] for part in edit.followed_by(edit).followed_by(edit).scaled(0.5).parts] == [0.5] * 3
    assert "followed_by" in repr(edit.followed_by(edit)) and "2" not in repr(edit)
