"""GGUF files of Llama checkpoints, as llama.cpp's converter lays them out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
from safetensors.torch import load_file
from torch import Tensor

TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}


def header_of(folder: Path) -> dict[str, Any]:
    """What a converter writes of a tiny Llama's settings and tokenizer; its chat template is left out."""
    config, tokenizer = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "tokenizer"))
    added = {each["content"] for each in tokenizer["added_tokens"]}
    tokens = [token for token, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])]
    return {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "llama.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
    }


def write_gguf(
    folder: Path,
    file: Path,
    kind: str,
    changes: Mapping[str, Tensor] | None = None,
    header: Path | None = None,
    said: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Llama's folder as a GGUF file whose matrices are of one type.

    Args:
        changes: stand in for tensors of the folder.
        header: another file of the model, whose settings and tokenizer are taken; without, those of a tiny Llama's folder.
        said: stand in for values of such a folder's; None leaves one out.
    """
    config = json.loads((folder / "config.json").read_text())
    which, names = gguf.GGMLQuantizationType[kind], gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 99)
    writer = gguf.GGUFWriter(file, "llama")
    if header is None:
        for key, value in {**header_of(folder), **(said or {})}.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif value is not None:
                writer.add_key_value(key, value, TYPES[type(value)])
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
        plain = tensor.contiguous().numpy()
        writer.add_tensor(own, q4_k(plain) if used.name == "Q4_K" else gguf.quantize(plain, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def q4_k(values: Any) -> Any:
    """Quantise [d, 256 n] to Q4_K with one scale and one minimum a block, which the package gguf does not write."""
    blocks = values.reshape(-1, 256)
    least = numpy.minimum(blocks.min(1, keepdims=True), 0)
    scale = ((blocks.max(1, keepdims=True) - least) / 15).astype(numpy.float16)
    start = (-least).astype(numpy.float16)
    levels = (
        numpy.rint((blocks + start) / numpy.maximum(scale, 1e-7)).clip(0, 15).astype(numpy.uint8).reshape(-1, 4, 2, 32)
    )
    factors = numpy.tile(numpy.array([1] * 8 + [17] * 4, dtype=numpy.uint8), (len(blocks), 1))  # ones, in 6 bits each
    packed = (levels[:, :, 0] | levels[:, :, 1] << 4).reshape(-1, 128)
    return numpy.concatenate([scale.view(numpy.uint8), start.view(numpy.uint8), factors, packed], 1).reshape(
        len(values), -1
    )


HARMS = (
    "type", "offset beyond the end", "offset of another tensor", "dimension", "count of tensors", "length of a list", "cut",
    "cut in its header", "empty", "something else",
)  # fmt: skip


def tampered(whole: bytes, harm: str) -> bytes:
    """A file that does not hold what it says, in one way of `HARMS`."""
    at = whole.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight")
    lies = {
        "type": (at + 4 + 16, 4096, 4),
        "offset beyond the end": (at + 4 + 16 + 4, 1 << 40, 8),
        "offset of another tensor": (at + 4 + 16 + 4, 0, 8),
        "dimension": (at + 4, 1 << 40, 8),
        "count of tensors": (8, 1 << 60, 8),
        "length of a list": (whole.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8, 1 << 60, 8),
    }
    if harm in lies:
        start, value, size = lies[harm]
        return whole[:start] + value.to_bytes(size, "little") + whole[start + size :]
    return {"cut": whole[:-999], "cut in its header": whole[:60], "empty": b"", "something else": b"not a model" * 99}[
        harm
    ]
