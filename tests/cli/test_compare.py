"""`evaluate`, `compare` and the script of the seed document, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from iconoclast.config.schema import Settings, settings_document
from iconoclast.library import search
from iconoclast.models.language_model import LanguageModel
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from tests.support.chat_server import ChatServer, serving
from tests.support.entry_point import iconoclast
from tests.support.processes import finished
from tests.support.tiny import copy_run, tiny_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "export_and_compare_best_trials.py"


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, of which every test has its copy."""
    folder = tmp_path_factory.mktemp("made")
    search(tiny_run(tiny_folder, folder))
    return folder


@pytest.fixture
def run(made: Path, tiny_settings: Settings, tmp_path: Path) -> Path:
    return copy_run(made, tmp_path)


@pytest.fixture
def config(tiny_settings: Settings, tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(tomli_w.dumps(settings_document(tiny_settings)))
    return file


def counts_without_interval(document: object) -> list[object]:
    """Objects with a count and no n or interval, anywhere in a document."""
    if isinstance(document, list):
        return [found for item in document for found in counts_without_interval(item)]
    if not isinstance(document, dict):
        return []
    found = [document] if "count" in document and not {"n", "interval"} <= document.keys() else []
    return found + counts_without_interval(list(document.values()))


def test_a_model_is_evaluated_beside_its_base(run: Path, config: Path, tmp_path: Path) -> None:
    merged, file = tmp_path / "merged", tmp_path / "figures.json"
    assert iconoclast("export", run, "--format", "merged", "--to", merged).code == 0
    done = iconoclast("evaluate", merged, "--config", config, "--json", file)
    assert done.code == 0, done.err
    assert "they chose nothing" in done.out and "exact McNemar" in done.out and "KL over 3 tokens" in done.out
    document = json.loads(file.read_text())
    assert document["subject"]["name"] == "merged" and document["subject"]["metrics"]["refusals"]["n"] == 2
    assert document["base_metrics"]["refusals"]["interval"] and document["kl_noise_floor"] >= 0
    assert not counts_without_interval(document)


def test_a_server_is_evaluated_beside_the_base(
    config: Path, tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KEY_OF_MINE", "sk-mine")
    file = tmp_path / "figures.json"
    with serving(ChatServer(tiny_lm, most=20, names=("tiny", "other"))) as url:
        rest = ["--server", url, "--config", config, "--json", file, "--server-key-variable", "KEY_OF_MINE"]
        assert "Which model is meant" in iconoclast("evaluate", *rest).err
        done = iconoclast("evaluate", *rest, "--server-model", "tiny")
        again = iconoclast("evaluate", "tiny", *rest)
        unknown = iconoclast("evaluate", "--server", url)
    assert done.code == 0, done.err
    assert "tiny gives 20 log-probabilities a token" in " ".join(done.out.split())
    subject = json.loads(file.read_text())["subject"]
    assert (subject["format"], subject["metrics"]["truncation"]["top"]) == ("server", 20)
    assert subject["metrics"]["first_token_kl"]["value"] < 1e-3 and subject["metrics"]["perplexity"] is None
    assert (again.code, unknown.code) == (2, 2)
    assert "Name a model or, with --server" in again.err and "give a settings file with --config" in unknown.err


def test_two_trials_are_compared_and_the_figures_kept(run: Path, tmp_path: Path) -> None:
    measured = [trial.index for trial in SavedRun.open(RunFolder(run), "best").trials]
    first, last = measured[0], measured[-1]
    assert first != last
    done = iconoclast("compare", f"{run}:{first}", f"{run}:{last}", "--to", tmp_path / "compared", "--sample-count", 1)
    assert done.code == 0, done.err
    assert "they chose nothing" in done.out and ("is better" in done.out or "equal" in done.out)
    document = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert len(document["pairs"]) == 1 and document["samples"] and not counts_without_interval(document)
    summary = json.loads((tmp_path / "compared" / "summary.json").read_text())
    assert [s["trial"]["index"] for s in summary["subjects"]] == [first, last] and summary["split"] == "report"
    assert [s["measured_here"]["refusals"] for s in summary["subjects"]] == [
        s["metrics"]["refusals"] for s in document["subjects"]
    ]
    ((verdict,), (pair,)) = summary["verdicts"], document["pairs"]
    by = {"failures": "failures", "overrefusals": "overrefusals", "kl_divergence": "first_token_kl", None: None}
    test = by[verdict["decided_by"]]
    assert verdict["p_value"] == (None if test is None else pair["paired"][test]["p_value"])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["script", "command"])
def test_the_best_trial_is_exported_and_compared(by: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    study = run / "iconoclast_study.jsonl"
    given = ["--iconoclast-checkpoint", str(study), "--output-dir", str(out), "--sample-count", "2"]
    if by == "script":
        done = subprocess.run([sys.executable, SCRIPT, *given], capture_output=True, text=True, check=False)
    else:
        done = finished("export-and-compare", *given)
    assert done.returncode == 0, done.stderr
    assert (out / "iconoclast-best-merged" / "model.safetensors").is_file()
    assert (out / "comparison.json").is_file() and (out / "summary.json").is_file()
    merged, live = json.loads((out / "comparison.json").read_text())["subjects"]
    assert merged["metrics"]["refusals"] == live["metrics"]["refusals"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["evaluate", "{model}"], "--config"),
        (["evaluate", "{model}", "--config", "{config}", "--json", "no/such/folder/file.json"], "cannot be written"),
        (["compare", "{run}", "{run}"], "the same name"),
        (["compare", "{run}"], "two models or more"),
        (["compare", "{run}:77", "{run}"], 'no completed trial "77"'),
        (["compare", "{run}", "missing.jsonl"], "missing.jsonl"),
        (["compare", "{run}", "{run}:0", "--to", "{run}"], "is there already"),
        (["evaluate", "/no/such/model", "--config", "{config}"], "/no/such/model"),
        (["evaluate", "no/such-hub-id", "--config", "{config}"], "no/such-hub-id"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    arguments: list[str], complaint: str, run: Path, config: Path, tiny_folder: Path
) -> None:
    given = [text.format(model=tiny_folder, run=run, config=config) for text in arguments]
    done = iconoclast(*given)
    assert done.code == 2 and complaint in done.complaint and "\n" not in done.complaint
