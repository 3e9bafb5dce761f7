"""An edit in a file: the direction and strength of every site, so that anyone can reproduce or check it."""

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError, UserError
from iconoclast.files import write_whole
from iconoclast.vocabulary import RowNormalization, Site

READING = ".reading"
"""What a site's reading is called, after the name of its direction."""


def save_edit(edit: Edit, file: Path) -> None:
    """Write an edit: one tensor [d] per site, or two if it has a reading; strengths and row normalisation in the metadata.

    An edit of several parts has a list of these, and its tensors are named by the number of the part.
    """
    told, tensors = [], dict[str, Tensor]()
    for number, part in enumerate(edit.parts):
        sites = [
            {"layer": s.layer, "component": s.component, "module": s.module, "strength": part.strengths[s]}
            for s in part.sites
        ]
        told.append({"row_normalization": part.row_normalization, "sites": json.dumps(sites)})
        before = f"{number}." if edit.then else ""
        tensors |= {f"{before}{site.module}": part.directions[site] for site in part.sites}
        tensors |= {f"{before}{site.module}{READING}": reading for site, reading in part.readings.items()}
    metadata = {"parts": json.dumps(told)} if edit.then else told[0]
    write_whole(file, save({name: tensor.cpu().clone() for name, tensor in tensors.items()}, metadata))


def load_edit(file: Path) -> Edit:
    """Read an edit; raise RunFolderError if the file is missing, damaged, or not an edit."""
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        told = json.loads(metadata["parts"]) if "parts" in metadata else [metadata]
        parts = [_part(each, tensors, f"{n}." if "parts" in metadata else "") for n, each in enumerate(told)]
        return reduce(Edit.followed_by, parts)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, UserError) as error:
        raise RunFolderError(f"{file} is missing or holds no edit ({error}).") from None


def _part(told: Mapping[str, str], tensors: Mapping[str, Tensor], before: str) -> Edit:
    listed = json.loads(told["sites"])
    sites = {Site(int(s["layer"]), s["component"], str(s["module"])): float(s["strength"]) for s in listed}
    directions = {site: tensors[f"{before}{site.module}"] for site in sites}
    named = {site: f"{before}{site.module}{READING}" for site in sites}
    readings = {site: tensors[name] for site, name in named.items() if name in tensors}
    return Edit(directions, sites, cast(RowNormalization, told["row_normalization"]), readings)
