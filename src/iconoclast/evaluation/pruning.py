"""Pruning by lower bounds: an edit that can no longer win need not be measured any further."""

import statistics
from collections.abc import Callable, Sequence

from torch import Tensor

from iconoclast.evaluation.divergence import Divergences
from iconoclast.models.decoding import Decided
from iconoclast.scores import Bounds
from iconoclast.vocabulary import Label

Prune = Callable[[Bounds], bool]
"""Bounds of an edit → True if it need not be measured any further."""


class Pruning:
    """The state of a batch of edits: what is known of each so far, and which have been pruned."""

    def __init__(self, reference: Tensor, edits: int, prune: Prune) -> None:
        self.divergences = Divergences(reference, edits)
        self.failed: list[set[int]] = [set() for _ in range(edits)]  # target prompts, refused or broken
        self.overrefused: list[set[int]] = [set() for _ in range(edits)]  # benign prompts
        self.pruned = [False] * edits
        self._prune = prune
        self._kl = [0.0] * edits

    def left(self) -> list[int]:
        """Return the edits that have not been pruned."""
        return [edit for edit, pruned in enumerate(self.pruned) if not pruned]

    def bounds(self, edit: int) -> Bounds:
        """Return what is known of an edit so far."""
        return Bounds(len(self.failed[edit]), len(self.overrefused[edit]), self._kl[edit])

    def look(self, edit: int) -> None:
        """Prune an edit if what is known suffices."""
        self.pruned[edit] = self.pruned[edit] or self._prune(self.bounds(edit))

    def diverged(self, indices: list[int], logits: Tensor) -> None:
        """Take in the first token's logits of benign prompts; sequence i is prompt i mod prompts of its edit."""
        self.divergences.add(indices, logits)
        self._kl = [statistics.fmean(values) for values in self.divergences.result().tolist()]
        for edit in range(len(self._kl)):
            self.look(edit)

    def watch(
        self,
        edits: Sequence[int],
        prompts: int,
        found: list[set[int]],
        failure: Callable[[list[int]], Label | None],
        counted: Sequence[Label],
    ) -> Decided:
        """Return a check for decoding that decides a row when its label is certain or its edit is pruned.

        Prompts whose label is one of `counted` are added to `found`.
        """
        for edit in edits:  # what an attempt that ran out of memory has seen is seen again
            found[edit].clear()
            self.pruned[edit] = False

        def decided(index: int, tokens: list[int]) -> bool:
            edit = edits[index // prompts]
            if self.pruned[edit]:
                return True
            label = failure(tokens)
            if label in counted:
                found[edit].add(index % prompts)
                self.look(edit)
            return label is not None

        return decided
