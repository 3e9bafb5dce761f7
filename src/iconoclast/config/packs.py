"""Behaviours as packs: a TOML file, alone or in a folder, that says what is edited. Reading one gives settings."""

import ast
import operator
import random
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from iconoclast.documents import Plain, first_problem
from iconoclast.errors import SettingsError
from iconoclast.registry import Registry
from iconoclast.vocabulary import Split

BUILTIN, PACK = "builtin:", "pack:"
PACK_FILE = "behavior.toml"
"""The file of a pack that is a folder."""

Role = Literal["target", "benign"]
ROLES: tuple[Role, ...] = get_args(Role)
SPLITS: tuple[Split, ...] = get_args(Split)
Given = list[str] | Plain | int
"""Prompts of a split: a list, a source as in the settings, or a number of them."""
Words = list[str | int | list[str]] | str
"""Values of a name in templates."""
SHARES = {"fit": "train[:50%]", "select": "train[50%:70%]", "report": "train[70%:]"}
"""How one file of prompts is divided."""

AXIS = "axis"
"""Column of a pack's own prompts that says to which axis they belong."""

MOST = 10_000
"""Prompts of a split that are made of templates."""

PREFIX_OF = {"target": "bad", "benign": "good"}
SETTING_OF = {"fit": "_prompts", "select": "_evaluation_prompts", "report": "_report_prompts"}
_OPERATORS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class PackError(SettingsError):
    """A pack that is not there, or does not say what a pack must say."""


behaviors: Registry[Path] = Registry("behaviour", "behaviors")
"""Packs by name; another package adds one as an entry point in the group iconoclast.behaviors that gives a file's path."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Part):
    """The prompts of one side: each split a list, a source as in the settings, or a number of prompts made of templates.

    Attributes:
        file: one file for all splits: half of it to fit, a fifth to select, the rest to report.
        files: the same for every axis (kind of prompt, as a language or a topic): axis → file.
        axis: what says to which axis a prompt belongs: a column of the file, or one of the templates' words.
        templates: sentences with names in braces.
        words: name → list of values, or of lists of values that belong together ("{fact[0]}"), a range as "2..19", or a
            sum such as "a + b" of other names.
    """

    fit: Given = []
    select: Given = []
    report: Given = []
    file: str | None = None
    files: dict[str, str] = {}
    axis: str | None = None
    templates: list[str] = []
    words: dict[str, Words] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> "Prompts":
        whole = self.file is not None or bool(self.files)
        if not whole and not (self.fit and self.select):
            raise ValueError("give prompts to fit and to select, and best to report too, or a file for all")
        if whole and (self.fit or self.select or self.report or (self.file and self.files)):
            raise ValueError(
                "a file holds the prompts of all splits, alone or one for each axis: leave out fit, select and report"
            )
        if self.axis is not None and not self.file and self.axis not in self.words:
            raise ValueError(
                f"the axis {self.axis} is not one of the words, and there is no file whose column it could be"
            )
        counts = [n for split in SPLITS if isinstance(n := getattr(self, split), int)]
        if counts and (min(counts) < 1 or max(counts) > MOST or not self.templates):
            raise ValueError(f"a number of prompts is from 1 to {MOST}, and needs templates")
        return self


class Pack(_Part):
    """A behaviour, the prompts that show it, and what marks it.

    Attributes:
        name: as people call it.
        description: what the model does.
        success: what would be success.
        licence, source: of its texts.
        markers: phrases; unset and without patterns and rules, the default markers.
        patterns: regular expressions.
        rules: names of rules, or functions as FILE.py:name.
        classifier: as the settings judge_classifier.
        settings: any other settings that suit it.
    """

    name: str
    description: str
    success: str = ""
    licence: str = ""
    source: str = ""
    markers: list[str] | None = None
    patterns: list[str] = []
    rules: list[str] = []
    classifier: Plain | None = None
    settings: Plain = {}
    target: Prompts | str
    benign: Prompts | str
    place: Path = Field(exclude=True)
    reference: str = Field(exclude=True)

    @field_validator("settings")
    @classmethod
    def _are_settings(cls, settings: Plain) -> Plain:
        if "behavior" in settings:
            raise ValueError("a pack cannot name another pack in behavior")
        for name, example in {"constraints": "overrefusals <= 0.1", "objectives": "failures"}.items():
            given = settings.get(name, [])
            if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
                raise ValueError(f'{name} is a list of texts, such as ["{example}"]')
        return settings

    def side(self, role: Role) -> Prompts:
        """Return the prompts of a role; a bare text is a file's name."""
        side: Prompts | str = getattr(self, role)
        return Prompts(file=side) if isinstance(side, str) else side

    def texts(self, role: Role) -> dict[str, list[str]]:
        """Return the prompts that stand in the pack or are made of its templates, by split."""
        return {split: [text for text, _ in rows] for split, rows in self.rows(role).items()}

    def rows(self, role: Role) -> dict[str, list[tuple[str, str | None]]]:
        """Return the same prompts with their axes."""
        side = self.side(role)
        wanted = {split: n for split in SPLITS if isinstance(n := getattr(side, split), int)}
        made = iter(_made(side, sum(wanted.values()), f"{self.name}/{role}").items())
        return {
            split: [next(made) for _ in range(wanted[split])] if split in wanted else [(text, None) for text in given]
            for split in SPLITS
            if split in wanted or isinstance(given := getattr(side, split), list)
        }

    def files(self, role: Role) -> dict[str, Path]:
        """Return the files of a side's axes; raise PackError if one is not there."""
        found = {axis: self.place.parent / name for axis, name in self.side(role).files.items()}
        if gone := next((path for path in found.values() if not path.is_file()), None):
            raise PackError(f"The pack {self.place} names the file {gone.name}, which is not there.")
        return found

    def sources(self) -> dict[str, Plain]:
        """Return the sections of the settings that name its prompt sets."""
        found = {}
        for role in ROLES:
            for split in SPLITS:
                if (source := self.prompts_of(role, split)) is not None:
                    found[PREFIX_OF[role] + SETTING_OF[split]] = source
        return found

    def prompts_of(self, role: Role, split: Split) -> Plain | None:
        """Return where the prompts are, as a section of the settings; None if the pack has none for the split."""
        side = self.side(role)
        given = getattr(side, split)
        if side.file is not None:
            if not (self.place.parent / side.file).is_file():
                raise PackError(f"The pack {self.place} names the file {side.file}, which is not there.")
            return {
                "dataset": self._beside(side.file),
                "split": SHARES[split],
                **({"axis": side.axis} if side.axis else {}),
            }
        if side.files and self.files(role):
            return {"dataset": f"{self.reference}/{role}", "split": split, "axis": AXIS}
        if isinstance(given, dict):
            return {**given, "dataset": self._beside(str(given.get("dataset", "")))}
        axis = {"axis": AXIS} if side.axis and isinstance(given, int) else {}
        return {"dataset": f"{self.reference}/{role}", "split": split, **axis} if given else None

    def as_settings(self) -> Plain:
        """Return all settings that the pack stands for, as plain data."""
        given: Plain = {**deepcopy(self.settings), **self.sources()}
        if self.markers is not None or self.patterns or self.rules:
            given["refusal_markers"] = self.markers or []
        given["refusal_patterns"] = self.patterns
        given["refusal_rules"] = self.rules
        for name in {"refusal_rules", "soft_refusal_rules"} & given.keys():
            given[name] = [self._beside(rule) if ".py:" in rule else rule for rule in given[name]]
        for name in {"constraints", "objectives"} & given.keys():
            given[name] = [self._score_beside(text) for text in given[name]]
        if self.classifier is not None:
            given["judge_classifier"] = dict(self.classifier)
        return given

    def document(self) -> Plain:
        """Return what `behaviors list --json` says of it."""
        about = self.model_dump(mode="json", exclude={"target", "benign"})
        counts = {role: {k: len(v) for k, v in self.texts(role).items()} for role in ROLES}
        return {**about, "reference": self.reference, "prompts": counts, "sources": self.sources()}

    def _beside(self, name: str) -> str:
        """Return a file of the pack's folder by its path, anything else as it is."""
        file, mark, function = name.partition(".py:")
        there = self.place.parent / (file + mark.rstrip(":"))
        return f"{there}{mark[-1:]}{function}" if file and there.exists() else name

    def _score_beside(self, text: str) -> str:
        """Return an objective or a constraint with a file of the pack's folder by its path."""
        found = re.match(r"-?(?:perplexity:)?(?P<file>[\w./-]+\.\w+)", text)
        there = self.place.parent / (found["file"] if found else text)
        return f"{text[: found.start('file')]}{there}{text[found.end() :]}" if found and there.is_file() else text


def _builtin() -> dict[str, Path]:
    folder = files("iconoclast.behaviors")
    return {Path(e.name).stem: Path(str(e)) for e in sorted(folder.iterdir(), key=str) if e.name.endswith(".toml")}


def known_packs() -> list[str]:
    """Name all packs that are built in or installed."""
    return list(dict.fromkeys([*_builtin(), *behaviors]))


@cache
def load_pack(name: str) -> Pack:
    """Read a pack by its name, or by the path of its folder or file.

    Raises:
        PackError: there is none, or it does not say what a pack must say.
    """
    own = _builtin()
    if name in own or name in behaviors:
        return _read(Path(own[name] if name in own else behaviors.get(name)), f"{BUILTIN}{name}")
    path = Path(name).expanduser()
    file = path / PACK_FILE if path.is_dir() else path
    if not file.is_file():
        raise PackError(f"There is no behaviour {name}: {', '.join(known_packs())} are known, or give a pack's path.")
    return _read(file, f"{PACK}{name}")


def _read(file: Path, reference: str) -> Pack:
    try:
        content = tomllib.loads(file.read_text("utf-8-sig"))
        return Pack(**{**content, "place": file, "reference": reference})
    except ValidationError as error:
        raise PackError(f"The pack {file} is not right: {first_problem(error)}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackError(f"The pack {file} is not valid TOML: {error}.") from None
    except OSError as error:
        raise PackError(f"The pack {file} cannot be read: {error.strerror}.") from None


def _made(side: Prompts, count: int, seed: str) -> dict[str, str | None]:
    """Make so many different prompts of the templates, the same ones every time, each with its axis."""
    draw = random.Random(seed).random  # the one method whose sequence Python promises to keep
    found: dict[str, str | None] = {}
    for _ in range(200 * count):
        if len(found) == count:
            break
        template = side.templates[int(draw() * len(side.templates))]
        text, values = _filled(template, side.words, {n: draw() for n in side.words}, seed)
        found[text] = str(values[side.axis]) if side.axis else None
    if len(found) < count:
        raise PackError(f"{seed}: the templates give only {len(found)} different prompts, and {count} are wanted.")
    return found


def _filled(
    template: str, words: Mapping[str, Words], draws: Mapping[str, float], where: str
) -> tuple[str, Mapping[str, Any]]:
    values: Plain = {}
    try:
        for name, choice in words.items():
            if isinstance(choice, list):
                values[name] = choice[int(draws[name] * len(choice))]
            elif ".." in choice:
                first, last = (int(end) for end in choice.split(".."))
                if first > last:
                    raise ValueError(f"the range {choice} is empty")
                values[name] = first + int(draws[name] * (last - first + 1))
            else:
                values[name] = _sum(ast.parse(choice, mode="eval").body, values)
        return template.format(**values), values
    except (LookupError, ValueError, AttributeError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise PackError(f"{where}: the template {template!r} cannot be filled: {error!r}.") from None


def _sum(node: ast.expr, values: Mapping[str, Any]) -> int:
    """Work out a sum, difference or product of whole numbers and names."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return int(_OPERATORS[type(node.op)](_sum(node.left, values), _sum(node.right, values)))
    if isinstance(node, ast.Name):
        return int(values[node.id])
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    raise ValueError(f"{ast.unparse(node)} is not a sum")
