"""Edits as PEFT adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from iconoclast.edits.edit import Edit, low_rank_factors
from iconoclast.models.anatomy import Writer
from iconoclast.vocabulary import Site


@dataclass(frozen=True)
class Approximation:
    """The accuracy of an adapter's update: `error` and `sufficient_rank` as in `LowRank`."""

    module: str
    rank: int
    error: float
    sufficient_rank: int


def save_adapter(
    edit: Edit, writers: Mapping[Site, Writer], base: str, folder: Path, full_rank: int | Literal["auto"] = 3
) -> list[Approximation]:
    """Write `edit` to an existing folder as a LoRA adapter for plain PEFT; return the accuracy where it is not exact.

    Args:
        base: name or path of the base model, for adapter_config.json.
        full_rank: rank of the approximation with row normalisation full, or auto for each matrix's sufficient rank;
            the other normalisations are exact at rank 1.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    approximations = []
    wanted = None if full_rank == "auto" else full_rank
    full = edit.row_normalization == "full"
    experts = any(writer.fused for writer in writers.values())
    for site in edit.sites:
        writer = writers[site]
        weight = writer.weight()
        direction = edit.directions[site].to(weight.device)
        factors = low_rank_factors(weight, direction, edit.strengths[site], edit.row_normalization, wanted)
        rank = factors.a.shape[-2]
        if full:
            approximations.append(Approximation(site.module, rank, factors.error, factors.sufficient_rank))
        missing = wanted - rank if full and wanted else 0  # a matrix has no more singular values than its smaller side
        ranks[_target(writer, experts)] = rank + missing
        a, b = pad(factors.a, (0, 0, 0, missing)), pad(factors.b, (0, missing))
        if writer.fused:  # PEFT stacks A by expert and then rank, B by rank and then expert
            a, b = a.reshape(-1, a.shape[-1]), b.permute(1, 2, 0).reshape(b.shape[1], -1)
        tensors[f"base_model.model.{site.module}.lora_A.weight"] = a.contiguous().cpu()
        tensors[f"base_model.model.{site.module}.lora_B.weight"] = b.contiguous().cpu()
    _config(edit, writers, base, ranks).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return approximations


def _config(edit: Edit, writers: Mapping[Site, Writer], base: str, ranks: Mapping[str, int]) -> LoraConfig:
    rank = max(ranks.values(), default=1)
    own = {name: each for name, each in ranks.items() if each != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=own,
        alpha_pattern=own,
        lora_dropout=0.0,
        bias="none",
        target_modules=[site.module for site in edit.sites if site.module in ranks],
        target_parameters=[writers[site].parameter for site in edit.sites if site.module not in ranks] or None,
        fan_in_fan_out=any(writers[site].transposed and not writers[site].fused for site in edit.sites),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        inference_mode=True,
    )


def _target(writer: Writer, experts: bool) -> str:
    """Return the name of what PEFT adapts: a module, or a parameter of one."""
    # In models with fused experts it takes a module called down_proj for one of the experts of old, whatever its full name.
    as_parameter = writer.fused or (experts and not writer.site.component.startswith("attn."))
    return writer.parameter if as_parameter else writer.site.module
