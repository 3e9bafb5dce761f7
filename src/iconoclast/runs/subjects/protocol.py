"""What a subject is, and the registry of what finds one."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from iconoclast.config.schema import Settings
from iconoclast.documents import Plain
from iconoclast.evaluation.examination import Examination, Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.registry import Registry
from iconoclast.runs.references import split_reference
from iconoclast.runs.splits import Prompts
from iconoclast.runs.workbench import Workbench
from iconoclast.vocabulary import Label


@dataclass(frozen=True)
class Opened:
    """A subject that can be measured now.

    Attributes:
        examine: measures it beside its base model.
        labels: what its responses to a prompt set are, of at most so many tokens.
        variant: the model, with what turns prompts into tokens from its base; None if only its answers can be had.
    """

    examine: Callable[[], Examination]
    labels: Callable[[PromptSet, int], list[Label]]
    variant: Variant | None = None


class Subject(Protocol):
    """A model to examine."""

    @property
    def name(self) -> str:
        """Name in reports."""

    def opened(self, examiner: Examiner, bench: Workbench, progress: Progress) -> AbstractContextManager[Opened]:
        """Open it beside its base model, that of the workbench, which stays as it is.

        Raises:
            UserError: it cannot be used.
        """

    def seen(self, prompts: Prompts) -> Sequence[PromptSet] | None:
        """Return the prompt sets that fitted or chose it, perhaps some of `prompts`; None if they are not known.

        Raises:
            PromptsError: one of them cannot be read.
        """
        return None

    def document(self, base: str) -> Plain:
        """Describe it without measuring, for JSON; `base` is the name of the model that it is compared with."""

    @property
    def served(self) -> bool:
        """True if another program runs it, which cannot be told how responses begin, or to think first."""
        return False

    def settings(self) -> Settings | None:
        """Return the settings that it was made with, to measure it with; None if it does not say.

        It can be a stranger's: it has no say in whether a model's code is run or where responses and keys are sent.

        Raises:
            SettingsError: they cannot be used here.
        """
        return None

    @property
    def translated(self) -> bool:
        """True if those are another tool's settings, in our terms: those of a run of ours come first."""
        return False


class Loadable(Subject, Protocol):
    """A subject that is loaded here."""

    @abstractmethod
    def loaded(self, base: LanguageModel, settings: Settings) -> AbstractContextManager[Variant]:
        """Load the model as the settings say; `base`, its base model, must stay as it is."""

    @contextmanager
    def opened(self, examiner: Examiner, bench: Workbench, progress: Progress) -> Iterator[Opened]:
        """Load it and lay out its weights; let it go in the end."""
        with self.loaded(bench.lm, bench.settings) as own, bench.beside(own.lm):
            variant = examiner.like_base(own)
            yield Opened(
                lambda: examiner.examine(variant, progress),
                lambda prompts, length: examiner.labels(variant, prompts, length, progress),
                variant,
            )


@dataclass(frozen=True)
class Named:
    """A name that a user gives a subject by.

    Attributes:
        text: as it was given.
        source: the same without the number of a trial.
        trial: that number; None if there is none.
        settings: decide which trial of another tool's journal is the best.
    """

    text: str
    source: str
    trial: str | None = None
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def of(cls, text: str, settings: Settings | None = None) -> "Named":
        """Split what the user gave."""
        source, trial = split_reference(text)
        return cls(text, source, trial, settings or Settings())

    @property
    def path(self) -> Path:
        """The source as a path, whether it leads to something or not."""
        return Path(self.source)

    @property
    def which(self) -> str:
        """The trial that is meant: its number, or best."""
        return "best" if self.trial is None else self.trial


subjects: Registry[Callable[[Named], Subject | None]] = Registry("kind of subject", "subjects")
"""What finds a subject by its name, or returns None if the name is of another kind; asked in turn, before the name is taken for a
model's. Another package adds one as an entry point in the group iconoclast.subjects."""
