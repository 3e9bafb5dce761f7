"""Files that mean one thing to one reader and another to the next.

After public reports of people who edit and merge models: a repository with a new single file beside old shards, from which
loaders and converters took different weights; adapters put on a sibling or a shallower model without a word; merged FP8 models
whose draft layers were gone while the configuration still claimed them; tokenizer files that saving had rewritten.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.lora import save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.errors import ModelError
from iconoclast.models.adapters import other_base, put_adapter
from iconoclast.models.anatomy import find_writers
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.loading import load_model
from iconoclast.models.rest import unread
from iconoclast.runs.drift import beyond_noise, drift
from iconoclast.scores import Scores
from iconoclast.vocabulary import Component
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_config

WITHOUT_EXPERTS: list[tuple[str, dict[str, Any], Component]] = [
    ("qwen3_moe", {"decoder_sparse_step": 2, "num_hidden_layers": 1}, "mlp.down_proj"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp.down_proj"),
    ("qwen2_moe", {}, "mlp.shared"),
]


def shards_of(other: Path, folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(other).save_pretrained(folder / "shards", max_shard_size="60KB")
    for file in (folder / "shards").glob("model*"):
        shutil.copy(file, folder / file.name)
    shutil.rmtree(folder / "shards")


def test_a_single_file_beside_shards_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", seed=1)
    shards_of(other, folder)
    for reader in (load_model, Checkpoint.find):
        with pytest.raises(ModelError, match=r"two models: model\.safetensors, and .*model-00001.*index\.json"):
            reader(str(folder))


def test_a_copy_in_shards_and_an_index_to_nothing_are_no_matter(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    shards_of(folder, folder)
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None and checkpoint.files == ["model.safetensors"] and checkpoint.index is None
    for file in folder.glob("model-*"):
        file.unlink()
    assert Checkpoint.find(str(folder)) is not None and load_model(str(folder)).dtype == "float32"


def test_the_file_that_the_configuration_names_is_the_one_that_is_read(tmp_path: Path) -> None:
    folder, other = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder / "tuned.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "tuned.safetensors"}))
    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None and checkpoint.files == ["tuned.safetensors"]
    loaded = load_model(str(folder), dtypes=["float32"]).model.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(loaded, load_file(other / "model.safetensors")["model.embed_tokens.weight"])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("changed", "expected"), [(without_a_tensor, r"lack 1 .*q_proj"), (with_an_adapter, "a model and an adapter")]
)
def test_weights_that_would_be_random_or_of_two_sources_are_refused(
    tmp_path: Path, changed: Callable[[Path], None], expected: str
) -> None:
    changed(save_tiny(tmp_path / "model"))
    with pytest.raises(ModelError, match=expected):
        load_model(str(tmp_path / "model"))


def adapter_of(folder: Path, to: Path) -> Path:
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["o_proj"])
    )
    adapted.save_pretrained(str(to))
    return to


@pytest.mark.parametrize("layers", [3, 5])
def test_an_adapter_of_a_model_with_other_layers_is_refused(tmp_path: Path, layers: int) -> None:
    other = save_tiny(tmp_path / "other", tiny_config(num_hidden_layers=layers))
    adapter = adapter_of(other, tmp_path / "adapter")
    lm = load_model(str(save_tiny(tmp_path / "model")))
    with pytest.raises(ModelError, match=r"is not of .*layers\.[34]\.self_attn\.o_proj\.lora"):
        put_adapter(lm, str(adapter))


def test_an_adapter_that_declares_another_base_is_told_from_its_own(tmp_path: Path) -> None:
    model, sibling = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "sibling", seed=1)
    adapter = str(adapter_of(sibling, tmp_path / "adapter"))
    assert other_base(adapter, str(sibling)) is None
    assert other_base(adapter, str(model)) == str(sibling)
    assert other_base(adapter, "org/Sibling") is None and other_base(adapter, "org/model") == str(sibling)


def test_one_rank_and_one_alpha_say_the_whole_update(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "model")), dtypes=["float32"])
    writers = lm.writers()
    directions = {site: normalize(torch.randn(32), dim=0) for site in writers}
    edit = Edit(directions, dict.fromkeys(writers, 0.8), "full")
    save_adapter(edit, writers, "base", tmp_path, "auto")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"] and config["r"] == config["lora_alpha"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    before = {site: writer.weight().clone() for site, writer in writers.items()}
    put_adapter(lm, str(tmp_path))
    merged = dict(lm.model.named_modules())
    for site in edit.sites:
        a, b = (tensors[f"base_model.model.{site.module}.lora_{x}.weight"] for x in "AB")
        assert len(a) == b.shape[1] == config["r"]
        by_hand = b @ a * config["lora_alpha"] / len(a)  # as llama.cpp does it
        by_peft = merged[site.module].get_delta_weight("default")
        torch.testing.assert_close(by_peft, by_hand)
        assert before[site].shape == by_hand.shape


@pytest.mark.parametrize(("family", "options", "component"), WITHOUT_EXPERTS)
def test_an_adapter_of_layers_without_experts_fits_a_model_whose_type_has_them(
    family: str, options: dict[str, Any], component: Component, tmp_path: Path
) -> None:
    """PEFT takes any down_proj of such a type for an expert's, so the adapter must name the parameter."""
    known = FAMILIES[family]
    replace(known, options={**known.options, **options}).model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    writers = find_writers(model, [component])
    assert not all(writer.fused for writer in writers.values())
    edit = Edit({site: normalize(torch.randn(32), dim=0) for site in writers}, dict.fromkeys(writers, 0.8))
    ids = torch.arange(5, 12)[None]
    with LiveEdits(writers, [edit]).applied(), torch.no_grad():
        live = model(input_ids=ids).logits
    save_adapter(edit, writers, "base", tmp_path)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(model, str(tmp_path))(input_ids=ids).logits
    torch.testing.assert_close(adapted, live, atol=1e-4, rtol=1e-4)


def test_what_transformers_does_not_load_is_kept_or_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    for each in (name, "mtp.proj.weight"):
        weight = tensors.get(each, torch.randn(32, 32))
        tensors[each] = weight.to(torch.float8_e4m3fn)
        tensors[f"{each}_scale_inv"] = torch.ones(weight.shape[0] // 16, weight.shape[1] // 16)
    tensors |= {"mtp.norm.weight": torch.ones(32), "mtp.packed.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    quantization["modules_to_not_convert"] = [
        "lm_head",
        "self_attn",
        "gate_proj",
        "up_proj",
        *(f"layers.{i}.mlp" for i in (0, 2, 3)),
    ]
    claim = {"num_nextn_predict_layers": 1, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps({**config, **claim}))
    lm = load_model(str(folder), dtypes=["float32"])
    edit = Edit(*(dict.fromkeys(lm.writers(), value) for value in (normalize(torch.ones(32), dim=0), 1.0)))  # type: ignore[arg-type]
    checkpoint, out = Checkpoint.find(str(folder)), tmp_path / "out"
    assert checkpoint is not None
    out.mkdir()
    lost = save_merged(edit, lm.writers(), lm.model, out, checkpoint)
    assert lost == ["mtp.packed.weight"]
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    copy = Checkpoint.find(str(out))
    assert copy is not None and set(unread(checkpoint, lm.model)) - copy.places.keys() == set(lost)
    torch.testing.assert_close(copy.tensor("mtp.proj.weight"), tensors["mtp.proj.weight"].float().bfloat16())
    checkpoint.copy_papers(out)
    assert load_model(str(out)).dtype == "float32"


def scores(divergence: float, refused: int = 3) -> Scores:
    count = {"count": refused, "n": 60}
    names = ("refusals", "soft_refusals", "broken", "complied", "overrefusals", "benign_broken")
    return Scores.from_document(
        {**dict.fromkeys(names, count), "kl_divergence": divergence, "disclaimer_hits": 0, "compliance": 1.0}
    )


def test_noise_is_judged_as_a_distance() -> None:
    assert not beyond_noise(scores(0.1), scores(0.1001), 1e-5, "float32")
    assert "first-token KL" in beyond_noise(scores(0.1), scores(0.13), 1e-5, "float32")
    assert not beyond_noise(scores(0.1), scores(0.11), 1e-5, "bfloat16")
    assert not beyond_noise(scores(0.1, 0), scores(0.1, 1), 1e-5, "float32")
    assert "refusals 3 live, 40 exported" in beyond_noise(scores(0.1), scores(0.1, 40), 1e-5, "float32")
    assert beyond_noise(scores(0.1), scores(float("nan")), 1e-5, "float32")


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_one_response_that_turns_is_noise_also_beside_none(before: int, after: int) -> None:
    assert not beyond_noise(scores(0.1, before), scores(0.1, after), 1e-5, "float32")
    assert drift("x", scores(0.1, before), scores(0.1, after), 1e-5).grade == "within noise"
