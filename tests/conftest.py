"""Shared fixtures: tiny random models, the real demo model, and a world without a network."""

import os

# Before any import of a Hugging Face library: no test may reach for the network, and no bar is drawn into what tests read.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import atexit
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from iconoclast.config.schema import Settings
from iconoclast.models.demo import demo_folder
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.runs.starting import started_run
from tests.support.tiny import copy_run, save_tiny, tiny_run

# What a test computes, in this process or in one that it starts, is not kept in the developer's cache; the demo model is there.
os.environ.setdefault("HF_HOME", str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface"))
CACHE, MODELS = Path(tempfile.mkdtemp(prefix="iconoclast-cache-")), demo_folder().parent
MODELS.mkdir(parents=True, exist_ok=True)
(CACHE / "iconoclast").mkdir()
(CACHE / "iconoclast" / "models").symlink_to(MODELS)
os.environ["XDG_CACHE_HOME"] = str(CACHE)
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# Property tests draw the same examples every time, and a slow machine is no failure.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own environment reaches a test."""
    for name in list(os.environ):
        if name.startswith("ICONOCLAST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What another test has computed is not read."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("iconoclast.runs.workbench.cache_folder", lambda: folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random llama."""
    return save_tiny(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def tiny_lm(tiny_folder: Path) -> LanguageModel:
    """A tiny random llama in float32, fresh for every test."""
    return load_model(str(tiny_folder), dtypes=["float32"])


@pytest.fixture
def tiny_settings(tiny_folder: Path, tmp_path: Path) -> Settings:
    """Settings of a complete run on the tiny model that takes a second."""
    return tiny_run(tiny_folder, tmp_path)


@pytest.fixture(scope="session")
def made_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny_settings` with four trials and its report, which `copied_run` copies."""
    folder = tmp_path_factory.mktemp("made")
    with started_run(tiny_run(tiny_folder, folder)) as run:
        run.optimize(4)
        run.measure_report()
        run.write_summary("complete")
    return folder


@pytest.fixture
def copied_run(made_run: Path, tiny_settings: Settings, tmp_path: Path) -> Path:
    """A run of `tiny_settings` with four trials and its report."""
    return copy_run(made_run, tmp_path)


@pytest.fixture(scope="session")
def demo_lm() -> Iterator[LanguageModel]:
    """The real demo model, SmolLM2-135M-Instruct in bfloat16; leave it as it is."""
    yield load_model("demo")
