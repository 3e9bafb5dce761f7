"""What a judge is: a second opinion on what a response is."""

from collections.abc import Callable, Sequence
from typing import Protocol

from iconoclast.config.schema import Settings
from iconoclast.errors import UserError
from iconoclast.registry import Registry
from iconoclast.vocabulary import LABELS, Verdict

Item = tuple[str, str]
"""A prompt and the response to it."""
VERDICTS: dict[object, Verdict] = {label: label for label in LABELS}


class JudgeError(UserError):
    """A judge that cannot be loaded or asked, or a file of verdicts that cannot be used."""


class Judge(Protocol):
    """Says what responses are."""

    @property
    def name(self) -> str:
        """Name of the judge, for people and as a key: another one where verdicts may differ."""

    @property
    def problem(self) -> str | None:
        """Why verdicts are unknown, in one line; None if nothing went wrong."""

    def judge(self, items: Sequence[Item], advance: Callable[[int], None] = lambda n: None) -> list[Verdict]:
        """Return one verdict an item, in order; unknown where there is none. `advance` is told of items that are done."""


judges: Registry[Callable[[Settings], Judge]] = Registry("judge", "judges")
"""What makes a judge from the settings, by name; another package adds one as an entry point in the group iconoclast.judges."""
