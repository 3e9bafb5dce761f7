"""Responses side by side: read from samples, what differs marked, cut where a page would grow too long."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from markupsafe import escape
from pydantic import ValidationError

from iconoclast.documents import first_problem
from iconoclast.errors import RunFolderError
from iconoclast.runs.documents import Sample

LONGEST = 450_000
"""Bytes of a page that prompts and responses take, with what is written around them."""
AROUND, AROUND_ANSWER, AROUND_PART = 250, 200, 13
"""Bytes that the page writes around a prompt, a response, and a piece that is marked."""

SHORTEST_MATCH = 3
"""Words in a row that two responses must share for them to count as the same."""

LEAST_SHARED = 0.25
"""Share of the words of two responses that must be in both for the others to be marked."""

_WORDS = re.compile(r"\s+|\S+\s*")

Part = tuple[str, bool]
"""A piece of text, and whether the other response does not have it."""


@dataclass(frozen=True)
class Answer:
    """A model's response in pieces, its label, and verdicts by judge."""

    model: str
    label: str
    parts: Sequence[Part]
    judged: Mapping[str, str]


@dataclass(frozen=True)
class Exchange:
    """A prompt and what every model answers, the base model first."""

    set: str
    prompt: str
    answers: Sequence[Answer]

    @property
    def changed(self) -> bool:
        """True if the label is not everywhere that of the base model."""
        return len({answer.label for answer in self.answers}) > 1


def read_samples(file: Path) -> list[Sample]:
    """Read samples.jsonl, nothing if there is none; raise RunFolderError if it is damaged."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        return [Sample.model_validate_json(line) for line in lines if line]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file} cannot be read: {error}.") from None
    except ValidationError as error:
        raise RunFolderError(f"{file} is damaged: {first_problem(error)}. Restore it from a copy.") from None


def exchanges(samples: Iterable[Sample]) -> tuple[list[Exchange], int]:
    """Set responses side by side; return as many prompts as a page can take, and the number of those left out."""
    rows = list(samples)
    kept: list[Exchange] = []
    length = 0
    for row in rows:
        exchange = _exchange(row)
        length += _length(exchange)
        if length > LONGEST:
            break
        kept.append(exchange)
    return kept, len(rows) - len(kept)


def _length(exchange: Exchange) -> int:
    parts = [text for answer in exchange.answers for text, _ in answer.parts]
    texts = sum(len(escape(text).encode()) for text in [exchange.prompt, *parts])
    return texts + AROUND + AROUND_ANSWER * len(exchange.answers) + AROUND_PART * len(parts)


def _exchange(row: Sample) -> Exchange:
    texts = [said.response for said in row.responses.values()]
    base = texts[0]
    parts = [differences(text, base) for text in texts[1:]]
    # With several others beside it, what the base model alone says is not one thing.
    parts.insert(0, differences(base, texts[1]) if len(texts) == 2 else [(base, False)])
    answers = [
        Answer(model, said.label, part, said.judged)
        for (model, said), part in zip(row.responses.items(), parts, strict=True)
    ]
    return Exchange(row.set, row.prompt, answers)


def differences(text: str, other: str) -> list[Part]:
    """Cut a text into pieces that another has, too, and pieces that it has not; whole and unmarked if it shares little.

    Words that happen to be in both, such as "the", are not a likeness: a few in a row are.
    """
    words, others = _WORDS.findall(text), _WORDS.findall(other)
    matcher = SequenceMatcher(None, [word.strip() for word in words], [word.strip() for word in others], autojunk=False)
    parts: list[Part] = []
    done = 0
    blocks = [
        (start, size) for start, _, size in matcher.get_matching_blocks() if size >= min(SHORTEST_MATCH, len(words))
    ]
    if 2 * sum(size for _, size in blocks) < LEAST_SHARED * (len(words) + len(others)):
        return [(text, False)] * bool(text)
    for start, size in [*blocks, (len(words), 0)]:
        if start > done:
            parts.append(("".join(words[done:start]), True))
        if size:
            parts.append(("".join(words[start : start + size]), False))
        done = start + size
    return parts
