"""Weights in other types and other places: quantised checkpoints, 8 bits, offloaded modules, compiled modules."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.merge import save_merged
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import find_writers, site_directions
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.probe import require_complete
from iconoclast.vocabulary import COMPONENTS, RowNormalization
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_config, tiny_tokenizer


def some_edit(lm: LanguageModel, normalization: RowNormalization = "pre") -> Edit:
    directions = normalize(torch.randn(lm.layers, lm.hidden_size, generator=torch.Generator().manual_seed(0)), dim=-1)
    profiles: dict[str, Profile] = dict.fromkeys(COMPONENTS, Profile.constant(0.9))
    return Edit.build(site_directions(lm.writers(), directions), profiles, normalization)


def logits(lm: LanguageModel, edits: list[Edit] | None = None) -> Tensor:
    ids = torch.randint(5, 261, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), LiveEdits(lm.writers(), edits or [Edit.nothing()]).applied():
        return lm.model(input_ids=ids).logits.float().clone()


def assert_merges_to_what_was_live(lm: LanguageModel, folder: Path) -> None:
    edit = some_edit(lm)
    live = logits(lm, [edit])
    assert (live - logits(lm)).abs().max() > 0.05
    folder.mkdir()
    save_merged(edit, lm.writers(), lm.model, folder, Checkpoint.find(lm.path))
    lm.tokenizer.save_pretrained(folder)
    merged = load_model(str(folder), dtypes=["float32"])
    assert getattr(merged.model.config, "quantization_config", None) is None
    torch.testing.assert_close(logits(merged), live, atol=1e-3, rtol=1e-3)


# Checkpoints that are quantised already.


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    """A tiny llama in FP8 with one scale for every 16 × 16 block, as DeepSeek and Qwen publish theirs."""
    folder = save_tiny(tmp_path / "fp8")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        tensors[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    config.save_pretrained(folder)
    return folder


def test_an_fp8_checkpoint_is_dequantised_edited_and_merged(fp8: Path, tiny_folder: Path, tmp_path: Path) -> None:
    lm = load_model(str(fp8), dtypes=["float32"])
    site, writer = next(iter(lm.writers().items()))
    original = load_file(tiny_folder / "model.safetensors")[f"{site.module}.weight"]
    assert writer.weight().dtype == torch.float32
    torch.testing.assert_close(writer.weight(), original, atol=0.03, rtol=0.07)  # 3 bits of mantissa
    assert_merges_to_what_was_live(lm, tmp_path / "merged")


def test_an_mxfp4_checkpoint_is_dequantised_edited_and_merged(tmp_path: Path) -> None:
    folder = tmp_path / "mxfp4"
    family = FAMILIES["gpt_oss"]
    replace(family, options={**family.options, "intermediate_size": 64}).model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("down_proj", "gate_up_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (experts, rows, columns // 32, 16), generator=random, dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.full((experts, rows, columns // 32), 124, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["self_attn", "router", "lm_head", "embed_tokens"],
    }
    config.save_pretrained(folder)
    lm = load_model(str(folder), dtypes=["float32"])
    assert any(writer.fused for writer in lm.writers().values())
    assert_merges_to_what_was_live(lm, tmp_path / "merged")


def test_a_quantisation_that_cannot_be_read_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    for method, expected in (("gptq", "(?i)gptq|optimum"), ("secret", "quantisation secret is unknown")):
        folder = save_tiny(tmp_path / method)
        config = AutoConfig.from_pretrained(folder)
        config.quantization_config = {"quant_method": method, "bits": 4}
        config.save_pretrained(folder)
        with pytest.raises(ModelError, match=expected):
            load_model(str(folder))


def test_8_bit_weights_are_edited_live_as_their_values_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=128))
    lm = load_model(str(folder), dtypes=["float32"], quantization="bnb_8bit")
    site, writer = next(iter(lm.writers().items()))
    assert type(writer.module).__name__ == "Linear8bitLt" and writer.stored.dtype == torch.int8
    original = load_file(folder / "model.safetensors")[f"{site.module}.weight"]
    torch.testing.assert_close(writer.weight(), original, atol=0.01, rtol=0.02)
    random = torch.Generator().manual_seed(0)
    direction, x = normalize(torch.randn(64, generator=random), dim=0), torch.randn(30, 64, generator=random)
    with torch.no_grad(), LiveEdits(lm.writers(), [Edit({site: direction}, {site: 0.8}, "pre")]).applied():
        live = writer.module(x)
        plain = x @ writer.weight().T
    expected = x @ edited_weight(writer.weight(), direction, 0.8, "pre").T
    # The activations are rounded to 8 bits as well, with and without an edit.
    assert (live - expected).norm() < 0.3 * (expected - plain).norm()


# Modules that are elsewhere, or compiled.


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_offloaded_modules_are_edited_as_if_they_were_there(family: str, tmp_path: Path) -> None:
    FAMILIES[family].model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    here = load_model(str(tmp_path / "base"), dtypes=["float32"])
    size = sum(p.numel() * 4 for p in here.model.parameters())
    away = load_model(str(tmp_path / "base"), dtypes=["float32"], max_memory={"cpu": f"{size * 0.6 / 1000:.1f}KB"})
    assert any(writer.stored.device.type == "meta" for writer in away.writers().values())
    for normalization in ("none", "pre", "full"):
        edits = [some_edit(lm, normalization) for lm in (here, away)]
        for site in edits[0].sites:
            torch.testing.assert_close(edits[0].directions[site], edits[1].directions[site])
        torch.testing.assert_close(logits(away, [edits[1]]), logits(here, [edits[0]]), atol=1e-4, rtol=1e-4)
    (tmp_path / "merged").mkdir()
    save_merged(edits[1], away.writers(), away.model, tmp_path / "merged", Checkpoint.find(away.path))
    here.tokenizer.save_pretrained(tmp_path / "merged")
    merged = load_model(str(tmp_path / "merged"), dtypes=["float32"])
    torch.testing.assert_close(logits(merged), logits(here, [edits[0]]), atol=1e-4, rtol=1e-4)


def test_hooks_act_on_compiled_layers(tiny_lm: LanguageModel) -> None:
    edit = some_edit(tiny_lm)
    base, live = logits(tiny_lm), logits(tiny_lm, [edit])
    for layer in tiny_lm.model.model.layers:
        layer.compile(backend="eager")
    torch.testing.assert_close(logits(tiny_lm), base, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(tiny_lm, [edit]), live, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(tiny_lm), base, atol=1e-5, rtol=1e-5)


# Experts in a list of modules, as models with code of their own have them.


class ModuleListExperts(torch.nn.Module):
    """Two experts side by side, and one that sees everything."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        kind, config = type(mlp), mlp.config
        self.gate = torch.nn.Linear(32, 2, bias=False)
        self.experts = torch.nn.ModuleList(kind(config) for _ in range(2))
        self.shared_experts = kind(config)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        routed = sum(weights[..., [i]] * expert(x) for i, expert in enumerate(self.experts))
        return routed + self.shared_experts(x)


def test_experts_in_a_list_of_modules_are_one_site_each() -> None:
    model = FAMILIES["llama"].model()
    for layer in model.model.layers:
        layer.mlp = ModuleListExperts(layer.mlp).requires_grad_(False)
    writers = find_writers(model, COMPONENTS)
    first = [site.module for site in writers if site.layer == 0]
    assert first == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.experts.0.down_proj",
        "model.layers.0.mlp.experts.1.down_proj",
        "model.layers.0.mlp.shared_experts.down_proj",
    ]
    require_complete(model, writers)
