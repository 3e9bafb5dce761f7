"""GGUF files: what a converter leaves out, and what llama.cpp's library quantises."""

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from iconoclast.errors import ModelError
from iconoclast.models.gguf import complete_rope, load_gguf
from tests.support.entry_point import iconoclast
from tests.support.gguf_files import HARMS, tampered, write_gguf
from tests.support.tiny import save_tiny

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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def test_a_file_that_agrees_with_itself_is_loaded(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load_gguf(write_gguf(tiny, tmp_path / "model.gguf", "Q8_0"), "float32")
    assert model.config.num_hidden_layers == 4 and tokenizer.eos_token_id == 1


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_not_loaded(tiny: Path, tmp_path: Path, harm: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tampered(write_gguf(tiny, tmp_path / "whole.gguf", "Q8_0").read_bytes(), harm))
    with pytest.raises(ModelError, match=r"bad\.gguf is damaged"):
        load_gguf(bad, "float32")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.block_count", 1 << 31, "llama.block_count is 2147483648, which no tensor bears out"),
        ("llama.feed_forward_length", 1 << 20, "llama.feed_forward_length is 1048576"),
        ("llama.attention.head_count", 0, "llama.attention.head_count is 0"),
        ("llama.context_length", "many", "cannot be loaded"),
        ("tokenizer.ggml.tokens", None, "cannot be loaded: it lacks 'tokens'"),
        ("tokenizer.ggml.model", "nonsense", "cannot be loaded"),
        ("tokenizer.ggml.merges", ["never seen"], "it merges 'never seen', which makes no token"),
    ],
)
def test_a_file_whose_settings_lie_gets_one_line(
    tiny: Path, tmp_path: Path, key: str, value: object, reason: str
) -> None:
    bad = write_gguf(tiny, tmp_path / "bad.gguf", "Q8_0", said={key: value})
    with pytest.raises(ModelError) as caught:
        load_gguf(bad, "float32")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_commands_say_so_in_one_line(tiny: Path, tmp_path: Path) -> None:
    bad = write_gguf(tiny, tmp_path / "bad.gguf", "Q8_0", said={"llama.block_count": 1 << 31})
    done = iconoclast("run", bad, "--out", tmp_path / "run")
    assert done.code == 2 and "bad.gguf is damaged" in " ".join(done.complaint.split())
