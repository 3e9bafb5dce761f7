"""A model without its weights: enough to locate an edit, whatever the size."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iconoclast.errors import ModelError, first_line
from iconoclast.models.anatomy import decoder_layers, find_writers
from iconoclast.models.chat_template import prepare_tokenizer
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.experts import fused
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import auto_class
from iconoclast.models.names import local_path
from iconoclast.models.probe import find_scales
from iconoclast.vocabulary import COMPONENTS, Component


def load_skeleton(
    name: str,
    components: Sequence[Component] = COMPONENTS,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> LanguageModel:
    """Build a model on "meta", and find the scales behind its writers; raise ModelError without safetensors files."""
    path = local_path(name)
    checkpoint = None if path.lower().endswith(".gguf") else Checkpoint.find(path)
    if checkpoint is None and not Path(path).exists():
        raise ModelError(f"The base model {name} is not on this machine. Give its folder or hub id with --base.")
    if checkpoint is None:
        raise ModelError(
            f"{name} is not stored as safetensors files, so it must be loaded to be edited: measure the export."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The tokenizer of {name} cannot be read: {first_line(error)}") from None
    model = architecture(name, trust_remote_code)
    prepare_tokenizer(tokenizer, chat_template, name)
    lm = LanguageModel(model, tokenizer, name, path, str(model.dtype).removeprefix("torch."))
    writers = lm.writers(components)
    hollow = _hollow(model, checkpoint)
    probed = find_writers(hollow, components)
    find_scales(hollow, probed)
    for site, writer in writers.items():
        writer.scale = probed[site].scale
        if writer.scale is not None and not writer.scale.any():
            raise ModelError(
                f"What stands behind {site.module} of {name} is only known when it is loaded: measure the export."
            )
    return lm


def architecture(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model's modules on "meta"; raise ModelError if its configuration is not understood."""
    path = local_path(name)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The architecture of {name} cannot be built: {first_line(error)}") from None
    return model


def _hollow(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """Return a copy that can run in no memory: every matrix is zero, and norms and scales are those of the checkpoint."""
    hollow: PreTrainedModel = copy.deepcopy(model).train(False)
    inside = {module for layer in decoder_layers(hollow) for module in layer.modules()}
    parts: list[tuple[str, Any]] = list(hollow.named_modules())
    for path, module in parts:
        silent = isinstance(module, nn.Linear | Conv1D | nn.Embedding) or fused(module)
        if isinstance(module, nn.Linear | Conv1D):
            size = module.out_features if isinstance(module, nn.Linear) else module.nf
            setattr(module, "forward", partial(_zeros, size))  # noqa: B010 - mypy knows it as a method
        elif fused(module):
            module.forward = lambda states, *args, **kwargs: torch.zeros_like(states)
        for kind in (module._parameters, module._buffers):
            for name, value in kind.items():
                if value is None or not value.is_meta:
                    continue
                small = module in inside and not silent and value.squeeze().ndim <= 1
                stored = checkpoint.names(model, f"{path}.{name}", value.shape) if small else None
                if stored:
                    filled = checkpoint.tensor(next(iter(stored))).to(value.dtype)
                else:
                    filled = torch.zeros((), dtype=value.dtype).expand(value.shape)
                kind[name] = nn.Parameter(filled, requires_grad=False) if kind is module._parameters else filled
    return hollow


def _zeros(size: int, states: Tensor, *args: object) -> Tensor:
    return states.new_zeros(*states.shape[:-1], size)
