"""Edits as PEFT adapters."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from iconoclast.edits.approximation import Approximation
from iconoclast.edits.edit import Edit, LowRank
from iconoclast.models.anatomy import Writer
from iconoclast.vocabulary import Site

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's --max-lora-rank can be (docs.vllm.ai, LoRAConfig); adapters of smaller ones load as well, 16 is its default."""


def save_adapter(
    edit: Edit, writers: Mapping[Site, Writer], base: str, folder: Path, full_rank: int | Literal["auto"] = 3
) -> list[Approximation]:
    """Write `edit` to an existing folder as a LoRA adapter for plain PEFT; return the accuracy where it is not exact.

    Args:
        base: name or path of the base model, for adapter_config.json.
        full_rank: rank of the approximation with row normalisation full, or auto for each matrix's sufficient rank;
            the other normalisations are exact at rank 1. Of several parts, ranks add up.
            All updates are padded with zeros to one rank, which is also alpha.
    """
    factors: dict[Site, LowRank] = {}
    wanted = None if full_rank == "auto" else full_rank * len(edit.parts)
    for site in edit.sites:
        found = edit.factors(site, writers[site].weight(), wanted)
        factors[site] = replace(found, a=found.a.cpu(), b=found.b.cpu())
    # llama.cpp takes the rank from the tensors and one alpha for all, vLLM one rank and one alpha: smaller ranks are padded.
    rank = max((each.rank for each in factors.values()), default=1)
    tensors: dict[str, Tensor] = {}
    for site, each in factors.items():
        missing = rank - each.rank
        a, b = pad(each.a, (0, 0, 0, missing)), pad(each.b, (0, missing))
        if writers[site].fused:  # PEFT stacks A by expert and then rank, B by rank and then expert
            a, b = a.reshape(-1, a.shape[-1]), b.permute(1, 2, 0).reshape(b.shape[1], -1)
        for name, factor in zip(factor_names(site), (a, b), strict=True):
            tensors[name] = factor.contiguous()
    _config(edit, writers, base, rank).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if edit.exact:
        return []
    return [Approximation(s.module, each.rank, each.error, each.sufficient_rank) for s, each in factors.items()]


def factor_names(site: Site) -> tuple[str, str]:
    """Return the names of a site's factors A and B in an adapter's file."""
    return f"base_model.model.{site.module}.lora_A.weight", f"base_model.model.{site.module}.lora_B.weight"


def remarks_on_serving(folder: Path) -> list[str]:
    """Say what other programs need to serve an adapter, or why they do not: a line each, none where all is as they expect."""
    config = LoraConfig.from_pretrained(str(folder))
    if config.target_parameters:
        return [
            "The adapter changes experts that are fused in one tensor (target_parameters): PEFT loads it, vLLM and llama.cpp do "
            "not say that they do. For them, export merged weights."
        ]
    needed = next((rank for rank in VLLM_RANKS if rank >= config.r), None)
    if needed is None:
        return [
            f"The adapter's rank is {config.r}, and vLLM takes {VLLM_RANKS[-1]} at most. For it, export merged weights, or set "
            "full_normalization_lora_rank."
        ]
    return [f"vLLM loads this adapter with --max-lora-rank {needed}."] if needed > VLLM_RANKS[0] else []


def _config(edit: Edit, writers: Mapping[Site, Writer], base: str, rank: int) -> LoraConfig:
    # PEFT adapts fused experts as a parameter. In a model of a type whose experts are fused while loading, even if it has none,
    # it takes every module called down_proj for an expert of an older checkpoint.
    beside = {s for s in edit.sites if writers[s].beside_experts and not s.component.startswith("attn.")}
    as_parameters = beside | {site for site in edit.sites if writers[site].fused}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=[site.module for site in edit.sites if site not in as_parameters],
        target_parameters=[writers[site].parameter for site in edit.sites if site in as_parameters] or None,
        fan_in_fan_out=any(writers[site].transposed and not writers[site].fused for site in edit.sites),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        inference_mode=True,
    )
