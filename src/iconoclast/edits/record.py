"""An edit in a file: the direction and strength of every site, so that anyone can reproduce or check it."""

import json
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError, UserError
from iconoclast.files import write_whole
from iconoclast.vocabulary import RowNormalization, Site

READING = ".reading"
"""What a site's reading is called, after the name of its direction."""


def save_edit(edit: Edit, file: Path) -> None:
    """Write an edit: one tensor [d] per site, or two if it has a reading; strengths and row normalisation in the metadata."""
    sites = [
        {"layer": s.layer, "component": s.component, "module": s.module, "strength": edit.strengths[s]}
        for s in edit.sites
    ]
    metadata = {"row_normalization": edit.row_normalization, "sites": json.dumps(sites)}
    tensors = {site.module: edit.directions[site] for site in edit.sites}
    tensors |= {f"{site.module}{READING}": reading for site, reading in edit.readings.items()}
    write_whole(file, save({name: tensor.cpu().clone() for name, tensor in tensors.items()}, metadata))


def load_edit(file: Path) -> Edit:
    """Read an edit; raise RunFolderError if the file is missing, damaged, or not an edit."""
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
            listed = json.loads(metadata["sites"])
            sites = {Site(int(s["layer"]), s["component"], str(s["module"])): float(s["strength"]) for s in listed}
            directions = {site: opened.get_tensor(site.module) for site in sites}
            named = {f"{site.module}{READING}": site for site in sites}
            readings = {named[name]: opened.get_tensor(name) for name in opened.keys() if name in named}  # noqa: SIM118
        normalization = cast(RowNormalization, metadata["row_normalization"])
        return Edit(directions, sites, normalization, readings)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, UserError) as error:
        raise RunFolderError(f"{file} is missing or holds no edit ({error}).") from None
