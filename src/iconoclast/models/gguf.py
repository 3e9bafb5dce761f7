"""GGUF files: read by transformers, written by llama.cpp's own converter, and quantised further."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from iconoclast.errors import ModelError
from iconoclast.models.transformers_internals import set_name
from iconoclast.registry import require_known
from iconoclast.vocabulary import GGUF_QUANTS, PLAIN_QUANTS, Dtype

CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = "llama-quantize"

BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""What PyTorch calls the abilities of processors that compute in bfloat16."""


def find_converter(llama_cpp: Path | None) -> Path:
    """Return llama.cpp's converter from a checkout's folder or (with None) the PATH, or raise ModelError."""
    on_path = shutil.which(CONVERTER)
    file = llama_cpp / CONVERTER if llama_cpp is not None else Path(on_path) if on_path else None
    if file is None or not file.is_file():
        where = "on the PATH" if llama_cpp is None else f"in {llama_cpp}"
        raise ModelError(
            f"GGUF needs llama.cpp's {CONVERTER}, which is not {where}. Get https://github.com/ggml-org/llama.cpp and name its "
            "folder with --llama-cpp."
        )
    return file


def find_quantizer(llama_cpp: Path | None, quants: Sequence[str]) -> Path | None:
    """Return llama.cpp's llama-quantize, from a checkout or the PATH; None if it is not there and not needed.

    Raises:
        ModelError: a quantisation is unknown, or needs it.
    """
    for name in quants:
        require_known(name, GGUF_QUANTS, "GGUF quantisation", ModelError)
    places = [] if llama_cpp is None else [llama_cpp / "build" / "bin" / QUANTIZER, llama_cpp / QUANTIZER]
    on_path = shutil.which(QUANTIZER)
    found = next((file for file in [*places, Path(on_path or "/")] if file.is_file()), None)
    if found is None and (needed := [name for name in quants if name not in PLAIN_QUANTS]):
        raise ModelError(
            f"{', '.join(needed)} is written by llama.cpp's {QUANTIZER}, which is neither in build/bin of --llama-cpp nor on the "
            f"PATH. Build it there (cmake -B build && cmake --build build --target {QUANTIZER}), or use {', '.join(PLAIN_QUANTS)}."
        )
    return found


def convert(folder: Path, to: Path, converter: Path) -> None:
    """Convert a model folder to a GGUF file of the same dtype, or raise ModelError with the converter's last line."""
    _run([sys.executable, str(converter), str(folder), "--outfile", str(to), "--outtype", "auto"], to)


def quantize(file: Path, to: Path, name: str, quantizer: Path | None) -> None:
    """Quantise a GGUF file by llama-quantize or, without it, here; raise ModelError with the last line of a failure."""
    if quantizer is not None:
        _run([str(quantizer), str(file), str(to), name], to)
        return
    kind, reader = gguf.GGMLQuantizationType[name], gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, str(reader.fields["general.architecture"].contents()), use_temp_file=True)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}"])
    for tensor in reader.tensors:
        data, own = tensor.data, tensor.tensor_type
        # What the converter leaves in float32 (norms, routers) is small and matters.
        if own != gguf.GGMLQuantizationType.F32 and tensor.shape[0] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            data, own = gguf.quantize(gguf.dequantize(data, own), kind), kind
        writer.add_tensor(tensor.name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _run(command: list[str], to: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not to.is_file():
        program = next(word for word in command if word != sys.executable)
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ModelError(f"{program} cannot convert the model. It says: {said[:300]}")


def load_gguf(file: Path, dtype: Dtype | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as a plain, dequantised model that can be saved, with its tokenizer."""
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    stated = auto_dtype() if dtype == "auto" else torch_dtype(dtype)
    model = AutoModelForCausalLM.from_pretrained(
        **location, dtype=stated, quantization_config=GgufConfig(dequantize=True)
    )
    set_name(model, file.stem)
    return model, tokenizer


def auto_dtype() -> torch.dtype:
    """Return bfloat16 where the processor or GPU computes in it: a GGUF file states no dtype, and float32 takes twice as much."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    asked = getattr(torch.cpu, "get_capabilities", None)  # older versions do not say
    processor: Mapping[str, Any] = asked() if asked else {}
    return torch.bfloat16 if any(processor.get(name) for name in BFLOAT16) else torch.float32


def torch_dtype(dtype: Dtype | str) -> Any:
    return "auto" if dtype == "auto" else getattr(torch, dtype)
