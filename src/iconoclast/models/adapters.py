"""PEFT adapters from any source: the model they belong to, and how they are loaded onto it."""

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError

from iconoclast.errors import ModelError
from iconoclast.models.language_model import LanguageModel

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
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(lm.model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"The adapter {name} cannot be put on {lm.name}: {reason}") from None
    if any("missing adapter keys" in str(warning.message) for warning in said):
        raise ModelError(
            f"The adapter {name} is not of {lm.name}: its tensors have other names than the model's modules."
        )
    if adapted.active_peft_config.is_prompt_learning:
        raise ModelError(f"The adapter {name} changes the prompts and not the model, which is not measured here.")
    adapted.requires_grad_(False).eval()
