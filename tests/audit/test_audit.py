"""An edit is recovered from the weights alone, and a hostile checkpoint gets one clear line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from iconoclast.edits.edit import edited_weight
from iconoclast.vocabulary import NORMALIZATIONS, RowNormalization
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES


def changed(folder: Path, to: Path, change, dtype=None) -> Path:
    to.mkdir()
    tensors = {name: change(name, tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({n: t.to(dtype or t.dtype).contiguous() for n, t in tensors.items()}, to / "model.safetensors")
    return to


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_one_edits_are_recovered(
    tmp_path: Path, family: str, normalization: RowNormalization, dtype: torch.dtype
) -> None:
    FAMILIES[family].model().to(dtype).save_pretrained(tmp_path / "base")  # type: ignore[arg-type]
    v = normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    names = ("o_proj.weight", "down_proj", "down_proj.weight", "w2.weight", "c_proj.weight")

    def edit(name, tensor):
        if not name.endswith(names):
            return tensor
        turned = family in ("gpt2", "gpt_oss") and not name.endswith("o_proj.weight")
        result = edited_weight(tensor.float().mT if turned else tensor.float(), v, 0.7, normalization)
        return (result.mT if turned else result).to(tensor.dtype)

    to = changed(tmp_path / "base", tmp_path / "edited", edit)
    file = tmp_path / "a.json"
    done = iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only", "--json", file)
    assert done.code == 0, done.err
    document, directions = json.loads(file.read_text()), load_file(tmp_path / "a.safetensors")
    assert document["verdict"] == "rank_one" and document["row_normalization"] == normalization
    edited = [t for t in document["tensors"] if t["status"] == "changed"]
    assert edited and all(t["name"].endswith(names) for t in edited)
    assert all(abs(t["strength"] / 0.7 - 1) < 0.01 for t in edited)
    found = [value for key, value in directions.items() if key.endswith(".direction")]
    assert len(found) >= len(edited) and all(abs(float(each @ v)) > 0.999 for each in found)


def test_the_base_rounding_and_dense_changes_are_named(tmp_path: Path) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    random = torch.Generator().manual_seed(0)
    made = {
        "untouched": lambda name, t: t,
        "requantised": lambda name, t: t.bfloat16().float(),
        "dense": lambda name, t: t + 0.01 * torch.randn(t.shape, generator=random),
        "low_rank": lambda name, t: (
            t + 0.05 * torch.randn(t.shape[0], 3, generator=random) @ torch.randn(3, t.shape[1], generator=random)
            if name.endswith("o_proj.weight") else t
        ),
    }  # fmt: skip
    for verdict, change in made.items():
        to, file = changed(tmp_path / "base", tmp_path / verdict, change), tmp_path / f"{verdict}.json"
        assert iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only", "--json", file).code == 0
        assert json.loads(file.read_text())["verdict"] == verdict


@pytest.mark.parametrize("harm", ["index", "shape", "no safetensors"])
def test_a_hostile_checkpoint_gets_one_clear_line(tmp_path: Path, harm: str) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    to = changed(tmp_path / "base", tmp_path / "edited", lambda name, t: t[:-1] if harm == "shape" else t)
    if harm == "index":
        index = {"weight_map": {"lie.weight": "model.safetensors"}}
        (to / "model.safetensors.index.json").write_text(json.dumps(index))
    if harm == "no safetensors":
        (to / "model.safetensors").write_bytes(b"not a checkpoint, whatever its name says")
    done = iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only")
    assert done.code == 2 and done.complaint.count("\n") == 0


def test_an_adapter_is_read_on_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = FAMILIES["llama"].model()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "a.json"
    done = iconoclast("audit", tmp_path / "adapter", "--base", tmp_path / "base", "--weights-only", "--json", file)
    assert done.code == 0, done.err
    document = json.loads(file.read_text())
    changed_ones = [t for t in document["tensors"] if t["status"] != "unchanged"]
    assert document["verdict"] == "low_rank" and [t["rank"] for t in changed_ones] == [2, 2, 2]
