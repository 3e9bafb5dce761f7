"""Resolution of model names to their locations."""

import os
from pathlib import Path

from iconoclast.errors import ModelError
from iconoclast.models.demo import demo_folder, ensure_demo
from iconoclast.vocabulary import DEMO


def resolve(name: str) -> str:
    """Find the folder, .gguf file or hub id behind a name, creating nothing; raise ModelError for a path to nothing."""
    if name == DEMO:
        return str(demo_folder())
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or name.count("/") > 1:
        raise ModelError(f"There is no model at {name}. Give a hub id, a model folder, a .gguf file, or demo.")
    return name


def local_path(name: str) -> str:
    """Return the folder, file or hub id behind a model name, converting the demo model first if need be."""
    return str(ensure_demo()) if name == DEMO else resolve(name)
