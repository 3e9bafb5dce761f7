"""One tiny randomly initialised model of every architecture family that is known to work, and of some that are refused.

A family is one entry here. `python -m tests.support.families` writes docs/architectures.md from what it measures of them.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.lora import save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, decoder_layers, find_writers, site_directions
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.decoding import Callbacks, decode, end_tokens
from iconoclast.models.experts import DOWN
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.probe import require_complete
from iconoclast.vocabulary import COMPONENTS, NORMALIZATIONS, RowNormalization, Site
from tests.support.tiny import tiny_tokenizer

TOKENS: dict[str, Any] = {"vocab_size": 261, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SMALL: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
HEADS: dict[str, Any] = {**SMALL, "head_dim": 8}
EXPERTS: dict[str, Any] = {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS: dict[str, Any] = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {
    **SMALL,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
MIXERS: dict[str, Any] = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
INDEXED: dict[str, Any] = {**ROUTED, **LATENT, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64}
GEMMA4: dict[str, Any] = {
    **HEADS,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 8,
    "global_head_dim": 8,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
}
OPT: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
ALL_HEADS: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        config: name of the configuration class in transformers.
        options: what makes the model tiny.
        known_as: models of this family.
        kind: dense, experts, hybrid, variant or vision.
        adapter: whether PEFT can adapt it.
    """

    config: str
    options: Mapping[str, Any]
    known_as: str
    kind: str = "dense"
    adapter: bool = True

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A float32 model in which nothing is at its resting value: weights, biases and norms alike."""
        config: PreTrainedConfig = getattr(transformers, self.config)(**self.options)
        auto = AutoModelForImageTextToText if self.kind == "vision" else AutoModelForCausalLM
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        random = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
        if self.options.get("pad_token_id"):  # as torch leaves it; 0 is a token like others here
            model.get_parameter("model.embed_tokens.weight")[self.options["pad_token_id"]] = 0
        return model


def _vision(
    config: str, text: str, vision: Mapping[str, Any], known_as: str, own: Mapping[str, Any] | None = None, **more: Any
) -> Family:
    text_config = {**SMALL, "model_type": text, "vocab_size": 300, **(own or {})}
    return Family(config, {"text_config": text_config, "vision_config": vision, **more}, known_as, "vision")


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", SMALL, "Llama 2 and 3, Yi, SmolLM2, Falcon 3, Vicuna"),
    "mistral": Family("MistralConfig", HEADS, "Mistral 7B, Mistral Nemo"),
    "qwen2": Family("Qwen2Config", SMALL, "Qwen 2, Qwen 2.5, DeepSeek-R1-Distill-Qwen"),
    "qwen3": Family("Qwen3Config", HEADS, "Qwen 3"),
    "gemma": Family("GemmaConfig", HEADS, "Gemma"),
    "gemma2": Family("Gemma2Config", {**HEADS, "query_pre_attn_scalar": 8, "sliding_window": 8}, "Gemma 2"),
    "gemma3_text": Family(
        "Gemma3TextConfig", {**HEADS, "query_pre_attn_scalar": 8, "sliding_window": 8}, "Gemma 3 270M and 1B"
    ),
    "phi": Family("PhiConfig", SMALL, "Phi 1.5, Phi 2"),
    "phi3": Family("Phi3Config", SMALL, "Phi 3, Phi 3.5, Phi 4"),
    "falcon": Family(
        "FalconConfig",
        {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")},
        "Falcon 7B",
    ),
    "olmo": Family("OlmoConfig", SMALL, "OLMo"),
    "olmo2": Family("Olmo2Config", SMALL, "OLMo 2"),
    "olmo3": Family("Olmo3Config", {**SMALL, "sliding_window": 8}, "OLMo 3"),
    "stablelm": Family("StableLmConfig", SMALL, "StableLM 2"),
    "stablelm_parallel": Family("StableLmConfig", {**SMALL, "use_parallel_residual": True}, "StableLM 2 12B"),
    "smollm3": Family("SmolLM3Config", SMALL, "SmolLM 3"),
    "granite": Family("GraniteConfig", {**SMALL, "residual_multiplier": 0.22}, "Granite 3"),
    "cohere": Family("CohereConfig", SMALL, "Command R"),
    "cohere2": Family("Cohere2Config", {**HEADS, "sliding_window": 8}, "Command R7B, Command A"),
    "glm": Family("GlmConfig", HEADS, "GLM 4 9B"),
    "glm4": Family("Glm4Config", HEADS, "GLM 4 0414"),
    "exaone4": Family("Exaone4Config", {**SMALL, "sliding_window": 8, "sliding_window_pattern": 4}, "EXAONE 4"),
    "ministral3": Family("Ministral3Config", HEADS, "Ministral 3"),
    "nemotron": Family("NemotronConfig", HEADS, "Nemotron 4, Minitron"),
    "starcoder2": Family("Starcoder2Config", SMALL, "StarCoder 2"),
    "seed_oss": Family("SeedOssConfig", HEADS, "Seed-OSS"),
    "arcee": Family("ArceeConfig", HEADS, "AFM 4.5B"),
    "apertus": Family("ApertusConfig", SMALL, "Apertus"),
    "hyperclovax": Family("HyperCLOVAXConfig", SMALL, "HyperCLOVA X SEED"),
    "gpt2": Family("GPT2Config", {**TOKENS, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4}, "GPT-2"),
    "gpt_neo": Family(
        "GPTNeoConfig",
        {
            **TOKENS,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global"], 3]],
        },
        "GPT-Neo",
    ),
    "gptj": Family(
        "GPTJConfig", {**TOKENS, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, "GPT-J"
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, "GPT-NeoX, Pythia"
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeConfig", {**TOKENS, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4}, "StarCoder"
    ),
    "bloom": Family("BloomConfig", {**TOKENS, "hidden_size": 32, "n_layer": 3, "n_head": 4}, "BLOOM"),
    "mpt": Family("MptConfig", {**TOKENS, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 256}, "MPT"),
    "opt": Family("OPTConfig", OPT, "OPT"),
    # Mixture of experts.
    "mixtral": Family("MixtralConfig", LOCAL_EXPERTS, "Mixtral 8x7B, 8x22B", "experts"),
    "phimoe": Family("PhimoeConfig", LOCAL_EXPERTS, "Phi 3.5 MoE", "experts"),
    "afmoe": Family(
        "AfmoeConfig", {**EXPERTS, "num_dense_layers": 1, "sliding_window": 8}, "Trinity (AFMoE)", "experts"
    ),
    "qwen2_moe": Family(
        "Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 24}, "Qwen 1.5 MoE, Qwen 2 57B-A14B", "experts"
    ),
    "qwen3_moe": Family("Qwen3MoeConfig", EXPERTS, "Qwen 3 30B-A3B, 235B-A22B", "experts"),
    "olmoe": Family("OlmoeConfig", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}, "OLMoE", "experts"),
    "gpt_oss": Family(
        "GptOssConfig", {**LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 8}, "gpt-oss 20B, 120B", "experts"
    ),
    "deepseek_v2": Family(
        "DeepseekV2Config",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "topk_method": "greedy",
        },
        "DeepSeek V2",
        "experts",
    ),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        "DeepSeek V3 and R1, Kimi K2",
        "experts",
    ),
    "glm4_moe": Family("Glm4MoeConfig", {**ROUTED, "head_dim": 8}, "GLM 4.5, 4.6", "experts"),
    "granitemoe": Family("GraniteMoeConfig", LOCAL_EXPERTS, "Granite 3 MoE", "experts"),
    "granitemoeshared": Family(
        "GraniteMoeSharedConfig",
        {**LOCAL_EXPERTS, "shared_intermediate_size": 24},
        "Granite 3 MoE with shared experts",
        "experts",
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeConfig",
        {
            **SMALL,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
        "ERNIE 4.5 21B-A3B",
        "experts",
    ),
    "lfm2_moe": Family(
        "Lfm2MoeConfig",
        {
            **SMALL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        "LFM2 8B-A1B",
        "experts",
    ),
    # Hybrids.
    "qwen3_next": Family(
        "Qwen3NextConfig", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24}, "Qwen 3 Next", "hybrid"
    ),
    "qwen3_5": Family("Qwen3_5TextConfig", {**HEADS, **LINEAR}, "Qwen 3.5", "hybrid"),
    "olmo_hybrid": Family("OlmoHybridConfig", {**SMALL, **LINEAR}, "OLMo Hybrid", "hybrid"),
    "lfm2": Family(
        "Lfm2Config",
        {**SMALL, "block_multiple_of": 8, "layer_types": ["conv", "full_attention", "conv"]},
        "LFM2",
        "hybrid",
    ),
    "lfm3": Family("Lfm3Config", {**SMALL, "layer_types": ["conv", "full_attention", "conv"]}, "LFM3", "hybrid"),
    "falcon_h1": Family(
        "FalconH1Config",
        {**SMALL, **MAMBA, "mamba_d_ssm": 64, "ssm_out_multiplier": 0.7},
        "Falcon H1 (no adapter: PEFT refuses its mixers)",
        "hybrid",
        False,
    ),
    "jamba": Family(
        "JambaConfig",
        {
            **SMALL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        "Jamba",
        "hybrid",
    ),
    "bamba": Family("BambaConfig", {**SMALL, **MAMBA, "attn_layer_indices": [1]}, "Bamba", "hybrid"),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        {**LOCAL_EXPERTS, **MAMBA, "shared_intermediate_size": 24, "layer_types": ["mamba", "attention", "mamba"]},
        "Granite 4",
        "hybrid",
    ),
    "recurrent_gemma": Family(
        "RecurrentGemmaConfig",
        {**HEADS, "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention", "recurrent"]},
        "RecurrentGemma",
        "hybrid",
    ),
    # Of autumn 2026, and others.
    "gemma4": Family("Gemma4TextConfig", GEMMA4, "Gemma 4 31B"),
    "gemma4_unified": Family("Gemma4UnifiedTextConfig", GEMMA4, "Gemma 4 12B"),
    "gemma4_per_layer": Family(
        "Gemma4TextConfig",
        {**GEMMA4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 261},
        "Gemma 4 E2B, E4B",
    ),
    "ernie4_5": Family("Ernie4_5Config", HEADS, "ERNIE 4.5 0.3B"),
    "helium": Family("HeliumConfig", HEADS, "Helium"),
    "granite_swa": Family("GraniteSWAConfig", SMALL, "Granite with sliding windows"),
    "cwm": Family("CwmConfig", {**HEADS, "bos_token_id": 2}, "Code World Model"),
    "diffllama": Family("DiffLlamaConfig", SMALL, "DiffLlama"),
    "hunyuan_v1_dense": Family("HunYuanDenseV1Config", HEADS, "Hunyuan 0.5B to 7B"),
    "jais2": Family("Jais2Config", HEADS, "Jais 2"),
    "minicpm3": Family("MiniCPM3Config", {**SMALL, **LATENT}, "MiniCPM 3"),
    "ministral": Family("MinistralConfig", HEADS, "Ministral 8B"),
    "nanochat": Family("NanoChatConfig", SMALL, "nanochat"),
    "persimmon": Family("PersimmonConfig", ALL_HEADS, "Persimmon"),
    "vaultgemma": Family("VaultGemmaConfig", {**HEADS, "query_pre_attn_scalar": 8, "sliding_window": 8}, "VaultGemma"),
    "youtu": Family("YoutuConfig", {**SMALL, **LATENT}, "Youtu-LLM"),
    "bitnet": Family("BitNetConfig", SMALL, "BitNet"),
    "codegen": Family(
        "CodeGenConfig", {**TOKENS, "n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, "CodeGen"
    ),
    "xglm": Family(
        "XGLMConfig",
        {
            **TOKENS,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 3,
            "attention_heads": 4,
            "max_position_embeddings": 256,
        },
        "XGLM",
    ),
    "biogpt": Family("BioGptConfig", ALL_HEADS, "BioGPT"),
    "internlm3": Family("InternLM3Config", HEADS, "InternLM 3"),
    "iquestcoder": Family("IQuestCoderConfig", HEADS, "IQuest Coder"),
    "gemma4_moe": Family(
        "Gemma4TextConfig",
        {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
        "Gemma 4 26B-A4B",
        "experts",
    ),
    "deepseek_v32": Family("DeepseekV32Config", INDEXED, "DeepSeek V3.2", "experts"),
    "glm_moe_dsa": Family("GlmMoeDsaConfig", INDEXED, "GLM 5", "experts"),
    "glm4_moe_lite": Family("Glm4MoeLiteConfig", {**ROUTED, **LATENT}, "GLM 4.7 Flash", "experts"),
    "axk1": Family("AXK1Config", {**ROUTED, **LATENT}, "A.X K1", "experts"),
    "axk2": Family("AXK2Config", {**ROUTED, **LATENT}, "A.X K2", "experts"),
    "dots1": Family("Dots1Config", ROUTED, "dots.llm1", "experts"),
    "mimo_v2_flash": Family("MiMoV2FlashConfig", ROUTED, "MiMo V2 Flash", "experts"),
    "solar_open": Family("SolarOpenConfig", {**ROUTED, "head_dim": 8}, "Solar Open", "experts"),
    "minimax_m2": Family("MiniMaxM2Config", {**LOCAL_EXPERTS, "head_dim": 8}, "MiniMax M2", "experts"),
    "minimax_m3": Family("MiniMaxM3VLTextConfig", EXPERTS, "MiniMax M3", "experts"),
    "exaone_moe": Family(
        "ExaoneMoeConfig",
        {**EXPERTS, "n_group": 1, "topk_group": 1},
        "K-EXAONE",
        "experts",
    ),
    "hunyuan_v1_moe": Family(
        "HunYuanMoEV1Config", {**HEADS, "num_experts": 4, "moe_topk": 2}, "Hunyuan A13B", "experts"
    ),
    "hy_v3": Family("HYV3Config", EXPERTS, "Hunyuan 3", "experts"),
    "laguna": Family("LagunaConfig", EXPERTS, "Laguna (no adapter: PEFT leaves out its dense layer)", "experts", False),
    "granitemoe_swa": Family("GraniteMoeSWAConfig", LOCAL_EXPERTS, "Granite MoE with sliding windows", "experts"),
    "cohere2_moe": Family("Cohere2MoeConfig", EXPERTS, "Command with experts", "experts"),
    "flex_olmo": Family("FlexOlmoConfig", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}, "FlexOlmo", "experts"),
    "mellum": Family("MellumConfig", EXPERTS, "Mellum 2", "experts"),
    "flint": Family("FlintConfig", {**EXPERTS, "shared_expert_intermediate_size": 24}, "Flint", "experts"),
    "kolibri1": Family("Kolibri1Config", {**EXPERTS, "shared_expert_intermediate_size": 24}, "Kolibri", "experts"),
    "aria_text": Family(
        "AriaTextConfig",
        {**SMALL, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        "Aria",
        "experts",
    ),
    "qwen3_5_moe": Family(
        "Qwen3_5MoeTextConfig",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24},
        "Qwen 3.5 35B-A3B and larger",
        "hybrid",
    ),
    "nemotron_h": Family(
        "NemotronHConfig",
        {**HEADS, **MIXERS, "layers_block_type": ["linear_attention", "mlp", "full_attention"]},
        "Nemotron H, Nemotron Nano 2 (no adapter: PEFT refuses its mixers)",
        "hybrid",
        False,
    ),
    "nemotron_h_moe": Family(
        "NemotronHConfig",
        {
            **HEADS,
            **MIXERS,
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
        },
        "Nemotron 3 Nano (no adapter: PEFT refuses its mixers)",
        "hybrid",
        False,
    ),
    "kimi_linear": Family(
        "KimiLinearConfig",
        {
            **LOCAL_EXPERTS,
            **LATENT,
            "moe_intermediate_size": 24,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        "Kimi Linear 48B-A3B",
        "hybrid",
    ),
    "bailing_hybrid": Family(
        "BailingHybridConfig",
        {
            **EXPERTS,
            **LATENT,
            "n_group": 1,
            "topk_group": 1,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        "Ring and Ling 2.5 (Bailing)",
        "hybrid",
    ),
    # One architecture in other shapes.
    "llama_tied": Family("LlamaConfig", {**SMALL, "tie_word_embeddings": True}, "Llama 3.2 1B and 3B", "variant"),
    "llama_biased": Family("LlamaConfig", {**SMALL, "attention_bias": True, "mlp_bias": True}, "biases", "variant"),
    "llama_odd": Family(
        "LlamaConfig",
        {
            **SMALL,
            "hidden_size": 36,
            "head_dim": 10,
            "intermediate_size": 49,
            "vocab_size": 263,
            "num_key_value_heads": 1,
        },
        "odd sizes",
        "variant",
    ),
    "llama_padded": Family("LlamaConfig", {**SMALL, "pad_token_id": 2}, "a padding row of zeros", "variant"),
    "qwen2_tied": Family("Qwen2Config", {**SMALL, "tie_word_embeddings": True}, "Qwen 2.5 0.5B to 3B", "variant"),
    "opt_unbiased": Family("OPTConfig", {**OPT, "enable_bias": False}, "OPT without biases", "variant"),
    "gpt_neox_sequential": Family(
        "GPTNeoXConfig", {**ALL_HEADS, "use_parallel_residual": False}, "RedPajama INCITE 3B", "variant"
    ),
    "falcon_new": Family(
        "FalconConfig",
        {
            **{k: v for k, v in ALL_HEADS.items() if k != "intermediate_size"},
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        "Falcon 40B",
        "variant",
    ),
    "phi_deep": Family("PhiConfig", {**SMALL, "num_hidden_layers": 5, "qk_layernorm": True}, "Phi, deeper", "variant"),
    # Vision-language models.
    "gemma3": _vision(
        "Gemma3Config",
        "gemma3_text",
        {**VISION, "model_type": "siglip_vision_model"},
        "Gemma 3 4B, 12B, 27B",
        mm_tokens_per_image=4,
        image_token_index=298,
        boi_token_index=296,
        eoi_token_index=297,
    ),
    "qwen2_5_vl": _vision(
        "Qwen2_5_VLConfig",
        "qwen2_5_vl_text",
        {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        "Qwen 2.5 VL",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        image_token_id=298,
        video_token_id=299,
        vision_start_token_id=296,
        vision_end_token_id=297,
    ),
    "qwen3_vl": _vision(
        "Qwen3VLConfig",
        "qwen3_vl_text",
        {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        "Qwen 3 VL",
        {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        image_token_id=298,
        video_token_id=299,
        vision_start_token_id=296,
        vision_end_token_id=297,
    ),
    "llava": _vision(
        "LlavaConfig", "llama", {**VISION, "model_type": "clip_vision_model"}, "LLaVA 1.5", image_token_index=298
    ),
    "mistral3": _vision(
        "Mistral3Config",
        "mistral",
        {**VISION, "model_type": "pixtral"},
        "Mistral Small 3.1 and 3.2",
        image_token_index=298,
    ),
}


REFUSED: dict[str, Family] = {
    "rwkv": Family(
        "RwkvConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32}, "RWKV 4"
    ),
    "llama4": Family(
        "Llama4TextConfig",
        {**LOCAL_EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
        "Llama 4",
    ),
    "gemma3n": Family(
        "Gemma3nTextConfig",
        {
            **HEADS,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 261,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": None,
            "sliding_window": 8,
        },
        "Gemma 3n",
    ),
    "mamba": Family(
        "MambaConfig",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3},
        "Mamba",
    ),
    "mamba2": Family(
        "Mamba2Config",
        {
            **TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
        },
        "Mamba 2, Codestral Mamba",
    ),
    "falcon_mamba": Family(
        "FalconMambaConfig",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3},
        "Falcon Mamba",
    ),
    "deepseek_v4": Family("DeepseekV4Config", SMALL, "DeepSeek V4"),
    "hy_v4": Family("HYV4Config", EXPERTS, "Hunyuan 4"),
    "minimax": Family("MiniMaxConfig", {**LOCAL_EXPERTS, "head_dim": 8}, "MiniMax Text 01, M1"),
    "jetmoe": Family(
        "JetMoeConfig",
        {
            **{k: v for k, v in LOCAL_EXPERTS.items() if k != "num_attention_heads"},
            "kv_channels": 8,
        },
        "JetMoE",
    ),
    "inkling": Family("InklingTextConfig", EXPERTS, "Inkling"),
    "doge": Family("DogeConfig", SMALL, "Doge"),
    "opt_350m": Family(
        "OPTConfig",
        {**FAMILIES["opt"].options, "do_layer_norm_before": False},
        "OPT 350M",
    ),
}


@dataclass(frozen=True)
class Conformance:
    """What was measured of one family; differences of logits are the largest over three texts of twelve tokens.

    Attributes:
        attention_sites: writers of the component attn.o_proj.
        feed_forward_sites: writers of the component mlp.down_proj.
        effect: row normalisation → difference between the edited and the base model.
        adapter: row normalisation → difference between the live edit and the adapter that PEFT loaded from its files.
        merged: row normalisation → difference between the live edit and the merged weights that transformers loaded.
        along: what any layer adds to the residual stream along a removed direction, as a share of what it did before.
        rows_apart: difference between a batch whose rows carry unlike edits and each edit alone.
        decoded: how many of three prompts of unlike length, decoded together, go on as each does alone and without a cache.
    """

    attention_sites: int
    feed_forward_sites: int
    effect: Mapping[RowNormalization, float]
    adapter: Mapping[RowNormalization, float]
    merged: Mapping[RowNormalization, float]
    along: float
    rows_apart: float
    decoded: int


def conformance(family: Family, folder: Path) -> Conformance:
    """Measure a family, with a base model and exports written to `folder`.

    Raises:
        ModelError: it is refused.
    """
    family.model().save_pretrained(folder / "base")
    auto = type(family.model())
    model = auto.from_pretrained(folder / "base", dtype=torch.float32).requires_grad_(False)
    checkpoint = Checkpoint.find(str(folder / "base"))
    assert checkpoint is not None
    writers = find_writers(model, COMPONENTS)
    require_complete(model, writers)
    ids = torch.randint(5, 261, (3, 12), generator=torch.Generator().manual_seed(1))
    edits = {n: _edit(writers, n, seed) for seed, n in enumerate(NORMALIZATIONS)}
    base = _logits(model, ids)
    effect, adapter, merged = {}, {}, {}
    for name, edit in edits.items():
        with LiveEdits(writers, [edit]).applied():
            live = _logits(model, ids)
        effect[name] = _apart(live, base)
        if family.adapter:
            (folder / f"adapter-{name}").mkdir()
            save_adapter(edit, writers, "base", folder / f"adapter-{name}", 32)
            adapted = PeftModel.from_pretrained(model, str(folder / f"adapter-{name}"))
            adapter[name] = _apart(_logits(adapted, ids), live)
            adapted.unload()
        (folder / f"merged-{name}").mkdir()
        save_merged(edit, writers, model, folder / f"merged-{name}", checkpoint)
        merged[name] = _apart(_logits(auto.from_pretrained(folder / f"merged-{name}", dtype=torch.float32), ids), live)
    decoded = _decoded(model)
    components = [site.component for site in writers]
    return Conformance(
        components.count("attn.o_proj"),
        components.count("mlp.down_proj"),
        effect,
        adapter,
        merged,
        _left_along(model, writers, ids),
        _rows_apart(model, writers, list(edits.values()), ids),
        decoded,
    )


def refusal(family: Family) -> str:
    """The message that a family is refused with."""
    model = family.model()
    try:
        require_complete(model, find_writers(model, COMPONENTS))
    except ModelError as error:
        return str(error)
    raise AssertionError("it is not refused")


def _edit(writers: Mapping[Site, Writer], normalization: RowNormalization, seed: int) -> Edit:
    """An edit of both components, with another direction at every layer."""
    layers = 1 + max(site.layer for site in writers)
    width = next(iter(writers.values())).rows[-1]
    directions = normalize(torch.randn(layers, width, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return Edit.build(
        site_directions(writers, directions),
        dict.fromkeys(COMPONENTS, Profile(1.2, layers - 1, 0.6, layers)),
        normalization,
    )


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids).logits.clone()
    return logits


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _left_along(model: PreTrainedModel, writers: Mapping[Site, Writer], ids: Tensor) -> float:
    """Biases are left out: they are no part of an edit."""
    width = next(iter(writers.values())).rows[-1]
    direction = normalize(torch.randn(width, generator=torch.Generator().manual_seed(7)), dim=0)
    directions = site_directions(writers, direction.expand(1 + max(site.layer for site in writers), -1))
    edit = Edit.build(directions, dict.fromkeys(COMPONENTS, Profile.constant(1.0)), "none")
    for writer in writers.values():
        for bias in ("bias", f"{DOWN}_bias"):
            if isinstance(parameter := getattr(writer.module, bias, None), Tensor):
                parameter.data.zero_()
    written = []
    for each in (Edit.nothing(), edit):
        before: list[Tensor] = []
        after: list[Tensor] = []
        with ExitStack() as stack:
            for layer in decoder_layers(model):
                stack.callback(layer.register_forward_pre_hook(partial(_enter, before), with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(partial(_leave, after)).remove)
            with LiveEdits(writers, [each]).applied():
                _logits(model, ids)
        written.append(max(float(((b - a) @ direction).abs().max()) for a, b in zip(before, after, strict=True)))
    return written[1] / written[0]


def _enter(kept: list[Tensor], module: Any, args: Any, kwargs: Any) -> None:
    kept.append((args[0] if args else kwargs["hidden_states"]).clone())


def _leave(kept: list[Tensor], module: Any, args: Any, output: Any) -> None:
    kept.append((output if isinstance(output, Tensor) else output[0]).clone())


def _rows_apart(model: PreTrainedModel, writers: Mapping[Site, Writer], edits: list[Edit], ids: Tensor) -> float:
    carried = [2, 0, 1]
    with LiveEdits(writers, edits, carried).applied(torch.arange(3)):
        together = _logits(model, ids)
    alone = []
    for row, edit in enumerate(carried):
        with LiveEdits(writers, [edits[edit]]).applied():
            alone.append(_logits(model, ids[[row]]))
    return _apart(together, torch.cat(alone))


def _decoded(model: PreTrainedModel) -> int:
    lm = LanguageModel(model, tiny_tokenizer(), "tiny", "tiny", "float32")
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(5, 261, (length,), generator=random).tolist() for length in (5, 9, 14)]
    # The second row leaves the batch in the middle.
    together = decode(lm, prompts, 12, 3, None, Callbacks(lambda index, tokens: index == 1 and len(tokens) >= 5))
    return sum(
        len(response) >= min(5, len(alone)) and response == alone[: len(response)]
        for response, alone in zip(together, (_alone(lm, prompt) for prompt in prompts), strict=True)
    )


def _alone(lm: LanguageModel, prompt: list[int]) -> list[int]:
    """Twelve tokens, or those before the end of the text, each from a forward pass over everything."""
    response: list[int] = []
    while len(response) < 12:
        token = int(_logits(lm.model, torch.tensor([prompt + response]))[0, -1].argmax())
        if token in end_tokens(lm):
            break
        response.append(token)
    return response


def document() -> str:
    """docs/architectures.md."""
    rows = []
    for name, family in FAMILIES.items():
        with TemporaryDirectory() as folder:
            result = conformance(family, Path(folder))
        worst = max(max(result.adapter.get(n, 0), result.merged[n]) / result.effect[n] for n in NORMALIZATIONS)
        rows.append(
            f"| {name} | {family.known_as} | {family.kind} | {result.attention_sites} + {result.feed_forward_sites} | {worst:.0e} |"
        )
    refused = [f"| {name} | {family.known_as} | {refusal(family)} |" for name, family in REFUSED.items()]
    return TEXT.format(
        transformers=transformers.__version__,
        peft=peft.__version__,
        rows="\n".join(rows),
        count=len(FAMILIES),
        refused="\n".join(refused),
    )


TEXT = """# Architectures

Made by `python -m tests.support.families > docs/architectures.md`; the same checks are a test of every family.

A site is a linear map that writes to the residual stream. They are found by where they stand in a layer, and then proved on
the loaded model, whatever it is called and whichever components are asked for: on random states, with the outputs of all sites
replaced by zeros, every layer must leave the residual stream as it is. What stands behind a site is found by probing: norms and
scales are used, anything else is refused. A message names the layer. So a family that is not in the table works too if it
passes.

Of every family a tiny randomly initialised model of three layers is built from the library's own configuration class
(transformers {transformers}, peft {peft}), saved, and loaded. Sites: those of attention (or of what stands in its place: linear
attention, short convolutions, state-space mixers) and those of the feed-forward part; experts that are fused in one tensor
are one site. Difference: the largest of the logits between the live edit on the one side and, on the other, the adapter as PEFT loads
it and the merged weights as transformers loads them, over all three row normalisations, as a share of what the edit
changes.

| family | models | kind | sites | difference |
|---|---|---|---|---|
{rows}

{count} configurations.

## Refused

| family | models | what it is told |
|---|---|---|
{refused}

Where only one of the two components is in the way, the other can still be edited: `components = ["attn.o_proj"]`.
"""

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(document(), end="")
