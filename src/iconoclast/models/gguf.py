"""GGUF files: read by transformers, written by llama.cpp's own converter."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from iconoclast.errors import ModelError
from iconoclast.models.transformers_internals import set_name
from iconoclast.vocabulary import Dtype

CONVERTER = "convert_hf_to_gguf.py"


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


def convert(folder: Path, to: Path, converter: Path) -> None:
    """Convert a model folder to a GGUF file of the same dtype, or raise ModelError with the converter's last line."""
    command = [sys.executable, str(converter), str(folder), "--outfile", str(to), "--outtype", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not to.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ModelError(f"{converter} cannot convert the model. It says: {said[:300]}")


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
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    cpu = not torch.cuda.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    on_cpu = cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if on_gpu or on_cpu else torch.float32


def torch_dtype(dtype: Dtype | str) -> Any:
    return "auto" if dtype == "auto" else getattr(torch, dtype)
