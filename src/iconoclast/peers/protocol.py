"""The protocol of another tool's format, and the registry of known tools."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from iconoclast.config.schema import Settings
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.models.language_model import LanguageModel
from iconoclast.prompts import PromptSet
from iconoclast.registry import Registry


class PeerTrial(Protocol):
    """A trial of another tool, made again as an Edit."""

    @property
    def name(self) -> str:
        """The tool and the trial, as in "tool trial 3"."""

    def edit(self, base: LanguageModel) -> Edit:
        """Make the trial's edit of its base model.

        Raises:
            ModelError: `base` is another model, or the trial edits what cannot be edited here.
        """

    def seen(self) -> Sequence[PromptSet] | None:
        """Load the prompt sets that fitted or chose it; None if they are not known."""

    def settings(self) -> Settings:
        """Return the settings to measure it here; raise SettingsError if they cannot be used here."""

    def document(self) -> Plain:
        """Return the tool's measurements of it, with "tool" and "caveats", for JSON."""


class Peer(Protocol):
    """Another tool."""

    def reads(self, file: Path) -> bool:
        """Check that a file may be of this tool."""

    def trial(self, file: Path, which: str, kl_target: float) -> PeerTrial:
        """Read a trial: "best" or a number, as the tool shows it.

        Raises:
            RunFolderError: the file is something else or damaged, or has no such trial.
        """

    def command(
        self, program: Path, folder: Path, settings: Settings, prompts: Mapping[str, PromptSet]
    ) -> Sequence[str]:
        """Write into `folder` whatever the tool needs to do a run's work there, and return the command that starts it.

        The program is in an environment of its own, the command is started in the folder, and the run's prompt sets go by the
        names of their settings.

        Raises:
            UserError: the tool cannot do the same.
        """

    def summary(self, program: Path, folder: Path, settings: Settings, prompts: Mapping[str, PromptSet]) -> Plain:
        """Return results like batch_summary.json; raise MeasurementError if the tool has measured nothing."""


peers: Registry[type[Peer]] = Registry("peer", "peers")
