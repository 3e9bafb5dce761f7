"""A model without its weights: enough to locate an edit, whatever the size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from iconoclast.errors import ModelError
from iconoclast.models.chat_template import prepare_tokenizer
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import auto_class
from iconoclast.models.names import local_path
from iconoclast.vocabulary import COMPONENTS, Component


def load_skeleton(
    name: str,
    components: Sequence[Component] = COMPONENTS,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> LanguageModel:
    """Build a model on "meta", with weights for norms behind writers; raise ModelError without safetensors files."""
    path = local_path(name)
    checkpoint = None if path.lower().endswith(".gguf") else Checkpoint.find(path)
    if checkpoint is None and not Path(path).exists():
        raise ModelError(f"The base model {name} is not on this machine. Give its folder or hub id with --base.")
    if checkpoint is None:
        raise ModelError(
            f"{name} is not stored as safetensors files, so it must be loaded to be edited: measure the export."
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The architecture of {name} cannot be built: {str(error).splitlines()[0]}") from None
    prepare_tokenizer(tokenizer, chat_template, name)
    lm = LanguageModel(model, tokenizer, name, path, str(model.dtype).removeprefix("torch."))
    names = {module: module_name for module_name, module in model.named_modules()}
    for writer in lm.writers(components).values():
        if writer.post_norm is not None:
            _fill(model, writer.post_norm, names[writer.post_norm], checkpoint)
    return lm


def _fill(model: PreTrainedModel, norm: nn.Module, name: str, checkpoint: Checkpoint) -> None:
    for parameter, value in list(norm.named_parameters(recurse=False)):
        stored = checkpoint.names(model, f"{name}.{parameter}", value.shape)
        if not stored:
            raise ModelError(
                f"{name}.{parameter} is not in the files of the model, so the edit cannot be made without it."
            )
        setattr(norm, parameter, nn.Parameter(checkpoint.tensor(next(iter(stored))), requires_grad=False))
