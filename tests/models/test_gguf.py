"""GGUF files: what a converter leaves out, and what llama.cpp's library quantises."""

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from iconoclast.errors import ModelError
from iconoclast.models.gguf import complete_rope

KEY = "llama.rope.freq_base"


def write(file: Path, base: float | None = None, tensor: str = "blk.0.attn_q.weight") -> Path:
    """A file with a matrix in bfloat16 and a norm."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    if base is not None:
        writer.add_float32(KEY, base)
    kind = gguf.GGMLQuantizationType.BF16
    matrix = numpy.arange(64, dtype=numpy.float32).reshape(2, 32)
    writer.add_tensor(tensor, gguf.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", numpy.ones(32, dtype=numpy.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return file


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}},
        {"rope_theta": 100000.0, "rope_scaling": None},
        {"text_config": {"rope_parameters": {"rope_theta": 100000.0}}},
    ],
)
@pytest.mark.parametrize("written", [None, 10000.0])
def test_a_base_of_positions_that_the_converter_leaves_out_is_written(
    tmp_path: Path, config: dict[str, Any], written: float | None
) -> None:
    file = write(tmp_path / "model.gguf", written)
    before = {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(file).tensors}
    assert "llama.rope.freq_base = 100000" in complete_rope(file, config)
    reader = gguf.GGUFReader(file)
    assert reader.fields[KEY].contents() == 100000.0
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert {t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors} == before
    assert complete_rope(file, config) == "" and [file] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_theta": 10000.0}}, None),
        ({"rope_parameters": {"rope_theta": 100000.0}}, 500000.0),  # scaled by the converter, on purpose
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, None),
    ],
)
def test_files_that_say_what_they_should_stay_as_they_are(
    tmp_path: Path, config: dict[str, Any], written: float | None
) -> None:
    file = write(tmp_path / "model.gguf", written)
    before = file.read_bytes()
    assert complete_rope(file, config) == "" and file.read_bytes() == before


def test_a_scaling_of_positions_that_is_left_out_is_refused(tmp_path: Path) -> None:
    config = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0}}
    with pytest.raises(
        ModelError, match=r"leaves out how the model scales positions \(rope_type llama3\)\. Take a newer"
    ):
        complete_rope(write(tmp_path / "a.gguf", 500000.0), config)
    assert complete_rope(write(tmp_path / "b.gguf", 500000.0, "rope_freqs.weight"), config) == ""
