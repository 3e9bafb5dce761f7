"""llama-server runs for as long as a file is measured, and never longer."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

from iconoclast.errors import ModelError
from iconoclast.evaluation.evaluator import MeasureOptions
from iconoclast.evaluation.examination import ExaminedPrompts, Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.llama_server import WATCH, LlamaServer
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.served import examine_served
from iconoclast.models import llama_cpp
from iconoclast.models.demo import FILE, PACKAGE
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.llama_cpp import SERVER, LlamaCpp
from iconoclast.prompts import Prompt, PromptSet

FAKE = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--version" in sys.argv:
    print("ggml_cpu: loaded", file=sys.stderr)
    sys.exit(print("version: 7 (abc)", file=sys.stderr))
options = dict(zip(sys.argv[1:], sys.argv[2:]))
if "broken" in options["-m"]:
    print("0.00.1 I loading")
    print("0.00.2 E load: error loading model: no magic in the file")
    sys.exit("exiting")
open({pid!r}, "w").write(str(os.getpid()))
entry = {{"id": 7, "token": "a", "logprob": -1.0, "top_logprobs": [{{"id": 7, "token": "a", "logprob": -1.0}}]}}
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({{"status": "ok", "data": [{{"id": options["--alias"]}}]}})
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {{"message": {{"content": "a"}}, "logprobs": {{"content": [entry]}}}}
        self.say({{"choices": [choice], "usage": {{"prompt_tokens": 3}}}})
    def say(self, document):
        known = self.path == "/health" or self.headers["Authorization"] == "Bearer " + os.environ["LLAMA_API_KEY"]
        data = json.dumps(document).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *arguments):
        pass
HTTPServer((options["--host"], int(options["--port"])), Answers).serve_forever()
"""


@pytest.fixture
def pid(tmp_path: Path) -> Callable[[], int]:
    return lambda: int((tmp_path / "pid").read_text())


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    program = tmp_path / SERVER
    program.write_text(FAKE.format(python=sys.executable, pid=str(tmp_path / "pid")))
    program.chmod(0o755)
    return program


def ended(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_it_serves_one_file_to_this_program_and_ends_with_the_measurement(
    fake: Path, tmp_path: Path, pid: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    server = LlamaServer.at(fake)
    assert server.version == "7 (abc)"
    with server.serving(tmp_path / "model.gguf", 100) as served:
        assert (served.name, served.top, served.continues) == ("model.gguf", 1, True)
        assert [answer.text for answer in served.ask([Prompt("Hello")] * 3, 5, 1)] == ["a"] * 3
        stranger = httpx2.get(f"{served.endpoint.url}/models", trust_env=False)
        assert stranger.status_code == 401
        os.kill(pid(), 0)
    assert ended(pid())


def test_it_ends_when_the_measurement_is_interrupted(fake: Path, tmp_path: Path, pid: Callable[[], int]) -> None:
    with pytest.raises(KeyboardInterrupt), LlamaServer.at(fake).serving(tmp_path / "model.gguf", 100):
        raise KeyboardInterrupt
    assert ended(pid())


def test_it_ends_when_this_program_is_killed(fake: Path, tmp_path: Path, pid: Callable[[], int]) -> None:
    options = [str(fake), "-m", "a", "--alias", "a", "--host", "127.0.0.1", "--port", "0"]
    starts = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {WATCH!r}, *{options!r}], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(60)"
    )
    program = subprocess.Popen([sys.executable, "-c", starts])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    os.kill(pid(), 0)
    program.kill()
    program.wait()
    assert ended(pid())


def test_what_cannot_be_served_is_said_in_one_line(fake: Path, tmp_path: Path) -> None:
    said = r"llama-server cannot serve broken.gguf. It says: load: error loading model: no magic in the file$"
    with pytest.raises(ModelError, match=said), LlamaServer.at(fake).serving(tmp_path / "broken.gguf", 100):
        pass
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('libllama.so: cannot open shared object file')")
    with pytest.raises(ModelError, match=r"llama-server does not run: libllama.so: cannot open shared object file$"):
        LlamaServer.at(fake)
    fake.write_text("no program")
    with pytest.raises(ModelError, match="does not run"):
        LlamaServer.at(fake)


def test_programs_are_found_in_a_checkout_on_the_path_and_in_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / SERVER).touch(mode=0o755)
        return folder / SERVER

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llama_cpp, "WHEELS", ("a_wheel_with_a_server", "no_such_wheel"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert LlamaCpp(tmp_path / "llama.cpp").program(SERVER) is None
    packaged = make(tmp_path / "site" / "a_wheel_with_a_server" / "bin")
    (packaged.parents[1] / "__init__.py").touch()
    importlib.invalidate_caches()
    assert LlamaCpp().program(SERVER) == packaged
    on_path = make(tmp_path / "usr")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert LlamaCpp().program(SERVER) == on_path
    built = make(tmp_path / "llama.cpp" / "build" / "bin")
    assert LlamaCpp(tmp_path / "llama.cpp").program(SERVER) == built


@pytest.mark.model
@pytest.mark.skipif(LlamaCpp().program(SERVER) is None, reason="no llama-server")
def test_a_real_server_measures_the_demo_as_itself(demo_lm: LanguageModel) -> None:
    program, spec = LlamaCpp().program(SERVER), find_spec(PACKAGE)
    assert program is not None and spec is not None and spec.origin is not None
    target, benign = (PromptSet.load(f"builtin:everyday/{role}", split="report[:3]") for role in ("target", "benign"))
    options, sample = (
        MeasureOptions(response_length=8, benign_response_length=4),
        ExaminedPrompts(target, benign, None, "report"),
    )
    for prefix in ("", "Well, "):
        base = Variant("base", demo_lm.with_prefix(prefix))
        examiner = Examiner(base, sample, ResponseRules(["sorry"]), options)
        with LlamaServer.at(program).serving(Path(spec.origin).parent / FILE, 200) as server:
            found = examine_served(examiner, server)
        assert found.truncation is not None and found.truncation.unlike == 0 and found.truncation.top == 1000
        assert found.scores.kl_divergence < 0.05 and found.truncation.outside < 0.05
        assert not any(answer.response.startswith("Well") for answer in found.target)
