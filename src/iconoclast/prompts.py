"""Prompt sets: fixed lists of prompts from a hub data set, a data set on disk, a table or a text file."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iconoclast.config.packs import BUILTIN, PACK, known_packs, load_pack
from iconoclast.config.schema import PromptSource
from iconoclast.errors import PromptsError

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
    """Prompts in a fixed order, and the name of their source."""

    prompts: tuple[Prompt, ...]
    source: str

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @classmethod
    def of(cls, texts: Iterable[str], source: str = "texts", system: str | None = None) -> "PromptSet":
        """Make a prompt set of plain texts; raise PromptsError if there are none.

        >>> len(ic.PromptSet.of(["Name a river.", "Name a lake."]))
        2
        """
        prompts = tuple(Prompt(text, system) for text in texts)
        if not prompts:
            raise PromptsError(f"The prompt set {source} is empty. Give it at least one prompt.")
        return cls(prompts, source)

    @classmethod
    def load(cls, dataset: str, split: str = "train", **options: Any) -> "PromptSet":
        """Load a prompt set; `options` are the other fields of `config.PromptSource`, errors as `load_prompts`.

        >>> len(ic.PromptSet.load("builtin:everyday/target", split="fit[:16]"))
        16
        """
        return load_prompts(PromptSource(dataset=dataset, split=split, **options))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: texts, system prompts and axes, in order."""
        content = json.dumps([[p.system, p.text, *p.axes] for p in self.prompts], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def overlap(self, other: "PromptSet") -> int:
        """Count the prompts of this set that are in `other` too, ignoring letter case and white space."""
        theirs = {_normalized(p.text) for p in other}
        return sum(_normalized(p.text) in theirs for p in self)


def load_prompts(source: PromptSource, system_prompt: str | None = None, minimum: int = 1) -> PromptSet:
    """Load the prompts that `source` names, with `system_prompt` where it names none.

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
    prompts = tuple(Prompt(text, system) for text in _texts(rows, chosen, column, source))
    if source.axis is not None:
        prompts = _with_axes(prompts, [rows[i].get(source.axis) for i in chosen], source)
    label = f"{source.dataset} {source.split}".strip()
    if len(prompts) < minimum:
        found = f"holds {len(prompts)} prompt{'s' * (len(prompts) > 1)}" if prompts else "is empty"
        raise PromptsError(f"The prompt set {label} {found}. This set needs at least {minimum}.")
    return PromptSet(prompts, label)


def _read(source: PromptSource, split: str) -> tuple[list[Row], str | None]:
    """Read all rows of the split, and the column that holds the prompts if it is already known."""
    dataset = source.dataset
    if dataset.startswith((BUILTIN, PACK)):
        splits = _builtin_prompts(dataset)
        rows = [{"text": text, "split": name} for name, texts in splits.items() for text in texts]
        return _select_split(rows, split, dataset), "text"
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if path.is_file():
        return _select_split(_read_file(path), split, dataset), source.column
    if path.is_dir():
        return _read_hub(source, split, str(path)), source.column
    if path.suffix.lower() in (*TABLES, ".txt") or dataset.startswith((".", "/", "~")):
        raise PromptsError(f"The prompt file {dataset} does not exist. Check the path of the data set.")
    return _read_hub(source, split, dataset), source.column


def _builtin_prompts(dataset: str) -> dict[str, list[str]]:
    """Return the prompts of a side of a pack, `builtin:NAME/target` or `pack:PATH/benign`, by split."""
    name, _, role = dataset.partition(":")[2].rpartition("/")
    builtin = dataset.startswith(BUILTIN)
    if role not in ("target", "benign") or (builtin and name not in known_packs()):
        known = ", ".join(f"{BUILTIN}{n}/{r}" for n in known_packs() for r in ("target", "benign"))
        raise PromptsError(f"There is no built-in prompt set {dataset}. There are {known}.")
    return load_pack(name).texts(role)  # type: ignore[arg-type]


def _read_file(path: Path) -> list[Row]:
    """Read the rows of a file in the format of its suffix; without one, every line is a prompt."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        with path.open(encoding="utf-8-sig", newline="" if kind == ".csv" else None) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        where = f"The prompt file {path} is not UTF-8 text (byte {error.start})"
        raise PromptsError(f"{where}. Convert it to UTF-8.") from None
    except OSError as error:
        raise PromptsError(f"The prompt file {path} cannot be read: {error.strerror or error}.") from None
    match kind:
        case ".csv":
            return _csv_rows(text, path)
        case ".json":
            items = _parsed(text, path)
            if not isinstance(items, list):
                raise PromptsError(f"The prompt file {path} must hold a JSON list of texts or of objects.")
            return [_row(item, f"{path}, item {number}") for number, item in enumerate(items, 1)]
        case ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [_row(_parsed(line, path, f" on line {n}"), f"{path}, line {n}") for n, line in lines]
    return [{"text": line.strip()} for line in text.split("\n") if line.strip()]


def _csv_rows(text: str, path: Path) -> list[Row]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise PromptsError(f"The prompt file {path} is not valid CSV: {error}.") from None


def _parsed(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"The prompt file {path} is not valid JSON{where}: {error}.") from None


def _row(item: Any, where: str) -> Row:
    if isinstance(item, str | dict):
        return {"text": item} if isinstance(item, str) else item
    raise PromptsError(f"{where} is neither a text nor an object with the prompt in a column.")


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise PromptsError(f"The prompt file {path} is not a valid parquet file.") from None


def _select_split(rows: list[Row], split: str, dataset: str) -> list[Row]:
    """Select the rows whose split column names `split`; a file without that column is one split called train."""
    named = dict.fromkeys(str(row["split"]) for row in rows if row.get("split") is not None)
    if split in named:
        return [row for row in rows if str(row.get("split")) == split]
    if split in WHOLE_FILE:
        return rows
    if named:
        raise PromptsError(f'{dataset} has no split "{split}". It has {", ".join(named)}.')
    raise PromptsError(
        f'{dataset} has no column called split, so "{split}" selects nothing. Use "train", or a slice such as "train[:64]".'
    )


def _read_hub(source: PromptSource, split: str, where: str) -> list[Row]:
    import datasets

    saved = any(Path(where, name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    try:
        loaded = datasets.load_from_disk(where) if saved else datasets.load_dataset(where, source.name)
    except (OSError, ValueError, RuntimeError, LookupError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PromptsError(
            f"The data set {where} cannot be loaded: {reason.rstrip('.')}. Give a hub id, a folder, or a csv, json, jsonl, parquet or txt file."
        ) from None
    if isinstance(loaded, datasets.Dataset):
        return _select_split(loaded.to_list(), split, source.dataset)
    if split not in loaded:
        raise PromptsError(f'{where} has no split "{split}". It has {", ".join(map(str, loaded))}.')
    return list(loaded[split])


def _slice(size: int, start: str | None, stop: str | None, source: PromptSource) -> range:
    first, last = _position(start or "0", size), _position(stop or str(size), size)
    if not 0 <= first <= size or not 0 <= last <= size:
        there = f"{source.dataset} has {size} prompts in that split"
        raise PromptsError(f'The slice of "{source.split}" is out of range: {there}.')
    return range(first, last)


def _position(text: str, size: int) -> int:
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
    for number, row in enumerate(rows[chosen.start : chosen.stop], chosen.start + 1):
        if column not in row:
            raise PromptsError(f"{source.dataset} has no column {column}. It has {', '.join(map(str, row))}.")
        if not isinstance(row[column], str) or not row[column].strip():
            raise PromptsError(f"{source.dataset}, row {number}: the column {column} holds no text.")
        text = f"{source.prefix}{row[column]}{source.suffix}"
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptsError(f"{source.dataset}, row {number}: the text is not valid Unicode (a lone surrogate).")
        texts.append(text)
    return texts


def _with_axes(prompts: Iterable[Prompt], axes: list[Any], source: PromptSource) -> tuple[Prompt, ...]:
    """Keep every prompt once, with all its axes."""
    found: dict[str, Prompt] = {}
    for number, (prompt, axis) in enumerate(zip(prompts, axes, strict=True), 1):
        if axis is None or not str(axis).strip():
            where = f"{source.dataset}, prompt {number} of the split"
            raise PromptsError(f"{where}: the axis column {source.axis} is missing or empty.")
        known = found.get(_normalized(prompt.text), prompt)
        found[_normalized(prompt.text)] = replace(known, axes=tuple(dict.fromkeys((*known.axes, str(axis)))))
    return tuple(found.values())


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
