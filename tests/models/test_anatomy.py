"""Anatomy: where models write to their residual stream, and the refusal where they do not."""

import pytest
import torch
from conftest import tiny_config
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import WRITER_PATHS, find_writers

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
GPT2_SMALL = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
OPT_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": tiny_config(num_hidden_layers=3),
    "qwen3": Qwen3Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL),
    "olmo2": Olmo2Config(**SMALL),
    "phi3": Phi3Config(**SMALL),
    "falcon": FalconConfig(**{k: v for k, v in SMALL.items() if k not in ("intermediate_size", "head_dim")}),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}),
    "gpt2": GPT2Config(**GPT2_SMALL),
    "opt": OPTConfig(**OPT_SMALL),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_one_site_per_component_and_its_weight_writes_to_the_stream(family: str) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    writers = find_writers(model, tuple(WRITER_PATHS))
    assert sorted((s.layer, s.component) for s in writers) == [
        (layer, component) for layer in range(3) for component in WRITER_PATHS
    ]
    for site, writer in writers.items():
        assert model.get_submodule(site.module) is writer.module
        weight = writer.weight()
        assert weight.shape[0] == 32 and weight.dtype == torch.float32
        x = torch.randn(weight.shape[1])
        bias = 0 if writer.bias is None else writer.bias
        with torch.no_grad():
            torch.testing.assert_close(writer.module(x), weight @ x + bias)


def test_a_direction_passes_the_norm_behind_the_writer_scaled_by_its_weight() -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES["gemma2"])
    writer = next(iter(find_writers(model, ["mlp.down_proj"]).values()))
    with torch.no_grad():
        next(writer.post_norm.parameters()).copy_(torch.linspace(-0.5, 2, 32))  # type: ignore[union-attr]
    v = torch.nn.functional.normalize(torch.randn(32), dim=0)
    expected = torch.nn.functional.normalize((1 + torch.linspace(-0.5, 2, 32)) * v, dim=0)
    torch.testing.assert_close(writer.site_direction(v), expected, atol=1e-4, rtol=1e-4)


def test_a_layer_without_a_site_is_refused_with_its_modules() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config())
    model.model.layers[2].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ModelError) as caught:
        find_writers(model, ["mlp.down_proj"])
    message = str(caught.value)
    assert "Layer 2" in message and "mlp.down_proj (Identity)" in message and "mlp.up_proj (Linear)" in message


def test_fused_experts_are_refused_and_not_silently_skipped() -> None:
    options = {**SMALL, "num_local_experts": 4}
    model = AutoModelForCausalLM.from_config(MixtralConfig(**options))
    with pytest.raises(ModelError, match="experts fused"):
        find_writers(model, ["attn.o_proj", "mlp.down_proj"])
    assert len(find_writers(model, ["attn.o_proj"])) == 3
