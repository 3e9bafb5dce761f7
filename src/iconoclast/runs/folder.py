"""The run folder: what a run leaves behind, every file whole or not at all."""

import time
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w
from filelock import FileLock
from pydantic import ValidationError

from iconoclast import layout
from iconoclast.config.schema import Settings, settings_document
from iconoclast.documents import Plain, read_known
from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole
from iconoclast.privacy import portable
from iconoclast.runs.documents import Baseline, BatchSummary, Manifest
from iconoclast.runs.locks import PATIENCE, lock_file
from iconoclast.runs.pinned import changed_settings


class _Inside:
    """A file or folder in a run folder, by its name there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "RunFolder", kind: type) -> Path:
        return folder.path / self._name


WITHOUT: Plain = {"soft_refusal_rules": []}
"""What settings that a run or an export of an earlier version does not name meant there, where the default is another by now."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and the names of its files."""

    path: Path

    config = _Inside(layout.CONFIG)
    """Effective settings."""
    manifest = _Inside(layout.MANIFEST)
    """Origin of the run: weights, prompts, versions, machines."""
    journal = _Inside(layout.JOURNAL)
    """The Optuna study."""
    baseline = _Inside(layout.BASELINE)
    """The base model's scores and what was found out about the model."""
    directions = _Inside(layout.DIRECTIONS)
    """Directions and benign basis."""
    geometry = _Inside(layout.GEOMETRY)
    """Places of the residuals of the fit prompts; runs of 0.1 have none."""
    tokens = _Inside(layout.TOKENS)
    """Effect of a trial's edit at every token of some prompts; `report --tokens` adds it."""
    fits = _Inside(layout.FITS)
    """Fitted edits, the losses on the way, and the state of a fit that is not finished."""
    summary = _Inside(layout.SUMMARY)
    """The results."""
    log = _Inside(layout.LOG)
    """Everything that the run has said, with times."""
    workers = _Inside(layout.WORKERS)
    """Signs of life of the run's processes."""
    cluster = _Inside(layout.CLUSTER)
    """Submissions to a cluster, and their logs."""
    samples = _Inside(layout.SAMPLES)
    """Responses of the base model and the best trial to the report prompts."""

    def check(self, settings: Settings) -> None:
        """Raise RunFolderError if a run with these settings can neither begin nor continue here; touch nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file. Give a folder for the run with --out.")
        if self.config.is_file():
            changed = changed_settings(self.settings(), settings)
            if changed:
                raise RunFolderError(
                    f"{self.path} holds another run; these settings differ: {', '.join(changed)}. "
                    "Give the same settings to continue it, or another folder with --out."
                )
        elif self.path.is_dir() and any(entry.name not in layout.BEFORE_A_RUN for entry in self.path.iterdir()):
            raise RunFolderError(f"{self.path} is not empty and holds no run. Give another folder with --out.")

    def dated(self, settings: Settings) -> Settings:
        """Pin the date that chat templates are told: that of the run's first start, or the present."""
        if settings.template_date is not None:
            return settings
        known = self.settings().template_date if self.config.is_file() else None
        if known is None and self.manifest.is_file():  # of an earlier version
            known = next((start.at for start in Manifest.read(self.manifest).starts), None)
        moment = datetime.fromisoformat(known) if known else datetime.now()
        local = moment.astimezone().replace(tzinfo=None) if moment.tzinfo else moment
        return settings.model_copy(update={"template_date": local.isoformat(timespec="seconds")})

    def claim(self, settings: Settings) -> None:
        """Begin or continue a run in a locked, checked folder; raise RunFolderError if it cannot be written."""
        write_whole(self.config, tomli_w.dumps(portable(settings_document(settings))).encode())

    @contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Keep other processes off this run; with `shared`, only those that do not share it.

        If no run is begun meanwhile, nothing stays behind.

        Raises:
            RunFolderError: another process works on it.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / layout.LOCK).open("a")
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written: {error.strerror}. Give another with --out."
            ) from None
        with lock:
            until = time.monotonic() + PATIENCE
            while not lock_file(lock, shared):
                if time.monotonic() > until:
                    raise RunFolderError(f"Another process is working on the run {self.path}. Wait for it, or stop it.")
                time.sleep(PATIENCE / 5)
            try:
                yield
            finally:
                if not self.config.is_file():
                    (self.path / layout.LOCK).unlink(missing_ok=True)
                    with suppress(OSError):  # somebody else has put something there
                        for folder in made:
                            folder.rmdir()

    def alone(self) -> AbstractContextManager[object]:
        """Wait until none of the other processes that share the run is in here."""
        return FileLock(self.path / layout.ALONE)

    def in_use(self) -> bool:
        """Check for a process that works on this run; leave nothing behind."""
        try:
            with (self.path / layout.LOCK).open("r+") as lock:  # network file systems lock only what can be written
                return not lock_file(lock, shared=False)
        except (OSError, RunFolderError):  # there is none, or it is not ours to look at
            return False

    def settings(self) -> Settings:
        """Read the run's settings; raise RunFolderError if there is no run, or one of a newer version."""
        for file in (self.manifest, self.summary):
            if file.is_file():
                read_known(file)
        try:
            return Settings(**WITHOUT | tomllib.loads(self.config.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise RunFolderError(
                f"{self.path} holds no run: there is no {self.config.name} in it. Give a run folder."
            ) from None
        except OSError as error:
            raise RunFolderError(f"{self.config} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise RunFolderError(f"{self.config} is damaged or from another version: see {keys}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RunFolderError(f"{self.config} is damaged: {error}.") from None

    def read_baseline(self) -> Baseline:
        """Read the base model's baseline; raise RunFolderError if it is not measured yet, or damaged."""
        if not self.baseline.is_file():
            raise RunFolderError(f"{self.path} has no {layout.BASELINE} yet. Let the run measure the base model first.")
        return Baseline.read(self.baseline)

    def read_summary(self) -> BatchSummary | None:
        """Read the results, None before the first batch; raise RunFolderError if the file is damaged."""
        return BatchSummary.read(self.summary) if self.summary.is_file() else None
