"""Merged weights as patched copies of the model's files: the same names, types and shards, in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.merge import save_merged
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import site_directions
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.skeleton import load_skeleton
from iconoclast.vocabulary import COMPONENTS, RowNormalization
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_config, tiny_tokenizer


def some_edit(lm: LanguageModel, normalization: RowNormalization = "pre") -> Edit:
    directions = normalize(torch.randn(lm.layers, lm.hidden_size, generator=torch.Generator().manual_seed(0)), dim=-1)
    profile = Profile(1.0, lm.layers - 1, 0.5, 1)  # the last two layers
    return Edit.build(site_directions(lm.writers(), directions), dict.fromkeys(COMPONENTS, profile), normalization)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A tiny model in bfloat16, in several files."""
    folder = save_tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    (folder / "LICENSE").write_text("Do as you please.")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of a stranger')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_only_the_edited_matrices_change(sharded: Path, tmp_path: Path, normalization: RowNormalization) -> None:
    lm = load_model(str(sharded))
    checkpoint = Checkpoint.find(str(sharded))
    assert checkpoint is not None
    edit, out = some_edit(lm, normalization), tmp_path / "out"
    out.mkdir()
    save_merged(edit, lm.writers(), lm.model, out, checkpoint)
    before, after = tensors_of(sharded), tensors_of(out)
    assert list(before) == list(after)
    edited = {f"{site.module}.weight": site for site in edit.sites}
    assert len(edited) == 4
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == torch.bfloat16
        if name in edited:
            site = edited[name]
            wanted = edited_weight(tensor.float(), edit.directions[site], edit.strengths[site], normalization)
            assert torch.equal(after[name], wanted.bfloat16()) and not torch.equal(after[name], tensor)
        else:
            assert torch.equal(after[name], tensor)
    for file in sharded.glob("*.safetensors"):
        assert (out / file.name).stat().st_size == file.stat().st_size
    for name in ("model.safetensors.index.json", "config.json"):
        assert (out / name).read_bytes() == (sharded / name).read_bytes()
    checkpoint.copy_papers(out)
    assert (out / "LICENSE").is_file() and (out / "preprocessor_config.json").is_file()
    assert not (out / "pytorch_model.bin").exists() and not (out / "modeling_tiny.py").exists()


def test_fused_experts_are_edited_one_by_one_in_their_files(tmp_path: Path) -> None:
    FAMILIES["mixtral"].model().save_pretrained(tmp_path / "base")
    names = set(tensors_of(tmp_path / "base"))
    assert "model.layers.2.block_sparse_moe.experts.3.w2.weight" in names  # as the checkpoints of Mixtral are
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = load_model(str(tmp_path / "base"), dtypes=["float32"])
    (tmp_path / "out").mkdir()
    save_merged(some_edit(lm), lm.writers(), lm.model, tmp_path / "out", Checkpoint.find(str(tmp_path / "base")))
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{layer}.{name}.weight"
        for layer in (1, 2)
        for name in ("self_attn.o_proj", *(f"block_sparse_moe.experts.{i}.w2" for i in range(4)))
    }


def test_a_skeleton_makes_the_same_files_as_the_model(sharded: Path, tmp_path: Path) -> None:
    lm, skeleton = load_model(str(sharded)), load_skeleton(str(sharded))
    assert skeleton.device.type == "meta"
    for name, each in (("whole", lm), ("skeleton", skeleton)):
        (tmp_path / name).mkdir()
        save_merged(some_edit(each), each.writers(), each.model, tmp_path / name, Checkpoint.find(str(sharded)))
    whole, bare = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "skeleton")
    assert all(torch.equal(whole[name], bare[name]) for name in whole)


@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3", "mixtral", "gpt2", "afmoe", "hyperclovax", "lfm3", "qwen3_next"]
)
def test_a_skeleton_knows_norms_experts_and_prefixes(family: str, tmp_path: Path) -> None:
    FAMILIES[family].model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm, skeleton = load_model(str(tmp_path / "base"), dtypes=["float32"]), load_skeleton(str(tmp_path / "base"))
    one, other = some_edit(lm), some_edit(skeleton)
    assert one.sites == other.sites
    for site in one.sites:
        torch.testing.assert_close(one.directions[site], other.directions[site])
    for name, each, edit in (("whole", lm, one), ("skeleton", skeleton, other)):
        (tmp_path / name).mkdir()
        save_merged(edit, each.writers(), each.model, tmp_path / name, Checkpoint.find(str(tmp_path / "base")))
    whole, bare = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "skeleton")
    assert whole.keys() == bare.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], bare[name])


MEASURE = """
import json, sys
from pathlib import Path
from tests.models.test_checkpoint import some_edit
from iconoclast.edits.merge import save_merged
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.skeleton import load_skeleton

small, large, out = map(Path, sys.argv[1:])
def export(folder, to):
    to.mkdir()
    lm = load_skeleton(str(folder))
    save_merged(some_edit(lm), lm.writers(), lm.model, to, Checkpoint.find(str(folder)))
    # Not getrusage: its maximum is that of the process that started this one, if that was larger.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = export(small, out / "small")  # what the libraries themselves take
print(json.dumps((export(large, out / "large") - before) / 1024))
"""


@pytest.mark.slow
def test_an_export_takes_less_memory_than_the_model(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=16, dtype="bfloat16")
    small, large = save_tiny(tmp_path / "small"), tmp_path / "large"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(large, max_shard_size="24MB")
    tiny_tokenizer().save_pretrained(large)
    sizes = [file.stat().st_size / 2**20 for file in large.glob("*.safetensors")]
    assert len(sizes) > 4 and sum(sizes) > 100
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), str(tmp_path / "out")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    grown = json.loads(done.stdout.splitlines()[-1])
    assert grown < 2 * max(sizes), f"{grown:.0f} MiB for shards of {max(sizes):.0f} MiB"


def test_other_formats_and_types_are_not_patched(tmp_path: Path, tiny_folder: Path) -> None:
    assert Checkpoint.find("nobody/has-this-model") is None
    (tmp_path / "empty").mkdir()
    assert Checkpoint.find(str(tmp_path / "empty")) is None
    with pytest.raises(ModelError, match="not stored as safetensors"):
        load_skeleton(str(tmp_path / "empty"))
    lm = load_model(str(tiny_folder))
    folder = tmp_path / "integers"
    lm.model.save_pretrained(folder)
    tensors = tensors_of(folder)
    name = next(name for name in tensors if name.endswith("o_proj.weight"))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None
    with safe_open(str(folder / "model.safetensors"), "pt") as opened:
        assert set(checkpoint.places) == set(opened.keys())
    assert checkpoint.names(lm.model, name, tensors[name].shape) is None
