"""Prompt sets: from a hub data set, a data set on disk, a table or a text file to a fixed list of prompts."""

import csv
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from iconoclast.config.schema import PromptSource
from iconoclast.errors import PromptsError
from iconoclast.registry import Registry

BUILTIN = "builtin:"
TABLES = (".csv", ".json", ".jsonl", ".parquet")
WHOLE_FILE = ("train", "all", "")
_SPLIT = re.compile(r"(?P<name>[^\[\]]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")

Row = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One user message, with an optional system message before it, and the axes (kinds of behaviour) it belongs to."""

    text: str
    system: str | None = None
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, and the name of where they came from."""

    prompts: tuple[Prompt, ...]
    source: str

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @classmethod
    def of(cls, texts: Iterable[str], source: str = "texts", system: str | None = None) -> "PromptSet":
        """A prompt set from plain texts.

        Raises:
            PromptsError: there is no text.
        """
        prompts = tuple(Prompt(text, system) for text in texts)
        if not prompts:
            raise PromptsError(f"The prompt set {source} is empty. Give it at least one prompt.")
        return cls(prompts, source)

    @classmethod
    def load(cls, dataset: str, split: str = "train", **options: Any) -> "PromptSet":
        """Load a prompt set; `options` are the other fields of `config.PromptSource`."""
        return load_prompts(PromptSource(dataset=dataset, split=split, **options))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what was loaded: texts, system prompts and axes, in order."""
        content = json.dumps([[p.system, p.text, *p.axes] for p in self.prompts], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def overlap(self, other: "PromptSet") -> int:
        """How many prompts of this set stand in `other` too, letter case and white space aside."""
        theirs = {_normalized(p.text) for p in other}
        return sum(_normalized(p.text) in theirs for p in self)


def load_prompts(source: PromptSource, system_prompt: str | None = None, minimum: int = 1) -> PromptSet:
    """The prompts that `source` names.

    Args:
        source: data set, split, column, prefix and suffix.
        system_prompt: for sources that name none.
        minimum: how many prompts the caller needs.

    Raises:
        PromptsError: nothing there, no such split or column, a slice out of range, fewer prompts than `minimum`.
    """
    match = _SPLIT.fullmatch(source.split)
    if match is None:
        raise PromptsError(
            f'The split "{source.split}" of {source.dataset} is not understood. Write it like "train", "train[:240]" or "test[10%:20%]".'
        )
    rows, column = _read(source, match["name"])
    chosen = _slice(len(rows), match["start"], match["stop"], source)
    system = (source.system_prompt if source.system_prompt is not None else system_prompt) or None
    texts = _texts(rows, chosen, column, source)
    prompts = (
        tuple(Prompt(text, system) for text in texts)
        if source.axis is None
        else _with_axes(texts, [rows[i].get(source.axis) for i in chosen], system, source)
    )
    label = f"{source.dataset} {source.split}".strip()
    if len(prompts) < minimum:
        found = "is empty" if not prompts else f"holds {len(prompts)} prompt{'s' * (len(prompts) > 1)}"
        raise PromptsError(f"The prompt set {label} {found}. This set needs at least {minimum}.")
    return PromptSet(prompts, label)


def _read(source: PromptSource, split: str) -> tuple[list[Row], str | None]:
    """All rows of the split, and the column that holds the prompts if it is already known."""
    dataset = source.dataset
    if dataset.startswith(BUILTIN):
        splits = _builtin_prompts(dataset)
        if split in WHOLE_FILE:
            return [{"text": text} for part in splits.values() for text in part], "text"
        if split not in splits:
            raise PromptsError(f'{dataset} has no split "{split}". It has {", ".join(splits)}.')
        return [{"text": text} for text in splits[split]], "text"
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if path.is_file():
        return _select_split(_read_file(path), split, source), source.column
    if path.is_dir():
        return _read_hub(source, split, folder=path), source.column
    if path.suffix.lower() in (*TABLES, ".txt") or dataset.startswith((".", "/", "~")):
        raise PromptsError(f"The prompt file {dataset} does not exist. Check the path of the data set.")
    return _read_hub(source, split), source.column


def _builtin_prompts(dataset: str) -> dict[str, list[str]]:
    """The prompts of `builtin:NAME/target` or `builtin:NAME/benign`, by split."""
    name, _, role = dataset.removeprefix(BUILTIN).partition("/")
    behaviors = _builtin_behaviors()
    if name not in behaviors or role not in ("target", "benign"):
        known = ", ".join(f"{BUILTIN}{n}/{r}" for n in sorted(behaviors) for r in ("target", "benign"))
        raise PromptsError(f"There is no built-in prompt set {dataset}. There are {known}.")
    splits: dict[str, list[str]] = behaviors[name][role]
    return splits


behaviors: Registry[Path] = Registry("behaviour", "behaviors")
"""TOML files of behaviours by name; another package adds one as an entry point in the group iconoclast.behaviors."""


@cache
def _builtin_behaviors() -> dict[str, dict[str, Any]]:
    own = {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text(encoding="utf-8"))
        for entry in files("iconoclast.behaviors").iterdir()
        if entry.name.endswith(".toml")
    }
    return own | {name: tomllib.loads(behaviors.get(name).read_text(encoding="utf-8")) for name in behaviors}


def _read_file(path: Path) -> list[Row]:
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        return readers.get(path.suffix.lower(), _read_text)(path)
    except UnicodeDecodeError as error:
        raise PromptsError(
            f"The prompt file {path} is not UTF-8 text (byte {error.start}). Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise PromptsError(f"The prompt file {path} cannot be read: {error.strerror or error}.") from None


def _read_text(path: Path) -> list[Row]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    return [{"text": line} for line in lines if line]


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return list(csv.DictReader(file, strict=True))
        except csv.Error as error:
            raise PromptsError(f"The prompt file {path} is not valid CSV: {error}.") from None


def _read_json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"The prompt file {path} is not valid JSON: {error}.") from None
    if not isinstance(document, list):
        raise PromptsError(f"The prompt file {path} must hold a JSON list of texts or of objects.")
    return [_row(item, f"{path}, item {number}") for number, item in enumerate(document, 1)]


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line), f"{path}, line {number}"))
        except (ValueError, RecursionError) as error:
            raise PromptsError(f"The prompt file {path} is not valid JSON on line {number}: {error}.") from None
    return rows


def _row(item: Any, where: str) -> Row:
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, dict):
        return item
    raise PromptsError(f"{where} is neither a text nor an object with the prompt in a column.")


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise PromptsError(f"The prompt file {path} is not a valid parquet file.") from None
    return rows


def _select_split(rows: list[Row], split: str, source: PromptSource) -> list[Row]:
    """The rows whose split column names `split`; a file without that column is one split called train."""
    named = {str(row["split"]) for row in rows if row.get("split") is not None}
    if split in named:
        return [row for row in rows if str(row.get("split")) == split]
    if split in WHOLE_FILE:
        return rows
    if named:
        raise PromptsError(f'{source.dataset} has no split "{split}". It has {", ".join(sorted(named))}.')
    raise PromptsError(
        f'{source.dataset} has no column called split, so "{split}" selects nothing. Use "train", or a slice such as "train[:64]".'
    )


def _read_hub(source: PromptSource, split: str, folder: Path | None = None) -> list[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    where = str(folder or source.dataset)
    saved = folder is not None and any((folder / f).is_file() for f in ("dataset_dict.json", "dataset_info.json"))
    try:
        loaded = datasets.load_from_disk(where) if saved else datasets.load_dataset(where, source.name)
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        datasets.exceptions.DatasetsError,
        HfHubHTTPError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PromptsError(
            f"The data set {where} cannot be loaded: {reason.rstrip('.')}. Give a hub id, a folder, or a csv, json, jsonl, parquet or txt file."
        ) from None
    if isinstance(loaded, datasets.Dataset):
        return _select_split(loaded.to_list(), split, source)
    if split not in loaded:
        raise PromptsError(f'{where} has no split "{split}". It has {", ".join(map(str, loaded))}.')
    rows: list[Row] = loaded[split].to_list()
    return rows


def _slice(size: int, start: str | None, stop: str | None, source: PromptSource) -> range:
    first = _position(start, size, 0)
    last = _position(stop, size, size)
    if not 0 <= first <= size or not 0 <= last <= size:
        raise PromptsError(
            f'The slice of "{source.split}" is out of range: {source.dataset} has {size} prompts in that split.'
        )
    return range(first, last)


def _position(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    value = int(text.removesuffix("%"))
    if text.endswith("%"):
        if abs(value) > 100:
            return size + 1  # out of range, whatever rounding would make of it
        value = round(size * value / 100)
    return value + size if value < 0 else value


def _texts(rows: list[Row], chosen: range, column: str | None, source: PromptSource) -> list[str]:
    if not rows:
        return []
    if column is None:
        columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, str)))
        candidates = ["text"] if "text" in columns else [name for name in columns if name != "split"]
        if len(candidates) != 1:
            raise PromptsError(
                f"{source.dataset} has the columns {', '.join(map(str, rows[0]))}; set column to the one with the prompts."
            )
        column = candidates[0]
    texts = []
    for index in chosen:
        row = rows[index]
        if column not in row:
            raise PromptsError(f"{source.dataset} has no column {column}. It has {', '.join(map(str, row))}.")
        if not isinstance(row[column], str) or not row[column].strip():
            raise PromptsError(f"{source.dataset}, row {index + 1}: the column {column} holds no text.")
        text = f"{source.prefix}{row[column]}{source.suffix}"
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptsError(f"{source.dataset}, row {index + 1}: the text is no valid Unicode (a lone surrogate).")
        texts.append(text)
    return texts


def _with_axes(texts: list[str], axes: list[Any], system: str | None, source: PromptSource) -> tuple[Prompt, ...]:
    """Every text once, with all axes under which it stands."""
    found: dict[str, tuple[str, list[str]]] = {}
    for number, (text, axis) in enumerate(zip(texts, axes, strict=True), 1):
        if axis is None or not str(axis).strip():
            raise PromptsError(
                f"{source.dataset}, prompt {number} of the split: the axis column {source.axis} is missing or empty."
            )
        known = found.setdefault(_normalized(text), (text, []))[1]
        if str(axis) not in known:
            known.append(str(axis))
    return tuple(Prompt(text, system, tuple(names)) for text, names in found.values())


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
