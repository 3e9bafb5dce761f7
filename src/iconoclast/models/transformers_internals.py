"""Private names and switches of transformers and accelerate, used nowhere else because they may change without notice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.utils import chat_template_utils

GROUPED_QUERIES = "TRANSFORMERS_SDPA_FORCE_GQA"


def as_stored(model: PreTrainedModel, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split parameters into the checkpoint tensors they are made of; transformers fuses experts while loading."""
    stored: dict[str, Tensor] = revert_weight_conversion(model, parameters)
    return stored


def gguf_layout(model: PreTrainedModel, architecture: str) -> tuple[Any, dict[str, str]]:
    """Return what turns a GGUF file's tensors, and the parameters that they make; raise NotImplementedError if none is known.

    Args:
        architecture: what the file calls it.
    """
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())  # type: ignore[no-untyped-call]
    return processor, get_gguf_hf_weights_map(model, processor)


def gguf_settings(architecture: str) -> dict[str, str]:
    """Return the settings in a GGUF file's header, less the architecture's name, and their names in a configuration."""
    plain: dict[str, Any] = {kind.replace("_", ""): names for kind, names in GGUF_CONFIG_MAPPING.items()}
    known = plain.get(architecture.replace("-", "").replace("_", ""), {})
    return {key: name for key, name in known.items() if isinstance(name, str)}


def fuses_experts(model: PreTrainedModel) -> bool:
    """Check whether models of this type get their experts fused while loading, even if this one has no experts."""
    rules = get_checkpoint_conversion_mapping(model.config.model_type) or []  # type: ignore[no-untyped-call]
    return any(target.endswith("experts.down_proj") for rule in rules for target in rule.target_patterns)


def forget_conversions(model: PreTrainedModel) -> None:
    """Make a dequantised model save as it is, not quantised again with its weights lost (transformers 5.23)."""
    model._weight_conversions = None  # type: ignore[assignment]


def revision(model: PreTrainedModel) -> str | None:
    """Return the hub's commit that a model was loaded from; None for a folder."""
    commit: str | None = getattr(model.config, "_commit_hash", None)
    return commit


def carries_adapter(model: PreTrainedModel) -> bool:
    """Check whether transformers has put an adapter on the model while loading it; `active_adapters` raises an error if not."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def applies_gate(module: nn.Module) -> bool:
    """Check whether fused experts have the interface of transformers' experts functions."""
    return hasattr(module, "_apply_gate")


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device that accelerate moves a module's weights to for use; None if they stay where they are."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def uses_sdpa(model: PreTrainedModel) -> bool:
    """Check whether attention is PyTorch's scaled dot product, which accepts a mask [rows, 1, 1, tokens]."""
    return bool(model.config._attn_implementation == "sdpa")


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let attention be plain products instead of PyTorch's scaled dot product, for what is computed meanwhile."""
    configs = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    changed = {id(config): config for config in configs if config._attn_implementation == "sdpa"}.values()
    for config in changed:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation_internal = "sdpa"


@contextmanager
def experts_function(config: Any, preferred: tuple[str, ...]) -> Iterator[str]:
    """Make fused experts use the first preferred function, unless theirs is one already, and yield its name."""
    before = config._experts_implementation
    chosen = before if before in preferred else preferred[0]
    config._experts_implementation_internal = chosen
    try:
        yield chosen
    finally:
        config._experts_implementation_internal = before


@contextmanager
def shared_keys() -> Iterator[None]:
    """Let attention read keys and values once for all query heads that share them, unless the user has decided.

    With a mask, transformers copies them for every query head, because CUDA's kernels need that.
    """
    if GROUPED_QUERIES in os.environ:
        yield
        return
    os.environ[GROUPED_QUERIES] = "1"
    try:
        yield
    finally:
        os.environ.pop(GROUPED_QUERIES, None)


@contextmanager
def template_clock(now: datetime) -> Iterator[None]:
    """Tell chat templates that it is `now` while the context lasts; what is passed to a template must be plain data."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return now

    before = chat_template_utils.datetime  # type: ignore[attr-defined]
    chat_template_utils.datetime = Clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        chat_template_utils.datetime = before  # type: ignore[attr-defined]
