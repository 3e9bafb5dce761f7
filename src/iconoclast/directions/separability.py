"""How well two sets of prompts can be told apart: by their residuals, layer by layer, or by any other features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 5
SHUFFLES = 20
RIDGE = 1.0
"""Penalty of the probe, as a share of the mean squared norm of the centred states."""


@dataclass(frozen=True)
class Separability:
    """Accuracy of a linear probe on prompts that it was not fitted on.

    Attributes:
        accuracy: mean of both sides' shares told rightly; 0.5 is chance.
        effect: Cohen's d of the probe's scores, target − benign.
        shuffled: the same accuracy with shuffled labels, the highest of `SHUFFLES`.
    """

    accuracy: float
    effect: float
    shuffled: float


def separability(benign: Tensor, target: Tensor, seed: int = 0) -> Separability:
    """Cross-validate a ridge probe (five folds) between states [n, d] and [m, d].

    The fit and the shuffled controls share their folds. States are centred by each fold's training part.
    """
    states = torch.cat([benign, target]).double()
    labels = torch.cat([-torch.ones(len(benign)), torch.ones(len(target))]).double()
    generator = torch.Generator().manual_seed(seed)
    shuffled = [labels[torch.randperm(len(labels), generator=generator)] for _ in range(SHUFFLES)]
    columns = torch.stack([labels, *shuffled], dim=1)
    folds = torch.empty(len(labels), dtype=torch.long)
    for side in (-1, 1):  # each fold has its share of either side
        places = (labels == side).nonzero()[:, 0]
        folds[places[torch.randperm(len(places), generator=generator)]] = torch.arange(len(places)) % FOLDS
    scores = torch.zeros_like(columns)
    for fold in range(FOLDS):
        held = folds == fold
        if held.any() and not held.all():
            scores[held] = _probe(states[~held], columns[~held], states[held])
    accuracies = [_accuracy(scores[:, i], columns[:, i]) for i in range(columns.shape[1])]
    return Separability(accuracies[0], effect_size(scores[labels < 0, 0], scores[labels > 0, 0]), max(accuracies[1:]))


def effect_size(first: Tensor, second: Tensor) -> float:
    """Return Cohen's d: the difference of the means, second − first, in pooled standard deviations; 0 if all are equal."""
    if min(len(first), len(second)) < 2:
        return 0.0
    squares = sum(float(side.var()) * (len(side) - 1) for side in (first, second))
    pooled = (squares / (len(first) + len(second) - 2)) ** 0.5
    return float(second.mean() - first.mean()) / pooled if pooled > 0 else 0.0


def bag_of_words(texts: Sequence[Sequence[str]]) -> Tensor:
    """Return which words stand in which text: float [texts, words], words in their order of appearance."""
    places = {word: i for i, word in enumerate(dict.fromkeys(word for words in texts for word in words))}
    found = torch.zeros(len(texts), max(1, len(places)))
    for row, words in enumerate(texts):
        found[row, [places[word] for word in words]] = 1
    return found


def _probe(states: Tensor, labels: Tensor, held: Tensor) -> Tensor:
    """Fit ridge regressions in their dual form, [n, d] and [n, labels]; return the scores of the held-out states."""
    middle = states.mean(0)
    centred = states - middle
    gram = centred @ centred.T
    penalty = RIDGE * float(gram.diagonal().mean().clamp(min=1e-12)) * torch.eye(len(gram), dtype=gram.dtype)
    means = labels.mean(0)
    scores: Tensor = (held - middle) @ centred.T @ torch.linalg.solve(gram + penalty, labels - means)
    return scores


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    sides = [(scores[labels == side] * side > 0).double().mean() for side in (-1, 1)]
    return float(sum(sides) / 2)
