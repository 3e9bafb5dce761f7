"""An edit is undone where only what is declared differs; otherwise one line says why not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.record import save_edit
from iconoclast.runs.manifest import sums
from iconoclast.runs.restore import restore_alone
from iconoclast.vocabulary import RowNormalization, Site
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_tokenizer

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


def export_of(base: Path, edited: Path, edit: Edit, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Write base and edited model in a type, the edit's record beside the latter; return the base's tensors."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    made = {
        s.module + ".weight": edit.applied_to(s, tensors[s.module + ".weight"].float()).to(dtype) for s in edit.sites
    }
    save_file({**tensors, **made}, edited / "model.safetensors", {"format": "pt"})
    save_edit(edit, edited / "edit.safetensors")
    return tensors


def two_sites(normalization: RowNormalization, strength: float, fitted: bool = False) -> Edit:
    random = torch.Generator().manual_seed(5)
    sites = [
        Site(0, "mlp.down_proj", EDITED.removesuffix(".weight")),
        Site(1, "attn.o_proj", "model.layers.1.self_attn.o_proj"),
    ]
    along = {site: normalize(torch.randn(32, generator=random), dim=0) for site in sites}
    other = {site: normalize(v + 0.1 * torch.randn(32, generator=random), dim=0) for site, v in along.items()}
    return Edit(along, dict.fromkeys(sites, strength), normalization, other if fitted else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(("normalization", "strength"), [("none", 0.9), ("none", 1.4), ("pre", 0.5), ("full", 0.5)])
def test_the_record_alone_restores_the_weights_within_the_stated_bound(
    models: tuple[Path, Path], tmp_path: Path, normalization: RowNormalization, strength: float, fitted: bool, dtype: torch.dtype
) -> None:  # fmt: skip
    base, edited = models
    edit = two_sites(normalization, strength, fitted)
    wanted = export_of(base, edited, edit, dtype)
    found = restore_alone(str(edited), tmp_path / "restored")
    after = load_file(tmp_path / "restored/model.safetensors")
    assert found.names == sorted(f"{site.module}.weight" for site in edit.sites) and not found.checked
    assert found.lost < (0.2 if dtype == torch.bfloat16 else 1e-3)
    for name, tensor in wanted.items():
        off = float((after[name].float() - tensor.float()).norm())
        assert off <= found.error * float(tensor.float().norm())


def test_stacked_experts_are_restored_from_the_record(tmp_path: Path) -> None:
    base, edited = tmp_path / "base", tmp_path / "edited"
    for folder in (base, edited):
        FAMILIES["gpt_oss"].model().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors = load_file(base / "model.safetensors")
    site, v = (
        Site(0, "mlp.down_proj", "model.layers.0.mlp.experts"),
        normalize(torch.arange(1.0, 1 + tensors[name].shape[-1]), dim=0),
    )
    edit = Edit({site: v}, {site: 0.8}, "none")
    changed = {**tensors, name: edit.applied_to(site, tensors[name].mT).mT.contiguous()}
    save_file(changed, edited / "model.safetensors", {"format": "pt"})
    save_edit(edit, edited / "edit.safetensors")
    found = restore_alone(str(edited), tmp_path / "restored")
    after = load_file(tmp_path / "restored/model.safetensors")
    assert found.names == [name] and float((after[name] - tensors[name]).norm()) <= found.error * float(
        tensors[name].norm()
    )
    assert float((changed[name] - tensors[name]).norm()) > 10 * float((after[name] - tensors[name]).norm())


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("all removed", "it has removed all of its direction"),
        ("nearly all removed", "rounding, 1000 times as large, would hide"),
        ("norms lost", "too little is left of its direction"),
        ("no record", "nothing says what was changed"),
        ("other weights", "is not the file of SHA256SUMS"),
        ("of another model", "names modules that"),
        ("of another size", "its direction has 16 entries, and the matrix 32 rows"),
        ("an adapter", "Load it without the adapter"),
        ("GGUF", "is a GGUF file"),
        ("declared", "--matrices declares what to take from a base"),
    ],
)
def test_what_the_record_cannot_restore_is_said(models: tuple[Path, Path], tmp_path: Path, why: str, said: str) -> None:
    base, edited = models
    strength = {"all removed": 1.0, "nearly all removed": 0.999, "norms lost": 0.999}.get(why, 0.5)
    edit = two_sites("full" if why == "norms lost" else "none", strength)
    if why == "of another model":
        edit = Edit({Site(9, "mlp.down_proj", "model.layers.9.mlp.down_proj"): torch.ones(32) / 32**0.5}, {Site(9, "mlp.down_proj", "model.layers.9.mlp.down_proj"): 0.5}, "none")  # fmt: skip
        save_edit(edit, edited / "edit.safetensors")
    else:
        export_of(base, edited, edit, torch.bfloat16)
    if why == "of another size":
        halved = {site: v[:16] for site, v in edit.directions.items()}
        save_edit(Edit(halved, edit.strengths, "none"), edited / "edit.safetensors")
    if why == "no record":
        (edited / "edit.safetensors").unlink()
    if why == "other weights":
        (edited / "SHA256SUMS").write_text("".join(f"{'0' * 64}  {f.name}\n" for f in edited.iterdir()))
    if why == "an adapter":
        (edited / "config.json").rename(edited / "adapter_config.json")
    if why == "GGUF":
        (edited / "model.safetensors").rename(edited / "model.gguf")
    more = ("--matrices", "*") if why == "declared" else ()
    done = iconoclast("restore", edited, "--out", tmp_path / "restored", *more)
    assert done.code == 2 and said in done.complaint and done.complaint.count("\n") == 0
    assert not (tmp_path / "restored").exists()


def test_checksums_and_the_named_base_are_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = models
    export_of(base, edited, two_sites("none", 0.5), torch.bfloat16)
    assert "WARNING: no checksums" in iconoclast("restore", edited, "--out", tmp_path / "one").out
    (edited / "SHA256SUMS").write_text(sums(edited))
    done = iconoclast("restore", edited, "--out", tmp_path / "two", "--json")
    assert done.code == 0 and "WARNING" not in done.err and json.loads(done.out)["checked"] is True
