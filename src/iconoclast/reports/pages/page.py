"""A report page: what it says, and its HTML. The text is page.html.jinja, the figures are drawn by page.js."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole
from iconoclast.reports.pages.responses import Exchange
from iconoclast.version import __version__

ASSETS = files("iconoclast.reports.pages") / "assets"
TEMPLATES = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)

Rows = Sequence[tuple[str, Sequence[str]]]
"""Rows of a table: title, cells."""


@dataclass(frozen=True)
class Tile:
    """A figure at the top: what it is of, before and after, and what the difference is worth."""

    title: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Tables under one heading, the first row of each its head; a table without other rows is left out."""

    title: str
    about: str
    tables: Mapping[str, Sequence[Sequence[str]]]
    leads: bool = False

    @property
    def anchor(self) -> str:
        """Its place in the page's address."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Page:
    """Contents of a report page. A section whose contents are empty is left out.

    Attributes:
        kind: run, export, comparison or audit.
        about: what was done and what came out, in paragraphs.
        measured_on: what the scores are of, in words.
        models: names of the measured models, the base first; columns of `scores`.
        sections: what not every page has; those that lead stand before the scores, the others after them.
        tests: paired tests, by what is compared with what.
        notes: what to bear in mind about the scores.
        trials: table of all trials, its first row the head.
        unsaid: responses that were left out for their length.
        origin: what made it, in groups.
        settings: key, value, whether it differs from the default.
        commands: how to make it again and go on, with what each does.
        figures: data of each figure, as page.js draws them.
    """

    kind: str
    title: str
    about: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    measured_on: str = ""
    models: Sequence[str] = ()
    scores: Rows = ()
    sections: Sequence[Section] = ()
    tests: Mapping[str, Rows] = field(default_factory=dict)
    notes: Sequence[str] = ()
    trials: Sequence[Sequence[str]] = ()
    exchanges: Sequence[Exchange] = ()
    unsaid: int = 0
    origin: Mapping[str, Rows] = field(default_factory=dict)
    settings: Sequence[tuple[str, str, bool]] = ()
    commands: Sequence[tuple[str, str]] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> Mapping[str, Any]:
        """The figures that there is something for."""
        return {name: data for name, data in self.figures.items() if data}

    def html(self) -> str:
        """Return the page. Its scripts are named by their hashes: no other script runs, and nothing is loaded."""
        scripts = [asset("plot.js"), asset("page.js")]
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
        return TEMPLATES.from_string(asset("page.html.jinja")).render(
            page=self,
            style=Markup(asset("shared.css") + asset("page.css")),
            scripts=[Markup(script) for script in scripts],
            policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:",
            data=Markup(_json(self.drawn)),
            version=__version__,
        )

    def write(self, file: Path) -> None:
        """Write the page whole or not at all; raise RunFolderError if it cannot be written."""
        write_whole(file, self.html().encode())


def asset(name: str) -> str:
    """Return the text of a file that pages are made of."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the element that it stands in; raise RunFolderError for a number that is not finite."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise RunFolderError("A figure is not a finite number: a file of the folder is damaged. Restore it.") from None
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
