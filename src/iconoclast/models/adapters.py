"""PEFT adapters from any source: the model they belong to, and how they are loaded onto it."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from iconoclast.errors import ModelError, first_line
from iconoclast.models.language_model import LanguageModel

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(name: str) -> bool:
    """Check that the folder `name` holds an adapter and not a whole model."""
    folder = Path(name).expanduser()
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_base(name: str) -> str | None:
    """Return the base model of the adapter in a folder, None without one; raise ModelError if it names none."""
    if not is_adapter(name):
        return None
    file = Path(name).expanduser() / CONFIG
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = None
    if not isinstance(base, str):
        raise ModelError(f"{file} does not name the model that the adapter belongs to (base_model_name_or_path).")
    return base


def other_base(name: str, base: str) -> str | None:
    """Return the base model that the adapter in folder `name` declares, if that is another than `base`, else None.

    Two folders on this machine are compared as such; a copy of a hub's model is known by its name.
    """
    try:
        declared = adapter_base(name)
    except ModelError:
        return None
    if declared is None or declared == base:
        return None
    theirs, ours = (Path(os.path.expanduser(each)) for each in (declared, base))  # noqa: PTH111 - see `resolve`
    if theirs.exists() and ours.exists():
        return None if theirs.samefile(ours) else declared
    both_of_hub = declared.count("/") == base.count("/") == 1 and not theirs.exists() and not ours.exists()
    same = not both_of_hub and theirs.name.lower() == ours.name.lower()
    return None if same else declared


def put_adapter(lm: LanguageModel, name: str) -> None:
    """Load the adapter in folder `name` onto the model, which is modified in place.

    Raises:
        ModelError: the adapter is damaged, pickled, made for another model, or changes prompts instead of weights.
    """
    from peft import PeftModel  # with bitsandbytes it takes a second, which loading a plain model need not wait for

    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {name} has no {WEIGHTS}. Pickled weights are not read, as a pickle can run code."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is found below
            adapted = PeftModel.from_pretrained(lm.model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"The adapter {name} cannot be put on {lm.name}: {first_line(error)[:300]}") from None
    if adapted.active_peft_config.is_prompt_learning:
        raise ModelError(f"The adapter {name} changes the prompts and not the model, which is not measured here.")
    if unfit := _unfit(adapted, folder):
        raise ModelError(
            f"The adapter {name} is not of {lm.name}: {len(unfit)} of its tensors and the model's modules do not fit "
            f"({unfit[0]}{', …' if unfit[1:] else ''}). Give the model that it was made for."
        )
    adapted.requires_grad_(False).eval()


@contextmanager
def adapter_scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the strength of the adapter on a model while the context lasts; 0 is the base model.

    Raises:
        ModelError: the adapter is of a kind that can only be switched on and off.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [each for each in model.modules() if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if factor not in (0, 1) and not all(isinstance(layer, LoraLayer) for layer in layers):
        raise ModelError("Only the strength of LoRA adapters can be changed; this one can be switched on and off.")
    before = [(layer, dict(layer.scaling)) for layer in layers if isinstance(layer, LoraLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(factor != 0)
        for lora, scaling in before:
            lora.scaling.update({name: value * factor for name, value in scaling.items()})
        yield
    finally:
        for lora, scaling in before:
            lora.scaling.update(scaling)
        for layer in layers:
            layer.enable_adapters(True)


def _unfit(adapted: "PeftModel", folder: Path) -> list[str]:
    """Load the adapter's tensors where PEFT has not, and return the names of those that fit nowhere or are missing."""
    result = adapted.load_adapter(str(folder), "default")
    if not (result.missing_keys or result.unexpected_keys):
        return []
    # PEFT renames tensors by transformers' rules for checkpoints, which can break names that are those of the modules.
    stored = load_file(folder / WEIGHTS)
    own = {name.replace(".default", ""): parameter for name, parameter in adapted.named_parameters()}
    missing, unexpected = (
        {name.replace(".default", "") for name in names} for names in (result.missing_keys, result.unexpected_keys)
    )
    fitting = {name for name in stored if name in own and own[name].shape == stored[name].shape}
    if unfit := (stored.keys() | missing) - fitting:
        return sorted(unfit & (missing | unexpected)) or sorted(unfit)
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)
    return []
