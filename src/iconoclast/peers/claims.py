"""What is claimed of an edited model: on its card, and in the papers of the tool that made it; readers by name."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from yaml import YAMLError  # type: ignore[import-untyped]

from iconoclast.documents import Part
from iconoclast.registry import Registry
from iconoclast.scores import Count

CARD = "README.md"

LONGEST = 2**20
"""Characters of a file that are read."""

NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"

Metric = Literal["refusals", "overrefusals", "first_token_kl", "token_kl"]
"""Measured metrics, as `evaluate --json` calls them, that a claim can be of."""


class Claim(Part):
    """A figure that somebody states of an edited model or of its base.

    Attributes:
        name: as it is stated.
        metric: the measured metric that is defined alike; None if there is none.
        of: whose figure it is.
        value: rate from 0 to 1, or nats, or as stated if the metric is not known.
        count: the same as a count of prompts.
        source: where it is stated.
        definition: what is stated of how it was measured.
        prompts: the data set that is stated; empty if none is.
    """

    name: str
    metric: Metric | None = None
    of: Literal["edited", "base"] = "edited"
    value: float
    count: Count | None = Field(default=None, exclude_if=lambda value: value is None)
    source: str
    definition: str = ""
    prompts: str = Field(default="", exclude_if=lambda value: not value)


def counted(name: str, of: Literal["edited", "base"], count: int, n: int, **stated: str) -> Claim:
    """Return a claim of refusals; `stated` are its source, definition and prompts."""
    found = Count(count, n)
    return Claim(name=name, metric="refusals", of=of, value=found.rate, count=found, **stated)


ClaimReader = Callable[[Path], Sequence[Claim]]
"""Folder of an edited model → what one kind of paper in it claims; nothing if there is none, or it is damaged."""

claim_readers: Registry[ClaimReader] = Registry("reader of claims", "claims")


def read_claims(folder: Path) -> list[Claim]:
    """Return all that is claimed in a model's folder; what two papers state alike comes once."""
    found: list[Claim] = []
    for name in claim_readers:
        for claim in claim_readers.get(name)(folder):
            if not any(_alike(claim, other) for other in found):
                found.append(claim)
    return found


def _alike(one: Claim, other: Claim) -> bool:
    same = one.metric is not None and (one.metric, one.of, one.count) == (other.metric, other.of, other.count)
    return same and abs(one.value - other.value) < 1e-4  # cards round


@claim_readers.register("card")
def card_claims(folder: Path) -> list[Claim]:
    """Read a model card: results in its metadata (model-index), and tables of KL divergence and refusals."""
    file = folder / CARD
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")[:LONGEST]
    return [*_index(text), *(claim for rows in _tables(text) for claim in _in_table(rows))]


def _index(text: str) -> Iterator[Claim]:
    from huggingface_hub import ModelCard  # it is slow to import, and the documents of an audit import this module

    try:
        results = getattr(ModelCard(text, ignore_metadata_errors=True).data, "eval_results", None) or []
    except (ValueError, TypeError, AttributeError, KeyError, YAMLError):
        return  # there is no metadata, or not as the hub defines it
    for result in results:
        try:
            value = float(result.metric_value)
        except (TypeError, ValueError):
            continue
        name = str(result.metric_name or result.metric_type)
        metric = _metric(name)
        percent = metric in ("refusals", "overrefusals") and (value > 1 or "%" in name)
        yield Claim(
            name=name,
            metric=metric,
            value=value / 100 if percent else value,
            source=f"{CARD}, model-index",
            definition=f"on {result.dataset_name}",
            prompts=f"{result.dataset_type} {result.dataset_name}",
        )


def _tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the Markdown tables of a text: rows of cells without emphasis, the header first."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.strip().startswith("|"):
            rows.append(
                [re.sub(r"[*`_]|\[|\]\([^)]*\)", "", cell).strip() for cell in line.strip().strip("|").split("|")]
            )
        elif rows:
            yield [row for row in rows if not all(re.fullmatch(r":?-*:?", cell) for cell in row)]
            rows = []


def _in_table(rows: list[list[str]]) -> Iterator[Claim]:
    """Read a table with the metrics down its first column, or along its header."""
    if any(row and _metric(row[0]) for row in rows[1:]):
        rows = [list(column) for column in zip(*rows, strict=False)]
    header, *models = rows if rows else [[]]
    edited = [row for row in models if not _is_base(row[0])]
    for row in models:
        if _is_base(row[0]) or len(edited) == 1:  # of several models it is not known which one this is
            for name, cell in zip(header[1:], row[1:], strict=False):
                claim = _claim(name, cell, "base" if _is_base(row[0]) else "edited")
                if claim is not None:
                    yield claim


def _is_base(name: str) -> bool:
    return "this model" not in name.lower() and bool(
        re.search(r"\b(base|original|before|unedited|reference)\b", name, re.IGNORECASE)
    )


def _metric(name: str) -> Metric | None:
    name = name.lower()
    if re.search(r"\bkl\b|kullback", name):
        return "token_kl" if re.search(r"over .*tokens|per token|token.level", name) else "first_token_kl"
    if "refusal" in name and "soft" not in name:
        return "overrefusals" if re.search(r"over.?refusal|false refusal", name) else "refusals"
    return None


def _claim(name: str, cell: str, of: Literal["edited", "base"]) -> Claim | None:
    """Read a figure: 3/100, 3 % or 0.05; None if there is none, or the metric is not known."""
    metric = _metric(name)
    if metric is None or (of == "base" and metric.endswith("kl")):
        return None  # the base's divergence from itself is 0 by definition
    value, count = None, None
    if metric.endswith("refusals"):
        if (found := re.match(r"(\d+)\s*/\s*(\d+)", cell)) and 0 <= int(found[1]) <= int(found[2]) > 0:
            count = Count(int(found[1]), int(found[2]))
            value = count.rate
        elif found := re.match(rf"{NUMBER}\s*%", cell):
            value = float(found[1]) / 100
    elif found := re.match(NUMBER, cell):
        value = float(found[1])
    if value is None:
        return None
    return Claim(name=name, metric=metric, of=of, value=value, count=count, source=f"{CARD}, table")
