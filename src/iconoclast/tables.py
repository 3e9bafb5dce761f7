"""Rows of a file: csv, tsv, json, jsonl, parquet, or a text file with a prompt on every line. No torch."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from iconoclast.errors import PromptsError

TABLES = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}
"""Delimiters that a table of that suffix may have; the first is that of a table with one column."""
_NAME = re.compile(
    r"[\w.-]*(text|prompt|goal|question|instruction|query|queries|request|message|conversation|content|input|behaviou?r"
    r"|sentence|task|user|turn)[\w.-]*",
    re.IGNORECASE,
)

Row = dict[str, Any]


def read_rows(path: Path, column: str | None = None) -> list[Row]:
    """Read the rows of a file in the format of its suffix; with another, every line is a row with a text.

    `column` is the one that the user has named: a csv file whose first line has it, or a usual name, has a header.

    Raises:
        PromptsError: not UTF-8, not valid, a row that does not fit the header, or a first line that is not a header.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        with path.open(encoding="utf-8-sig", newline="" if kind in DELIMITERS else None) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        where = f"The prompt file {path} is not UTF-8 text (byte {error.start})"
        raise PromptsError(f"{where}. Convert it to UTF-8.") from None
    except OSError as error:
        raise PromptsError(f"The prompt file {path} cannot be read: {error.strerror or error}.") from None
    match kind:
        case ".csv" | ".tsv" | ".tab":
            return _delimited_rows(text, path, column)
        case ".json":
            items = _parsed(text, path)
            if not isinstance(items, list):
                raise PromptsError(f"The prompt file {path} must hold a JSON list of texts or of objects.")
            return [_row(item, f"{path}, item {number}") for number, item in enumerate(items, 1)]
        case ".jsonl" | ".ndjson":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [_row(_parsed(line, path, f" on line {n}"), f"{path}, line {n}") for n, line in lines]
    return [{"text": line.strip()} for line in text.split("\n") if line.strip()]


def require_header(names: Iterable[str], where: str, column: str | None = None) -> None:
    """Raise PromptsError if the first line of a csv file seems to be no header: its prompt would be lost as a name."""
    names = list(names)
    if column is None and not any(_NAME.fullmatch(name) for name in names):
        first = " ".join(", ".join(names).split())
        raise PromptsError(
            f'{where} begins with the line "{first[:60]}". If it is a row, put a line with the names of the columns before it, such '
            "as text; if it is the header, set column to the one with the prompts."
        )


def _delimited_rows(text: str, path: Path, column: str | None) -> list[Row]:
    """Parse with the one delimiter that divides the header and all rows alike."""
    delimiters = DELIMITERS[path.suffix.lower()]
    declared = re.match(r"sep=(.)\r?\n", text)  # as spreadsheets write it
    dividing = [declared[1]] if declared else [d for d in delimiters if _divides(d, text)] or [delimiters[0]]
    tables, problems = [], []
    for delimiter in dividing:
        try:
            tables.append(_table(text, delimiter, 1 if declared else 0))
        except ValueError as error:
            problems.append(f"The prompt file {path} {error}")
    if len(tables) != 1:
        raise PromptsError(
            problems[0] if problems else f"The prompt file {path} can be divided by {dividing}. Use one."
        )
    header, rows = tables[0]
    if header:
        require_header(header, f"The prompt file {path}", column)
    return rows


def _reader(text: str, delimiter: str) -> Any:
    spaced = re.search(rf'{re.escape(delimiter)} +"', text) is not None
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)


def _divides(delimiter: str, text: str) -> bool:
    try:
        return len(next(filter(None, _reader(text, delimiter)), [])) > 1
    except csv.Error:
        return False


def _table(text: str, delimiter: str, skipped: int) -> tuple[Sequence[str], list[Row]]:
    """Return header and rows, or raise ValueError with the line that is wrong."""
    reader = _reader(text, delimiter)
    try:
        header, *records = [(reader.line_num, record) for record in reader if record][skipped:] or [(0, [])]
    except csv.Error as error:
        raise ValueError(f"is not valid CSV on line {reader.line_num}: {error}.") from None
    line, names = header
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise ValueError(f"has two columns called {twice[0]} on line {line}. Give them different names.")
    for number, record in records:
        if len(record) != len(names):
            counts = f"has {len(record)} fields on line {number} and {len(names)} in its header"
            mark = {"\t": "tabs"}.get(delimiter, f'"{delimiter}"')
            raise ValueError(f"{counts}, counting by {mark}. Put quotes around a text that holds the delimiter.")
    return names, [dict(zip(names, record, strict=True)) for _, record in records]


def _parsed(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"The prompt file {path} is not valid JSON{where}: {error}.") from None


def _row(item: Any, where: str) -> Row:
    if isinstance(item, str | dict):
        return {"text": item} if isinstance(item, str) else item
    if isinstance(item, list) and item and all(isinstance(message, dict) for message in item):
        return {"messages": item}
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
