"""Inputs made to do harm: none runs code, writes outside of its folder, moves the terminal's cursor, or ends in a traceback."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.support.entry_point import QUICK, Outcome, iconoclast, write_prompts
from tests.support.tiny import save_tiny


class Bomb:
    """An object whose unpickling leaves a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    return tmp_path


def harmless(done: Outcome, *expected: str) -> None:
    assert done.code == 2, (done.out, done.err)
    for part in expected:
        assert part in " ".join(done.complaint.split())
    assert not Path("exploded").exists()


def assert_quiet(text: str) -> None:
    """No escape sequence, no bell, no carriage return: nothing that a terminal would act on."""
    assert not [c for c in text if not c.isprintable() and c != "\n"], repr(text)


def run(model: Path, *more: object) -> Outcome:
    return iconoclast("run", model, *QUICK, "--out", "here", *more)


# Weights


def test_pickled_weights_are_refused_with_the_reason(workplace: Path) -> None:
    model = save_tiny(workplace / "model")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    harmless(run(model), "are pickled (pytorch_model.bin), and a pickle can run code when it is read")


def test_a_pickled_adapter_is_refused_with_the_reason(workplace: Path, tiny_folder: Path) -> None:
    adapter = workplace / "adapter"
    LoraConfig(target_modules=["o_proj"], base_model_name_or_path=str(tiny_folder)).save_pretrained(str(adapter))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    Path("config.toml").write_text(f'model = "{tiny_folder}"\n')
    done = iconoclast("evaluate", adapter, "--config", "config.toml", "--against", tiny_folder)
    harmless(done, "has no adapter_model.safetensors. Pickled weights are not read")


def test_code_of_a_models_repository_is_not_run(workplace: Path) -> None:
    model = save_tiny(workplace / "model")
    (model / "modeling_strange.py").write_text(
        "import os\nos.mkdir('exploded')\nclass Strange: pass\nclass StrangeConfig: pass\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {
            "AutoConfig": "modeling_strange.StrangeConfig",
            "AutoModelForCausalLM": "modeling_strange.Strange",
        },
    }
    (model / "config.json").write_text(json.dumps(config))
    harmless(run(model), "trust_remote_code")


def test_a_chat_template_cannot_reach_python(workplace: Path, tiny_folder: Path) -> None:
    model = workplace / "model"
    shutil.copytree(tiny_folder, model)
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('exploded') }}"
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if file.endswith("jinja"):
            (model / file).write_text(escape)
        elif "chat_template" in (config := json.loads((model / file).read_text())):
            (model / file).write_text(json.dumps({**config, "chat_template": escape}))
    harmless(run(model), "The chat template of", "Set chat_template to plain, raw, or a Jinja file")


def test_an_index_of_shards_cannot_name_files_elsewhere(workplace: Path) -> None:
    model = save_tiny(workplace / "model")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="30KB")
    assert run(model).code == 0
    index = model / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    shard = next(iter(document["weight_map"].values()))
    shutil.move(model / shard, workplace / shard)
    document["weight_map"] = {name: f"../{f}" if f == shard else f for name, f in document["weight_map"].items()}
    index.write_text(json.dumps(document))
    done = iconoclast("export", "here", "--to", "merged", "--format", "merged", "--no-measure")
    harmless(done, "names a file outside of its folder")


# Text


def test_prompts_that_would_move_the_cursor_are_shown_harmlessly(workplace: Path, tiny_folder: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\rname two rivers \x9b31m"
    rows = [json.dumps({"text": f"{evil} {i}"}) for i in range(6)]
    for name in ("good", "good-evaluation", "bad", "bad-evaluation"):
        Path(f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": f"{json.loads(r)['text']} {name}"}) for r in rows)
        )
    files = [f"--{s}-prompts.dataset" for s in ("good", "bad")] + [
        f"--{s}-evaluation-prompts.dataset" for s in ("good", "bad")
    ]
    names = ["good.jsonl", "bad.jsonl", "good-evaluation.jsonl", "bad-evaluation.jsonl"]
    arguments = [part for pair in zip(files, names, strict=True) for part in pair]
    done = iconoclast("run", tiny_folder, *QUICK, *arguments, "--out", "here")
    assert done.code == 0, done.err
    assert_quiet(done.out + done.err)
    shown = iconoclast("compare", "here:0", "here:0", "--sample-count", 2)
    assert_quiet(shown.out + shown.err)


def test_names_that_would_move_the_cursor_are_shown_harmlessly(workplace: Path) -> None:
    evil = "\x1b[31mno\x07such"
    for arguments in (
        ["run", evil],
        ["run", "demo", "--bad-prompts.dataset", f"{evil}.txt"],
        ["status", evil],
        ["export", evil, "--to", "x"],
    ):
        done = iconoclast(*arguments)
        assert done.code == 2
        assert_quiet(done.err.replace("\r", ""))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name two rivers\n\xff\xfe\n", "not UTF-8 text"),
        (b'["a", "\\ud800"]', "not valid Unicode"),
        (b"[" * 200_000, "not valid JSON"),
    ],
    ids=["invalid UTF-8", "lone surrogate", "nested"],
)
def test_broken_prompt_files_are_named(workplace: Path, tiny_folder: Path, content: bytes, expected: str) -> None:
    Path("bad.json" if content.startswith(b"[") else "bad.txt").write_bytes(content)
    name = "bad.json" if content.startswith(b"[") else "bad.txt"
    harmless(iconoclast("run", tiny_folder, *QUICK, "--bad-prompts.dataset", name, "--out", "here"), name, expected)


def test_a_prompt_of_ten_megabytes_is_one_line_of_complaint(workplace: Path, tiny_folder: Path) -> None:
    with Path("bad.txt").open("a") as file:
        file.write("x" * 10_000_000 + "\n")
    done = run(tiny_folder)
    harmless(done, "Prompt 7 of bad.txt train has 10,000,000 bytes, too many tokens", "reads 2,048")
    assert len(done.complaint) < 1000


def test_nul_bytes_in_prompts_are_text(workplace: Path, tiny_folder: Path) -> None:
    Path("bad.txt").write_bytes(b"please\x00 book a table\nplease book\x00 a taxi\nplease\x00\x00 do\n")
    done = run(tiny_folder)
    assert done.code in (0, 2)
    assert_quiet(done.out + done.err)


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a." * 5_000 + "b = 1", "[a" + ".a" * 5_000 + "]"])
def test_a_toml_bomb_is_one_line_of_complaint(workplace: Path, content: str) -> None:
    Path("config.toml").write_text(content)
    done = iconoclast("run", "demo")
    harmless(done, "config.toml")
    assert len(done.complaint) < 1000


# Journals


def test_a_study_journal_is_data(workplace: Path, tiny_folder: Path) -> None:
    assert run(tiny_folder).code == 0
    journal = Path("here/iconoclast_study.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    evil = pickle.dumps(Bomb()).hex()
    crafted = json.dumps(
        {"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {"settings": {"__reduce__": evil}}}
    )
    for content in (crafted.encode() + b"\n", b"\x80\x04\x95" + pickle.dumps(Bomb()) + b"\n", b'{"op_code": 99}\n'):
        journal.write_bytes(b"".join([*lines[:-1], content]))
        for arguments in (["export", "here", "--to", "x"], ["status", "here"], ["plot", "here"]):
            done = iconoclast(*arguments)
            assert done.code in (0, 1, 2)
            assert not Path("exploded").exists()
            assert_quiet(done.err)
        shutil.rmtree("x", ignore_errors=True)
