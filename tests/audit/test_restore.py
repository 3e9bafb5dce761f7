"""An edit is undone where only what is declared differs; otherwise one line says why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.record import save_edit
from iconoclast.vocabulary import Site
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny

EDITED = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an export of it: one matrix edited, and its record."""
    base, edited = tmp_path / "base", tmp_path / "edited"
    for folder in (base, edited):
        folder.mkdir()
        save_tiny(folder)
    tensors = load_file(base / "model.safetensors")
    v = normalize(torch.ones(len(tensors[EDITED])), dim=0)
    tensors[EDITED] = edited_weight(tensors[EDITED], v, 0.5, "none")
    save_file(tensors, edited / "model.safetensors", {"format": "pt"})
    site = Site(0, "mlp.down_proj", EDITED.removesuffix(".weight"))
    save_edit(Edit({site: v}, {site: 0.5}, "none"), edited / "edit.safetensors")
    return base, edited


def alter(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("declared", ["by its record", "by name"])
def test_the_weights_are_those_of_the_base_again(models: tuple[Path, Path], tmp_path: Path, declared: str) -> None:
    base, edited = models
    (edited / "chat_template.jinja").write_text("the edited model's own")
    if declared == "by name":
        (edited / "edit.safetensors").unlink()
    named = ("--matrices", "*down_proj.weight") if declared == "by name" else ()
    done = iconoclast("restore", edited, "--base", base, "--out", tmp_path / "restored", *named)
    assert done.code == 0, done.err
    assert (tmp_path / "restored/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert (tmp_path / "restored/chat_template.jinja").read_text() == "the edited model's own"
    again = iconoclast("restore", tmp_path / "restored", "--base", base, "--out", tmp_path / "r2", "--matrices", "*")
    assert again.code == 2 and "nothing to restore" in again.complaint


def test_a_base_is_said_to_be_one_without_a_record(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = models
    done = iconoclast("restore", base, "--base", base, "--out", tmp_path / "restored")
    assert done.code == 2 and "nothing to restore" in done.complaint


def test_experts_are_put_back_one_after_the_other(tmp_path: Path) -> None:
    base, edited = tmp_path / "base", tmp_path / "edited"
    for folder in (base, edited):
        FAMILIES["gpt_oss"].model().save_pretrained(folder)
    alter(edited, "model.layers.0.mlp.experts.down_proj")
    done = iconoclast("restore", edited, "--base", base, "--out", tmp_path / "new", "--matrices", "*experts*")
    assert done.code == 0, done.err
    assert (tmp_path / "new/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_what_is_not_declared_is_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = models

    def refusal() -> str:
        done = iconoclast("restore", edited, "--base", base, "--out", tmp_path / "restored")
        assert done.code == 2 and not (tmp_path / "restored").exists()
        return done.complaint

    alter(edited, "model.layers.1.mlp.up_proj.weight")
    assert "model.layers.1.mlp.up_proj.weight" in refusal()
    alter(edited, "model.norm.weight")
    assert "More than matrices differ: model.norm.weight" in refusal()
    (edited / "edit.safetensors").unlink()
    save_tiny(edited)
    alter(edited, EDITED)
    assert "--matrices" in refusal()
