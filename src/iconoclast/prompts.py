"""Prompt sets: fixed lists of prompts from a hub data set, a data set on disk, a table or a text file."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iconoclast import conversations
from iconoclast.config.packs import AXIS, BUILTIN, PACK, SHARES, known_packs, load_pack
from iconoclast.config.schema import PromptSource
from iconoclast.errors import PromptsError
from iconoclast.tables import TABLES, Row, read_rows, require_header

WHOLE_FILE = ("train", "all", "")
_SPLIT = re.compile(r"(?P<name>[^\[\]]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


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
    def load(
        cls,
        dataset: str,
        split: str = "train",
        *,
        name: str | None = None,
        column: str | None = None,
        axis: str | None = None,
        prefix: str = "",
        suffix: str = "",
        system_prompt: str | None = None,
    ) -> "PromptSet":
        """Load a prompt set from a file, a folder, the hub or a behaviour pack.

        >>> len(ic.PromptSet.load("builtin:everyday/target", split="fit[:16]"))
        16

        Args:
            dataset: hub id, saved data set, csv, tsv, json, jsonl, parquet or txt file, or a side of a pack, as in
                builtin:everyday/target and pack:PATH/benign.
            split: split and slice, as in "train[:240]" or "test[10%:20%]".
            name: configuration of the hub data set.
            column: column with the prompts, or a field in it; unset, "text" or the only column of text.
            axis: column that says to which axis a prompt belongs.
            prefix: text put before every prompt.
            suffix: text put after every prompt.
            system_prompt: system prompt of all of them.

        Raises:
            PromptsError: nothing there, no such split or column, a slice out of range, or a prompt that cannot be used.
        """
        source = PromptSource(
            dataset=dataset,
            split=split,
            name=name,
            column=column,
            axis=axis,
            prefix=prefix,
            suffix=suffix,
            system_prompt=system_prompt,
        )
        return load_prompts(source)

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
    prompts = tuple(_prompts(rows, chosen, column, source, system))
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
        return _select_split(_builtin_prompts(dataset), split, dataset), "text"
    path = Path(os.path.expanduser(dataset))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if path.is_file():
        return _select_split(read_rows(path, source.column), split, dataset), source.column
    if path.is_dir():
        return _read_hub(source, split, str(path)), source.column
    if path.suffix.lower() in (*TABLES, ".txt") or dataset.startswith((".", "/", "~")):
        raise PromptsError(f"The prompt file {dataset} does not exist. Check the path of the data set.")
    return _read_hub(source, split, dataset), source.column


def _builtin_prompts(dataset: str) -> list[Row]:
    """Return the prompts of a side of a pack, `builtin:NAME/target` or `pack:PATH/benign`, with their splits and axes."""
    kind, _, side = dataset.partition(":")
    name, _, role = side.rpartition("/")
    if kind == PACK[:-1] and not (name and role in ("target", "benign")):
        raise PromptsError(f"{dataset} names no side of a pack. Write {PACK}PATH/target or {PACK}PATH/benign.")
    if kind == BUILTIN[:-1] and not (name in known_packs() and role in ("target", "benign")):
        known = ", ".join(f"{BUILTIN}{n}/{r}" for n in known_packs() for r in ("target", "benign"))
        raise PromptsError(f"There is no built-in prompt set {dataset}. There are {known}.")
    pack = load_pack(name)
    rows: list[Row] = [
        {"text": text, "split": split, AXIS: axis}
        for split, texts in pack.rows(role).items()  # type: ignore[arg-type]
        for text, axis in texts
    ]
    for axis, file in pack.files(role).items():  # type: ignore[arg-type]
        for split, share in SHARES.items():
            part = load_prompts(PromptSource(dataset=str(file), split=share))
            rows += [{"text": prompt.text, "split": split, AXIS: axis} for prompt in part]
    return rows


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
        told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = next(iter(str(told or error).strip().splitlines()), type(error).__name__)
        raise PromptsError(
            f"The data set {where} cannot be loaded: {reason.rstrip('.')}. Give a hub id, a folder, or a csv, json, jsonl, parquet or txt file."
        ) from None
    for part in [loaded] if isinstance(loaded, datasets.Dataset) else loaded.values():
        _check_csv(part, where, source.column)
    if isinstance(loaded, datasets.Dataset):
        return _select_split(loaded.to_list(), split, source.dataset)
    if split not in loaded:
        raise PromptsError(f'{where} has no split "{split}". It has {", ".join(map(str, loaded))}.')
    return list(loaded[split])


def _check_csv(part: Any, where: str, column: str | None) -> None:
    """Raise PromptsError where `datasets` has read a csv file that does not fit its header, which it does in silence."""
    if part.info.builder_name != "csv":
        return
    for file in sorted(Path(where).rglob("*.csv")):
        read_rows(file, column)
    if "__index_level_0__" in part.column_names:
        raise PromptsError(
            f"The data set {where} has a csv file with more fields in a row than in its header. Quote them."
        )
    require_header(part.column_names, f"A csv file of the data set {where}", column)


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


def _prompts(
    rows: list[Row], chosen: range, column: str | None, source: PromptSource, system: str | None
) -> Iterator[Prompt]:
    """Yield the prompts; a conversation's own system message stands where the set names no system prompt."""
    column = _only_column(rows, source) if rows and column is None else column or "text"
    for number, row in enumerate(rows[chosen.start : chosen.stop], chosen.start + 1):
        where = f"{source.dataset}, row {number}"
        try:
            cell = conversations.field(row, column)
        except KeyError:
            raise PromptsError(f"{source.dataset} has no column {column}. It has {', '.join(map(str, row))}.") from None
        own, text = _opening(cell, where, column)
        text = f"{source.prefix}{text}{source.suffix}"
        if any("\ud800" <= character <= "\udfff" for character in text + (own or "")):
            raise PromptsError(f"{where}: the text is not valid Unicode (a lone surrogate).")
        yield Prompt(text, system if source.system_prompt is not None else own or system)


def _opening(cell: Any, where: str, column: str) -> tuple[str | None, str]:
    """Return the system message, if any, and the prompt of a cell."""
    turns = conversations.turns(cell)
    system, text = (None, cell) if turns is None else conversations.opening(turns)
    if isinstance(text, str) and text.strip():
        return system, text
    if turns is not None:
        raise PromptsError(f"{where}: the conversation in the column {column} has no user's turn with a text.")
    inside = conversations.places(column, cell)
    hint = f" itself. Set column to {' or '.join(inside)}" if inside and inside != [column] else ""
    raise PromptsError(f"{where}: the column {column} holds no text{hint}.")


def _only_column(rows: list[Row], source: PromptSource) -> str:
    """Return the column "text", or the only one that holds text; raise PromptsError if others could hold the prompts."""
    found = dict.fromkeys(
        (place, isinstance(cell, str) and place == name and conversations.turns(cell) is None)
        for row in rows
        for name, cell in row.items()
        if name not in ("", "split")
        for place in conversations.places(str(name), cell)
    )
    plain = {place for place, is_text in found if is_text}
    talks = {place for place, is_text in found if not is_text and place in rows[0]}
    for usual in ("text", "prompt"):
        if usual in plain and not talks and (usual == "text" or plain == {usual}):
            return usual
    places = list(dict.fromkeys(place for place, _ in found))
    if len(places) != 1 or places[0] not in plain | talks:
        there = ", ".join(places) or ", ".join(map(str, rows[0]))
        raise PromptsError(f"{source.dataset} has the columns {there}; set column to the one with the prompts.")
    return places[0]


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
