"""llama.cpp's llama-server, started on this machine for as long as a file is measured."""

import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from iconoclast.errors import ModelError, one_line
from iconoclast.evaluation.endpoint import Endpoint, EndpointError
from iconoclast.evaluation.served import Server
from iconoclast.models.llama_cpp import environment

SLOTS = 4
"""Prompts that it answers at a time."""
ROOM = 64
"""Tokens by which its context is longer than the longest prompt and response."""
PATIENCE = 900.0
"""Seconds that a model may take to load."""
WATCH = """
import subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (sys.stdin.read(), server.kill()), daemon=True).start()
sys.exit(server.wait())
"""
"""Runs a command until it ends or standard input does, which it does even if the process at its other end is killed."""


@dataclass(frozen=True)
class LlamaServer:
    """A llama-server that runs on this machine; `version` is what it says of itself."""

    program: Path
    version: str

    @classmethod
    def at(cls, program: Path) -> "LlamaServer":
        """Ask the program for its version; raise ModelError if it does not run."""
        try:
            done = subprocess.run(
                [program, "--version"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
                env=environment(program),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"{program} does not run: {one_line(str(error))}") from None
        said = (done.stdout + done.stderr).strip()
        if done.returncode or not said:
            raise ModelError(f"{program} does not run: {one_line(said.rpartition(chr(10))[2]) or 'it says nothing'}")
        version = re.search(r"^version: (.*)$", said, re.MULTILINE)
        return cls(program, version[1] if version else one_line(said.splitlines()[0]))

    @contextmanager
    def serving(self, file: Path, tokens: int, lora: Path | None = None) -> Iterator[Server]:
        """Serve a GGUF file on a free port of this machine until the context ends, or this process does.

        Args:
            tokens: of the longest prompt and its response together.
            lora: a GGUF adapter that is put on the file.

        Raises:
            ModelError: the file cannot be served.
            EndpointError: it is served, but gives no log-probabilities.
        """
        key, port = secrets.token_hex(16), _free_port()
        options: dict[str, object] = {"-m": file, "--alias": file.name, "--host": "127.0.0.1", "--port": port}
        options |= {"--parallel": SLOTS, "--ctx-size": SLOTS * (tokens + ROOM), "--reasoning-format": "none"}
        options |= {} if lora is None else {"--lora": lora, "--alias": lora.name}
        words = [str(word) for pair in options.items() for word in pair]
        with TemporaryFile() as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WATCH, str(self.program), *words, "--jinja", "--no-webui"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment(self.program), "LLAMA_API_KEY": key},
                start_new_session=True,  # Ctrl-C reaches this process, which ends it
            )
            try:
                url = f"http://127.0.0.1:{port}"
                _await(process, Endpoint.at(url, None, "server", retries=0, timeout=5.0), file, log)
                name = str(options["--alias"])
                yield replace(Server.find(f"{url}/v1", name, key, concurrency=SLOTS), continues=True)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await(process: subprocess.Popen[bytes], endpoint: Endpoint, file: Path, log: IO[bytes]) -> None:
    """Wait until the server answers; raise ModelError with what it says if it ends, or takes too long."""
    began = time.monotonic()
    with endpoint.client() as client:
        while time.monotonic() < began + PATIENCE:
            if process.poll() is not None:
                raise ModelError(f"llama-server cannot serve {file.name}. It says: {_trouble(log)}")
            try:
                endpoint.ask(client, "health")
                return
            except EndpointError:  # 503 while it loads
                time.sleep(0.2)
    raise ModelError(f"llama-server has not loaded {file.name} within {PATIENCE / 60:g} minutes.")


def _trouble(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()] or ["nothing"]
    said = next((line for line in lines if "error" in line.lower()), lines[-1])
    return one_line(re.sub(r"^[\d.]+ \w ", "", said), 300)
