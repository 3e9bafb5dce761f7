"""What was computed for a model and prompts, kept in the user's cache for later runs on both."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from iconoclast.errors import RunFolderError
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Progress
from iconoclast.runs.cache import Cache
from iconoclast.runs.manifest import hardware, packages, weight_hashes

T = TypeVar("T")


@dataclass
class Kept:
    """Documents and tensors that are kept of one model.

    Args:
        cache: where. With a limit of 0 nothing is kept or read.
        lm: the model as it was loaded, nothing applied to it.
        progress: told of damaged entries.
    """

    cache: Cache
    lm: LanguageModel
    progress: Progress
    _model: str | None = field(default=None, init=False)
    _usable: bool = field(default=True, init=False)

    def tensor(self, kind: str, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` gives for this model and key (plain data), from the cache if it is there."""
        return self._of(kind, key, compute, lambda c: load(c)["value"], lambda v: save({"value": v.contiguous()}))

    def document(self, kind: str, key: object, compute: Callable[[], T]) -> T:
        """Return the plain data that `compute` gives for this model and key, from the cache if it is there."""
        found: T = self._of(kind, key, compute, json.loads, lambda value: json.dumps(value).encode())
        return found

    def _of(
        self,
        kind: str,
        key: object,
        compute: Callable[[], T],
        parse: Callable[[bytes], T],
        content_of: Callable[[T], bytes],
    ) -> T:
        if not (self.cache.limit and self._usable and self._fingerprint()):
            return compute()
        name = hashlib.sha256(json.dumps([self._fingerprint(), kind, key], sort_keys=True).encode()).hexdigest()
        try:
            if (content := self.cache.read(name)) is not None:
                return parse(content)
        except (ValueError, LookupError, SafetensorError):
            self.progress.note(f"The cache's {kind} ({name[:8]}…) is damaged and is computed again.")
        value = compute()
        try:
            self.cache.write(name, kind, self.lm.name, content_of(value))
        except (RunFolderError, OSError) as error:
            self._usable = False
            self.progress.note(f"Nothing is kept for later runs: {str(error).split('. ')[0]}.")
        return value

    def _fingerprint(self) -> str:
        """Name the model by its contents and what else numbers depend on; empty if not all of that is known."""
        if self._model is None:
            lm, weights, machine = self.lm, weight_hashes(self.lm.path), hardware()
            config = {key: value for key, value in lm.model.config.to_dict().items() if key != "_name_or_path"}
            place = str(lm.device), machine.processor, machine.threads, machine.gpus
            about = [weights, config, lm.dtype, lm.quantization, place, packages(), _source()]
            brings_code = type(lm.model).__module__.startswith("transformers_modules")
            name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
            self._model = name if weights and not brings_code else ""
        return self._model


@cache
def _source() -> str:
    """Hash this package's own code: with other code, numbers may be others."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
