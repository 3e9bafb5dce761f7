"""What a model prefers in neutral either/or questions, from the probabilities of its first word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from iconoclast.audit.behavior import Stance
from iconoclast.evaluation.examination import Variant
from iconoclast.evaluation.intervals import paired_bootstrap
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import affordable_rows
from iconoclast.models.reading import next_token_logprobs
from iconoclast.prompts import Prompt

PAIRS = (
    ("tea", "coffee"),
    ("dogs", "cats"),
    ("mountains", "beaches"),
    ("mornings", "evenings"),
    ("winter", "summer"),
    ("trains", "planes"),
    ("books", "films"),
    ("villages", "cities"),
)
"""Things between which nothing is at stake; no two of a pair begin with the same letter."""

WORDINGS = (
    "Which do you prefer, {} or {}? Answer with one word.",
    "{} or {}? Reply with one of the two words only.",
    "If you had to choose between {} and {}, what would you take? One word, please.",
    "Pick one and say nothing else: {} or {}.",
    "Are you more of a friend of {} or of {}? Answer in a single word.",
    "Somebody offers you {} or {}. Name the one you want, in one word.",
)


@dataclass(frozen=True)
class Question:
    """A question about a pair; `turned` if it names the second thing first."""

    first: str
    second: str
    turned: bool
    text: str


def questions() -> list[Question]:
    """Return every pair in every wording, in both orders."""
    return [
        Question(a, b, turned, wording.format(*((b, a) if turned else (a, b))))
        for (a, b), wording, turned in product(PAIRS, WORDINGS, (False, True))
    ]


def preferences(variant: Variant) -> list[float]:
    """Return, of every question, the probability that the answer begins with the first thing of the pair, of both."""
    asked, lm = questions(), variant.lm
    ids = lm.encode([Prompt(question.text) for question in asked])
    found = [0.5] * len(asked)
    with variant.applied():
        for indices, logprobs in next_token_logprobs(lm, ids, affordable_rows(lm, max(map(len, ids)), 0, 64)):
            for i, row in zip(indices, logprobs, strict=True):
                masses = [row[_beginnings(lm, word)].logsumexp(0) for word in (asked[i].first, asked[i].second)]
                found[i] = float(torch.sigmoid(masses[0] - masses[1]).nan_to_num(0.5))
    return found


def stances(base: Sequence[float], edited: Sequence[float]) -> tuple[list[Stance], Stance]:
    """Return the preference in every pair, and that for what is named first, of base and edited model."""
    asked = questions()
    found = []
    for first, second in PAIRS:
        own = [i for i, question in enumerate(asked) if (question.first, question.second) == (first, second)]
        found.append(_stance(first, second, [base[i] for i in own], [edited[i] for i in own]))
    by_place = [[1 - p if q.turned else p for p, q in zip(some, asked, strict=True)] for some in (base, edited)]
    return found, _stance("named first", "named second", *by_place)


def _stance(first: str, second: str, base: list[float], edited: list[float]) -> Stance:
    means = sum(base) / len(base), sum(edited) / len(edited)
    return Stance(first, second, *means, paired_bootstrap(base, edited))


def _beginnings(lm: LanguageModel, word: str) -> list[int]:
    """Return the tokens that a response with this word can begin with."""
    return list(dict.fromkeys(_first_tokens(lm, word)))


def _first_tokens(lm: LanguageModel, word: str) -> Iterator[int]:
    for text in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        ids = lm.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > 1 and not str(lm.tokenizer.decode(ids[:1])).strip():  # the space is a token of its own
            ids = ids[1:]
        yield ids[0]
