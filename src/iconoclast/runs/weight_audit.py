"""What an edit did to weights, with the files that are written of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from iconoclast.audit.as_edit import edit_of
from iconoclast.audit.audit import audit
from iconoclast.audit.document import AuditDocument
from iconoclast.edits.record import save_edit
from iconoclast.files import write_whole
from iconoclast.progress import Progress


@dataclass(frozen=True)
class WeightAudit:
    """What was found in the weights, and the singular directions by tensor."""

    document: AuditDocument
    directions: Mapping[str, Tensor]

    def write_edit(self, file: Path) -> None:
        """Write what was found as an edit of ours; raise ModelError if it is not a rank-one edit."""
        save_edit(edit_of(self.document, self.directions), file)


def audit_weights(base: str, edited: str, to: Path | None = None, progress: Progress | None = None) -> WeightAudit:
    """Compare an edited model with its base, file to file.

    Args:
        to: file for the directions, which is written if there are any.

    Raises:
        ModelError: files are missing, damaged, or of another model.
    """
    document, directions = audit(base, edited, progress)
    if to is not None and directions:
        write_whole(to, save(directions))
        document = document.model_copy(update={"directions": to.name})
    return WeightAudit(document, directions)
