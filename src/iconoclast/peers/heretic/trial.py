"""A trial of one of heretic's journals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from iconoclast.config.schema import FIT_AND_SELECT, Settings
from iconoclast.documents import Plain, first_problem
from iconoclast.edits.edit import Edit
from iconoclast.errors import ModelError, SettingsError
from iconoclast.models.language_model import LanguageModel
from iconoclast.peers.heretic.journal import HereticStudy, HereticTrial, heretic_directions
from iconoclast.prompts import PromptSet, load_prompts
from iconoclast.scores import Count


@dataclass(frozen=True)
class HereticPeerTrial:
    """A trial of a heretic study; see `peers.protocol.PeerTrial`."""

    study: HereticStudy
    trial: HereticTrial

    @property
    def name(self) -> str:
        return f"heretic trial {self.trial.number}"

    def edit(self, base: LanguageModel) -> Edit:
        """Make the trial's edit, its directions estimated from heretic's own prompts."""
        theirs = self.study.settings
        if Path(theirs.model).name != Path(base.path).name:
            raise ModelError(
                f"{self.study.file} is of {theirs.model}, not of {base.name}. Name that model with --against."
            )
        sets = (load_prompts(source, theirs.system_prompt, 2) for source in (theirs.good_prompts, theirs.bad_prompts))
        return self.study.edit(self.trial, base, heretic_directions(base, self.study, *sets))

    def seen(self) -> Sequence[PromptSet] | None:
        """Load heretic's prompt sets; None if its journal does not name all of them."""
        theirs = self.study.settings
        sources = [getattr(theirs, name) for name in FIT_AND_SELECT]
        return None if None in sources else [load_prompts(source, theirs.system_prompt) for source in sources]

    def settings(self) -> Settings:
        """Return the study's model, prompts, markers and lengths as settings."""
        theirs = self.study.settings
        same = ("model", "quantization", "system_prompt", "response_prefix", "max_response_length", "refusal_markers")
        known = {name: value for name in (*same, *FIT_AND_SELECT) if (value := getattr(theirs, name)) is not None}
        try:
            return Settings(**known)
        except ValidationError as error:
            raise SettingsError(
                f"The settings in {self.study.file} cannot be used here: {first_problem(error)}. "
                "Give a settings file with --config."
            ) from None

    def document(self) -> Plain:
        """Return heretic's measurements of it, on its own evaluation prompts."""
        trial = self.trial.model_dump(mode="json", exclude={"refusals", "base_refusals", "prompts"})
        counts = {"refusals": self.trial.refusals, "base_refusals": self.trial.base_refusals}
        n = self.trial.prompts
        trial |= {name: Count(k, n).document() for name, k in counts.items() if k is not None and n is not None}
        return {
            "tool": "heretic",
            "trial": trial,
            "row_normalization": self.study.settings.row_normalization,
            "caveats": self.study.caveats,
        }
