"""GGUF files of Llama checkpoints, as llama.cpp's converter lays them out."""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor

ALIGNMENT = 32


def write_gguf(folder: Path, file: Path, kind: str, changes: Mapping[str, Tensor] | None = None) -> Path:
    """Write a Llama's folder as a GGUF file whose matrices are of one type; `changes` stand in for tensors of the folder."""
    config = json.loads((folder / "config.json").read_text())
    which, names = gguf.GGMLQuantizationType[kind], gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 99)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, stored in {**load_file(folder / "model.safetensors"), **(changes or {})}.items():
        tensor = stored.float()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                tensor = tensor.reshape(config[heads], 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        own = names.get_name(name, try_suffixes=(".weight",))
        assert own is not None
        used = which if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(own, gguf.quantize(tensor.numpy(), used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def through_gguf(tensor: Tensor, kind: str) -> Tensor:
    """Return a matrix as a type that gguf's Python package writes holds it."""
    which = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), which), which)).reshape(tensor.shape)
