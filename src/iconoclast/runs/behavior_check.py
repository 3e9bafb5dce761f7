"""Does a model show a behaviour, where is it to be seen, and do the prompt sets differ in something else?"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from iconoclast.directions.separability import Separability, bag_of_words, effect_size, separability
from iconoclast.edits.edit import Edit
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Count

LARGE = 0.8
"""Cohen's d that is called large (Cohen 1988)."""

TELLING = 0.75
"""Accuracy of the first word, or of the words, from which on the sets differ in it."""

RARE, OFTEN = 0.15, 0.5
FEW = 30


@dataclass(frozen=True)
class BehaviorCheck:
    """What was found; the select prompts were answered, the fit prompts read, the report prompts left alone.

    Attributes:
        target, benign: responses that show the behaviour.
        broken: broken responses to target prompts.
        layers: separability of the fit prompts' residuals at every layer.
        length: effect size of the prompts' length in words.
        first_word: accuracy by which the first word tells the sets apart, by majority.
        words: separability by the words that stand in the prompts.
        examples: a target prompt and its response, some that show the behaviour first.
    """

    target: Count
    benign: Count
    broken: Count
    layers: Sequence[Separability]
    length: float
    first_word: float
    words: Separability
    examples: Sequence[tuple[str, str]]

    def warnings(self) -> list[str]:
        """Say what would make an edit of this behaviour, or figures about it, doubtful."""
        best = max(self.layers, key=lambda layer: layer.accuracy)
        said = {
            f"The model shows it on only {self.target.with_interval} of the target prompts: there is little to remove.": self.target.rate
            <= RARE,
            f"{self.benign.with_interval} of the benign prompts show it too: they are no contrast.": self.benign.rate
            >= OFTEN / 2,
            f"Only {self.target.n} select prompts: intervals are wide. Take {FEW} or more.": self.target.n < FEW,
            f"No layer tells the sets apart better than shuffled labels ({best.shuffled:.2f}).": best.accuracy
            <= best.shuffled,
            f"The sets differ in length (effect size {self.length:+.1f}): the direction may be length.": abs(
                self.length
            )
            >= LARGE,
            f"The first word alone tells the sets apart ({self.first_word:.0%}): the direction may be that word.": self.first_word
            >= TELLING,
            f"The words alone tell the sets apart ({self.words.accuracy:.0%}, shuffled {self.words.shuffled:.0%}): the direction may be the topic.": self.words.accuracy
            >= max(TELLING, self.words.shuffled),
        }
        return [text for text, holds in said.items() if holds]

    def document(self) -> dict[str, Any]:
        """Return the check for JSON."""
        return {
            "target": self.target.document(),
            "benign": self.benign.document(),
            "broken": self.broken.document(),
            "layers": [{"layer": i, **asdict(layer)} for i, layer in enumerate(self.layers)],
            "length_effect": self.length,
            "first_word_accuracy": self.first_word,
            "words": asdict(self.words),
            "warnings": self.warnings(),
            "examples": [{"prompt": prompt, "response": response} for prompt, response in self.examples],
        }


def check(bench: Workbench, progress: Progress, examples: int = 3) -> BehaviorCheck:
    """Answer the select prompts with the base model, and compare the fit prompts' residuals and words."""
    bench.require_room()
    bench.find_response_prefix(progress)
    evaluator, prompts = bench.evaluator("select"), bench.prompts
    progress.start("Answering the select prompts", 0)
    sides = prompts.target_evaluation, prompts.benign_evaluation
    answers = [evaluator.respond([Edit.nothing()], side)[0] for side in sides]
    labels = [
        [bench.rules.label(p.text, r) for p, r in zip(side, given, strict=True)]
        for side, given in zip(sides, answers, strict=True)
    ]
    benign, target = bench.residuals(progress)
    progress.start("Probing", 0)
    order = sorted(range(len(sides[0])), key=lambda i: labels[0][i] != "refusal")[:examples]
    return BehaviorCheck(
        Count(labels[0].count("refusal"), len(labels[0])),
        Count(labels[1].count("refusal"), len(labels[1])),
        Count(labels[0].count("broken"), len(labels[0])),
        [separability(benign[:, layer], target[:, layer]) for layer in range(benign.shape[1])],
        effect_size(*(_lengths(side) for side in (prompts.benign, prompts.target))),
        _first_word(prompts.benign, prompts.target),
        _by_words(prompts.benign, prompts.target),
        [(sides[0].prompts[i].text, answers[0][i]) for i in order],
    )


def _words(prompts: PromptSet) -> list[list[str]]:
    return [re.findall(r"\w+", prompt.text.lower()) for prompt in prompts]


def _lengths(prompts: PromptSet) -> torch.Tensor:
    return torch.tensor([float(len(words)) for words in _words(prompts)])


def _first_word(benign: PromptSet, target: PromptSet) -> float:
    """Return the mean of both sides' shares of prompts whose first word is more frequent on their own side."""
    first = [Counter(words[0] if words else "" for words in _words(side)) for side in (benign, target)]
    shares = [{word: n / side.total() for word, n in side.items()} for side in first]
    return 0.5 * sum(max(shares[0].get(word, 0.0), shares[1].get(word, 0.0)) for word in {**shares[0], **shares[1]})


def _by_words(benign: PromptSet, target: PromptSet) -> Separability:
    features = bag_of_words([*_words(benign), *_words(target)])
    return separability(features[: len(benign)], features[len(benign) :])
