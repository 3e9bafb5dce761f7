"""Edit → merged weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.models.anatomy import Writer
from iconoclast.site import Site


def merged_weight(edit: Edit, site: Site, writer: Writer) -> Tensor:
    """The edited weight of one site, in the shape and dtype the module stores."""
    weight = writer.weight()
    direction = edit.directions[site].to(weight.device)
    edited = edited_weight(weight, direction, edit.strengths[site], edit.row_normalization)
    stored = writer.module.weight
    assert isinstance(stored, Tensor)
    return (edited.T if writer.transposed else edited).to(stored.dtype).contiguous()


def save_merged(edit: Edit, writers: Mapping[Site, Writer], model: PreTrainedModel, folder: Path) -> None:
    """Write the model with `edit` in its weights; the model itself is left as it is. It must not be quantised."""
    state = model.state_dict()
    for site in edit.sites:
        state[f"{site.module}.weight"] = merged_weight(edit, site, writers[site])
    model.save_pretrained(folder, state_dict=state)
