"""Models that can be asked by name: the base model, an edit of it, every trial of a run."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from iconoclast.config.schema import Settings
from iconoclast.errors import ModelError, RunFolderError, SettingsError, UserError
from iconoclast.evaluation.examination import Variant
from iconoclast.layout import GGUF_FILE
from iconoclast.models.adapters import adapter_base, adapter_scaled, is_adapter, put_adapter
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.runs.composition import ComposedEdits, open_together
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.export import TEMPLATE
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.kinds import kind_of
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.workbench import Workbench

BASE, EDITED, TRIAL = "base", "edited", "trial-"


class UnknownVoice(UserError):
    """A name that no model here answers to."""


class Voices(Protocol):
    """Models that can be asked by name.

    Attributes:
        system: the system prompt that the models were measured with.
        beside: edits of other runs that follow every edit, for people, as in " + wordy:12"; empty if there are none.
    """

    system: str | None
    beside: str

    @property
    def names(self) -> Sequence[str]:
        """Names that can be asked: the base model, its edit if there is one, trials."""
        ...

    @property
    def edited(self) -> str:
        """Which edit is meant by "edited", for people; empty if there is none."""
        ...

    def voice(self, name: str, strength: float = 1) -> Variant:
        """Return the model of a name, its edit's strengths multiplied by `strength`.

        Raises:
            UnknownVoice: there is none of that name.
            ModelError: its files cannot be loaded, or its strength cannot be changed.
        """
        ...


@dataclass
class RunVoices:
    """The base model of a run, and its trials applied live, each followed by those of the runs beside it."""

    saved: SavedRun
    bench: Workbench

    def __post_init__(self) -> None:
        self.system = self.saved.settings.system_prompt
        self.beside = "".join(f" + {other.name}" for other in self.saved.beside)
        self._trials = {EDITED: self.saved.trial, **{f"{TRIAL}{each.index}": each for each in self.saved.trials}}

    @property
    def names(self) -> Sequence[str]:
        return [BASE, *self._trials]

    @property
    def edited(self) -> str:
        return f"trial {self.saved.trial.index}{self.beside}"

    def voice(self, name: str, strength: float = 1) -> Variant:
        if name == BASE:
            return Variant(name, self.bench.lm)
        require_name(name, self.names)
        saved = replace(self.saved, trial=self._trials[name])
        composed = ComposedEdits.on([saved, *saved.beside], self.bench)
        return composed.benches[0].live(name, composed.edit.scaled(strength))


@dataclass
class AdapterVoices:
    """A base model with an adapter on it, which is switched off for the base."""

    lm: LanguageModel
    edited: str
    system: str | None = None
    names: Sequence[str] = (BASE, EDITED)
    beside: str = ""

    def voice(self, name: str, strength: float = 1) -> Variant:
        require_name(name, self.names)
        factor = 0 if name == BASE else strength

        def applied() -> AbstractContextManager[None]:
            return adapter_scaled(self.lm.model, factor)

        return Variant(name, self.lm, applied)


@dataclass
class ModelVoices:
    """A model in files of its own, and the base model that it was made from, loaded when it is first asked.

    Attributes:
        model: an export, or else a base model that nothing was made of.
        base: name of the base model; None if `model` is one itself.
    """

    model: LanguageModel
    base: str | None = None
    edited: str = ""
    system: str | None = None
    beside: str = ""
    _base: LanguageModel | None = field(default=None, repr=False)

    @property
    def names(self) -> Sequence[str]:
        return [BASE] if self.base is None else [BASE, EDITED]

    def voice(self, name: str, strength: float = 1) -> Variant:
        require_name(name, self.names)
        if name == BASE:
            return Variant(name, self._loaded_base())
        if strength != 1:
            raise ModelError(f"The edit is merged into {self.model.name}, so that its strength cannot be changed.")
        return Variant(name, self.model)

    def _loaded_base(self) -> LanguageModel:
        if self.base is None:
            return self.model
        if self._base is None:
            ours = self.model
            loaded = load_model(self.base, dtypes=[ours.dtype], chat_template="raw")
            loaded.tokenizer.chat_template = ours.tokenizer.chat_template
            self._base = replace(loaded, response_prefix=ours.response_prefix, template_date=ours.template_date)
        return self._base


def require_name(name: str, names: Sequence[str]) -> None:
    """Raise UnknownVoice unless the name is one of `names`."""
    if name not in names:
        trials = [each for each in names if each.startswith(TRIAL)]
        shown = [each for each in names if each not in trials] + ([f"{trials[0]} … {trials[-1]}"] if trials else [])
        gaps = " Pruned trials are not among them." if name.startswith(TRIAL) and trials else ""
        raise UnknownVoice(f'There is no model "{name}" here. Use one of: {", ".join(shown)}.{gaps}')


def open_voices(
    source: str, which: str = "best", base: str | None = None, beside: Sequence[tuple[Path, str]] = ()
) -> Voices:
    """Load what a user names by a run folder, an export, an adapter folder or any other model.

    Args:
        which: number of a run's trial, or best.
        base: base model of an export; unset, the one that it names.
        beside: other runs on a run's model, and which of their trials follow each of its own.

    Raises:
        UserError: there is nothing of the kind, or it cannot be loaded.
    """
    folder = Path(source).expanduser()
    kind = kind_of(folder)
    if kind == "run":
        if base is not None:
            raise SettingsError("A run has a base model of its own. Leave out --base.")
        saved = open_together([(folder, which), *beside])
        return RunVoices(saved, saved.workbench())
    if beside:
        raise SettingsError(f"{source} is not a run, and only edits of runs go together. Leave out --with.")
    if which != "best":
        raise RunFolderError(f"{source} has no trials: only a run has. Leave out the number.")
    if kind == "export":
        return _export_voices(folder, base)
    if is_adapter(source):
        lm = load_model(base or str(adapter_base(source)))
        put_adapter(lm, source)
        return AdapterVoices(lm, folder.name)
    if base is not None:
        raise SettingsError(
            f"{source} is neither an export nor an adapter, and is its own base model. Leave out --base."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise RunFolderError(f"{folder} holds no run, export or model. Give the folder of one.")
    return ModelVoices(load_model(source))


def _export_voices(folder: Path, base: str | None) -> Voices:
    """Load an export of ours from its files; its settings have no say in what runs here, and where."""
    told, known = TrialInformation.of(folder), RunFolder(folder).settings()
    settings = Settings(dtypes=known.dtypes, template_date=known.template_date, system_prompt=known.system_prompt)
    edited = f"{folder.resolve().name}, an export of trial {told.trial.index}"
    if told.format == "adapter":
        if (template := folder / TEMPLATE).is_file():
            settings = settings.model_copy(update={"chat_template": str(template)})
        bench = Workbench.load(settings, base or adapter_base(str(folder)) or told.base_model, told.quantization)
        put_adapter(bench.lm, str(folder))
    else:
        bench = Workbench.load(settings, str(folder / GGUF_FILE if told.format == "gguf" else folder))
    bench.start_responses_with(told.response_prefix)
    if told.format == "adapter":
        return AdapterVoices(bench.lm, edited, settings.system_prompt)
    return ModelVoices(bench.lm, base or told.base_model, edited, settings.system_prompt)
