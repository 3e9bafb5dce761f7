"""What is written as JSON and read again: typed, with one verb each way. No torch.

Values stand in other documents; a Document is a file of its own, with a schema version. Each room defines its own.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from iconoclast.errors import RunFolderError
from iconoclast.files import write_json
from iconoclast.layout import SCHEMA_VERSION
from iconoclast.privacy import portable

Plain = dict[str, Any]
"""Plain data by name, as JSON and TOML have it."""

REMEDY = "Delete it and start the run again."

UNLESS_NONE: Any = Field(default=None, exclude_if=lambda value: value is None)
UNLESS_EMPTY: Any = Field(default={}, exclude_if=lambda value: not value)
"""Fields that a document leaves out where there is nothing to say."""
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_CHOICE = re.compile(r"\[|^([A-Z]\w*|str|int|float)$")
"""A part of a problem's place that names no key, but one of several types."""


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class Value:
    """Mixin of pydantic dataclasses that stand in documents."""

    def document(self) -> Plain:
        """Return what JSON says of it."""
        adapter: TypeAdapter[Any] = _adapter(type(self))
        document: Plain = adapter.dump_python(self, mode="json", by_alias=True)
        return document

    @classmethod
    def from_document(cls, document: object) -> Self:
        """Read what `document` has written; keys that are not known are left out.

        Raises:
            ValidationError: a value is missing or of another type.
        """
        value: Self = _adapter(cls).validate_python(document)
        return value


class Part(BaseModel):
    """A part of a document; keys of other versions and tools are left out when it is read."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True, protected_namespaces=())

    def document(self) -> Plain:
        """Return what JSON says of it."""
        return self.model_dump(mode="json", by_alias=True)


class Document(Part):
    """A JSON file of its own.

    Attributes:
        schema_version: raised when an older reader would misunderstand what it says.
    """

    what: ClassVar[str] = "document"
    """Name of the file in messages."""
    remedy: ClassVar[str] = REMEDY
    """What to do if it is damaged."""
    indent: ClassVar[int | None] = 2
    """None where a file is mostly numbers, which nobody reads one a line."""

    schema_version: int = SCHEMA_VERSION

    def write(self, file: Path) -> None:
        """Write it whole or not at all, the user's home as ~ where a path can be."""
        write_json(file, portable(self.document()), self.indent)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file; raise RunFolderError if it is missing, damaged, something else, or from a newer version."""
        content = read_known(file)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RunFolderError(
                f"{file} is damaged or not a {cls.what}: {first_problem(error)}. {cls.remedy}"
            ) from None


def read_known(file: Path) -> object:
    """Read a JSON file of a schema version that is known.

    Raises:
        RunFolderError: it is missing, no JSON, or from a newer version.
    """
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is damaged: {error}. {REMEDY}") from None
    require_known_schema(file, content)
    return content


def require_known_schema(file: Path, content: object) -> None:
    """Refuse what a newer version has written: what it says may not be what it seems."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RunFolderError(f"{file} is damaged: it must be an object with a schema_version. {REMEDY}")
    if version > SCHEMA_VERSION:
        raise RunFolderError(
            f"{file} has schema version {version}, and this version of ICONOCLAST knows {SCHEMA_VERSION}. Update it."
        )


def first_problem(error: ValidationError) -> str:
    """Say in a few words what is wrong first."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(part for part in map(str, problem["loc"]) if not _CHOICE.search(part))
    said = problem["msg"].removeprefix("Value error, ")
    return " ".join(f"{where}{': ' * bool(where)}{said}".split())[:200].rstrip(".")
