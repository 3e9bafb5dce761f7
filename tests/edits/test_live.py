"""One Edit drives the live edit, the adapter and the merged weights: all three are the same model."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.lora import VLLM_RANKS, save_adapter
from iconoclast.edits.merge import merged_weight, save_merged
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, decoder_layers, find_writers, site_directions
from iconoclast.models.decoding import Callbacks, decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.probe import require_complete
from iconoclast.vocabulary import COMPONENTS, NORMALIZATIONS, RowNormalization, Site
from tests.support.tiny import tiny_config

Writers = dict[Site, Writer]
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)

SMALL: dict[str, Any] = {"vocab_size": 261, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
GEMMA: dict[str, Any] = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**GEMMA, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=8),
    "gpt2": GPT2Config(**SMALL, n_embd=32, n_inner=48, n_layer=3, n_head=4, n_positions=64),
    "opt": OPTConfig(
        **SMALL,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "gpt_neox": GPTNeoXConfig(
        **SMALL,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "llama with tied embeddings": tiny_config(num_hidden_layers=3, tie_word_embeddings=True),
}


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model in which nothing is at its resting value: weights, biases and norms alike."""
    random = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random)
        parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
    return model


def token_ids(rows: int, length: int = 12, seed: int = 1) -> Tensor:
    """Random token sequences [rows, length]."""
    return torch.randint(5, 261, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: PreTrainedModel | PeftModel, ids: Tensor) -> Tensor:
    """Logits at every position, [rows, length, vocabulary]."""
    with torch.inference_mode():
        return model(input_ids=ids).logits.clone()


def random_edit(writers: Writers, normalization: RowNormalization, seed: int = 0, strength: float = 1.2) -> Edit:
    """An edit of both components with another direction at every layer, zero at the first layer; every other site reads another."""
    layers = 1 + max(site.layer for site in writers)
    width = next(iter(writers.values())).weight().shape[0]
    random = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(layers, width, generator=random), dim=-1)
    profile = Profile(strength, layers - 1, 0.5 * strength, layers - 2)
    edit = Edit.build(site_directions(writers, directions), dict.fromkeys(COMPONENTS, profile), normalization)
    read = {s: normalize(v + 0.5 * torch.randn(v.shape, generator=random), dim=-1) for s, v in edit.directions.items()}
    return replace(edit, readings={site: read[site] for site in edit.sites[::2]})


def live_logits(model: PreTrainedModel, writers: Writers, edit: Edit, ids: Tensor) -> Tensor:
    """Logits with one edit on every row."""
    with LiveEdits(writers, [edit]).applied():
        return logits(model, ids)


def adapter_logits(
    model: PreTrainedModel, writers: Writers, edit: Edit, ids: Tensor, folder: Path, rank: int | Literal["auto"]
) -> Tensor:
    """Logits of the model with the adapter that PEFT loads from the folder it was saved in."""
    save_adapter(edit, writers, "base", folder, rank)
    adapted = PeftModel.from_pretrained(model, str(folder))
    try:
        return logits(adapted, ids)
    finally:
        adapted.unload()


def merged_logits(model: PreTrainedModel, writers: Writers, edit: Edit, ids: Tensor, folder: Path) -> Tensor:
    """Logits of the model that transformers loads from the folder of merged weights."""
    save_merged(edit, writers, model, folder)
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)


def assert_all_three_are_one_model(
    model: PreTrainedModel, writers: Writers, normalization: RowNormalization, folder: Path
) -> None:
    ids = token_ids(3)
    edit = random_edit(writers, normalization)
    base = logits(model, ids)
    live = live_logits(model, writers, edit, ids)
    assert (live - base).abs().max() > 0.05  # the edit shows
    for name in ("adapter", "merged"):
        (folder / name).mkdir()
    adapter = adapter_logits(model, writers, edit, ids, folder / "adapter", rank=32)
    merged = merged_logits(model, writers, edit, ids, folder / "merged")
    torch.testing.assert_close(adapter, live, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged, live, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(model, ids), base)  # and the model is as it was


@every_normalization
def test_live_adapter_and_merged_are_one_model(
    tiny_lm: LanguageModel, normalization: RowNormalization, tmp_path: Path
) -> None:
    assert_all_three_are_one_model(tiny_lm.model, tiny_lm.writers(), normalization, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@every_normalization
def test_live_adapter_and_merged_are_one_model_in_every_family(
    family: str, normalization: RowNormalization, tmp_path: Path
) -> None:
    model = random_model(FAMILIES[family])
    writers = find_writers(model, COMPONENTS)
    assert len(writers) == 6
    assert_all_three_are_one_model(model, writers, normalization, tmp_path)


@pytest.mark.parametrize(
    ("family", "biased", "transposed"), [("gpt2", True, True), ("opt", True, False), ("gemma3", False, False)]
)
def test_the_families_cover_biases_and_transposed_weights(family: str, biased: bool, transposed: bool) -> None:
    for writer in find_writers(random_model(FAMILIES[family]), COMPONENTS).values():
        assert (writer.bias is not None and writer.bias.abs().max() > 0.1) == biased
        assert writer.transposed == transposed
        assert writer.weight().shape[0] == 32


@pytest.mark.parametrize(("family", "transposed"), [("gpt2", True), ("opt", False)])
def test_an_adapter_names_the_modules_it_changes(family: str, transposed: bool, tmp_path: Path) -> None:
    writers = find_writers(random_model(FAMILIES[family]), COMPONENTS)
    edit = random_edit(writers, "none")
    save_adapter(edit, writers, "some/base", tmp_path, full_rank=7)
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert config.base_model_name_or_path == "some/base"
    assert set(config.target_modules) == {site.module for site in edit.sites}
    assert (config.r, config.lora_alpha, config.bias) == (1, 1, "none")
    assert config.fan_in_fan_out == transposed


def test_an_adapter_of_low_rank_says_how_far_off_it_is(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(3)
    edit = random_edit(writers, "full")
    live = live_logits(model, writers, edit, ids)
    errors, distances = [], []
    for rank in (1, 4, 16, 32):
        (tmp_path / str(rank)).mkdir()
        approximations = save_adapter(edit, writers, "base", tmp_path / str(rank), rank)
        assert [each.module for each in approximations] == [site.module for site in edit.sites]
        errors.append(max(each.error for each in approximations))
        adapter = adapter_logits(model, writers, edit, ids, tmp_path / str(rank), rank)
        distances.append((adapter - live).norm().item())
    assert errors == sorted(errors, reverse=True) and distances == sorted(distances, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 1e-4
    assert [save_adapter(random_edit(writers, n), writers, "base", tmp_path, 3) for n in ("none", "pre")] == [[], []]


def test_an_adapter_of_automatic_rank_is_near_enough(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(3)
    edit = random_edit(writers, "full")
    approximations = save_adapter(edit, writers, "base", tmp_path, "auto")
    assert all(each.error < 0.01 and each.rank == each.sufficient_rank for each in approximations)
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert len({each.rank for each in approximations}) > 1
    assert config.r == config.lora_alpha == max(each.rank for each in approximations)
    assert not config.rank_pattern and not config.alpha_pattern  # llama.cpp and vLLM read neither
    live = live_logits(model, writers, edit, ids)
    adapter = adapter_logits(model, writers, edit, ids, tmp_path, "auto")
    assert (adapter - live).norm() < 0.02 * (live - logits(model, ids)).norm()


@every_normalization
def test_an_adapter_has_all_that_vllm_asks_for_and_nothing_that_it_refuses(
    tiny_lm: LanguageModel, tmp_path: Path, normalization: RowNormalization
) -> None:
    """docs.vllm.ai: PEFTHelper (adapter_config.json), LoRAModel (names of tensors), LoRAConfig (ranks). It was not run."""
    writers = tiny_lm.writers()
    save_adapter(random_edit(writers, normalization), writers, "base", tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["peft_type"] == "LORA" and told["r"] <= VLLM_RANKS[0]
    assert told["lora_alpha"] == told["r"]  # a scale of 1, by one rank and one alpha: earlier versions read no patterns
    assert not told.get("rank_pattern") and not told.get("alpha_pattern")
    refused = ("modules_to_save", "use_dora", "use_rslora", "lora_bias", "layer_replication", "alora_invocation_tokens")
    assert told["bias"] == "none" and not any(told.get(name) for name in (*refused, "use_qalora", "use_bdlora"))
    assert not isinstance(told["init_lora_weights"], str)  # PiSSA and the like change the base
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert isinstance(told["target_modules"], list) and len(tensors) == 2 * len(told["target_modules"])
    for module in told["target_modules"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        d, k = tiny_lm.model.get_submodule(module).weight.shape  # type: ignore[misc]
        assert (a.shape, b.shape) == ((told["r"], k), (d, told["r"]))
        assert module.rsplit(".", 1)[-1] in ("o_proj", "down_proj")  # linear layers that it can adapt


def test_a_rank_above_that_of_the_weights_still_makes_an_adapter(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(2)
    edit = random_edit(writers, "full")
    adapter = adapter_logits(model, writers, edit, ids, tmp_path, rank=40)
    torch.testing.assert_close(adapter, live_logits(model, writers, edit, ids), atol=1e-4, rtol=1e-4)


@every_normalization
def test_merging_changes_the_edited_weights_and_no_others(
    tiny_lm: LanguageModel, normalization: RowNormalization, tmp_path: Path
) -> None:
    writers, edit = tiny_lm.writers(), random_edit(tiny_lm.writers(), normalization)
    save_merged(edit, writers, tiny_lm.model, tmp_path)
    before = tiny_lm.model.state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    edited = {f"{site.module}.weight" for site in edit.sites}
    assert before.keys() == after.keys() and edited < before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == edited


# Many edits in one batch.


def several_edits(writers: Writers) -> list[Edit]:
    """Unlike edits: every normalisation, no edit at all, and one of a single site."""
    last = max(writers)
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(4)), dim=0)
    return [
        random_edit(writers, "full", seed=1),
        Edit.nothing(),
        random_edit(writers, "none", seed=2, strength=0.8),
        random_edit(writers, "pre", seed=3),
        Edit({last: direction}, {last: 1.0}, "none"),
    ]


def assert_rows_carry(
    model: PreTrainedModel,
    writers: Writers,
    edits: Sequence[Edit],
    carried: Sequence[int],
    ids: Tensor,
    together: Tensor,
) -> None:
    """Row i of `together` are the logits of edit `carried[i]` alone."""
    for row, edit in enumerate(carried):
        alone = live_logits(model, writers, edits[edit], ids[[row]])
        torch.testing.assert_close(together[[row]], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_every_row_of_a_batch_carries_its_own_edit(family: str) -> None:
    model = random_model(FAMILIES.get(family, tiny_config()))
    writers = find_writers(model, COMPONENTS)
    edits, carried = several_edits(writers), [0, 1, 2, 3, 4, 2, 0]
    ids = token_ids(1).expand(len(carried), -1)
    with LiveEdits(writers, edits, carried).applied(torch.arange(len(carried))):
        together = logits(model, ids)
    assert_rows_carry(model, writers, edits, carried, ids, together)
    torch.testing.assert_close(together[1], logits(model, ids)[1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[0], together[6])
    assert torch.pdist(together[:5, -1]).min() > 0.01


def test_rows_name_the_sequences_of_this_batch(tiny_lm: LanguageModel) -> None:
    model, writers = tiny_lm.model, tiny_lm.writers()
    edits, row_edits = several_edits(writers), [0, 1, 2, 3, 4]
    batch = [4, 0, 3]
    ids = token_ids(3)
    with LiveEdits(writers, edits, row_edits).applied(torch.tensor(batch)):
        together = logits(model, ids)
    assert_rows_carry(model, writers, edits, batch, ids, together)


def test_the_edits_follow_the_rows_that_are_kept(tiny_lm: LanguageModel) -> None:
    model, writers = tiny_lm.model, tiny_lm.writers()
    edits, carried = several_edits(writers), [0, 1, 2, 3, 4]
    ids = token_ids(5)
    live = LiveEdits(writers, edits, carried)
    with live.applied(torch.arange(5)):
        logits(model, ids)
        live.keep(torch.tensor([4, 0, 2, 3]))
        first = logits(model, ids[[4, 0, 2, 3]])
        live.keep(torch.tensor([1, 3]))
        second = logits(model, ids[[0, 3]])
    assert_rows_carry(model, writers, edits, [4, 0, 2, 3], ids[[4, 0, 2, 3]], first)
    assert_rows_carry(model, writers, edits, [0, 3], ids[[0, 3]], second)
    with live.applied(torch.arange(5)):  # the next batch starts with all of its rows
        third = logits(model, ids)
    assert_rows_carry(model, writers, edits, carried, ids, third)


def test_one_edit_for_all_rows_needs_no_rows(tiny_lm: LanguageModel) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(4)
    edit = random_edit(writers, "full")
    live = LiveEdits(writers, [edit])
    with live.applied(torch.arange(4)):
        whole = logits(model, ids)
        live.keep(torch.tensor([2, 3]))
        part = logits(model, ids[2:])
    torch.testing.assert_close(whole[2:], part, atol=2e-5, rtol=1e-4)


def test_decoding_many_edits_together_is_decoding_each_alone(tiny_lm: LanguageModel) -> None:
    writers, edits = tiny_lm.writers(), several_edits(tiny_lm.writers())
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (5, 9, 14)]
    carried = [edit for edit in range(len(edits)) for _ in prompts]

    def decided(index: int, tokens: list[int]) -> bool:
        return len(tokens) >= 8 * (1 + index % 3)  # rows leave the batch at different times

    sequences = prompts * len(edits)
    together = decode(tiny_lm, sequences, 20, 8, LiveEdits(writers, edits, carried), Callbacks(decided))
    for index, edit in enumerate(carried):
        alone = decode(tiny_lm, [sequences[index]], 20, 1, LiveEdits(writers, [edits[edit]]))[0]
        assert together[index] == alone[: len(together[index])]
    assert len({tuple(tokens) for tokens in together}) > len(prompts)


# A model is what it was.


def hooks(model: PreTrainedModel) -> int:
    """Forward hooks of all kinds in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_leaving_the_context_restores_the_model(tiny_lm: LanguageModel) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(2)
    edits, before, hooked = several_edits(writers), logits(tiny_lm.model, ids), hooks(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with LiveEdits(writers, edits, [0, 2]).applied(torch.arange(2)):
        assert hooks(model) == hooked + len(edits[0].sites)
        assert not torch.equal(logits(model, ids), before)
        assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert hooks(model) == hooked
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_an_exception_restores_the_model_too(tiny_lm: LanguageModel) -> None:
    model, writers, ids = tiny_lm.model, tiny_lm.writers(), token_ids(2)
    before, hooked = logits(model, ids), hooks(model)
    live = LiveEdits(writers, several_edits(writers), [0, 2])
    with pytest.raises(KeyboardInterrupt), live.applied(torch.arange(2)):
        logits(model, ids)
        raise KeyboardInterrupt
    assert hooks(model) == hooked
    assert torch.equal(logits(model, ids), before)


def test_rows_that_do_not_exist_leave_nothing_behind(tiny_lm: LanguageModel) -> None:
    hooked = hooks(tiny_lm.model)
    live = LiveEdits(tiny_lm.writers(), several_edits(tiny_lm.writers()), [0, 2])
    with pytest.raises(IndexError), live.applied(torch.tensor([2])):
        pass
    assert hooks(tiny_lm.model) == hooked


def test_an_edit_of_nothing_touches_nothing(tiny_lm: LanguageModel) -> None:
    model, ids = tiny_lm.model, token_ids(2)
    before, hooked = logits(model, ids), hooks(model)
    with LiveEdits(tiny_lm.writers(), [Edit.nothing()]).applied():
        assert hooks(model) == hooked
        assert torch.equal(logits(model, ids), before)


def test_an_edit_of_another_model_is_refused(tiny_lm: LanguageModel) -> None:
    other = find_writers(random_model(tiny_config(num_hidden_layers=6)), COMPONENTS)
    with pytest.raises(ModelError, match=r"another model.*layers\.[45]\."):
        LiveEdits(tiny_lm.writers(), [Edit.nothing(), random_edit(other, "none")])


@every_normalization
def test_an_edited_module_in_bfloat16_gives_bfloat16(tiny_lm: LanguageModel, normalization: RowNormalization) -> None:
    model: PreTrainedModel = tiny_lm.model.bfloat16()
    ids = token_ids(2)
    writers = find_writers(model, COMPONENTS)
    edited = live_logits(model, writers, random_edit(writers, normalization), ids)
    assert edited.dtype == torch.bfloat16 and edited.isfinite().all()
    site = max(writers)
    assert merged_weight(random_edit(writers, normalization), site, writers[site]).dtype == torch.bfloat16


# What an edit is for: the residual stream gets nothing along the direction.


def written_along(model: PreTrainedModel, writers: Writers, edit: Edit, direction: Tensor) -> Tensor:
    """What every layer adds to the residual stream along `direction`, largest over tokens: [layers]."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    with ExitStack() as stack:
        for layer in decoder_layers(model):
            for handle in (
                layer.register_forward_pre_hook(lambda module, args: before.append(args[0].clone())),
                layer.register_forward_hook(
                    lambda module, args, output: after.append(output[0] if isinstance(output, tuple) else output)
                ),
            ):
                stack.callback(handle.remove)
        live_logits(model, writers, edit, token_ids(4))
    return torch.stack([((new - old) @ direction).abs().max() for old, new in zip(before, after, strict=True)])


@pytest.mark.parametrize("family", ["llama with tied embeddings", "gemma2", "gemma3"])
def test_at_full_strength_no_layer_writes_along_the_direction(family: str) -> None:
    model = random_model(FAMILIES[family])
    writers = find_writers(model, COMPONENTS)
    require_complete(model, writers)
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(7)), dim=0)
    edit = Edit.build(
        site_directions(writers, direction.expand(3, -1)), dict.fromkeys(COMPONENTS, Profile.constant(1.0)), "none"
    )
    assert written_along(model, writers, Edit.nothing(), direction).min() > 0.1
    assert written_along(model, writers, edit, direction).max() < 1e-4


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_behind_a_norm_the_streams_own_direction_would_miss(family: str) -> None:
    model = random_model(FAMILIES[family])
    writers = find_writers(model, COMPONENTS)
    require_complete(model, writers)
    assert all(writer.scale is not None for writer in writers.values())
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(7)), dim=0)
    naive = Edit(dict.fromkeys(writers, direction), dict.fromkeys(writers, 1.0), "none")
    assert written_along(model, writers, naive, direction).min() > 0.05
    for writer in writers.values():
        assert writer.site_direction(direction).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_a_bias_is_written_as_before(family: str) -> None:
    model = random_model(FAMILIES[family])
    writers = find_writers(model, COMPONENTS)
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(7)), dim=0)
    edit = Edit(dict.fromkeys(writers, direction), dict.fromkeys(writers, 1.0), "none")
    biases = torch.zeros(3)
    for place, writer in writers.items():
        assert writer.bias is not None
        biases[place.layer] += writer.bias @ direction
    torch.testing.assert_close(written_along(model, writers, edit, direction), biases.abs(), atol=1e-4, rtol=0)
