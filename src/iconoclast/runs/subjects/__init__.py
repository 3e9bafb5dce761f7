"""Subjects to examine beside a base model, and how they are found by what the user names them."""

from iconoclast.runs.subjects.known import (
    EditSubject,
    ModelSubject,
    PeerSubject,
    RunSubject,
    ServerSubject,
    find_peer,
    find_run,
    find_subject,
)
from iconoclast.runs.subjects.protocol import Loadable, Named, Opened, Subject, subjects

__all__ = [
    "EditSubject", "Loadable", "ModelSubject", "Named", "Opened", "PeerSubject", "RunSubject", "ServerSubject", "Subject",
    "find_peer", "find_run", "find_subject", "subjects",
]  # fmt: skip
