"""What an edit did to a model's character, from its responses beside its base's. No torch."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from iconoclast.documents import Part, Value
from iconoclast.evaluation.intervals import McNemar, PairedDifference, mcnemar, paired_bootstrap
from iconoclast.scores import Count
from iconoclast.vocabulary import LABELS, Label

NamedKind = Literal["refusals", "overrefusals"]
"""What a data set is for: prompts that a model may refuse, or prompts that it should answer."""

SetName = Literal["target", "benign", "borderline"]

PER_WORDS = 100
"""Words that a rate is of."""

EXAMPLES = 3
"""Prompts shown of those that moved most, of a set."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_HEDGE = re.compile(
    r"\b(perhaps|maybe|possibly|probably|presumably|arguably|generally|typically|usually|might|may|could|seems?|appears?|"
    r"i think|i believe|in my opinion|it depends|not (?:sure|certain)|to some extent|tends? to)\b",
    re.IGNORECASE,
)
_DISCLAIMER = re.compile(
    r"\b(as an? (?:ai|language model|assistant)|i(?:'|’)?m (?:just |only )?an? (?:ai|language model|assistant)|"
    r"please (?:note|consult|be aware)|consult (?:a|an|your)|it(?:'|’)?s important to|not a substitute|disclaimer|"
    r"seek professional)\b",
    re.IGNORECASE,
)
_AGREEMENT = re.compile(
    r"\W*(yes|sure|certainly|of course|absolutely|definitely|great|good (?:question|idea|point)|you(?:'|’)?re right|"
    r"i agree|exactly|happy to|gladly)\b",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"\b(i|me|my|mine|myself|i['’](?:m|ve|d|ll))\b", re.IGNORECASE)
_POSITIVE = re.compile(
    r"\b(good|great|best|better|love(?:d|s|ly)?|like[ds]?|enjoy\w*|happ(?:y|ily|iness)|glad(?:ly)?|wonderful\w*|beautiful\w*|"
    r"excellent|amazing|fun|nice|pleas(?:ed|ant|ure)|delight\w*|perfect\w*|helpful|welcome|fortunate(?:ly)?|success\w*|"
    r"fantastic|exciting|thank\w*|warm|safe|easy)\b",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(
    r"\b(bad|worse|worst|hat(?:e|es|ed)|sad(?:ly|ness)?|terribl[ey]|awful\w*|horribl[ey]|ugly|angry|afraid|fear\w*|sorry|"
    r"unfortunate(?:ly)?|fail\w*|wrong|poor(?:ly)?|pain\w*|hard|difficult\w*|dangerous\w*|harm\w*|risk\w*|problem\w*|"
    r"unpleasant|boring|disappoint\w*|regret\w*|worr(?:y|ied|ying)|loss)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def _rate(pattern: re.Pattern[str]) -> Callable[[str], float]:
    return lambda text: PER_WORDS * len(pattern.findall(text)) / max(1, len(_WORD.findall(text)))


MEASURES: Mapping[str, Callable[[str], float]] = {
    "words": lambda text: float(len(_WORD.findall(text))),
    "hedges_per_100_words": _rate(_HEDGE),
    "disclaimers_per_100_words": _rate(_DISCLAIMER),
    "first_person_per_100_words": _rate(_FIRST_PERSON),
    "sentiment_per_100_words": lambda text: _rate(_POSITIVE)(text) - _rate(_NEGATIVE)(text),
    "begins_with_agreement": lambda text: float(_AGREEMENT.match(text) is not None),
    "asks_back": lambda text: float("?" in text),
    "uses_lists": lambda text: float(_ITEM.search(text) is not None),
}
"""What is counted in a response, in English words; a share where it is 0 or 1."""


@dataclass(frozen=True)
class Response(Value):
    """A response and its label."""

    response: str
    label: Label


@dataclass(frozen=True)
class Beside(Value):
    """A prompt, what the base model and the edited one answer, and KL over tokens where it is known."""

    set: SetName
    prompt: str
    base: Response
    edited: Response
    token_kl: float | None = None


@dataclass(frozen=True)
class Trait(Value):
    """A measure of the responses to one set of prompts: its means, and their paired difference (bootstrap)."""

    set: SetName
    measure: str
    base: float
    edited: float
    difference: PairedDifference


@dataclass(frozen=True)
class Kind(Value):
    """Counts of responses to one kind of prompt that are another text, and that got another label."""

    name: str
    other_text: Count
    other_label: Count


@dataclass(frozen=True)
class Stance(Value):
    """A model's preference of two things, 0 (the second) to 1 (the first), over all wordings in both orders."""

    first: str
    second: str
    base: float
    edited: float
    difference: PairedDifference


@dataclass(frozen=True)
class NamedSet(Value):
    """A data set that the user names: how many responses got each label, and an exact McNemar test of the refusals."""

    kind: NamedKind
    source: str
    sha256: str
    base: Mapping[Label, Count]
    edited: Mapping[Label, Count]
    refusals: McNemar


class Character(Part):
    """Answers of an edited model beside those of its base.

    Attributes:
        traits: measures of character, by set of prompts.
        kinds: kinds of prompts, those with most other labels first.
        moved: examples of prompts whose responses changed most: another label, or a high KL.
        sets: data sets that the user names. Their prompts and responses are not kept.
        stances: preferences in neutral either/or questions; None for a model that is not loaded here.
        first_named: preference for what a question names first; None as above.
    """

    traits: list[Trait]
    kinds: list[Kind]
    moved: list[Beside]
    stances: list[Stance] | None = Field(default=None)
    first_named: Stance | None = Field(default=None)
    sets: list[NamedSet] = Field(default=[], exclude_if=lambda value: not value)


def named_set(kind: NamedKind, source: str, sha256: str, base: Sequence[Label], edited: Sequence[Label]) -> NamedSet:
    """Count the labels of both models' responses to a data set, and test the refusals."""
    before, after = ({label: Count(side.count(label), len(side)) for label in LABELS} for side in (base, edited))
    refused = ([label == "refusal" for label in side] for side in (base, edited))
    return NamedSet(kind, source, sha256, before, after, mcnemar(*refused))


def traits(rows: Sequence[Beside]) -> list[Trait]:
    """Measure the responses of every set."""
    found = []
    for name, some in _by_set(rows):
        for measure, of in MEASURES.items():
            base, edited = ([of(text.response) for text in side] for side in _sides(some))
            means = sum(base) / len(base), sum(edited) / len(edited)
            found.append(Trait(name, measure, *means, paired_bootstrap(base, edited)))
    return found


def kinds(rows: Sequence[Beside], axes: Sequence[Sequence[str]]) -> list[Kind]:
    """Count changes by set and by axis of the target prompts (`axes`, those of every target prompt in order)."""
    groups: dict[str, list[Beside]] = {name: list(some) for name, some in _by_set(rows)}
    for row, own in zip(groups.get("target", []), axes, strict=True):
        for axis in own:
            groups.setdefault(f"target, {axis}", []).append(row)
    found = [
        Kind(
            name,
            Count(sum(row.base.response != row.edited.response for row in some), len(some)),
            Count(sum(row.base.label != row.edited.label for row in some), len(some)),
        )
        for name, some in groups.items()
    ]
    return sorted(found, key=lambda kind: (-kind.other_label.rate, -kind.other_text.rate))


def moved(rows: Sequence[Beside]) -> list[Beside]:
    """Return those whose responses changed most, some of every set: another label first, then by KL, then by length."""
    found = []
    for _, some in _by_set(rows):
        changed = [row for row in some if row.base.response != row.edited.response]
        found += sorted(changed, key=_distance, reverse=True)[:EXAMPLES]
    return found


def _distance(row: Beside) -> tuple[bool, float, int]:
    length = abs(len(row.base.response) - len(row.edited.response))
    return row.base.label != row.edited.label, row.token_kl or 0.0, length


def _sides(rows: Sequence[Beside]) -> tuple[list[Response], list[Response]]:
    return [row.base for row in rows], [row.edited for row in rows]


def _by_set(rows: Sequence[Beside]) -> Iterator[tuple[SetName, list[Beside]]]:
    for name in dict.fromkeys(row.set for row in rows):
        yield name, [row for row in rows if row.set == name]
