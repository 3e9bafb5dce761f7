"""The cache of what was computed for a model and prompts: used when all is the same, never otherwise, and safe to lose."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iconoclast.config.schema import Settings
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.runs import workbench
from iconoclast.runs.cache import ABANDONED, Cache
from iconoclast.runs.starting import started_run


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, task: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a run computes of the base model, by name."""
    names: list[str] = []

    def counted(name: str, function: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            names.append(name)
            return function(*args, **kwargs)  # type: ignore[operator]

        return call

    for name in ("last_token_residuals", "find_response_prefix"):
        monkeypatch.setattr(workbench, name, counted(name, getattr(workbench, name)))
    for name in ("measure", "noise_floor"):
        monkeypatch.setattr(Evaluator, name, counted(name, getattr(Evaluator, name)))
    yield names


EVERYTHING = {"last_token_residuals", "find_response_prefix", "measure", "noise_floor"}


def start(settings: Settings, folder: Path, **changes: object) -> tuple[bytes, dict[str, torch.Tensor], list[str]]:
    """Begin a run in a folder: its baseline, its directions, and what it said."""
    progress = Notes()
    with started_run(settings.model_copy(update={"study_checkpoint_dir": folder, **changes}), progress):
        pass
    return (folder / "baseline.json").read_bytes(), load_file(folder / "directions.safetensors"), progress.notes


def test_a_second_run_on_the_same_model_and_prompts_computes_nothing_of_the_base_again(
    tiny_settings: Settings, tmp_path: Path, computed: list[str]
) -> None:
    first = start(tiny_settings, tmp_path / "one")
    assert set(computed) == EVERYTHING
    computed.clear()
    second = start(tiny_settings, tmp_path / "two", seed=1, benign_subspace_rank=1)
    assert computed == []
    assert second[0] == first[0]
    assert all(torch.equal(second[1][name], tensor) for name, tensor in first[1].items())


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"cache_gib": 0.0}, EVERYTHING),
        ({"max_response_length": 7}, {"measure", "noise_floor"}),
        ({"refusal_markers": ["zz", "qx"]}, {"measure", "noise_floor"}),
        ({"system_prompt": "Be brief."}, EVERYTHING),
    ],
)
def test_what_differs_is_computed(
    change: dict[str, object], again: set[str], tiny_settings: Settings, tmp_path: Path, computed: list[str]
) -> None:
    prompts = {n: s for n, s in tiny_settings.model_dump().items() if n.endswith("_prompts") and s}
    assert prompts
    start(tiny_settings, tmp_path / "one")
    computed.clear()
    if "system_prompt" in change:
        copies = {n: getattr(tiny_settings, n).model_copy(update=change) for n in prompts}
        change = copies
    start(tiny_settings, tmp_path / "two", **change)
    assert set(computed) == again


def test_other_weights_under_the_same_name_are_another_model(
    tiny_settings: Settings, tiny_folder: Path, tmp_path: Path, computed: list[str]
) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    first = start(tiny_settings, tmp_path / "one", model=str(model))
    weights = next(model.glob("*.safetensors"))
    before = weights.stat()
    tensors = load_file(weights)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    computed.clear()
    second = start(tiny_settings, tmp_path / "two", model=str(model))
    assert set(computed) == EVERYTHING
    assert any(not torch.equal(second[1][name], tensor) for name, tensor in first[1].items())


@pytest.mark.parametrize("damage", [b"", b"{", b'{"sha256": "0"}\nxyz', b"[1]\nx", b"\0" * 100])
def test_a_damaged_entry_is_computed_again_with_one_line(
    damage: bytes, tiny_settings: Settings, tmp_path: Path, own_cache: Path, computed: list[str]
) -> None:
    first = start(tiny_settings, tmp_path / "one")
    (entry,) = (e for e in Cache(own_cache).entries() if e.kind == "baseline")
    entry.file.write_bytes(damage)
    computed.clear()
    second = start(tiny_settings, tmp_path / "two")
    assert set(computed) == {"measure", "noise_floor"}
    assert second[0] == first[0]
    assert len([note for note in second[2] if "damaged" in note]) == 1
    assert not any("damaged" in note for note in start(tiny_settings, tmp_path / "three")[2])


def test_a_cache_that_cannot_be_written_ends_no_run(tiny_settings: Settings, tmp_path: Path, own_cache: Path) -> None:
    own_cache.rmdir()
    own_cache.write_text("a file where the folder should be")
    notes = start(tiny_settings, tmp_path / "one")[2]
    assert len([note for note in notes if "Nothing is kept" in note]) == 1


def test_what_was_not_used_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1000)
    for age, name in enumerate(("c", "b", "a")):
        cache.write(name, "kind", "model", b"x" * 150)
        os.utime(tmp_path / f"{name}.kept", (1000.0 - age, 1000.0 - age))
    assert cache.read("a") == b"x" * 150  # used now
    cache.write("d", "kind", "model", b"x" * 250)
    cache.write("e", "kind", "model", b"x" * 250)
    assert sum(entry.size for entry in cache.entries()) <= 1000
    assert cache.read("b") is None
    assert cache.read("e") == b"x" * 250
    cache.write("f", "kind", "model", b"x" * 600)
    assert cache.read("f") is None  # it would take most of the room


KILLED = """
import os, signal, sys
from pathlib import Path
from iconoclast.runs.cache import Cache
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
Cache(Path(sys.argv[1]), 10**9).write("a", "kind", "model", b"x" * 100_000)
"""


def test_a_killed_process_leaves_nothing_that_is_read_and_nothing_for_good(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    cache = Cache(tmp_path, 10**9)
    (left,) = tmp_path.iterdir()
    assert cache.read("a") is None and cache.entries() == []
    os.utime(left, (left.stat().st_mtime - 2 * ABANDONED,) * 2)
    cache.write("b", "kind", "model", b"y")
    assert not left.exists()


def test_many_write_and_read_one_entry_at_once(tmp_path: Path) -> None:
    content, wrong = b"z" * 300_000, []

    def work() -> None:
        cache = Cache(tmp_path, 10**9)
        for _ in range(10):
            cache.write("a", "kind", "model", content)
            if cache.read("a") != content:
                wrong.append("torn")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(list(tmp_path.iterdir())) == 1
    cache = Cache(tmp_path)
    cache.clear()
    assert cache.entries() == []
