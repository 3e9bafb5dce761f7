"""Directions in a file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from iconoclast.directions.estimators import Directions
from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole


def save_directions(directions: Directions, file: Path) -> None:
    """Write the directions of every method and their basis; raise RunFolderError if the file cannot be written."""
    tensors = {f"raw.{name}": tensor.contiguous() for name, tensor in directions.raw.items()}
    write_whole(file, save({**tensors, "basis": directions.basis.contiguous()}))


def load_directions(file: Path) -> Directions:
    """Read directions; raise RunFolderError if the file is missing or damaged."""
    try:
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise RunFolderError(f"{file} is missing or damaged ({error}). Start the run again.") from None
    if "basis" not in tensors or len(tensors) < 2:
        raise RunFolderError(f"{file} is damaged: directions or basis are missing. Start the run again.")
    basis = tensors.pop("basis")
    return Directions({name.removeprefix("raw."): tensor for name, tensor in tensors.items()}, basis)
