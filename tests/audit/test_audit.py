"""An edit is recovered from the weights alone, and a hostile checkpoint gets one clear line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from iconoclast.audit.audit import _kind as named
from iconoclast.audit.audit import audit as audited
from iconoclast.audit.constructions import rank_one, several
from iconoclast.audit.document import AuditDocument
from iconoclast.audit.matrix import slack, spectrum
from iconoclast.audit.pairs import open_edited, open_files
from iconoclast.audit.roundings import requantised
from iconoclast.edits.edit import edited_weight
from iconoclast.vocabulary import NORMALIZATIONS, RowNormalization
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES

UP = "model.layers.0.mlp.up_proj.weight"


def noise() -> Tensor:
    return 0.1 * torch.randn(48, 32, generator=torch.Generator().manual_seed(0))


def changed(folder: Path, to: Path, change, dtype=None) -> Path:
    to.mkdir()
    tensors = {name: change(name, tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({n: t.to(dtype or t.dtype).contiguous() for n, t in tensors.items()}, to / "model.safetensors")
    return to


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_one_edits_are_recovered(
    tmp_path: Path, family: str, normalization: RowNormalization, dtype: torch.dtype
) -> None:
    FAMILIES[family].model().to(dtype).save_pretrained(tmp_path / "base")  # type: ignore[arg-type]
    v = normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    names = ("o_proj.weight", "down_proj", "down_proj.weight", "w2.weight", "c_proj.weight")

    def edit(name, tensor):
        if not name.endswith(names):
            return tensor
        turned = family in ("gpt2", "gpt_oss") and not name.endswith("o_proj.weight")
        result = edited_weight(tensor.float().mT if turned else tensor.float(), v, 0.7, normalization)
        return (result.mT if turned else result).to(tensor.dtype)

    to = changed(tmp_path / "base", tmp_path / "edited", edit)
    file = tmp_path / "a.json"
    done = iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only", "--json", file)
    assert done.code == 0, done.err
    document, directions = json.loads(file.read_text()), load_file(tmp_path / "a.safetensors")
    assert document["verdict"] == "rank_one" and document["row_normalization"] == normalization
    edited = [t for t in document["tensors"] if t["status"] == "changed"]
    assert edited and all(t["name"].endswith(names) for t in edited)
    assert all(abs(t["strength"] / 0.7 - 1) < 0.01 for t in edited)
    found = [value for key, value in directions.items() if key.endswith(".direction")]
    assert len(found) >= len(edited) and all(abs(float(each @ v)) > 0.999 for each in found)


def test_the_base_rounding_and_dense_changes_are_named(tmp_path: Path) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    random = torch.Generator().manual_seed(0)
    made = {
        "untouched": lambda name, t: t,
        "requantised": lambda name, t: t.bfloat16().float(),
        "dense": lambda name, t: t + 0.01 * torch.randn(t.shape, generator=random),
        "low_rank": lambda name, t: (
            t + 0.05 * torch.randn(t.shape[0], 3, generator=random) @ torch.randn(3, t.shape[1], generator=random)
            if name.endswith("o_proj.weight") else t
        ),
    }  # fmt: skip
    for verdict, change in made.items():
        to, file = changed(tmp_path / "base", tmp_path / verdict, change), tmp_path / f"{verdict}.json"
        assert iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only", "--json", file).code == 0
        assert json.loads(file.read_text())["verdict"] == verdict


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("strength", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_direction_and_strength_come_back_within_the_bound_that_is_stated(
    normalization: RowNormalization, strength: float, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(3)
    before = 0.02 * torch.randn(512, 768, generator=random) * (0.3 * torch.randn(512, 1, generator=random)).exp()
    before = before.to(dtype).float()
    v = normalize(torch.randn(512, generator=random) * torch.randn(512, generator=random).exp(), dim=0)
    after = edited_weight(before, v, strength, normalization).to(dtype).float()
    rounding = slack(before, after, dtype)
    found = rank_one(before, after, rounding, spectrum(before, after, rounding))
    assert found is not None and (found.row_normalization, found.along) == (normalization, "rows")
    missed, turned = abs(found.strength / strength - 1), 1 - abs(float(found.direction.double() @ v.double()))
    assert missed < 0.01 and turned < 0.001
    assert found.strength_error is not None and found.direction_error is not None
    assert missed <= found.strength_error + 1e-5 and turned <= found.direction_error + 1e-6
    assert found.strength_error < 0.01 and found.direction_error < 0.001


@pytest.mark.parametrize("strength", [0.1, 1.0, -0.3])
@pytest.mark.parametrize("inputs", [512, 768])
def test_a_direction_that_is_read_beside_the_one_that_is_written_comes_back(strength: float, inputs: int) -> None:
    random = torch.Generator().manual_seed(5)
    before = 0.02 * torch.randn(512, inputs, generator=random) * (0.3 * torch.randn(512, 1, generator=random)).exp()
    before = before.bfloat16().float()
    v, other = (normalize(torch.randn(512, generator=random), dim=0) for _ in range(2))
    r = normalize(v + 0.8 * other, dim=0)
    after = edited_weight(before, v, strength, "pre", r).bfloat16().float()
    rounding = slack(before, after, torch.bfloat16)
    spectral = spectrum(before, after, rounding)
    found = rank_one(before, after, rounding, spectral)
    assert found is not None and found.exact and found.along == "rows" and found.reading is not None
    assert named(before, after, spectral, found) == "rank_one"
    missed, turned = abs(found.strength / strength - 1), 1 - abs(float(found.direction.double() @ v.double()))
    assert found.strength_error is not None and found.direction_error is not None
    assert missed < 0.02 and missed <= found.strength_error and turned <= found.direction_error + 1e-6
    assert abs(float(found.reading @ r)) > 0.98 and found.cosine == pytest.approx(float(v @ r), abs=0.02)


@pytest.mark.parametrize("inputs", [512, 768])
def test_another_update_of_rank_one_is_no_edit_that_reads_another_direction(inputs: int) -> None:
    random = torch.Generator().manual_seed(6)
    before = (0.02 * torch.randn(512, inputs, generator=random)).bfloat16().float()
    b, a = torch.randn(512, 1, generator=random), torch.randn(1, inputs, generator=random)
    after = (before + 0.01 * b @ a).bfloat16().float()
    rounding = slack(before, after, torch.bfloat16)
    found = spectrum(before, after, rounding)
    assert named(before, after, found, rank_one(before, after, rounding, found)) == "low_rank"


def test_a_faint_second_direction_is_not_passed_over() -> None:
    random = torch.Generator().manual_seed(1)
    before = (0.02 * torch.randn(768, 640, generator=random)).bfloat16().float()
    v, u = (normalize(torch.randn(768, generator=random), dim=0) for _ in range(2))
    after = edited_weight(edited_weight(before, v, 1.0, "none"), u, 0.05, "none").bfloat16().float()
    rounding = slack(before, after, torch.bfloat16)
    found = spectrum(before, after, rounding)
    fit = rank_one(before, after, rounding, found)
    assert found.rank == 2 and (fit is None or not fit.exact) and several(before, after, found)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
@pytest.mark.parametrize("origin", [None, "Q4_1"])
def test_a_way_through_gguf_is_a_rounding(kind: str, origin: str | None) -> None:
    def through(matrix: torch.Tensor, kind: str | None) -> torch.Tensor:
        which = None if kind is None else GGMLQuantizationType[kind]
        made = matrix if which is None else torch.from_numpy(dequantize(quantize(matrix.numpy(), which), which))
        return made.bfloat16().float()

    # The base can come from such a file itself, and then has few values.
    before = through(0.02 * torch.randn(96, 256, generator=torch.Generator().manual_seed(0)), origin)
    after = through(before, kind)
    v = normalize(torch.ones(96), dim=0)
    assert requantised(before, after, torch.bfloat16)
    assert not requantised(before, edited_weight(before, v, 0.7, "none").bfloat16().float(), torch.bfloat16)


@pytest.mark.parametrize("levels", [16, 64])
def test_few_levels_a_block_are_a_rounding_whatever_made_them(levels: int) -> None:
    random = torch.Generator().manual_seed(0)
    before = torch.randn(64, 512, generator=random)
    grouped = before.reshape(-1, 16 if levels == 64 else 32)
    step = (
        grouped.abs().amax(1, keepdim=True) / (levels / 2) * (1 + 0.05 * torch.rand(len(grouped), 1, generator=random))
    )
    after = ((grouped / step).round() * step).reshape(before.shape)
    assert requantised(before, after, torch.float32)
    assert not requantised(before, after + 0.3 * torch.randn(before.shape, generator=random), torch.float32)


def test_restored_and_cut_norms_and_training_on_top_are_told_apart() -> None:
    random = torch.Generator().manual_seed(2)
    before = (0.05 * torch.randn(160, 192, generator=random)).bfloat16().float()
    v, u = (normalize(torch.randn(160, generator=random), dim=0) for _ in range(2))
    plain = edited_weight(before, v, 0.8, "none")
    full = edited_weight(before, v, 0.8, "full")
    left, values, right = torch.linalg.svd(full - before)
    noise = 0.1 * (plain - before).norm() * normalize(torch.randn(before.numel(), generator=random), dim=0)

    def found(after: torch.Tensor) -> tuple[str, str | None, int | None]:
        after = after.bfloat16().float()
        rounding = slack(before, after, torch.bfloat16)
        values = spectrum(before, after, rounding)
        fit = rank_one(before, after, rounding, values)
        kind = named(before, after, values, fit)
        return (kind, fit.row_normalization, fit.cut) if fit and kind == "rank_one" else (kind, None, None)

    assert found(plain * (before.norm(dim=1) / plain.norm(dim=1))[:, None]) == ("rank_one", "restored", None)
    assert found(before + (left[:, :3] * values[:3]) @ right[:3]) == ("rank_one", "full", 3)
    assert (
        found((plain.bfloat16().float() + edited_weight(before, u, 0.8, "none").bfloat16().float()) / 2)[0] == "several"
    )
    assert found((plain.bfloat16().float() + before) / 2) == ("rank_one", "none", None)
    assert found(plain + noise.reshape(before.shape))[0] == "mixed"


def test_the_figures_of_every_tensor_are_in_the_json_file(tmp_path: Path) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    v = normalize(torch.ones(32), dim=0)

    def edit(name, tensor):
        if name.endswith("0.mlp.down_proj.weight"):
            return edited_weight(tensor, v, -0.4, "none")
        if name.endswith("0.mlp.up_proj.weight"):
            return torch.full_like(tensor, float("nan"))
        return tensor.bfloat16().float() if name.endswith("1.mlp.up_proj.weight") else tensor

    to, file = changed(tmp_path / "base", tmp_path / "edited", edit), tmp_path / "figures.json"
    tensors = load_file(to / "model.safetensors")
    tensors["new.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, to / "model.safetensors")
    assert iconoclast("audit", to, "--base", tmp_path / "base", "--weights-only", "--json", file).code == 0
    document = AuditDocument.read(file)
    found = {t["name"]: t for t in json.loads(file.read_text())["tensors"]}
    assert {t["status"] for t in found.values()} == {"unchanged", "rounded", "changed", "missing", "added"}
    assert all({"name", "status", "relative_norm", "rank"} <= t.keys() for t in found.values())
    edited = found["model.layers.0.mlp.down_proj.weight"]
    assert edited["strength"] == pytest.approx(-0.4, rel=0.01) and edited["row_normalization"] == "none"
    assert edited["rank"] == 1 and edited["relative_norm"] > 0
    assert found["model.layers.0.mlp.up_proj.weight"]["relative_norm"] is None
    assert found["model.layers.1.mlp.up_proj.weight"]["status"] == "rounded"
    assert found["model.norm.weight"]["status"] == "missing" and found["new.weight"]["status"] == "added"
    assert document.directions == "figures.safetensors"
    direction = load_file(tmp_path / "figures.safetensors")["model.layers.0.mlp.down_proj.weight.direction"]
    assert abs(float(direction @ v)) > 0.999


def test_no_more_than_few_matrices_are_in_memory(tmp_path: Path) -> None:
    resets = Path("/proc/self/clear_refs")
    if not resets.exists():
        pytest.skip("the peak of memory is read from Linux")

    def peak(count: int) -> float:
        for side in ("base", "edited"):
            folder = tmp_path / f"{side}{count}"
            folder.mkdir()
            for i in range(count):
                matrix = torch.eye(1024) * (i + 1 + (side == "edited" and i < 3))
                save_file({f"{i}.weight": matrix}, folder / f"{i}.safetensors")
            index = {"weight_map": {f"{i}.weight": f"{i}.safetensors" for i in range(count)}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        resets.write_text("5")
        audited(str(tmp_path / f"base{count}"), str(tmp_path / f"edited{count}"))
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    peak(1)
    assert peak(24) - peak(2) < 40  # files of 192 MB; a matrix has 4


HARMS = ["lying index", "index that is none", "file elsewhere", "shape", "header", "cut", "no safetensors", "nothing"]


@pytest.mark.parametrize("harmed", ["base", "edited"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_hostile_checkpoint_gets_one_clear_line(tmp_path: Path, harm: str, harmed: str) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "source")
    for side in ("base", "edited"):
        reshaped = harm == "shape" and side == harmed
        changed(tmp_path / "source", tmp_path / side, lambda name, t, cut=reshaped: t[:-1] if cut else t)
    folder, weights = tmp_path / harmed, tmp_path / harmed / "model.safetensors"
    whole = weights.read_bytes()
    contents = {
        "header": whole.replace(b'"F32"', b'"F64"', 1),
        "cut": whole[:-9],
        "no safetensors": b"not a checkpoint, whatever its name says",
    }
    indices = {
        "lying index": json.dumps({"weight_map": {"lie.weight": "weights.safetensors"}}),
        "index that is none": "[1, 2",
        "file elsewhere": json.dumps({"weight_map": {"lie.weight": "../base/model.safetensors"}}),
    }
    if harm in contents:
        weights.write_bytes(contents[harm])
    if harm in indices:
        weights.rename(folder / "weights.safetensors")
        (folder / "model.safetensors.index.json").write_text(indices[harm])
    if harm == "nothing":
        weights.unlink()
    done = iconoclast("audit", tmp_path / "edited", "--base", tmp_path / "base", "--weights-only")
    assert done.code == 2 and done.complaint.count("\n") == 0
    assert harmed in done.complaint


@pytest.mark.parametrize("file", ["nowhere/figures.json", "figures.safetensors"])
def test_a_place_for_the_figures_that_will_not_do_is_refused_first(tmp_path: Path, file: str) -> None:
    done = iconoclast("audit", tmp_path, "--base", tmp_path, "--weights-only", "--json", tmp_path / file)
    assert done.code == 2 and Path(file).name in done.complaint


def test_a_run_or_an_adapter_in_the_place_of_a_model_is_named(tmp_path: Path) -> None:
    model, run, adapter = (tmp_path / name for name in ("model", "run", "adapter"))
    FAMILIES["llama"].model().save_pretrained(model)
    for folder, file in ((run, "iconoclast_config.toml"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / file).write_text("")
    assert "is a run folder" in iconoclast("audit", run, "--base", model, "--weights-only").complaint
    assert "is a LoRA adapter" in iconoclast("audit", model, "--base", adapter, "--weights-only").complaint


def test_tensors_come_in_the_order_of_their_layers(tmp_path: Path) -> None:
    for folder, value in (("base", 0.0), ("edited", 1.0)):
        (tmp_path / folder).mkdir()
        tensors = {f"layers.{n}.weight": torch.full((4, 4), value) for n in (10, 9, 2)}
        save_file(tensors, tmp_path / folder / "model.safetensors")
    document, _ = audited(str(tmp_path / "base"), str(tmp_path / "edited"))
    assert [t.name for t in document.tensors] == [f"layers.{n}.weight" for n in (2, 9, 10)]
    done = iconoclast("audit", tmp_path / "edited", "--base", tmp_path / "base", "--weights-only")
    assert "3 of 3 tensors are not as in the base" in done.out


def test_an_adapter_is_read_on_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = FAMILIES["llama"].model()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "a.json"
    done = iconoclast("audit", tmp_path / "adapter", "--base", tmp_path / "base", "--weights-only", "--json", file)
    assert done.code == 0, done.err
    document = json.loads(file.read_text())
    changed_ones = [t for t in document["tensors"] if t["status"] != "unchanged"]
    assert document["verdict"] == "low_rank" and [t["rank"] for t in changed_ones] == [2, 2, 2]
    assert "WARNING" not in done.out


def test_the_sign_of_zeros_is_no_change(tmp_path: Path) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "source")
    base = changed(tmp_path / "source", tmp_path / "base", lambda name, t: t * (t > 0))  # -0 where t is negative
    edited = changed(base, tmp_path / "edited", lambda name, t: t + 0.0)  # as merging an adapter of zeros does
    assert (base / "model.safetensors").read_bytes() != (edited / "model.safetensors").read_bytes()
    assert audited(str(base), str(edited))[0].verdict == "untouched"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda t: {**t, "mtp.weight": torch.ones(2, 2)}, "parts"),
        (lambda t: {name: each for name, each in t.items() if "norm" not in name}, "parts"),
        (lambda t: {**t, UP: torch.full_like(t[UP], float("nan"))}, "unreadable"),
        (lambda t: {name: each for name, each in t.items() if "norm" not in name} | {UP: t[UP] + noise()}, "dense"),
    ],
    ids=["added", "missing", "not finite", "missing beside an edit"],
)
def test_tensors_that_are_lost_or_not_finite_are_no_training(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], verdict: str
) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    edited = changed(tmp_path / "base", tmp_path / "edited", lambda name, t: t)
    save_file(change(load_file(edited / "model.safetensors")), edited / "model.safetensors")
    found = audited(str(tmp_path / "base"), str(edited))[0].verdict
    assert found == verdict


def test_parts_that_are_lost_are_named(tmp_path: Path) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "edited")
    base = changed(tmp_path / "edited", tmp_path / "base", lambda name, t: t)
    more = {f"model.visual.blocks.{i}.weight": torch.ones(2, 2) for i in range(3)} | {
        f"model.layers.{i}.self_attn.extra.weight": torch.ones(2, 2) for i in range(2)
    }
    more["head.weight"] = torch.ones(2, 2)
    save_file(load_file(base / "model.safetensors") | more, base / "model.safetensors")
    lost = set(audited(str(base), str(tmp_path / "edited"))[0].lost)
    several = {"model.visual.* (3 tensors)", "model.layers.*.self_attn.extra.weight (2 tensors)"}
    assert several | {"head.weight"} <= lost


@pytest.mark.parametrize(
    ("cosine", "beside", "kind"), [(0.24, 9, "rank_one"), (0.24, 0, "low_rank"), (0.0, 9, "low_rank")]
)
def test_a_reading_that_went_far_is_known_by_those_beside_it(
    tmp_path: Path, cosine: float, beside: int, kind: str
) -> None:
    torch.manual_seed(0)
    base, edited = {}, {}
    for i in range(beside + 1):
        w, near = torch.randn(256, 300), 0.7 if i else cosine
        v = normalize(torch.randn(256), dim=0)
        other = torch.randn(256)
        other = normalize(other - (other @ v) * v, dim=0)
        r = near * v + (1 - near**2) ** 0.5 * other
        base[f"layers.{i}.o_proj.weight"] = w
        edited[f"layers.{i}.o_proj.weight"] = w - torch.outer(v, r @ w)
    for name, tensors in (("base", base), ("edited", edited)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    document = audited(str(tmp_path / "base"), str(tmp_path / "edited"))[0]
    assert document.tensors[0].construction == kind
    edits = 1 + beside if kind == "rank_one" else beside
    assert [len(k.layers) for k in document.kinds] == [edits] * (edits > 0)
    assert (document.shared_direction is None) is (edits < 2) and (document.shared_direction or 0) < 0.5
    assert document.verdict == ("mixed" if beside and kind == "low_rank" else kind)


@pytest.mark.parametrize(("family", "modules"), [("llama", ["o_proj", "down_proj"]), ("gpt2", ["c_proj"])])
def test_a_dora_adapter_is_read_as_what_merging_makes_of_it(tmp_path: Path, family: str, modules: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    model = FAMILIES[family].model()
    model.save_pretrained(tmp_path / "base")
    turned = family == "gpt2"
    config = LoraConfig(r=2, target_modules=modules, use_dora=True, init_lora_weights=False, fan_in_fan_out=turned)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base = open_files(str(tmp_path / "base"))
    read = open_edited(str(tmp_path / "adapter"), base)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert any(not torch.equal(tensor, next(base.matrices(name))) for name, tensor in merged.items())
    for name, tensor in merged.items():
        torch.testing.assert_close(next(read.matrices(name)), tensor, rtol=1e-4, atol=1e-6)
    document, _ = audited(str(tmp_path / "base"), str(tmp_path / "adapter"))
    assert all(t.status == "changed" for t in document.tensors if any(f"{m}.weight" in t.name for m in modules))


def test_an_adapter_that_is_dora_in_part_gets_one_line(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = FAMILIES["llama"].model()
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"], use_dora=True)).save_pretrained(
        str(tmp_path / "a")
    )
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    del tensors[next(name for name in tensors if "magnitude" in name)]
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    done = iconoclast("audit", tmp_path / "a", "--base", tmp_path / "base", "--weights-only")
    assert done.code == 2 and "not all of one kind" in done.complaint


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_an_adapter_of_experts_that_are_fused_while_loading_is_read(tmp_path: Path, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = FAMILIES[family].model()
    model.save_pretrained(tmp_path / "base")
    parameters = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    config = LoraConfig(r=2, target_modules=["o_proj"], target_parameters=parameters, init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    found = {}
    for which in ("adapter", "merged"):
        document, _ = audited(str(tmp_path / "base"), str(tmp_path / which))
        found[which] = {t.name: t.relative_norm for t in document.tensors if t.status == "changed"}
        assert document.verdict == "low_rank"
    assert found["adapter"] == pytest.approx(found["merged"], rel=1e-3) and len(found["adapter"]) > 3


def test_the_base_that_an_adapter_names_is_said_if_it_is_another(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    for name, seed in (("base", 0), ("other", 1)):
        FAMILIES["llama"].model(seed).save_pretrained(tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["o_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    said = {
        base: iconoclast("audit", tmp_path / "adapter", "--base", tmp_path / base, "--weights-only").out
        for base in ("base", "other")
    }
    assert "WARNING" not in said["base"]
    assert f"names {tmp_path / 'base'} as its base model" in " ".join(said["other"].split())
