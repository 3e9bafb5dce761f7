"""The kinds of subjects that come with the program: a trial of a run or of another tool, an edit, a model, a server."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from iconoclast.config.schema import FIT_AND_SELECT, Settings, without_functions
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import load_edit
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.evaluation.examination import Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.served import Server, examine_served, served_labels
from iconoclast.models.adapters import is_adapter, other_base, put_adapter
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model, stored_quantized
from iconoclast.models.names import resolve
from iconoclast.peers.known import peer_trial
from iconoclast.peers.protocol import PeerTrial
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet, load_prompts
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.kinds import kind_of
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.splits import Prompts
from iconoclast.runs.subjects.protocol import Loadable, Named, Opened, Subject, subjects
from iconoclast.runs.trials import trial_document
from iconoclast.runs.workbench import Workbench


@dataclass(frozen=True)
class RunSubject(Loadable):
    """A trial of a run, applied live."""

    folder: Path
    saved: SavedRun

    @property
    def name(self) -> str:
        return f"{self.folder.name} trial {self.saved.trial.index}"

    @contextmanager
    def loaded(self, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        """Apply the trial's edit to the base model; raise ModelError if the run is of another model."""
        own = self.saved.settings.model or ""
        shape = self.saved.directions.basis.shape
        if Path(own).name != Path(base.name).name or shape[:2] != (base.layers, base.hidden_size):
            raise ModelError(
                f"{self.folder} is a run of {own}, not of {base.name}. Compare it with models of the same base."
            )
        yield _edited(self.name, base, self.saved.edit(base))

    def seen(self, prompts: Prompts) -> Sequence[PromptSet] | None:
        """Return the run's prompt sets except those of its report; None if they have changed since."""
        settings, known = self.saved.settings, self.saved.prompts
        sets = [load_prompts(getattr(settings, name), settings.system_prompt) for name in FIT_AND_SELECT]
        then = [known[name]["sha256"] for name in FIT_AND_SELECT if name in known]
        return None if then and then != [each.fingerprint for each in sets] else sets

    def settings(self) -> Settings:
        """Return the run's settings, without what a stranger's could do here."""
        own: Plain = {"response_prefix": self.saved.response_prefix}
        harmless: Plain = {"judge_chat": None, "judges": [], "judged_finalists": 0, "trust_remote_code": False}
        return without_functions(self.saved.settings.model_copy(update=own | harmless))

    def document(self, base: str) -> Plain:
        """Return the trial and its scores in the run, on the select prompts."""
        return {"tool": "iconoclast", "trial": trial_document(self.saved.trial).document()}


@dataclass(frozen=True)
class PeerSubject(Loadable):
    """A trial of another tool, made again as an edit and applied live."""

    trial: PeerTrial

    @property
    def name(self) -> str:
        return self.trial.name

    @contextmanager
    def loaded(self, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        yield _edited(self.name, base, self.trial.edit(base))

    def seen(self, prompts: Prompts) -> Sequence[PromptSet] | None:
        return self.trial.seen()

    def settings(self) -> Settings:
        return self.trial.settings()

    @property
    def translated(self) -> bool:
        return True

    def document(self, base: str) -> Plain:
        """Return the tool's own measurements of the trial."""
        return self.trial.document()


@dataclass(frozen=True)
class EditSubject(Loadable):
    """An edit in a file, applied live."""

    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @contextmanager
    def loaded(self, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        """Apply the edit; raise ModelError if the base has no such matrices."""
        edit = load_edit(self.file)
        known = base.writers(sorted({site.component for site in edit.sites}))
        if odd := [site.module for site in edit.sites if site not in known]:
            raise ModelError(
                f"{self.file} edits {odd[0]}, which {base.name} does not have. Name its base with --against."
            )
        yield _edited(self.name, base, edit)

    def document(self, base: str) -> Plain:
        return {"tool": None, "format": "edit"}


@dataclass(frozen=True)
class ModelSubject(Loadable):
    """A whole model or a PEFT adapter, loaded from its files."""

    source: str

    @property
    def name(self) -> str:
        """The last part of a path, or the hub id."""
        return Path(self.source).name if Path(self.source).exists() else self.source

    @contextmanager
    def loaded(self, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        """Load the model beside its base, and free it in the end; raise ModelError if it cannot be loaded."""
        adapter = is_adapter(self.source)
        quantized = adapter or not stored_quantized(self.source)
        loaded = load_model(
            base.path if adapter else self.source,
            dtypes=[base.dtype],
            quantization=base.quantization if quantized else "none",
            device_map=settings.device_map,
            max_memory=settings.memory_limits,
            trust_remote_code=settings.trust_remote_code,
            chat_template="raw",  # prompts are written with the template of the base
        )
        if adapter:
            put_adapter(loaded, self.source)
        try:
            yield Variant(self.name, loaded)
        finally:
            del loaded
            gc.collect()
            torch.cuda.empty_cache()

    def seen(self, prompts: Prompts) -> Sequence[PromptSet] | None:
        """Return those of `prompts` that an export's papers name; None unless they name all of them by content."""
        try:
            told = TrialInformation.of(Path(self.source)).prompts
        except RunFolderError:
            return None
        sets = prompts.named()
        own = [sets[name] for name in FIT_AND_SELECT if told.get(name, {}).get("sha256") == sets[name].fingerprint]
        return own if len(own) == len(FIT_AND_SELECT) else None

    def document(self, base: str) -> Plain:
        """Return the kind of model, and whether its files name another base."""
        declared = other_base(self.source, base)
        return {
            "tool": "iconoclast" if kind_of(Path(self.source)) == "export" else None,
            "format": "adapter" if is_adapter(self.source) else "model",
            "caveats": declared and [f"its adapter_config.json names {declared} as its base model, not {base}"],
        }


@dataclass(frozen=True)
class ServerSubject(Subject):
    """A model behind an OpenAI-compatible endpoint, which is sent all prompts and does not say what it has seen."""

    server: Server

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def served(self) -> bool:
        return True

    @contextmanager
    def opened(self, examiner: Examiner, bench: Workbench, progress: Progress) -> Iterator[Opened]:
        """Give what asks it; that raises EndpointError if it fails."""
        yield Opened(
            lambda: examine_served(examiner, self.server, progress),
            lambda prompts, length: served_labels(examiner, self.server, prompts, length, progress),
        )

    def document(self, base: str) -> Plain:
        """Say that it is served."""
        return {"tool": None, "format": "server"}


def _edited(name: str, base: LanguageModel, edit: Edit) -> Variant:
    writers = base.writers(sorted({site.component for site in edit.sites}))
    return Variant(name, base, LiveEdits(writers, [edit]).applied)


def find_server(named: Named) -> ServerSubject | None:
    """Find a server by its URL; raise EndpointError if it cannot be asked, or serves several models."""
    return ServerSubject(Server.find(named.text)) if named.text.startswith(("http://", "https://")) else None


def find_run(named: Named) -> RunSubject | None:
    """Find a trial of a run by the run's folder or journal; raise RunFolderError if the run has no such trial."""
    file = _journal(named)
    own = file is not None and file.name == RunFolder(file.parent).journal.name
    folder = named.path.parent if own else named.path
    return RunSubject(folder, SavedRun.open(RunFolder(folder), named.which)) if kind_of(folder) == "run" else None


def find_peer(named: Named) -> PeerSubject | None:
    """Find a trial of another tool by the tool's journal; raise RunFolderError if it has no such trial, or no tool reads it."""
    if (file := _journal(named)) is None:
        return None
    return PeerSubject(peer_trial(file, named.which, named.settings.kl_divergence_target))


def find_edit(named: Named) -> EditSubject | None:
    """Find an edit by its file."""
    found = named.path.is_file() and named.path.suffix == ".safetensors" and named.trial is None
    return EditSubject(named.path) if found else None


# Not as decorators: those would hide from mypy which kind each one finds.
subjects.register("server")(find_server)
subjects.register("run")(find_run)
subjects.register("peer")(find_peer)
subjects.register("edit")(find_edit)


def _journal(named: Named) -> Path | None:
    """Return the file that the user names if it can be a journal; raise RunFolderError if it is called one and not there."""
    if named.path.suffix == ".jsonl" and not named.path.exists():
        raise RunFolderError(f"The journal {named.source} does not exist.")
    return named.path if named.path.is_file() and named.path.suffix in (".jsonl", ".json") else None


def find_subject(text: str, settings: Settings | None = None) -> Subject:
    """Find the subject that a user names by a run folder, a journal, a model or adapter folder, a hub id or an endpoint's URL.

    A colon and a number after a run or journal name a trial; without, the best one is meant.

    Args:
        settings: decide which trial of a journal is the best.

    Raises:
        RunFolderError: there is no such run or trial.
        ModelError: a path leads to no model; a hub id is looked for when it is loaded.
        EndpointError: an endpoint cannot be asked, or serves several models.
    """
    named = Named.of(text, settings)
    for kind in subjects:
        if (found := subjects.get(kind)(named)) is not None:
            return found
    if named.which != "best":
        raise RunFolderError(
            f"{text}: only runs and journals of other tools have trials, and there is neither at {named.source}."
        )
    model = Path(resolve(named.source))
    if model.is_dir() and not is_adapter(named.source) and not (model / "config.json").is_file():
        raise ModelError(
            f"{named.source} holds no model: there is neither config.json nor adapter_config.json. "
            "Give a model, adapter or run folder."
        )
    return ModelSubject(named.source)
