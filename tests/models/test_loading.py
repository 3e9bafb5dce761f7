"""Loading: from a name to a model that is known to work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast.errors import ModelError
from iconoclast.models import loading
from iconoclast.models.demo import demo_folder
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.names import resolve
from iconoclast.prompts import Prompt
from tests.support.tiny import save_tiny, tiny_tokenizer


def test_auto_takes_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    assert load_model(str(tmp_path), dtypes=["auto"]).dtype == "float32"
    assert load_model(str(tmp_path), dtypes=["bfloat16"]).dtype == "bfloat16"


def test_a_dtype_whose_forward_pass_is_not_finite_is_passed_over(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loading._load

    def overflowing(path: str, dtype: str, *rest: object, **placement: object) -> object:
        model, tokenizer = load(path, dtype, *rest, **placement)  # type: ignore[arg-type]
        if dtype == "float16":
            with torch.no_grad():
                model.get_output_embeddings().weight.fill_(torch.inf)
        return model, tokenizer

    monkeypatch.setattr(loading, "_load", overflowing)
    notes: list[str] = []
    lm = load_model(str(tiny_folder), dtypes=["float16", "float32"], note=notes.append)
    assert lm.dtype == "float32"
    assert len(notes) == 1 and "float16" in notes[0] and "not finite" in notes[0]
    with pytest.raises(ModelError, match="none of the dtypes"):
        load_model(str(tiny_folder), dtypes=["float16"])


def test_parameters_are_frozen_and_padding_is_on_the_left(tiny_lm: LanguageModel) -> None:
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert tiny_lm.tokenizer.padding_side == "left"
    assert not tiny_lm.model.training


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./missing", "missing.gguf", "~/missing"])
def test_a_path_with_nothing_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="no model at"):
        resolve(name)


def test_a_hub_id_is_left_to_the_library() -> None:
    assert resolve("meta-llama/Llama-3.1-8B-Instruct") == "meta-llama/Llama-3.1-8B-Instruct"


def test_demo_resolves_to_the_cache_without_converting_anything() -> None:
    assert resolve("demo") == str(demo_folder())


def test_a_model_that_the_hub_does_not_give_is_one_clear_error() -> None:
    with pytest.raises(ModelError) as caught:
        load_model("someone/some-model-that-is-not-cached")
    assert "someone/some-model-that-is-not-cached" in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_chat_template_the_error_names_the_setting(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="Set chat_template to plain"):
        load_model(str(tmp_path))
    plain = load_model(str(tmp_path), chat_template="plain")
    assert plain.render(Prompt("Hello", "Be brief.")) == "System: Be brief.\nUser: Hello\nAssistant:"
    raw = load_model(str(tmp_path), chat_template="raw")
    assert raw.render(Prompt("Hello")) == "Hello"
    own = tmp_path / "own.jinja"
    own.write_text("Q: {{ messages[-1]['content'] }}\nA:")
    assert load_model(str(tmp_path), chat_template=str(own)).render(Prompt("Hello")) == "Q: Hello\nA:"
    with pytest.raises(ModelError, match="neither plain nor raw nor a Jinja file"):
        load_model(str(tmp_path), chat_template="nowhere.jinja")


def test_without_a_system_role_the_user_says_the_system_prompt(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    lm = load_model(str(tmp_path))
    assert lm.render(Prompt("Hello", "Be brief.")) == "<user>Be brief.\n\nHello"


def test_the_response_prefix_ends_every_rendered_prompt(tiny_lm: LanguageModel) -> None:
    assert tiny_lm.with_prefix("<think></think>").render(Prompt("Hi")).endswith("<|assistant|><think></think>")


def test_a_tokenizer_without_a_pad_token_gets_one(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("pad_token", None)
    file.write_text(json.dumps(settings))
    assert load_model(str(tmp_path)).tokenizer.pad_token_id is not None


def test_a_folder_with_broken_weights_is_a_clear_error(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ModelError):
        load_model(str(tmp_path / "broken"))


def test_gguf_cannot_be_quantised_again(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="cannot be quantised again"):
        load_model(str(tmp_path / "model.gguf"), quantization="bnb_4bit")


def test_4_bit_without_bitsandbytes_says_what_to_install(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"iconoclast-edit\[quantized\]"):
        load_model(str(tiny_folder), quantization="bnb_4bit")


@pytest.mark.slow
def test_loading_from_a_folder_asks_nobody(tiny_folder: Path, tmp_path: Path) -> None:
    code = """
import socket, sys
from iconoclast.models.loading import load_model

def refused(*arguments):
    print("somebody was called", file=sys.stderr)
    raise OSError

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
load_model(sys.argv[1], dtypes=["float32"])
"""
    variables = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment = {**variables, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "somebody was called" not in done.stderr


@pytest.mark.parametrize("wrong", [{"dtypes": ["bf16"]}, {"quantization": "4bit"}])
def test_an_unknown_word_is_refused_before_loading(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r'^There is no (dtype "bf16"|quantisation "4bit").*Use one of'):
        load_model("nowhere", **wrong)
