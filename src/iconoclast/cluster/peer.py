"""A peer's program as a job beside a run: the same model, prompts, markers, response length and number of trials."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from iconoclast.files import write_json
from iconoclast.layout import LOG, SCHEMA_VERSION, SUMMARY
from iconoclast.peers import PEER
from iconoclast.peers.known import peers
from iconoclast.privacy import portable
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.splits import Prompts


@dataclass(frozen=True)
class PeerJob:
    """Runs a peer's program, in an environment of its own, in the way of our own runs."""

    run: Path
    program: Path
    peer: str = PEER

    @property
    def folder(self) -> Path:
        """The peer's folder: beside the run's, with the peer's name appended."""
        return self.run.with_name(f"{self.run.name}-{self.peer}")

    def __call__(self) -> str:
        """Run the program, or continue its earlier work, and write its batch_summary.json."""
        settings = RunFolder(self.run).settings()
        prompts = Prompts.load(settings)
        work = self.program, self.folder, settings, prompts.named()
        peer = peers.get(self.peer)()
        self.folder.mkdir(parents=True, exist_ok=True)
        command = peer.command(*work)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with (self.folder / LOG).open("a") as log:
            # When its trials are done it may ask what to do, find nobody and end; so its exit code says nothing.
            subprocess.run(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=False
            )
        own = {"schema_version": SCHEMA_VERSION, "tool": self.peer, "prompts": prompts.document(), "report": None}
        write_json(self.folder / SUMMARY, portable(own | peer.summary(*work)))
        return "done"
