"""What a run folder and an export say of themselves: manifest, replay, verify."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iconoclast.config.schema import Settings
from iconoclast.errors import RunFolderError
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.privacy import command_line, portable, public
from iconoclast.runs.drift import drift
from iconoclast.runs.export import export_run
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.manifest import file_hash, sums
from iconoclast.runs.replay import replay
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.verify import Check, verify
from iconoclast.vocabulary import RowNormalization
from tests.support.tiny import save_tiny, tiny_config


def make_run(settings: Settings) -> Path:
    with started_run(settings) as run:
        run.optimize(4)
        run.measure_report()
        run.write_summary("complete")
        return run.folder.path


@pytest.fixture
def finished(copied_run: Path) -> Path:
    return copied_run


# The manifest


def test_the_manifest_says_what_the_run_is_made_of_and_made_by(finished: Path, tiny_folder: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["seed"] == 0
    assert manifest["model"]["weights"] == {"model.safetensors": file_hash(tiny_folder / "model.safetensors")}
    assert manifest["model"]["architecture"] == "LlamaForCausalLM" and manifest["model"]["dtype"] == "float32"
    assert {s["n"] for s in manifest["prompts"].values()} == {2, 4}
    assert all(re.fullmatch(r"[0-9a-f]{64}", s["sha256"]) for s in manifest["prompts"].values())
    (start,) = manifest["starts"]
    assert {"torch", "transformers", "peft", "optuna"} <= set(start["packages"])
    assert start["hardware"]["cores"] == os.cpu_count() and start["python"]


def test_every_start_is_noted_and_the_first_one_stays(finished: Path, tiny_settings: Settings) -> None:
    before = json.loads((finished / "manifest.json").read_text())
    with started_run(tiny_settings):
        pass
    after = json.loads((finished / "manifest.json").read_text())
    assert after["starts"][0] == before["starts"][0] and len(after["starts"]) == 2
    assert {**after, "starts": []} == {**before, "starts": []}


def test_no_file_of_a_run_or_an_export_names_the_users_home(
    tiny_settings: Settings, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(tiny_folder, home / "models" / "tiny")
    for name in ("target.txt", "benign.txt"):
        shutil.copy(tmp_path / name, home / name)
    moved = {
        name: source.model_copy(update={"dataset": str(home / Path(source.dataset).name)})
        for name in Settings.model_fields
        if name.endswith("_prompts") and (source := getattr(tiny_settings, name)) is not None
    }
    settings = tiny_settings.model_copy(
        update={**moved, "model": str(home / "models" / "tiny"), "study_checkpoint_dir": home / "runs" / "one"}
    )
    run = make_run(settings)
    exports = [home / "adapter", home / "merged"]
    for to in exports:
        export_run(run, "best", to.name, to)  # type: ignore[arg-type]
    for folder in (run, *exports):
        for file in folder.iterdir():
            assert b"jane" not in file.read_bytes(), file
    for folder in exports:  # and no other path of this machine
        for file in folder.iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file
    with started_run(settings) as again:  # the same settings are the same run
        assert again.study.finished == 4 and again.report is not None


def test_secrets_are_left_out_of_the_command_line() -> None:
    given = ["/opt/bin/iconoclast", "run", "--judge-chat-api-key=abc", "--hub-token", "hf_abc", "--seed", "3"]
    assert command_line(given) == ["iconoclast", "run", "--judge-chat-api-key=***", "--hub-token", "***", "--seed", "3"]


def test_paths_are_shortened_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    given = {
        "model": "org/model",
        "system_prompt": "/no_think and leave /home/jane/x alone",
        "good_prompts": {"dataset": "/home/jane/x/y.txt", "prefix": "/home/jane/z ", "split": "train[:3]"},
        "prompts": {"a": {"source": "/home/jane/x/y.txt train[:3]"}, "b": {"source": "/home/janet/y"}},
        "seed": 3,
    }
    shortened = portable(given)
    assert shortened["good_prompts"] == {**given["good_prompts"], "dataset": "~/x/y.txt"}  # type: ignore[dict-item]
    assert shortened["prompts"] == {"a": {"source": "~/x/y.txt train[:3]"}, "b": {"source": "/home/janet/y"}}
    assert {k: shortened[k] for k in ("model", "system_prompt", "seed")} == {
        k: given[k] for k in ("model", "system_prompt", "seed")
    }
    shown = public({**shortened, "model": "models/mine"})
    assert shown["model"] == "mine" and shown["prompts"]["a"]["source"] == "y.txt train[:3]"
    assert shown["system_prompt"] == given["system_prompt"] and public("org/model") == "org/model"


def test_a_run_of_a_newer_version_is_refused(finished: Path) -> None:
    for name in ("manifest.json", "batch_summary.json"):
        document = json.loads((finished / name).read_text())
        (finished / name).write_text(json.dumps({**document, "schema_version": 2}))
        with pytest.raises(
            RunFolderError, match=rf"{name} has schema version 2, and this version .* knows 1. Update it"
        ):
            SavedRun.open(RunFolder(finished), "best")
        (finished / name).write_text(json.dumps(document))


# Replay


def test_a_trial_replayed_on_the_same_machine_is_exact(tiny_settings: Settings) -> None:
    finished = make_run(tiny_settings)  # now: a commit since then would be a change
    for trial in ("best", "1"):
        result = replay(finished, trial)
        assert result.grade == "exact" and not result.changed
        assert all(not each.differences for each in result.drifts)


def test_a_run_does_not_decide_whose_code_a_replay_runs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = finished / "iconoclast_config.toml"
    config.write_text(config.read_text().replace("trust_remote_code = false", "trust_remote_code = true"))
    asked: list[bool] = []

    def load(*arguments: object, trust_remote_code: bool = False, **options: object) -> LanguageModel:
        asked.append(trust_remote_code)
        return load_model(*arguments, trust_remote_code=trust_remote_code, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("iconoclast.runs.workbench.load_model", load)
    for trusted in (False, True):
        assert replay(finished, "best", trust_remote_code=trusted).grade == "exact"
    assert asked == [False, True]


def test_a_replay_names_what_is_another_than_it_was(finished: Path, tiny_settings: Settings) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    manifest["starts"][-1]["packages"]["torch"] = "1.0"
    manifest["model"]["weights"] = {"model.safetensors": "0" * 64}
    manifest["prompts"]["good_prompts"]["sha256"] = "0" * 64
    (finished / "manifest.json").write_text(json.dumps(manifest))
    result = replay(finished, "best")
    assert [line for line in result.changed if line.startswith("torch: 1.0 then, ")]
    assert {"the weights of the model", "the prompts good_prompts"} <= set(result.changed)
    assert result.grade == "exact"


def test_grades(finished: Path) -> None:
    saved = SavedRun.open(RunFolder(finished), "best")
    scores = saved.trial.scores
    nearly = type(scores).from_document({**scores.document(), "kl_divergence": scores.kl_divergence + 0.002})
    assert drift("x", scores, scores, 0.003).grade == "exact"
    assert drift("x", scores, nearly, 0.003).grade == "within noise"
    assert drift("x", scores, nearly, 0.0009).grade == "changed"
    assert "first-token KL" in drift("x", scores, nearly, 0.001).differences[0]


def test_a_model_that_has_changed_measures_otherwise(finished: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(str(tiny_settings.model), folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.roll(weights["lm_head.weight"], 1, 0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = (finished / "iconoclast_config.toml").read_text()
    (finished / "iconoclast_config.toml").write_text(config.replace(str(tiny_settings.model), str(folder)))
    result = replay(finished, "best")
    assert "the weights of the model" in result.changed and result.grade != "exact"


# Verify


def by_name(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_an_export_is_what_its_papers_say(
    tiny_settings: Settings, tmp_path: Path, kind: str, normalization: RowNormalization
) -> None:
    settings = tiny_settings.model_copy(update={"row_normalization": normalization})
    run, to = make_run(settings), tmp_path / "export"
    export_run(run, "best", kind, to)  # type: ignore[arg-type]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=to, check=True)
    checks = verify(to, str(settings.model), prompts=settings)
    assert by_name(checks) == {"files": True, "tensors": True, "scores": True}, checks
    assert "exact" in checks[2].detail


def test_what_is_not_as_declared_is_found(finished: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    base, merged, adapter = str(tiny_settings.model), tmp_path / "merged", tmp_path / "adapter"
    export_run(finished, "best", "merged", merged)
    export_run(finished, "best", "adapter", adapter)

    (merged / "config.json").write_text((merged / "config.json").read_text() + " ")
    (merged / "extra.txt").write_text("?")
    (merged / "tokenizer_config.json").unlink()
    (files,) = (check for check in verify(merged, base, measure=False) if check.name == "files")
    assert files.passed is False
    assert files.detail == "config.json has changed; extra.txt is not listed; tokenizer_config.json is missing"

    for folder, name, expected in (
        (merged, "model.embed_tokens.weight", "model.embed_tokens.weight is not that of the base"),
        (merged, None, "is not what the edit makes of it"),
        (adapter, None, "is not the declared one (relative error"),
    ):
        file = folder / ("model.safetensors" if folder is merged else "adapter_model.safetensors")
        original = file.read_bytes()
        tensors = load_file(file)
        changed = name or next(key for key in tensors if re.search(r"down_proj.*weight", key) and "3" in key)
        save_file({**tensors, changed: tensors[changed] * 1.1}, file, {"format": "pt"})
        (folder / "SHA256SUMS").write_text(sums(folder))  # whoever changes weights can change the sums as well
        found = {check.name: check for check in verify(folder, base, measure=False)}
        assert found["files"].passed and found["tensors"].passed is False and expected in found["tensors"].detail
        file.write_bytes(original)


def test_damaged_weights_and_another_base_are_findings(finished: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    base, adapter, merged = str(tiny_settings.model), tmp_path / "adapter", tmp_path / "merged"
    export_run(finished, "best", "adapter", adapter)
    export_run(finished, "best", "merged", merged)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert by_name(verify(adapter, base, measure=False))["tensors"] is False
    file.write_bytes(file.read_bytes()[:50])
    assert by_name(verify(adapter, base, measure=False)) == {"files": False, "tensors": False}
    other = save_tiny(tmp_path / "other", tiny_config(num_hidden_layers=2))
    assert by_name(verify(merged, str(other), measure=False))["tensors"] is False
    (merged / "model.safetensors").write_bytes((merged / "model.safetensors").read_bytes()[:50])
    assert by_name(verify(merged, base))["files"] is False


def test_an_export_does_not_decide_that_its_code_is_run(
    finished: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "merged"
    export_run(finished, "best", "merged", to)
    config = (to / "iconoclast_config.toml").read_text()
    assert "trust_remote_code = false" in config
    (to / "iconoclast_config.toml").write_text(config.replace("trust_remote_code = false", "trust_remote_code = true"))
    asked: list[bool] = []

    def load(*arguments: object, trust_remote_code: bool = False, **options: object) -> LanguageModel:
        asked.append(trust_remote_code)
        return load_model(*arguments, trust_remote_code=trust_remote_code, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("iconoclast.runs.export.load_model", load)
    monkeypatch.setattr("iconoclast.runs.workbench.load_model", load)
    for trusted in (False, True):
        given = tiny_settings.model_copy(update={"trust_remote_code": trusted})
        assert by_name(verify(to, str(tiny_settings.model), prompts=given))["scores"] is True
        assert asked == [trusted, trusted]
        asked.clear()


def test_a_folder_of_the_author_is_not_passed_on(finished: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(str(tiny_settings.model), base)
    document = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**document, "_name_or_path": "/home/jane/models/tiny"}))
    config = (finished / "iconoclast_config.toml").read_text()
    (finished / "iconoclast_config.toml").write_text(config.replace(str(tiny_settings.model), str(base)))
    export_run(finished, "best", "merged", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == document


def test_an_export_of_a_newer_version_is_refused(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "trial_information.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 2}))
    with pytest.raises(RunFolderError, match=r"schema version 2.*Update it"):
        verify(tmp_path / "adapter")


def test_what_cannot_be_looked_at_is_said(finished: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    export_run(finished, "best", "merged", tmp_path / "merged")
    checks = {check.name: check for check in verify(tmp_path / "merged")}  # the base is named without its folder
    assert checks["files"].passed and checks["tensors"].passed is None and checks["scores"].passed is None
    with pytest.raises(RunFolderError, match=r"is not an export.*Give a folder"):
        verify(finished)


def test_the_card_names_the_licence_the_sets_and_how_to_check(
    finished: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(str(tiny_settings.model), base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (base / "LICENSE").write_text("MIT")
    (base / "NOTICE.txt").write_text("Made by nobody")
    config = (finished / "iconoclast_config.toml").read_text()
    (finished / "iconoclast_config.toml").write_text(config.replace(str(tiny_settings.model), str(base)))
    for kind in ("adapter", "merged"):
        to = tmp_path / kind
        export_run(finished, "best", kind, to)
        card = (to / "README.md").read_text()
        assert "license: mit" in card and "The licence of base\napplies (mit)" in card
        assert (
            "iconoclast verify THIS_FOLDER" in card and "`bad_report_prompts`: target.txt train[6:], 2 prompts" in card
        )
        assert (to / "LICENSE").read_text() == "MIT" and (to / "NOTICE.txt").is_file()
