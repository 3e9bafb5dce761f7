"""Files of other tools, opened by whichever tool reads them."""

from pathlib import Path

import iconoclast.peers.abliterix
import iconoclast.peers.heretic.peer
import iconoclast.peers.heretic.reproduce  # noqa: F401 - they register themselves
from iconoclast.errors import RunFolderError
from iconoclast.peers.claims import read_claims
from iconoclast.peers.protocol import PeerTrial, peers

__all__ = ["peer_trial", "peers", "read_claims"]


def peer_trial(file: Path, which: str, kl_target: float) -> PeerTrial:
    """Read a trial of another tool: "best", by a KL target in nats, or the trial's number.

    Raises:
        RunFolderError: no known tool reads it, or it has no such trial.
    """
    for name in peers:
        peer = peers.get(name)()
        if peer.reads(file):
            return peer.trial(file, which, kl_target)
    raise RunFolderError(f"{file} is not of a tool that is known here ({', '.join(peers)}).")
