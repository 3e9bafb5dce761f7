"""Edits: one pure-data Edit, applied live, as an adapter, or merged into the weights."""

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile

__all__ = ["Edit", "LiveEdits", "Profile"]
