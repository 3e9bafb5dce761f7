"""A user's mistake is one clear line and exit code 2; nothing is written, nothing that is there is touched."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from transformers import MambaConfig

from tests.support.entry_point import QUICK, Outcome, contents, iconoclast, write_prompts
from tests.support.tiny import save_tiny

FILES: dict[str, bytes] = {
    "ends-early.toml": b"seed = 1\nn_trials =\n",
    "latin.toml": 'model = "größe"\n'.encode("latin-1"),
    "syntax.jinja": b"{% for %}",
    "latin.jinja": "größe".encode("latin-1"),
    "refusing.jinja": b"{{ raise_exception('only even turns') }}",
    "garbage.gguf": b"garbage",
    "used/notes.txt": b"mine",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with the small prompt files and the bad ones."""
    write_prompts(tmp_path)
    (tmp_path / "used").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def search(tiny_folder: Path) -> Callable[..., Outcome]:
    """Runs a quick search into the folder `here`, on the tiny model or another."""
    return lambda *arguments, model=tiny_folder: iconoclast("run", model, "--out", "here", *QUICK, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run of one trial, of which every test has its copy."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prompts(folder)
        assert iconoclast("run", tiny_folder, "--out", "here", *QUICK).code == 0
    return folder / "here"


@pytest.fixture
def finished(made: Path) -> Path:
    """The folder of a finished run of one trial."""
    shutil.copytree(made, "here")
    return Path("here")


def assert_refused(call: Callable[[], Outcome], expected: str) -> Outcome:
    """The call ends with code 2 and one line that says what is expected, and leaves every file as it was.

    In `expected`, " ... " stands for anything.
    """
    before = contents(Path.cwd())
    outcome = call()
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    assert "\n" not in outcome.complaint
    assert not outcome.complaint.endswith(":"), "the message is cut off"
    assert re.search(".*".join(map(re.escape, expected.split(" ... "))), outcome.complaint)
    assert contents(Path.cwd()) == before
    return outcome


# A search


def test_a_search_that_nothing_speaks_against_succeeds(search):
    Path("here").mkdir()  # an empty folder is welcome
    assert search("--benign-subspace-rank", 5).code == 0  # as large as the data allow
    summary = json.loads(Path("here/batch_summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["completed_trials"]) == ("complete", 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--bad-prompts.dataset absent.txt", "absent.txt does not exist. Check the path"),
        ("--good-prompts.split train[:1]", "good.txt train[:1] holds 1 prompt. This set needs at least 2"),
        ("--bad-prompts.split train[:1]", "bad.txt train[:1] holds 1 prompt. This set needs at least 2"),
        ("--bad-prompts.dataset someone/prompts", "someone/prompts cannot be loaded ... Give a hub id"),
        ("--bad-report-prompts.dataset good.txt", "Give both good_report_prompts and bad_report_prompts"),
        ("--bad-prompts.dataset good.txt --out new/deep/here", "no direction between them"),
        ("--benign-subspace-rank 6 --out new/deep/here", "6 benign prompts in 32 dimensions give at most 5. Lower it"),
        ("--chat-template syntax.jinja", "The chat template of ... tiny-llama ... (Expected ... Set chat_template to"),
        ("--chat-template refusing.jinja", "The chat template of ... only even turns ... Set chat_template to"),
        ("--chat-template latin.jinja", "latin.jinja is not UTF-8 text. Convert it"),
        ("--device-map abacus", "abacus"),
        ("--out used", "used is not empty and holds no run. Give another folder with --out"),
        ("--out good.txt", "good.txt is a file. Give a folder for the run with --out"),
        ("--out good.txt/here", "good.txt/here cannot be written ... Give another with --out"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_search_that_cannot_work(arguments, expected, search):
    assert_refused(lambda: search(*arguments.split()), expected)


def test_a_mistake_found_late_leaves_no_default_folder_behind(tiny_folder):
    assert_refused(lambda: iconoclast("run", tiny_folder, *QUICK, "--benign-subspace-rank", 6), "at most 5")


def test_a_folder_in_use_is_noticed_before_the_work_begins(search):
    assert "Loading" in search("--benign-subspace-rank", 6).err
    assert "Loading" not in search("--out", "used").err


# Model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        *((name, f"no model at {name}. Give a hub id") for name in ("./absent", "~/absent", "absent.gguf", "a/b/c")),
        ("someone/a-model", "someone/a-model cannot be loaded"),
        ("good.txt", "good.txt ... config"),
        ("garbage.gguf", "garbage.gguf ... GGUF"),
    ],
)
def test_a_name_behind_which_there_is_no_model(model, expected, search):
    assert_refused(lambda: search(model=model), expected)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def of_no_known_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}), encoding="utf-8")


def of_another_architecture(folder: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    save_tiny(folder, MambaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=1))


def not_finite(folder: Path) -> None:
    weights = load((folder / "model.safetensors").read_bytes())
    weights["model.embed_tokens.weight"] += torch.nan
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("chat_template.jinja"), "model has no chat template ... Set chat_template to plain, raw"),
        (without("config.json"), "The model model ... config.json"),
        (without("model.safetensors"), "The model model ... model.safetensors"),
        (without("tokenizer.json"), "The model model ... tokenizer"),
        (of_no_known_type, "The model model ... no-such-type"),
        (of_another_architecture, "MambaForCausalLM keeps its past in a cache of its own ... cannot be edited"),
        (not_finite, "none of the dtypes tried. auto, bfloat16, float16, float32: ... not finite"),
    ],
)
def test_a_model_with_a_flaw(change, expected, search, tiny_folder):
    change(Path(shutil.copytree(tiny_folder, "model")))
    assert_refused(lambda: search(model="model"), expected)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ICONOCLAST_CONFIG_TEMPLATE", "absent.toml", "absent.toml (ICONOCLAST_CONFIG_TEMPLATE) does not exist"),
        ("ICONOCLAST_N_TRAILS", "3", "ICONOCLAST_N_TRAILS (environment). Did you mean n_trials?"),
        ("ICONOCLAST_DTYPES", "bfloat16", """DTYPES is not valid JSON ... Write a list as '["a", "b"]'"""),
    ],
)
@pytest.mark.parametrize("command", ["run demo", "config show"])
def test_a_variable_that_cannot_be_used(command, variable, value, expected, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert_refused(lambda: iconoclast(*command.split()), expected)


# Run folder


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ("--good-prompts.split train[:4]", "good_prompts"),
        ("--seed 5 --row-normalization full --max-response-length 5", "max_response_length, row_normalization, seed"),
    ],
)
def test_a_study_made_with_other_settings(arguments, changed, finished, search):
    expected = f"{finished} holds another run; these settings differ: {changed}. Give the same settings ... --out"
    assert_refused(lambda: search(*arguments.split()), expected)


@pytest.mark.parametrize("name", ["good", "bad", "good-evaluation", "bad-evaluation"])
def test_a_study_made_with_other_prompts_in_the_same_file(name, finished, search):
    with Path(f"{name}.txt").open("a", encoding="utf-8") as file:
        file.write("what is a volcano?\n")
    changed = f"({name.replace('-', '_')}_prompts (content))"
    assert_refused(search, f"{finished} holds a study made with other settings {changed}. ... --out")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("iconoclast_config.toml", b"seed = ", "iconoclast_config.toml is damaged"),
        ("iconoclast_config.toml", b"n_trails = 3", "iconoclast_config.toml is damaged ... n_trails"),
        ("baseline.json", b"{", "baseline.json is damaged ... Delete it"),
        ("baseline.json", b"{}", "baseline.json is damaged ... Delete it"),
        ("baseline.json", b"[]", "baseline.json is damaged ... Delete it"),
        ("baseline.json", b"\xff\xfe", "baseline.json is damaged ... Delete it"),
        ("directions.safetensors", b"short", "directions.safetensors is missing or damaged ... Start the run again"),
        ("iconoclast_study.jsonl", b"not json\n{}\n", "iconoclast_study.jsonl is damaged ... Restore it"),
    ],
)
def test_a_run_folder_with_a_damaged_file(name, content, expected, finished, search):
    (finished / name).write_bytes(content)
    for call in (search, lambda: iconoclast("export", finished, "--to", "exported")):
        assert_refused(call, expected)


# Commands


def test_an_export_succeeds_and_leaves_the_run_as_it_was(finished):
    before = contents(finished)
    assert iconoclast("export", finished, "--to", "exported").code == 0
    assert (Path("exported") / "adapter_model.safetensors").is_file()
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("export", "Missing argument 'RUN'"),
        ("export here", "Missing option '--to'"),
        ("", "No model is named. Use `iconoclast run MODEL` ... `iconoclast demo`"),
        ("run", "No model is named. Use `iconoclast run MODEL` ... `iconoclast demo`"),
        ("--n-trials 3", "No model is named. Use `iconoclast run MODEL` ... `iconoclast demo`"),
        ("run one two", "Got unexpected extra argument"),
        ("config edit", "No such command 'edit'"),
        ("exprt", "No such command 'exprt' ... 'export'"),
        ("run demo --n-trails 3", "No such option: --n-trails ... --n-trials"),
        ("config show --n-trails 3", "No such option: --n-trails ... --n-trials"),
        ("--n-trails 3", "No such option: --n-trails ... --n-trials"),
        ("run demo --good-prompts.splti fit", "No such option: --good-prompts-splti ... --good-prompts-split"),
        ("run demo --n-trials", "'--n-trials' requires an argument"),
        ("run demo --n-trials many", "Invalid value for '--n-trials' ... valid integer"),
        ("run demo --quantization 8bit", "quantization (flag) has a bad value \"8bit\" ... 'bnb_4bit'"),
        ("demo --n-trials 0", "Invalid value for '--n-trials'"),
        ("run demo --config absent.toml", "absent.toml (--config) does not exist. Give the path of a TOML file"),
        ("config show --config .", "(--config) does not exist. Give the path of a TOML file"),
        ("run demo --config ends-early.toml", "ends-early.toml is not valid TOML ... line 2"),
        ("config show --config latin.toml", "latin.toml is not valid TOML ... utf-8"),
        ("export absent --to exported", "absent holds no run"),
        ("export good.txt --to exported", "good.txt holds no run"),
        ("chat .", ". holds no run"),
        ("plot absent", "absent holds no run"),
        (
            "export here --to exported --trial 99",
            'here has no completed trial "99" (a pruned one has no scores). Give best or one of these: 0.',
        ),
        ("export here --to exported --trial -1", 'here has no completed trial "-1" ... Give best or one of these: 0.'),
        ("chat here --trial first", 'here has no completed trial "first" ... Give best or one of these: 0.'),
        ("export here --to exported --format onnx", 'no export format "onnx". Use adapter, merged, gguf'),
        ("evaluate ./absent --against demo", "no model at ./absent"),
        (
            "compare here used --to compared",
            "used holds no model: there is neither config.json nor adapter_config.json",
        ),
        (
            "audit here:0 --base demo",
            "here:0 is a trial of a run, which holds no weights. Export it first: ... export here --trial 0 --to FOLDER",
        ),
        ("restore here --base demo --out restored", "here is a run folder, which has no weights. Export its trial"),
        ("export here --to used", "used is there already, and not empty. Give a folder that does not exist yet."),
        (
            "export here --to . --format merged",
            ". is there already, and not empty. Give a folder that does not exist yet.",
        ),
        ("export here --to good.txt", "good.txt is a file. Give a folder that does not exist yet."),
        ("export here --to good.txt/deep", "good.txt/deep cannot be a folder: ... good.txt is a file. Give another"),
    ],
    ids=lambda value: value,
)
def test_a_command_that_cannot_work(command, expected, finished):
    assert_refused(lambda: iconoclast(*command.split()), expected)


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("here/iconoclast_study.jsonl", "no trials yet. Continue the run"),
        ("here/baseline.json", "no baseline.json yet. Let the run measure the base model"),
        ("bad-evaluation.txt", "bad-evaluation.txt does not exist"),
    ],
)
def test_an_export_of_a_run_of_which_a_part_is_gone(gone, expected, finished):
    Path(gone).unlink()
    assert_refused(lambda: iconoclast("export", finished, "--to", "exported"), expected)


def test_a_run_whose_model_is_gone(tiny_folder, search):
    model = Path(shutil.copytree(tiny_folder, "model"))
    assert search(model="./model").code == 0
    shutil.rmtree(model)
    for command in ("export here --to exported", "chat here", "report here --tokens"):
        assert_refused(lambda call=command: iconoclast(*call.split()), "no model at ./model")  # type: ignore[misc]
