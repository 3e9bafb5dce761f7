"""Edits merged into the weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from iconoclast.edits.edit import Edit
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer
from iconoclast.models.checkpoint import Checkpoint, matrix_changes
from iconoclast.models.rest import keep_rest
from iconoclast.vocabulary import Site


def merged_weight(edit: Edit, site: Site, writer: Writer) -> Tensor:
    """Return the edited weight of one site in the stored shape and dtype."""
    edited = edit.applied_to(site, writer.weight())
    return (edited.mT if writer.transposed else edited).to(writer.stored.dtype).contiguous()


def save_merged(
    edit: Edit,
    writers: Mapping[Site, Writer],
    model: PreTrainedModel,
    folder: Path,
    checkpoint: Checkpoint | None = None,
) -> list[str]:
    """Write the model with `edit` in its weights to an existing folder; the model itself stays unchanged.

    With a checkpoint, its files are copied and the edited matrices patched one at a time: names, types and sharding
    stay, and the model can be a skeleton. Without one, or if its matrices are quantised, transformers saves the loaded
    model, and what it has not loaded is added. Returns the names of tensors that are lost.

    Raises:
        ModelError: the weights are quantised.
    """
    if checkpoint is not None:
        changes = matrix_changes(checkpoint, model, writers, {s: partial(edit.applied_to, s) for s in edit.sites})
        if changes is not None:
            checkpoint.write(folder, changes)
            return []
    if model.device.type == "meta":
        raise ModelError(
            f"The weights of {model.config.name_or_path} are quantised in its files: load it to export it."
        )
    if not all(writers[site].stored.dtype.is_floating_point for site in edit.sites):
        raise ModelError("Merged weights cannot be written of a quantised model. Load the full-precision one.")
    state = model.state_dict()
    for site in edit.sites:
        state[writers[site].parameter] = merged_weight(edit, site, writers[site])
    model.save_pretrained(folder, state_dict=state)
    return [] if checkpoint is None else keep_rest(checkpoint, model, folder)
