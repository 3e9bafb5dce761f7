"""Does a model show a behaviour, where is it to be seen, and do the prompt sets differ in something else?"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from iconoclast.directions.separability import Separability, bag_of_words, effect_size, separability
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.progress import Progress
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
    """Findings; the select prompts were answered, the fit prompts read, the report prompts left alone.

    Attributes:
        target, benign: responses that show the behaviour.
        broken: broken responses to target prompts.
        layers: separability of the fit prompts' residuals at every layer.
        length: effect size of the prompts' length in words.
        first_word: accuracy by which the first word tells the sets apart, by majority.
        words: separability by the words that stand in the prompts.
        examples: a target prompt and its response, some that show the behaviour first.
        strengthen: whether edits are to make the model show the behaviour more.
    """

    target: Count
    benign: Count
    broken: Count
    layers: Sequence[Separability]
    length: float
    first_word: float
    words: Separability
    examples: Sequence[tuple[str, str]]
    strengthen: bool = False

    def warnings(self) -> list[str]:
        """Say what would make an edit of this behaviour, or figures about it, doubtful."""
        best, words = max(self.layers, key=lambda layer: layer.accuracy), self.words
        said, shown = [], self.target.with_interval
        if self.target.rate <= RARE and not self.strengthen:
            said.append(f"The model shows it on only {shown} of the target prompts: there is little to remove.")
        if self.target.rate >= 1 - RARE and self.strengthen:
            said.append(f"The model shows it on {shown} of the target prompts already: there is little to strengthen.")
        if self.benign.rate >= OFTEN / 2:
            said.append(f"{self.benign.with_interval} of the benign prompts show it too: they make no contrast.")
        if self.target.n < FEW:
            said.append(f"Only {self.target.n} select prompts: intervals are wide. Take {FEW} or more.")
        if best.accuracy <= best.shuffled:
            said.append(f"No layer tells the sets apart better than shuffled labels ({best.shuffled:.2f}).")
        if abs(self.length) >= LARGE:
            said.append(f"The sets differ in length (effect size {self.length:+.1f}): the direction may be length.")
        if self.first_word >= TELLING:
            told = f"{self.first_word:.0%}"
            said.append(f"The first word alone tells the sets apart ({told}): the direction may be that word.")
        if words.accuracy >= max(TELLING, words.shuffled):
            told = f"{words.accuracy:.0%}, shuffled {words.shuffled:.0%}"
            said.append(f"The words alone tell the sets apart ({told}): the direction may be the topic.")
        return said

    def document(self) -> Plain:
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
    words = [[re.findall(r"\w+", prompt.text.lower()) for prompt in side] for side in (prompts.benign, prompts.target)]
    features = bag_of_words([*words[0], *words[1]])
    return BehaviorCheck(
        Count(labels[0].count("refusal"), len(labels[0])),
        Count(labels[1].count("refusal"), len(labels[1])),
        Count(labels[0].count("broken"), len(labels[0])),
        [separability(benign[:, layer], target[:, layer]) for layer in range(benign.shape[1])],
        effect_size(*(torch.tensor([float(len(each)) for each in side]) for side in words)),
        _first_word(words),
        separability(features[: len(words[0])], features[len(words[0]) :]),
        [(sides[0].prompts[i].text, answers[0][i]) for i in order],
        bench.settings.strengthen,
    )


def _first_word(words: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the mean of both sides' shares of prompts whose first word is more frequent on their own side."""
    first = [Counter(each[0] if each else "" for each in side) for side in words]
    shares = [{word: n / side.total() for word, n in side.items()} for side in first]
    return 0.5 * sum(max(shares[0].get(word, 0.0), shares[1].get(word, 0.0)) for word in {**shares[0], **shares[1]})
