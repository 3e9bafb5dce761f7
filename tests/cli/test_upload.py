"""Uploads, against a server on this machine that speaks as much of the hub's API as the client needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from iconoclast.config.schema import Settings
from iconoclast.runs.export import export_run, export_unmeasured
from iconoclast.runs.starting import run_folder, started_run
from tests.support.entry_point import iconoclast


class Hub(ThreadingHTTPServer):
    """A hub with one user."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []  # objects, in the order in which they came
        self.fail_commit = False


class Answers(BaseHTTPRequestHandler):
    """Answers to what the client asks for."""

    server: Hub

    def log_message(self, *arguments: object) -> None:
        """Quietly."""

    def reply(self, status: int, document: Any, **headers: str) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").split("/revision/")[0]
        if name in self.server.repos:
            repo = self.server.repos[name]
            self.reply(200, {"id": name, "modelId": name, "sha": "0" * 40, "private": repo["private"], "siblings": []})
        else:
            self.reply(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        content = self.body()
        oid = hashlib.sha256(content).hexdigest()
        assert self.path == f"/store/{oid}"
        self.server.objects[oid] = content
        self.server.received.append(oid)
        self.reply(200, {})

    def do_POST(self) -> None:
        server, content = self.server, self.body()
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if self.headers.get("Authorization") != "Bearer hf_good":
                self.reply(401, {"error": "Invalid username or password."})
            elif name in server.repos:
                self.reply(409, {"error": "You already created this model repo", "url": f"{server.url}/{name}"})
            else:
                private = asked.get("private", asked.get("visibility") == "private")
                server.repos[name] = {"private": private, "files": {}}
                self.reply(200, {"url": f"{server.url}/{name}"})
        elif self.path == "/api/validate-yaml":  # the model card's front matter
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            large = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 2000 else "regular", "shouldIgnore": False}
                for f in files
            ]
            self.reply(200, {"files": large})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = []
            for asked in json.loads(content)["objects"]:
                upload = {"href": f"{server.url}/store/{asked['oid']}"}
                there = asked["oid"] in server.objects
                objects.append({**asked, **({} if there else {"actions": {"upload": upload}})})
            self.reply(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            if server.fail_commit:
                self.reply(500, {"error": "The disk is full"})
                return
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in content.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    server.repos[name]["files"][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    server.repos[name]["files"][value["path"]] = server.objects[value["oid"]]
            self.reply(200, {"commitUrl": f"{server.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.reply(404, {"error": f"not known here: {self.path}"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def export(tiny_settings: Settings, tmp_path: Path) -> Path:
    with started_run(tiny_settings) as run:
        run.optimize(1)
        run.write_summary("complete")
        folder = run.folder.path
    export_run(folder, "best", "merged", tmp_path / "export")
    return tmp_path / "export"


def test_an_export_arrives_whole_and_private(hub: Hub, export: Path) -> None:
    done = iconoclast("upload", export, "me/edited")
    assert done.code == 0, done.err
    assert "me/edited on the hub, private" in done.out and "/me/edited/commit/1" in done.out
    repo = hub.repos["me/edited"]
    assert repo["private"] is True
    assert repo["files"] == {file.name: file.read_bytes() for file in export.iterdir()}
    assert "hf_good" not in done.out + done.err


def test_it_is_public_only_when_asked(hub: Hub, export: Path) -> None:
    assert iconoclast("upload", export, "me/edited", "--public").code == 0
    assert hub.repos["me/edited"]["private"] is False
    again = iconoclast("upload", export, "me/edited")
    assert again.code == 2 and again.complaint.startswith("me/edited is there already and is public. Say --public")


def test_a_dry_run_shows_the_files_and_sends_nothing(hub: Hub, export: Path) -> None:
    done = iconoclast("upload", export, "me/edited", "--dry-run")
    assert done.code == 0 and "Nothing was sent." in done.out
    assert all(file.name in done.out for file in export.iterdir())
    assert not hub.repos and not hub.received


def test_a_dry_run_says_if_nobody_has_measured_the_export(
    hub: Hub, export: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    assert "not measured" not in iconoclast("upload", export, "me/edited", "--dry-run").out
    export_unmeasured(run_folder(tiny_settings).path, "best", tmp_path / "bare")
    assert "The export was not measured" in iconoclast("upload", tmp_path / "bare", "me/edited", "--dry-run").out


def test_a_failed_upload_goes_on_where_it_was(hub: Hub, export: Path) -> None:
    hub.fail_commit = True
    failed = iconoclast("upload", export, "me/edited")
    assert failed.code == 2 and "Run the same command again" in failed.complaint
    sent = list(hub.received)
    assert sent and not hub.repos["me/edited"]["files"]
    hub.fail_commit = False
    assert iconoclast("upload", export, "me/edited").code == 0
    assert hub.received == sent  # nothing large was sent twice
    assert set(hub.repos["me/edited"]["files"]) == {file.name for file in export.iterdir()}


def test_what_cannot_be_uploaded_is_said_in_one_line(
    hub: Hub, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not an export" in iconoclast("upload", tmp_path, "me/edited").complaint
    assert "is not a valid name for a model" in iconoclast("upload", export, "edited").complaint
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    assert "The upload to me/edited failed" in iconoclast("upload", export, "me/edited").complaint
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "The upload to me/edited failed" in iconoclast("upload", export, "me/edited").complaint
    (export / "README.md").write_text("Nothing to see here.")
    refused = iconoclast("upload", export, "me/edited")
    assert refused.code == 2 and "are not those that were exported" in refused.complaint
    assert not hub.repos
