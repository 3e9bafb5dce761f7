"""Tensors of a checkpoint that transformers does not load: draft heads, multi-token prediction, shared keys and values."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from iconoclast.models.checkpoint import DTYPES, Checkpoint
from iconoclast.models.transformers_internals import as_stored

CLAIMS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""Numbers of layers in config.json that are for drafting alone."""


def unread(checkpoint: Checkpoint, model: PreTrainedModel) -> list[str]:
    """Return the names of the checkpoint's tensors that are not part of the model, without the scales of quantised ones."""
    state = {name: torch.empty(tensor.shape, device="meta") for name, tensor in model.state_dict().items()}
    read = state.keys() | as_stored(model, state)
    return [
        name for name in checkpoint.places if name not in read and not _scale_of(name, read | checkpoint.places.keys())
    ]


def keep_rest(checkpoint: Checkpoint, model: PreTrainedModel, folder: Path) -> list[str]:
    """Add what transformers has left out to the weights that it saved in `folder`; return the names of what is lost.

    Quantised tensors are dequantised. Where some are lost, config.json no longer claims layers for drafting.
    """
    lost: list[str] = []
    files: dict[str, dict[str, Tensor]] = {}
    for name in unread(checkpoint, model):
        tensor = _plain(checkpoint, name)
        if tensor is None:
            lost.append(name)
        else:
            files.setdefault(checkpoint.places[name].file, {})[name] = tensor
    for number, tensors in enumerate(files.values(), 1):
        _add(folder, f"model-rest-{number:05}.safetensors", tensors)
    if lost:
        file = folder / CONFIG_NAME
        config = json.loads(file.read_text(encoding="utf-8"))
        for part in (config, config.get("text_config") or {}):
            part.update({name: 0 for name in CLAIMS if part.get(name)})
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return lost


def described(lost: Sequence[str]) -> str:
    """Say in a line which tensors an export lacks."""
    shown = ", ".join(lost[:3]) + (", …" if lost[3:] else "")
    return (
        f"{len(lost)} tensors of the base model are not in these files, and the layers they make up are gone: {shown}."
    )


def _scale_of(name: str, known: set[str]) -> bool:
    """Check whether a tensor is the scale or the packed form of another one."""
    stem, _, last = name.rpartition(".")
    if "scale" in last and (
        f"{stem}.weight" in known or (last.rpartition("_scale")[0] and f"{stem}.{last.partition('_scale')[0]}" in known)
    ):
        return True
    return last.endswith(("_blocks", "_scales")) and name.rpartition("_")[0] in known


def _plain(checkpoint: Checkpoint, name: str) -> Tensor | None:
    """Return a tensor in a plain type, dequantised by its scale for every block or row; None if that is not known."""
    place = checkpoint.places[name]
    if not place.dtype.startswith("F8"):
        known = place.dtype in (*DTYPES, "F64", "I64", "I32", "BOOL")
        return checkpoint.tensor(name) if known else None
    scale_name = f"{name}_scale_inv"
    if scale_name not in checkpoint.places or len(place.shape) != 2:
        return None
    scale = checkpoint.tensor(scale_name).float()
    for axis, size in enumerate(place.shape if scale.ndim == 2 else ()):
        scale = scale.repeat_interleave(-(-size // scale.shape[axis]), axis).narrow(axis, 0, size)
    return (checkpoint.tensor(name).float() * scale).bfloat16()


def _add(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    """Add a shard to saved weights, whose index is made if they are in one file."""
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if single.is_file():
        first = single.replace(folder / "model-00001.safetensors")
        with safe_open(str(first), "pt") as opened:
            listed = dict.fromkeys(opened.keys(), first.name)
        index.write_text(json.dumps({"metadata": {}, "weight_map": listed}), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    document = json.loads(index.read_text(encoding="utf-8"))
    document["weight_map"].update(dict.fromkeys(tensors, file))
    size = sum(each.stat().st_size for each in folder.glob("model-*.safetensors"))
    document.setdefault("metadata", {})["total_size"] = size
    index.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
