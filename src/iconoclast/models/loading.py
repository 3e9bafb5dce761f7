"""From a name to a language model that is known to work: weights, tokenizer, chat format."""

import atexit
import importlib.util
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, find_writers
from iconoclast.models.demo import demo_folder, ensure_demo
from iconoclast.models.probe import require_complete
from iconoclast.prompts import Prompt
from iconoclast.site import Site

DEMO = "demo"
COMPONENTS = ("attn.o_proj", "mlp.down_proj")

# Ready templates for tokenizers that bring none.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "raw": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}


@dataclass
class LanguageModel:
    """A loaded causal language model with everything needed to talk to it and to edit it.

    Attributes:
        model: the transformers model, in evaluation mode, its parameters frozen.
        tokenizer: its tokenizer, padding on the left, with a chat template.
        name: the name it was asked for by.
        path: the folder, file or hub id that was loaded.
        dtype: the data type that was chosen, as in "bfloat16".
        quantization: none, bnb_4bit or bnb_8bit.
        response_prefix: text that every response starts with; part of the prompt for all measurements.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    path: str
    dtype: str
    quantization: str = "none"
    response_prefix: str = ""
    _writers: dict[tuple[str, ...], dict[Site, Writer]] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.device

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context(self) -> int | None:
        """Tokens that the model can read and write at once; None if it does not say."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) and longest > 0 else None

    def writers(self, components: Sequence[str] = COMPONENTS) -> dict[Site, Writer]:
        """Site → writer for the components.

        Raises:
            ModelError: the model is not one whose edits are known to be complete; see `find_writers`, `require_complete`.
        """
        key = tuple(components)
        if key not in self._writers:
            writers = find_writers(self.model, key)
            if set(COMPONENTS) <= set(key) and self.device.type != "meta":
                require_complete(self.model, writers)
            self._writers[key] = writers
        return self._writers[key]

    def with_prefix(self, response_prefix: str) -> "LanguageModel":
        """The same model, its responses starting with `response_prefix`."""
        return replace(self, response_prefix=response_prefix)

    def render(self, prompt: Prompt) -> str:
        """The text that the model is given for `prompt`, up to where its response goes on."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return self.render_messages([*system, {"role": "user", "content": prompt.text}])

    def render_messages(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a whole conversation, up to where the next response goes on."""
        try:
            text = self._template(messages)
        except (TemplateError, TypeError, ArithmeticError) as error:
            if messages[0]["role"] != "system":
                raise ModelError(
                    f"The chat template of {self.name} fails on a plain user message ({error}). Set chat_template to plain, raw, or a Jinja file."
                ) from None
            # Some templates have no system role: the instruction then opens the user's first turn.
            first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            return self.render_messages([{"role": "user", "content": first}, *messages[2:]])
        return text + self.response_prefix

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of every rendered prompt."""
        return self.encode_texts([self.render(prompt) for prompt in prompts])

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; the template has put the special tokens there already."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _template(self, messages: Sequence[Mapping[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        assert isinstance(text, str)
        return text


def resolve(name: str) -> str:
    """The folder, .gguf file or hub id behind a model name. Touches nothing.

    Raises:
        ModelError: the name is a path, and there is nothing there.
    """
    if name == DEMO:
        return str(demo_folder())
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or name.count("/") > 1:
        raise ModelError(f"There is no model at {name}. Give a hub id, a model folder, a .gguf file, or demo.")
    return name


def load_model(
    name: str,
    *,
    dtypes: Sequence[str] = ("auto", "bfloat16", "float16", "float32"),
    quantization: str = "none",
    device_map: str = "auto",
    max_memory: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    response_prefix: str = "",
    note: Callable[[str], None] = lambda message: None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: hub id, model folder, .gguf file, or "demo".
        dtypes: tried in this order; the first whose forward pass gives finite numbers is kept.
        quantization: "none", "bnb_4bit" or "bnb_8bit". With "none" a checkpoint that is quantised is dequantised where the
            library can do that.
        device_map: as accelerate takes it.
        max_memory: device ("0", "1", …, "cpu") → the most that goes there, as in "20GiB"; what is left goes to the disk.
        trust_remote_code: run code from the model's repository.
        chat_template: "plain", "raw" or a Jinja file, in place of the tokenizer's own.
        response_prefix: text that every response starts with.
        note: told in one line why a dtype was passed over.

    Raises:
        ModelError: nothing there, not a causal language model, no chat template, or no dtype works.
    """
    path = str(ensure_demo()) if name == DEMO else resolve(name)
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise ModelError(f"{name} is an adapter. Give the model that it belongs to.")
    if quantization != "none":
        _require_bitsandbytes()
    if path.lower().endswith(".gguf") and quantization != "none":
        raise ModelError(f"{name} is a GGUF file, which cannot be quantised again. Set quantization to none.")
    _refuse_pickle(Path(path), name)
    failures: dict[str, list[str]] = {}
    for dtype in dtypes:
        try:
            model, tokenizer = _load(path, dtype, quantization, device_map, max_memory, trust_remote_code)
        except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # torch asserts that there is CUDA
            if not trust_remote_code and "trust_remote_code" in str(error):
                raise ModelError(
                    f"{name} brings Python code of its own, which is only run with trust_remote_code. Read it first."
                ) from None
            failures.setdefault(_first_line(error), []).append(dtype)
            note(f"dtype {dtype} does not load: {_first_line(error)}")
            continue
        except (OSError, SafetensorError) as error:
            raise ModelError(f"The model {name} cannot be loaded: {_first_line(error)}") from None
        prepare_tokenizer(tokenizer, chat_template, name)
        model.requires_grad_(False)
        model.train(False)
        loaded = LanguageModel(
            model,
            tokenizer,
            name,
            path,
            str(model.dtype).removeprefix("torch."),
            quantization,
            response_prefix,
        )
        if problem := _forward_problem(loaded):
            failures.setdefault(problem, []).append(dtype)
            note(f"dtype {dtype} is passed over: {problem}")
            continue
        return loaded
    reasons = "; ".join(f"{', '.join(tried)}: {reason}" for reason, tried in failures.items())
    raise ModelError(f"The model {name} works in none of the dtypes tried. {reasons}")


def stored_quantized(name: str) -> bool:
    """Whether the weights of a model are quantised in its files; not, if there are none."""
    path = str(ensure_demo()) if name == DEMO else resolve(name)
    if path.lower().endswith(".gguf"):
        return True
    try:
        return bool(PreTrainedConfig.get_config_dict(path)[0].get("quantization_config"))
    except OSError:
        return False


def load_gguf(file: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file as a plain, dequantised model that can be saved, and its tokenizer."""
    from transformers import GgufConfig

    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    model = AutoModelForCausalLM.from_pretrained(
        **location, dtype=_torch_dtype(dtype), quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = file.stem
    return model, tokenizer


def _load(
    path: str,
    dtype: str,
    quantization: str,
    device_map: str,
    max_memory: Mapping[str, str] | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if path.lower().endswith(".gguf"):
        return load_gguf(Path(path), dtype)
    options: dict[str, Any] = {
        "dtype": _torch_dtype(dtype),
        "device_map": _device_map(device_map, max_memory),
        "use_safetensors": True,
    }
    if max_memory:
        options["max_memory"] = {int(name) if name.isdigit() else name: size for name, size in max_memory.items()}
        options["offload_folder"] = tempfile.mkdtemp(prefix="iconoclast-offload-")
        atexit.register(shutil.rmtree, options["offload_folder"], ignore_errors=True)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    stored = getattr(config, "quantization_config", None)
    if quantization != "none":
        from transformers import BitsAndBytesConfig

        compute = torch.bfloat16 if dtype == "auto" else _torch_dtype(dtype)
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=quantization == "bnb_4bit",
            load_in_8bit=quantization == "bnb_8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
        )
    elif stored and "dequantize" in inspect.signature(kind := _quantization_config(stored)).parameters:
        options["quantization_config"] = kind(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    model = auto_class(config).from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    if getattr(options.get("quantization_config"), "dequantize", False):
        # Or it would be quantised again when it is saved, and its weights lost (transformers 5.23).
        model._weight_conversions = None
    return model, tokenizer


def auto_class(config: PreTrainedConfig) -> Any:
    """What loads a model: vision-language models whole, though some have a class for their text tower alone as well."""
    vision = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if vision else AutoModelForCausalLM


def _quantization_config(stored: Any) -> Any:
    """The class of a checkpoint's own quantisation."""
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if method in (None, "bitsandbytes"):
        raise ValueError("its files hold bitsandbytes weights. Give the full-precision model and set quantization")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ValueError(f"its quantisation {method} is unknown to transformers")
    return AUTO_QUANTIZATION_CONFIG_MAPPING[method]


def _refuse_pickle(folder: Path, name: str) -> None:
    pickled = [file.name for file in sorted(folder.glob("*")) if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"The weights of {name} are pickled ({pickled[0]}), and a pickle can run code when it is read. Have them converted to "
            "safetensors, as the hub does for most models."
        )


def _device_map(device_map: str, max_memory: Mapping[str, str] | None) -> str:
    return "cpu" if device_map == "auto" and not torch.cuda.is_available() and not max_memory else device_map


def _torch_dtype(dtype: str) -> Any:
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def _require_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantization needs bitsandbytes: pip install 'iconoclast[quantized]'")


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, name: str) -> None:
    """Left padding, a pad token, a chat template."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if chat_template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[chat_template]
    elif chat_template is not None:
        file = Path(os.path.expanduser(chat_template))  # noqa: PTH111 - Path.expanduser fails on an unknown user
        if not file.is_file():
            raise ModelError(f"chat_template {chat_template} is neither plain nor raw nor a Jinja file.")
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"The chat template {chat_template} is not UTF-8 text. Convert it to UTF-8.") from None
        except OSError as error:
            raise ModelError(f"The chat template {chat_template} cannot be read: {error.strerror}.") from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {name} has no chat template, so prompts cannot be put to it as a user would. "
            "Set chat_template to plain, raw, or a Jinja file."
        )


def _forward_problem(loaded: LanguageModel) -> str | None:
    """Why a real forward pass fails, or None if it gives finite numbers."""
    ids = torch.tensor(loaded.encode([Prompt("Hello")]), device=loaded.device)
    try:
        with torch.inference_mode():
            finite = bool(torch.isfinite(loaded.model(input_ids=ids).logits).all())
    except (RuntimeError, ValueError) as error:
        return f"the forward pass fails ({_first_line(error)})"
    return None if finite else "the forward pass gives numbers that are not finite"


def _first_line(error: BaseException) -> str:
    # Some libraries end their first line in the middle of a sentence.
    lines = [" ".join(str(error).strip().replace(":\n", ": ").replace(": \n", ": ").split("\n", 1)[0].split())]
    return lines[0].replace(str(Path.home()), "~") if lines else type(error).__name__
