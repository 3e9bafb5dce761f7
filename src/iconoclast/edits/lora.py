"""Edit → PEFT adapter."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from iconoclast.edits.edit import Edit, low_rank_factors
from iconoclast.models.anatomy import Writer
from iconoclast.site import Site


def save_adapter(edit: Edit, writers: Mapping[Site, Writer], base: str, folder: Path, full_rank: int = 3) -> float:
    """Write `edit` as a LoRA adapter that plain PEFT loads onto the base model.

    Args:
        edit: what to write.
        writers: the base model's writers.
        base: name or path of the base model, for adapter_config.json.
        folder: an existing folder.
        full_rank: rank of the approximation for row normalisation full; the others are exact at rank 1.

    Returns:
        The largest relative error of a site's update (0 for none and pre).
    """
    rank = full_rank if edit.row_normalization == "full" else 1
    tensors: dict[str, Tensor] = {}
    worst = 0.0
    for site in edit.sites:
        weight = writers[site].weight()
        direction = edit.directions[site].to(weight.device)
        a, b, error = low_rank_factors(weight, direction, edit.strengths[site], edit.row_normalization, rank)
        worst = max(worst, error)
        missing = rank - len(a)  # a matrix has no more singular values than its smaller side
        a, b = pad(a, (0, 0, 0, missing)), pad(b, (0, missing))
        tensors[f"base_model.model.{site.module}.lora_A.weight"] = a.contiguous().cpu()
        tensors[f"base_model.model.{site.module}.lora_B.weight"] = b.contiguous().cpu()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=[site.module for site in edit.sites],
        fan_in_fan_out=any(writers[site].transposed for site in edit.sites),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return worst
