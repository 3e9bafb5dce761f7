"""GGUF files of Llama checkpoints, as llama.cpp's converter lays them out."""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
from safetensors.torch import load_file
from torch import Tensor


def write_gguf(
    folder: Path, file: Path, kind: str, changes: Mapping[str, Tensor] | None = None, header: Path | None = None
) -> Path:
    """Write a Llama's folder as a GGUF file whose matrices are of one type.

    Args:
        changes: stand in for tensors of the folder.
        header: another file of the model, whose settings and tokenizer are taken; without, programs can only read the weights.
    """
    config = json.loads((folder / "config.json").read_text())
    which, names = gguf.GGMLQuantizationType[kind], gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 99)
    writer = gguf.GGUFWriter(file, "llama")
    if header is None:
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    else:
        for key, field in gguf.GGUFReader(header).fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], inner)
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
