"""GGUF files: read by transformers, quantised plainly, and completed where a converter has left something out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from iconoclast.errors import ModelError, first_line
from iconoclast.models.gguf_tensors import ARCHITECTURE, DAMAGES, open_reader
from iconoclast.vocabulary import Dtype

FILE_TYPE, UINT32 = "general.file_type", gguf.GGUFValueType.UINT32
USUAL_BASE = 10000.0
"""Base of rotary positions that llama.cpp takes where a file has none."""
SCALED = ("linear", "yarn", "llama3", "longrope")
"""Kinds of rotary positions of which a file says more than their base."""
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""What PyTorch calls the abilities of processors that compute in bfloat16."""


def quantize_plainly(file: Path, to: Path, name: str) -> None:
    """Quantise all matrices of a GGUF file to one type of `vocabulary.PLAIN_QUANTS`."""
    kind = gguf.GGMLQuantizationType[name]

    def quantized(tensor: gguf.ReaderTensor) -> tuple[Any, gguf.GGMLQuantizationType]:
        data, own = tensor.data, tensor.tensor_type
        # What the converter leaves in float32 (norms, routers) is small and matters.
        if own != gguf.GGMLQuantizationType.F32 and tensor.shape[0] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            return gguf.quantize(gguf.dequantize(data, own), kind), kind
        return data, own

    _copy(open_reader(file), to, {FILE_TYPE: (gguf.LlamaFileType[f"MOSTLY_{name}"], UINT32)}, quantized)


def complete_rope(file: Path, config: Mapping[str, Any]) -> str:
    """Write the base of rotary positions into a converted file if the converter has left it out.

    Converters from before transformers 5 look for it where configurations have it no more, and llama.cpp then takes 10000.

    Args:
        config: the model's config.json.

    Returns:
        What was written, in words; empty if all was there.

    Raises:
        ModelError: the converter has left out the scaling of positions, which is not made up for here.
    """
    own = config.get("text_config") or config
    told = own.get("rope_parameters") or own.get("rope_scaling") or {}
    base, kind = told.get("rope_theta") or own.get("rope_theta") or USUAL_BASE, told.get("rope_type", "default")
    if base == USUAL_BASE and kind not in SCALED:
        return ""
    reader = open_reader(file)
    name = str(reader.fields[ARCHITECTURE].contents())
    told_of = [*reader.fields, *(tensor.name for tensor in reader.tensors)]
    if kind in SCALED and not any("rope.scaling" in each or each.startswith("rope_f") for each in told_of):
        raise ModelError(
            f"llama.cpp's converter leaves out how the model scales positions (rope_type {kind}). Take a newer llama.cpp."
        )
    key = f"{name}.rope.freq_base"
    found = float(reader.fields[key].contents()) if key in reader.fields else USUAL_BASE
    if base == USUAL_BASE or found != USUAL_BASE:
        return ""
    completed = file.with_name(f"{file.name}.part")
    _copy(reader, completed, {key: (float(base), gguf.GGUFValueType.FLOAT32)}, lambda t: (t.data, t.tensor_type))
    del reader
    completed.replace(file)
    return (
        f"llama.cpp's converter left out {key} = {base:g}, which was then written into the file: a newer one knows it."
    )


def _copy(
    reader: gguf.GGUFReader,
    to: Path,
    values: Mapping[str, tuple[Any, gguf.GGUFValueType]],
    changed: Callable[[gguf.ReaderTensor], tuple[Any, gguf.GGMLQuantizationType]],
) -> None:
    """Copy a GGUF file with other values, and with the data and type that `changed` makes of each tensor."""
    writer = gguf.GGUFWriter(to, str(reader.fields[ARCHITECTURE].contents()), use_temp_file=True)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != ARCHITECTURE and key not in values:
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, (value, kind) in values.items():
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        data, own = changed(tensor)
        writer.add_tensor(tensor.name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(file: Path, dtype: Dtype | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as a plain, dequantised model that can be saved, with its tokenizer.

    Raises:
        ModelError: the file contradicts itself, or transformers cannot read it.
    """
    open_reader(file)  # transformers trusts all that a file says
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    stated = auto_dtype() if dtype == "auto" else torch_dtype(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**location)
        model = AutoModelForCausalLM.from_pretrained(
            **location, dtype=stated, quantization_config=GgufConfig(dequantize=True)
        )
    except (*DAMAGES, AttributeError, ArithmeticError, StrictDataclassError) as error:
        said = f"it lacks {error}." if isinstance(error, KeyError) else first_line(error)
        raise ModelError(f"The GGUF file {file} cannot be loaded: {said}") from None
    model.config.name_or_path = file.stem
    return model, tokenizer


def auto_dtype() -> torch.dtype:
    """Return bfloat16 where the processor or GPU computes in it: a GGUF file states no dtype, and float32 takes twice as much."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    asked = getattr(torch.cpu, "get_capabilities", None)  # older versions do not say
    processor: Mapping[str, Any] = asked() if asked else {}
    return torch.bfloat16 if any(processor.get(name) for name in BFLOAT16) else torch.float32


def torch_dtype(dtype: Dtype | str) -> Any:
    """Return the torch data type of a name; "auto" as it is."""
    return "auto" if dtype == "auto" else getattr(torch, dtype)
