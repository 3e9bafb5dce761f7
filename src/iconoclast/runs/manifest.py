"""manifest.json: the origin of a run, so that a stranger can make it again and see what differs."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from iconoclast.layout import CHECKSUMS
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.transformers_internals import revision
from iconoclast.privacy import command_line
from iconoclast.runs.documents import Hardware, Manifest, ModelOrigin, Program, PromptSets, Start
from iconoclast.version import __version__

PACKAGES = (
    "torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "optuna", "datasets", "bitsandbytes", "numpy",
)  # fmt: skip


def manifest(lm: LanguageModel, seed: int, prompts: PromptSets, settings: Mapping[str, Any]) -> Manifest:
    """Describe a run that was never started; `prompts` is `Prompts.document()`, `settings` the effective ones as plain data."""
    origin = ModelOrigin(
        name=lm.name,
        revision=revision(lm.model),
        architecture=type(lm.model).__name__,
        dtype=lm.dtype,
        quantization=lm.quantization,
        response_prefix=lm.response_prefix,
        weights=weight_hashes(lm.path),
    )
    return Manifest(seed=seed, model=origin, prompts=prompts, settings=settings, starts=[])


def this_start() -> Start:
    """Record the program, place and time of a start; no user name, no secret."""
    return Start(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv),
        iconoclast=Program(version=__version__, commit=source_commit()),
        packages=packages(),
        python=platform.python_version(),
        hardware=hardware(),
    )


def packages() -> dict[str, str]:
    """Return the versions of the installed packages that numbers depend on."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> Hardware:
    """Describe this machine."""
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    )


def weight_hashes(path: str) -> dict[str, str]:
    """Return the SHA-256 of every weight file by name; nothing unless they are local safetensors or GGUF files."""
    if path.lower().endswith(".gguf"):
        return {Path(path).name: file_hash(Path(path))}
    checkpoint = Checkpoint.find(path)
    return {} if checkpoint is None else {name: file_hash(checkpoint.folder / name) for name in checkpoint.files}


def file_hash(file: Path) -> str:
    """Return a file's SHA-256. Files in the hub's cache are named by it, which saves reading them."""
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sums(folder: Path) -> str:
    """Write a line for every file but the sums themselves, as `sha256sum` writes and checks them."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != CHECKSUMS]
    return "".join(f"{file_hash(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)


def source_commit() -> str | None:
    """Return the commit of the checkout that this program runs from; None if there is none."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", __file__):
            return None
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
