"""Where a study is kept: the journal is tested with the study; here are databases, servers, and what is no storage."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from optuna.storages import JournalStorage, run_grpc_proxy_server

from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.search import sharing
from iconoclast.search import storage as module
from iconoclast.search.space import EditParameters
from iconoclast.search.storage import Journal, open_storage
from iconoclast.search.study import Outcome, Study
from tests.search.test_study import OBJECTIVE, TOTAL, Shared, evaluate, opened, run, states


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


SERVER = """
import sys
from pathlib import Path
from optuna.storages import JournalStorage, run_grpc_proxy_server
from iconoclast.search.storage import Journal
run_grpc_proxy_server(JournalStorage(Journal(Path(sys.argv[2]))), host="localhost", port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an Optuna storage proxy before a journal."""
    port = free_port()
    journal = tmp_path_factory.mktemp("proxy") / "all.jsonl"
    serve = {"host": "localhost", "port": port}
    thread = threading.Thread(
        target=run_grpc_proxy_server, args=(JournalStorage(Journal(journal)),), kwargs=serve, daemon=True
    )
    thread.start()
    time.sleep(0.5)
    yield f"grpc://localhost:{port}"


def storages(proxy: str, folder: Path) -> dict[str, str]:
    return {"a proxy": proxy, "a database": f"sqlite:///{folder}/study.db"}


@pytest.mark.parametrize("kind", ["a proxy", "a database"])
def test_a_study_elsewhere_has_the_trials_that_a_journal_has(kind: str, proxy: str, tmp_path: Path) -> None:
    there = tmp_path / kind.replace(" ", "-")
    storage = storages(proxy, tmp_path)[kind]
    trials = run(opened(there, storage=storage))
    assert trials == run(opened(tmp_path / "journal"))
    assert not (there / "study.jsonl").exists()
    assert opened(there, storage=storage).trials() == trials
    assert opened(tmp_path / "another", storage=storage).trials() == []


@pytest.mark.parametrize("kind", ["a proxy", "a database"])
def test_a_study_elsewhere_can_be_shared(kind: str, proxy: str, tmp_path: Path) -> None:
    folder = tmp_path / f"shared-{kind[2:]}"
    storage = storages(proxy, tmp_path)[kind]
    left = opened(folder, storage=storage)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(sharing, "hand_back", lambda study, trial_id: None)
        left.run(TOTAL, lambda batch: [1 / 0], lambda scores: (0.0, 0.0), crew=Shared("a"))  # type: ignore[list-item]
    study = opened(folder, storage=storage)
    crew = Shared("b")
    crew._meanwhile = lambda: setattr(crew, "_lost", ["a"])
    study.run(TOTAL, evaluate, OBJECTIVE, crew=crew)
    assert states(study) == ["COMPLETE"] * TOTAL
    assert len(Study.read(folder / "study.jsonl", study.space, storage).trials()) == TOTAL


@pytest.mark.parametrize("kind", ["a proxy", "a database"])
def test_a_storage_that_stops_answering_is_one_line(kind: str, tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port := free_port()), str(tmp_path / "all.jsonl")])
    try:
        study = opened(tmp_path / "run", storage=storages(f"grpc://localhost:{port}", tmp_path)[kind])

        def dies(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
            server.kill()
            server.wait()
            (tmp_path / "study.db").write_text("no database")
            return evaluate(batch)

        with pytest.raises(RunFolderError, match=r"study_storage does not answer any more: .*same command") as caught:
            study.run(TOTAL, dies, OBJECTIVE)
        assert "\n" not in str(caught.value)
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "is not a URL"),
        ("postgresql://me:secret@host/db", "holds a password"),
        ("redis://:secret@host", "holds a password"),
        ("nonsense://host/db", "is not understood"),
        ("sqlite:////no/such/folder/study.db", "Nothing answers at study_storage"),
        ("grpc://localhost:1", "Nothing answers at study_storage grpc://localhost:1"),
        ("redis://localhost:1", "needs a package that is not installed: redis|Nothing answers"),
    ],
)
def test_what_is_no_storage_is_one_line(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_CONNECT", 0.5)
    with pytest.raises(SettingsError, match=message) as caught:
        open_storage(tmp_path / "study.jsonl", url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_password_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "_database", asked.append)
    monkeypatch.setenv("STUDY_PASSWORD", "secret")
    open_storage(tmp_path / "study.jsonl", "postgresql://me:$STUDY_PASSWORD@host/db")
    assert asked == ["postgresql://me:secret@host/db"]
