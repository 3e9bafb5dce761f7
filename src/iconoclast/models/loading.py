"""Loading of a language model by name, with proof that it works."""

import atexit
import importlib.util
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from iconoclast.errors import ModelError
from iconoclast.models.adapters import CONFIG, is_adapter
from iconoclast.models.chat_template import prepare_tokenizer
from iconoclast.models.checkpoint import Checkpoint, require_loaded
from iconoclast.models.gguf import load_gguf, torch_dtype
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.names import local_path
from iconoclast.models.transformers_internals import carries_adapter, forget_conversions
from iconoclast.prompts import Prompt
from iconoclast.registry import require_known
from iconoclast.vocabulary import DTYPES, QUANTIZATIONS, Dtype, Quantization

BNB_PACKS = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' 4-bit layers that says whether they lay out their weights for this processor."""


class Placement(TypedDict, total=False):
    """Placement of weights, and trust in a model's code, while it is loaded.

    Attributes:
        device_map: as accelerate takes it; auto by default.
        max_memory: device ("0", "1", …, "cpu") → limit such as "20GiB"; the rest goes to the disk.
        trust_remote_code: permission to run code from the model's repository.
    """

    device_map: str
    max_memory: Mapping[str, str] | None
    trust_remote_code: bool


def load_model(
    name: str,
    *,
    dtypes: Sequence[Dtype | str] = DTYPES,
    quantization: Quantization | str = "none",
    chat_template: str | None = None,
    response_prefix: str = "",
    note: Callable[[str], None] = lambda message: None,
    **placement: Unpack[Placement],
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    >>> ic.load_model("demo", dtypes=["float32"]).dtype
    'float32'

    Args:
        name: hub id, model folder, .gguf file, or "demo".
        dtypes: tried in order; the first whose forward pass gives finite numbers is kept.
        quantization: "none" (dequantises a quantised checkpoint if possible), "bnb_4bit" or "bnb_8bit".
        chat_template: "plain", "raw" or a Jinja file, in place of the tokenizer's own.
        response_prefix: text that every response starts with.
        note: receives one line on each dtype passed over.
        placement: see `Placement`.

    Raises:
        ModelError: no causal language model there, no chat template, no dtype that works, or an unknown option.
    """
    path = _checked_path(name, dtypes, quantization)
    failures: dict[str, list[str]] = {}
    for dtype in dtypes:
        loaded, problem = _tried(name, path, dtype, quantization, **placement)
        if loaded is not None:
            prepare_tokenizer(loaded.tokenizer, chat_template, name)
            loaded.response_prefix = response_prefix
            if not (problem := _forward_problem(loaded)):
                if dtype == "auto" and path.lower().endswith(".gguf"):
                    note(f"A GGUF file states no dtype; its weights are held in {loaded.dtype}.")
                return loaded
        failures.setdefault(problem, []).append(dtype)
        note(f"dtype {dtype} {'does not load' if loaded is None else 'is passed over'}: {problem}")
    reasons = "; ".join(f"{', '.join(tried)}: {reason}" for reason, tried in failures.items())
    raise ModelError(f"The model {name} works in none of the dtypes tried. {reasons}")


def keep_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from laying out 4-bit weights anew on the CPU when they are first read.

    After that no gradient passes through them (bitsandbytes 0.50), and one step of decoding a sequence is all that gains much.
    """
    for module in model.modules():
        if hasattr(module, BNB_PACKS):
            setattr(module, BNB_PACKS, False)


def _checked_path(name: str, dtypes: Sequence[str], quantization: str) -> str:
    """Return the path of a model, unless loading it is known to fail or to be unsafe."""
    for dtype in dtypes:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):  # a checkpoint can be float64, say
            require_known(dtype, DTYPES, "dtype", ModelError)
    require_known(quantization, QUANTIZATIONS, "quantisation", ModelError)
    path = local_path(name)
    if is_adapter(path):
        raise ModelError(f"{name} is an adapter. Give the model that it belongs to.")
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantization needs bitsandbytes: pip install 'iconoclast-edit[quantized]'")
    if quantization != "none" and path.lower().endswith(".gguf"):
        raise ModelError(f"{name} is a GGUF file, which cannot be quantised again. Set quantization to none.")
    if (Path(path) / CONFIG).is_file():
        raise ModelError(
            f"{name} holds a model and an adapter ({CONFIG}), which some programs put on it. Move one of them elsewhere."
        )
    files = sorted(Path(path).glob("*"))
    pickled = [file.name for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(
            f"The weights of {name} are pickled ({pickled[0]}), and a pickle can run code when it is read. Have them converted to "
            "safetensors, as the hub does for most models."
        )
    return path


def _tried(
    name: str, path: str, dtype: Dtype | str, quantization: Quantization | str, **placement: Unpack[Placement]
) -> tuple[LanguageModel | None, str]:
    """Return the model, or why it does not load in this dtype; raise ModelError if it loads in none."""
    try:
        model, tokenizer = _load(path, dtype, quantization, **placement)
    except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # torch asserts that there is CUDA
        if "trust_remote_code" in str(error) and not placement.get("trust_remote_code"):
            raise ModelError(
                f"{name} brings Python code of its own, which is only run with trust_remote_code. Read it first."
            ) from None
        return None, _first_line(error)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The model {name} cannot be loaded: {_first_line(error)}") from None
    keep_layout(model.requires_grad_(False).train(False))
    kept = str(model.dtype).removeprefix("torch.")
    return LanguageModel(model, tokenizer, name, path, kept, cast(Quantization, quantization)), ""


def _load(
    path: str, dtype: Dtype | str, quantization: Quantization | str, **placement: Unpack[Placement]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if path.lower().endswith(".gguf"):
        return load_gguf(Path(path), dtype)
    max_memory, trusted = placement.get("max_memory"), placement.get("trust_remote_code", False)
    device_map = placement.get("device_map", "auto")
    if device_map == "auto" and not max_memory and not torch.cuda.is_available():
        device_map = "cpu"
    options: dict[str, Any] = {"dtype": torch_dtype(dtype), "device_map": device_map, "use_safetensors": True}
    if max_memory:
        options["max_memory"] = {int(name) if name.isdigit() else name: size for name, size in max_memory.items()}
        options["offload_folder"] = tempfile.mkdtemp(prefix="iconoclast-offload-")
        atexit.register(shutil.rmtree, options["offload_folder"], ignore_errors=True)
    if Path(path).is_dir():
        Checkpoint.find(path)  # which refuses ambiguous folders before anything is loaded
    config = AutoConfig.from_pretrained(path, trust_remote_code=trusted)
    stored = getattr(config, "quantization_config", None)
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=quantization == "bnb_4bit",
            load_in_8bit=quantization == "bnb_8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else torch_dtype(dtype),
        )
    elif stored and "dequantize" in inspect.signature(kind := _quantization_config(stored)).parameters:
        options["quantization_config"] = kind(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
    model, told = auto_class(config).from_pretrained(
        path, trust_remote_code=trusted, output_loading_info=True, **options
    )
    _require_read(path, model, told)
    if getattr(options.get("quantization_config"), "dequantize", False):
        forget_conversions(model)
    return model, tokenizer


def _require_read(path: str, model: PreTrainedModel, told: Mapping[str, Any]) -> None:
    """Raise ModelError unless all weights come from the model's own files."""
    if carries_adapter(model):
        raise ModelError(
            f"{path} holds an adapter, which transformers has put on its base. Give the model or a folder."
        )
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"The files of {path} lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would be "
            "random. Get the model again, or correct its configuration."
        )
    if (checkpoint := Checkpoint.find(path)) is not None:
        require_loaded(checkpoint, model)


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class that loads a model: vision-language models whole, even if their text tower has its own class."""
    vision = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if vision else AutoModelForCausalLM


def _quantization_config(stored: Any) -> Any:
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if method in (None, "bitsandbytes"):
        raise ValueError("its files hold bitsandbytes weights. Give the full-precision model and set quantization")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ValueError(f"its quantisation {method} is unknown to transformers")
    return AUTO_QUANTIZATION_CONFIG_MAPPING[method]


def _forward_problem(loaded: LanguageModel) -> str:
    """Return why a real forward pass fails; empty if it gives finite numbers."""
    ids = torch.tensor(loaded.encode([Prompt("Hello")]), device=loaded.device)
    try:
        with torch.inference_mode():
            finite = bool(torch.isfinite(loaded.model(input_ids=ids).logits).all())
    except (RuntimeError, ValueError) as error:
        return f"the forward pass fails ({_first_line(error)})"
    return "" if finite else "the forward pass gives numbers that are not finite"


def _first_line(error: BaseException) -> str:
    # Some libraries end their first line in the middle of a sentence.
    first = str(error).strip().replace(":\n", ": ").replace(": \n", ": ").split("\n", 1)[0]
    return " ".join(first.split()).replace(str(Path.home()), "~") or type(error).__name__


def stored_quantized(name: str) -> bool:
    """Check whether a model's weights are quantised in its files; False if there are no files."""
    path = local_path(name)
    if path.lower().endswith(".gguf"):
        return True
    try:
        return bool(PreTrainedConfig.get_config_dict(path)[0].get("quantization_config"))
    except OSError:
        return False
