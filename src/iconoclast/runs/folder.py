"""The run folder: what a run leaves behind, every file whole or not at all."""

import errno
import fcntl
import json
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tomli_w
import torch
from filelock import FileLock
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from iconoclast.config import Settings, settings_document
from iconoclast.directions.estimators import Directions
from iconoclast.errors import RunFolderError

SCHEMA_VERSION = 1
"""Of the files of a run folder (docs/runs.md); raised when an older reader would misunderstand them."""

FREE_SETTINGS = frozenset(
    [
        "n_trials",
        "trials_per_batch",
        "prune_trials",
        "exit_after_optimization",
        "batch_size",
        "max_batch_size",
        "device_map",
        "max_memory",
        "study_checkpoint_dir",
        "study_storage",
        "full_normalization_lora_rank",
        "good_report_prompts",
        "bad_report_prompts",
        "borderline_report_prompts",
        "allow_overlap",
        "random_controls",
        "judge_classifier",
        "judge_chat",
    ]
)
"""Settings that may change between two starts of one run: they do not change what a trial's scores mean."""

PATIENCE = 0.5
"""Seconds to wait for a lock: whoever only looks whether a run is in use has it for a moment."""

BEFORE_A_RUN = frozenset([".lock", ".alone", "workers", "cluster"])
"""What may be in a run folder before the run is."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and the names in it."""

    path: Path

    @property
    def config(self) -> Path:
        """Effective settings."""
        return self.path / "iconoclast_config.toml"

    @property
    def manifest(self) -> Path:
        """What the run is made of and made by."""
        return self.path / "manifest.json"

    @property
    def journal(self) -> Path:
        """The Optuna study."""
        return self.path / "iconoclast_study.jsonl"

    @property
    def baseline(self) -> Path:
        """The base model's scores and what was found out about the model."""
        return self.path / "baseline.json"

    @property
    def directions(self) -> Path:
        """Directions and benign basis."""
        return self.path / "directions.safetensors"

    @property
    def summary(self) -> Path:
        """The results."""
        return self.path / "batch_summary.json"

    @property
    def log(self) -> Path:
        """What the run has said, with times."""
        return self.path / "log.txt"

    @property
    def workers(self) -> Path:
        """Signs of life of the processes that work on the run together."""
        return self.path / "workers"

    @property
    def cluster(self) -> Path:
        """What was submitted to a cluster, and the logs of it."""
        return self.path / "cluster"

    @property
    def samples(self) -> Path:
        """Responses of the base model and the best trial to the report prompts."""
        return self.path / "samples.jsonl"

    def check(self, settings: Settings) -> None:
        """Whether a run with these settings can begin or continue here. Touches nothing.

        Raises:
            RunFolderError: the folder holds something else, or a run with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file. Give a folder for the run with --out.")
        if self.config.is_file():
            changed = changed_settings(self.settings(), settings)
            if changed:
                raise RunFolderError(
                    f"{self.path} holds another run; these settings differ: {', '.join(changed)}. "
                    "Give the same settings to continue it, or another folder with --out."
                )
        elif self.path.is_dir() and any(entry.name not in BEFORE_A_RUN for entry in self.path.iterdir()):
            raise RunFolderError(f"{self.path} is not empty and holds no run. Give another folder with --out.")

    def claim(self, settings: Settings) -> None:
        """Begin a run here, or continue the one that is here; the folder is locked and has been checked.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        write_whole(self.config, tomli_w.dumps(portable(settings_document(settings))).encode())

    @contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """While this lasts, no other process works on this run, or with `shared` only such that share it as well.

        If no run is begun meanwhile, nothing stays behind.

        Raises:
            RunFolderError: another process does.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise self._unwritable(error) from None
        with lock:
            until = time.monotonic() + PATIENCE
            while not _locked(lock, shared):
                if time.monotonic() > until:
                    raise RunFolderError(f"Another process is working on the run {self.path}. Wait for it, or stop it.")
                time.sleep(PATIENCE / 5)
            try:
                yield
            finally:
                if not self.config.is_file():
                    (self.path / ".lock").unlink(missing_ok=True)
                    with suppress(OSError):  # somebody else has put something there
                        for folder in made:
                            folder.rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process that shares the run is in here."""
        with FileLock(self.path / ".alone"):
            yield

    def in_use(self) -> bool:
        """Whether a process works on this run. Leaves nothing behind."""
        try:
            with (self.path / ".lock").open("r+") as lock:  # network file systems lock only what can be written
                return not _locked(lock, shared=False)
        except (OSError, RunFolderError):  # there is none, or it is not ours to look at
            return False

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"The run folder {self.path} cannot be written: {error.strerror}. Give another with --out."
        )

    def settings(self) -> Settings:
        """The settings of the run that is here.

        Raises:
            RunFolderError: there is no run, or one of a newer version.
        """
        self._require_known_schema()
        try:
            return Settings(**tomllib.loads(self.config.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise RunFolderError(f"{self.path} holds no run: there is no {self.config.name} in it.") from None
        except OSError as error:
            raise RunFolderError(f"{self.config} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise RunFolderError(f"{self.config} is damaged or from another version: see {keys}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RunFolderError(f"{self.config} is damaged: {error}.") from None

    def _require_known_schema(self) -> None:
        for file in (self.manifest, self.summary):
            if not file.is_file():
                continue
            require_known_schema(file, self.read_json(file))

    def save_directions(self, directions: Directions) -> None:
        """Keep the directions."""
        tensors = {f"raw.{name}": tensor.contiguous() for name, tensor in directions.raw.items()}
        write_whole(self.directions, save({**tensors, "basis": directions.basis.contiguous()}))

    def load_directions(self) -> Directions:
        """The directions kept here.

        Raises:
            RunFolderError: there are none, or the file is damaged.
        """
        try:
            tensors = load_file(self.directions)
        except (FileNotFoundError, SafetensorError) as error:
            raise RunFolderError(f"{self.directions} is missing or damaged ({error}). Start the run again.") from None
        if "basis" not in tensors or len(tensors) < 2:
            raise RunFolderError(f"{self.directions} is damaged: directions or basis are missing. Start the run again.")
        basis: torch.Tensor = tensors.pop("basis")
        return Directions({name.removeprefix("raw."): tensor for name, tensor in tensors.items()}, basis)

    def read_json(self, file: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
        """One of the JSON files, with these keys in it.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.path} has no {file.name} yet. Let the run measure the base model first."
            ) from None
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{file} is damaged: {error}. Delete it and start the run again.") from None
        if not isinstance(document, dict) or not all(key in document for key in keys):
            wanted = f"an object with {', '.join(keys)}" if keys else "an object"
            raise RunFolderError(f"{file} is damaged: it must hold {wanted}. Delete it and start the run again.")
        return document

    def read_baseline(self) -> dict[str, Any]:
        """What is known of the base model.

        Raises:
            RunFolderError: it has not been measured yet, or the file is damaged.
        """
        return self.read_json(self.baseline, ("layers", "response_prefix", "kl_noise_floor", "base_metrics"))


def _locked(file: IO[str], shared: bool) -> bool:
    """Take the operating system's lock of a file, which lasts until it is closed; False if somebody else has it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"{file.name} cannot be locked: {error.strerror}. Give a folder on a file system that has locks."
        ) from None
    return True


def require_known_schema(file: Path, document: Mapping[str, Any]) -> None:
    """Raise RunFolderError if a newer version has written this document: what it says may not be what it seems."""
    found = document.get("schema_version")
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise RunFolderError(
            f"{file} has schema version {found}, and this version of ICONOCLAST knows {SCHEMA_VERSION}. Update it."
        )


def pinned_settings(settings: Settings) -> dict[str, Any]:
    """The settings that must not change within a run, as plain data."""
    document = portable(settings_document(settings))
    return {key: value for key, value in document.items() if key not in FREE_SETTINGS}


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Names of the pinned settings that differ."""
    old, new = pinned_settings(before), pinned_settings(after)
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


PATHS = frozenset(
    [
        "model",
        "dataset",
        "chat_template",
        "study_checkpoint_dir",
        "include_path",
        "source",
        "sources",
        "name",
        "command",
    ]
)
"""Keys whose values can be paths, or begin with one; everything else, prompts among it, is left as it is."""


def portable(value: Any, path: bool = True) -> Any:
    """The same data, the user's home written as ~ where a path can be."""
    if isinstance(value, str):
        home = str(Path.home())
        return re.sub(rf"{re.escape(home)}(?=/|$)", "~", value) if path and len(home) > 1 else value
    if isinstance(value, Mapping):
        return {key: portable(item, key in PATHS) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, path) for item in value]
    return value


def public(value: Any, path: bool = True) -> Any:
    """The same data for somebody else's eyes: of local paths the last part alone."""
    if isinstance(value, str):
        local = value.startswith(("/", "~/", "./", "../")) or (path and "/" in value and _exists(value))
        return value.rsplit("/", 1)[-1] if path and local else value
    if isinstance(value, Mapping):
        return {key: public(item, key in PATHS) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, path) for item in value]
    return value


def _exists(value: str) -> bool:
    """Whether a name, or what it is before its split, is a file or folder here."""
    return Path(value).exists() or Path(value.split(" ", 1)[0]).exists()


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with a disk, if an error says that something is: full, over its quota, read-only, broken."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    if isinstance(error, OSError):
        return error.strerror if error.errno in codes else None
    return next(
        (reason for reason in map(os.strerror, codes) if reason in str(error)), None
    )  # safetensors says it in words


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_whole(file, (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(file: Path, content: bytes) -> None:
    """Replace `file` by `content` in one step: a crash leaves the old file or the new one, never a part.

    Raises:
        RunFolderError: it cannot be written; what was there before still is.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError as error:
        raise RunFolderError(
            f"{file} cannot be written: {error.strerror}. What was finished is kept. Mend that, then give the same command again."
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
