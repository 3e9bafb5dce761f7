"""A GGUF file beside its base: what quantisation explains, what is an edit on top, and what is damaged."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.audit import audit as audited
from iconoclast.edits.edit import edited_weight
from iconoclast.edits.record import load_edit
from iconoclast.models.gguf_tensors import NUMBERS, PLAIN, SCALE, half_steps, open_reader, readable, values
from tests.support.entry_point import iconoclast
from tests.support.gguf_files import HARMS, header_of, tampered, write_gguf
from tests.support.tiny import save_tiny, tiny_config

WRITERS = ("o_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 whose widths quantised blocks divide."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder, tiny_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2))
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def edited(base: Path, strength: float, normalization: str = "none") -> tuple[dict[str, Tensor], Tensor]:
    v = normalize(torch.randn(256, generator=torch.Generator().manual_seed(1)), dim=0)
    tensors = load_file(base / "model.safetensors")
    changes = {
        name: edited_weight(tensor.float(), v, strength, normalization).bfloat16()  # type: ignore[arg-type]
        for name, tensor in tensors.items()
        if name.endswith(WRITERS)
    }
    return changes, v


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q4_K"])
def test_an_untouched_model_is_its_base_whatever_the_type(base: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "figures.json"
    made = write_gguf(base, tmp_path / "model.gguf", kind)
    done = iconoclast("audit", made, "--base", base, "--weights-only", "--json", file)
    assert done.code == 0, done.err
    document = json.loads(file.read_text())
    assert {t["name"] for t in document["tensors"]} == load_file(base / "model.safetensors").keys()
    assert document["verdict"] == "requantised" and document["lost"] == ["chat template"]
    assert {t["status"] for t in document["tensors"]} <= {"unchanged", "rounded"}
    assert "settings" not in document and "Setting differs" not in done.out
    assert ("Quantisation hides" in done.out) == (kind not in PLAIN)


def quantised_base(base: Path, folder: Path) -> Path:
    """The base as Q4_1 leaves it, in bfloat16."""
    folder = Path(shutil.copytree(base, folder))
    kind = gguf.GGMLQuantizationType.Q4_1
    tensors = {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(t.float().numpy(), kind), kind)).bfloat16()
        if t.ndim == 2
        else t
        for name, t in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_a_base_that_was_quantised_before_is_not_taken_for_an_edit(base: Path, tmp_path: Path, strength: float) -> None:
    folder = quantised_base(base, tmp_path / "base")
    changes = edited(folder, strength)[0] if strength else {}
    document, _ = audited(str(folder), str(write_gguf(folder, tmp_path / "model.gguf", "Q4_0", changes)))
    assert document.verdict == ("rank_one" if strength else "requantised")
    assert {t.name for t in document.tensors if t.status == "changed"} == changes.keys()


@pytest.mark.parametrize(
    ("kind", "normalization", "off", "turned"),
    [("F16", "none", 1e-3, 1e-5), ("Q8_0", "none", 2e-3, 1e-4), ("Q8_0", "pre", 2e-3, 1e-4), ("Q4_0", "none", 0.03, 0.02), ("Q4_K", "none", 0.03, 0.02)],
)  # fmt: skip
def test_an_edit_below_the_quantisation_is_recovered_within_the_error_that_is_stated(
    base: Path, tmp_path: Path, kind: str, normalization: str, off: float, turned: float
) -> None:
    changes, v = edited(base, 0.8, normalization)
    document, directions = audited(str(base), str(write_gguf(base, tmp_path / "model.gguf", kind, changes)))
    assert document.verdict == "rank_one"
    found = [t for t in document.tensors if t.status == "changed"]
    assert {t.name for t in found} == changes.keys()
    for t in found:
        assert t.strength is not None and t.strength_error is not None and t.direction_error is not None
        assert t.row_normalization == normalization or kind.startswith("Q4")
        missed = abs(t.strength / 0.8 - 1)
        away = 1 - abs(float(directions[f"{t.name}.direction"].double() @ v.double()))
        assert missed < off and missed <= t.strength_error + 1e-5
        assert away < turned and away <= t.direction_error + 1e-6


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_an_edit_that_the_type_swallows_is_seen_where_equal_values_part(base: Path, tmp_path: Path, kind: str) -> None:
    changes, _ = edited(base, 0.1)
    document, _ = audited(str(base), str(write_gguf(base, tmp_path / "model.gguf", kind, changes)))
    assert document.verdict == "weak"
    assert {t.name for t in document.tensors if t.construction == "weak"} == changes.keys()
    tensors = load_file(base / "model.safetensors")
    for t in document.tensors:
        if t.name in changes:
            change = (changes[t.name].float() - tensors[t.name].float()).norm() / tensors[t.name].float().norm()
            assert t.status == "changed" and t.hidden_norm is not None and t.hidden_norm > change


def test_an_edit_that_hides_in_a_base_of_float32_is_requantisation_and_the_limit_is_stated(
    base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    random = torch.Generator().manual_seed(2)
    tensors = {
        name: t.float() * (1 + 1e-3 * torch.rand(t.shape, generator=random))  # no two values are equal
        for name, t in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    v = normalize(torch.randn(256, generator=random), dim=0)
    changes = {name: edited_weight(t, v, 0.02, "none") for name, t in tensors.items() if name.endswith(WRITERS)}
    document, _ = audited(str(folder), str(write_gguf(folder, tmp_path / "model.gguf", "Q4_0", changes)))
    assert document.verdict == "requantised"
    for t in document.tensors:
        if t.name in changes:
            change = (changes[t.name] - tensors[t.name]).norm() / tensors[t.name].norm()
            assert t.hidden_norm is not None and t.hidden_norm > change


def test_of_a_base_on_the_levels_of_the_file_no_bound_is_stated(base: Path, tmp_path: Path) -> None:
    folder = quantised_base(base, tmp_path / "base")
    changes, _ = edited(folder, 0.8)
    made = write_gguf(folder, tmp_path / "model.gguf", "Q4_1", changes)
    file = tmp_path / "audit.json"
    done = iconoclast("audit", made, "--base", folder, "--weights-only", "--json", file)
    tensors = json.loads(file.read_text())["tensors"]
    found = [t for t in tensors if t["status"] == "changed"]
    assert {t["name"] for t in found} == changes.keys()
    assert any("strength" in t for t in found) and not any("strength_error" in t for t in found)
    assert "or more, relative norm" in done.out
    asked = iconoclast("audit", made, "--base", folder, "--weights-only", "--edit", tmp_path / "edit.safetensors")
    assert asked.code == 2 and "edit" in asked.complaint and not (tmp_path / "edit.safetensors").exists()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_other_changes_are_told_from_rounding(base: Path, tmp_path: Path, kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = load_file(base / "model.safetensors")
    names = [name for name in tensors if name.endswith(WRITERS)]

    def noise(tensor: Tensor) -> Tensor:
        return tensor.float() + 0.3 * tensor.float().std() * torch.randn(tensor.shape, generator=random)

    def low(tensor: Tensor) -> Tensor:
        b, a = torch.randn(tensor.shape[0], 3, generator=random), torch.randn(3, tensor.shape[1], generator=random)
        return tensor.float() + 0.2 * tensor.float().std() * b @ a

    for verdict, change in (("dense", noise), ("low_rank", low)):
        changes = {name: change(tensors[name]) for name in names}
        document, _ = audited(str(base), str(write_gguf(base, tmp_path / f"{verdict}.gguf", kind, changes)))
        assert document.verdict == verdict, {(t.construction, t.rank) for t in document.tensors if t.name in names}


def test_two_gguf_files_are_compared_by_their_own_names(base: Path, tmp_path: Path) -> None:
    changes, v = edited(base, 0.8)
    whole, small = write_gguf(base, tmp_path / "whole.gguf", "BF16"), write_gguf(base, tmp_path / "small.gguf", "Q8_0")
    touched = write_gguf(base, tmp_path / "touched.gguf", "Q8_0", changes)
    assert audited(str(whole), str(whole))[0].verdict == "untouched"
    assert audited(str(whole), str(small))[0].verdict == "requantised"
    for one in (whole, small):
        document, directions = audited(str(one), str(touched))
        assert document.verdict == "rank_one"
        assert sum(t.status == "changed" for t in document.tensors) == len(changes)
        assert abs(float(directions["blk.0.attn_output.weight.direction"] @ v)) > 0.999


def test_a_gguf_base_is_read_under_the_names_of_the_edited_folder(base: Path, tmp_path: Path) -> None:
    changes, v = edited(base, 0.8)
    tensors = {**load_file(base / "model.safetensors"), **changes}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    document, directions = audited(str(write_gguf(base, tmp_path / "base.gguf", "Q8_0")), str(tmp_path))
    assert document.verdict == "rank_one"
    assert abs(float(directions["model.layers.0.self_attn.o_proj.weight.direction"] @ v)) > 0.999


def test_what_was_found_in_a_gguf_file_is_an_edit_of_ours(base: Path, tmp_path: Path) -> None:
    changes, _ = edited(base, 0.8)
    made = write_gguf(base, tmp_path / "model.gguf", "Q8_0", changes)
    file = tmp_path / "found.safetensors"
    done = iconoclast("audit", made, "--base", base, "--weights-only", "--edit", file)
    assert done.code == 0, done.err
    found = load_edit(file)
    assert len(found.sites) == len(changes)


@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_half_steps_are_those_of_the_levels(kind: str) -> None:
    which = gguf.GGMLQuantizationType[kind]
    size, block = gguf.GGML_QUANT_SIZES[which]
    data = numpy.random.default_rng(0).integers(0, 120, (4, block), dtype=numpy.uint8)  # scales are finite
    tensor = gguf.gguf_reader.ReaderTensor("t", which, numpy.array([size, 4]), 4 * size, data.nbytes, 0, data, None)  # type: ignore[arg-type]
    own, half = values(tensor), half_steps(tensor)
    run = 16  # values with one scale
    for some, steps in zip(own.reshape(-1, run), (half - SCALE * own.abs()).reshape(-1, run), strict=True):
        step = 2 * float(steps.median())
        assert steps.max() - steps.min() <= 1e-3 * step + 1e-5 * some.abs().max()
        if step == 0:  # so is the scale
            assert some.max() == some.min()
            continue
        levels = (some - some[0]) / step
        assert (levels - levels.round()).abs().max() < 0.01 + 1e-5 * float(some.abs().max()) / step


def test_all_types_that_are_said_to_be_readable_have_steps() -> None:
    kinds = {kind for kind in gguf.GGMLQuantizationType.__members__ if readable(kind)}
    assert {*NUMBERS, *PLAIN, "IQ4_XS", "IQ2_XXS", "MXFP4"} <= kinds and not {"I8", "Q8_K"} & kinds
    for kind in kinds - set(PLAIN):
        which = gguf.GGMLQuantizationType[kind]
        size, block = gguf.GGML_QUANT_SIZES[which]
        data = numpy.zeros((32 // min(size, 32), block), dtype=numpy.uint8)
        tensor = gguf.gguf_reader.ReaderTensor("t", which, numpy.array([256]), 256, data.nbytes, 0, data, None)  # type: ignore[arg-type]
        assert values(tensor).isfinite().all() and half_steps(tensor).isfinite().all()


@pytest.mark.parametrize("harm", HARMS)
def test_a_hostile_file_gets_one_clear_line(base: Path, tmp_path: Path, harm: str) -> None:
    whole = write_gguf(base, tmp_path / "whole.gguf", "Q8_0")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tampered(whole.read_bytes(), harm))
    for sides in ((bad, base), (whole, bad)):
        done = iconoclast("audit", sides[0], "--base", sides[1], "--weights-only")
        assert done.code == 2 and done.complaint.count("\n") == 0
        assert "bad.gguf is damaged" in " ".join(done.complaint.split())


def test_a_file_of_another_model_is_named(base: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tiny_config(hidden_size=128, intermediate_size=256, num_hidden_layers=2))
    made = write_gguf(other, tmp_path / "model.gguf", "Q8_0")
    done = iconoclast("audit", made, "--base", base, "--weights-only")
    assert done.code == 2 and "is of another base" in " ".join(done.complaint.split())


def test_steps_of_uneven_types_are_taken_from_neighbouring_levels() -> None:
    which = gguf.GGMLQuantizationType.IQ4_NL
    data = numpy.zeros((1, 18), dtype=numpy.uint8)
    data[:, :2] = numpy.frombuffer(numpy.float16(1).tobytes(), dtype=numpy.uint8)
    data[:, 2:] = numpy.arange(16, dtype=numpy.uint8) * 17
    tensor = gguf.gguf_reader.ReaderTensor("t", which, numpy.array([32]), 32, 18, 0, data, None)  # type: ignore[arg-type]
    own, half = values(tensor).flatten(), half_steps(tensor).flatten()
    levels = sorted(set(own.tolist()))
    for value, found in zip(own.tolist(), half.tolist(), strict=True):
        assert found == pytest.approx(min(abs(value - other) for other in levels if other != value) / 2)


def test_readers_give_what_the_file_holds(base: Path, tmp_path: Path) -> None:
    reader = open_reader(write_gguf(base, tmp_path / "model.gguf", "Q8_0"))
    plain: Mapping[str, gguf.ReaderTensor] = {t.name: t for t in reader.tensors}
    assert values(plain["blk.0.ffn_down.weight"]).shape == (256, 512)


CHANGED = {
    "llama.rope.freq_base": (500000.0, "rope.freq_base"),
    "llama.rope.scaling.type": ("yarn", "rope.scaling.type"),
    "llama.context_length": (99, "context_length"),
    "llama.attention.layer_norm_rms_epsilon": (1e-3, "attention.layer_norm_rms_epsilon"),
    "tokenizer.ggml.eos_token_id": (7, "eos_token_id"),
    "tokenizer.chat_template": ("{{ messages }}", "chat template"),
    "tokenizer.ggml.tokens": ([f"t{i}" for i in range(261)], "vocabulary"),
}


@pytest.mark.parametrize("key", CHANGED)
def test_what_a_header_says_otherwise_than_the_base_is_named(base: Path, tmp_path: Path, key: str) -> None:
    value, name = CHANGED[key]
    own = {"tokenizer.chat_template": (base / "chat_template.jinja").read_text()}
    plain = write_gguf(base, tmp_path / "base.gguf", "F16", said=own)
    made = write_gguf(base, tmp_path / "model.gguf", "F16", said={**own, key: value})
    for one in (base, plain):
        document, _ = audited(str(one), str(made))
        assert [setting.name for setting in document.settings] == [name]
    document, _ = audited(str(made), str(base))
    assert [setting.name for setting in document.settings] == [name]


def test_what_a_header_leaves_to_the_usual_is_no_difference(base: Path, tmp_path: Path) -> None:
    said = {key: None for key in header_of(base) if "rope" in key or key.endswith("_token_id")}
    said["tokenizer.chat_template"] = (base / "chat_template.jinja").read_text()  # type: ignore[assignment]
    made = write_gguf(base, tmp_path / "model.gguf", "F16", said=said)
    document, _ = audited(str(base), str(made))
    assert document.settings == [] and document.lost == []


def test_settings_that_differ_between_folders_are_named_and_shown(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "edited"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + "{{ more }}")
    file = tmp_path / "audit.json"
    done = iconoclast("audit", folder, "--base", base, "--weights-only", "--json", file)
    assert [each["name"] for each in json.loads(file.read_text())["settings"]] == [
        "rope_parameters.rope_theta",
        "chat template",
    ]
    assert "Setting differs: rope_parameters.rope_theta is 500000.0, and 10000.0 in the base." in done.out
    assert iconoclast("report", file).code == 0
    page = (tmp_path / "audit-report.html").read_text()
    assert "rope_parameters.rope_theta" in page and "{{ more }}" in page
    for content, said in (("[1", "holds no JSON object"), ('{"added_tokens": [1]}', "tokenizer is damaged")):
        (folder / "tokenizer.json").write_text(content)
        done = iconoclast("audit", folder, "--base", base, "--weights-only")
        assert done.code == 2 and said in " ".join(done.complaint.split())
