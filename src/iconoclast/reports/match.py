"""The runs of two tools side by side: which are of the same model and prompts, and which is better."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast.reports.summary import OURS, PEER, Measured, Summary
from iconoclast.scores import Count
from iconoclast.vocabulary import ExaminedSplit


@dataclass(frozen=True)
class Match:
    """A run of ICONOCLAST and a run of heretic that edited the same model and were measured on the same prompts."""

    ours: Summary
    peer: Summary

    @property
    def split(self) -> ExaminedSplit:
        """The prompts that both were measured on."""
        return "report" if self.ours.split == self.peer.split == "report" else "selection"

    @property
    def scores(self) -> dict[str, Measured]:
        """Both best trials, by tool."""
        best = {OURS: self.ours.best(self.split), PEER: self.peer.best(self.split)}
        return {tool: scores for tool, scores in best.items() if scores is not None}

    @property
    def problem(self) -> str | None:
        """Why the two cannot be compared."""
        if len(self.scores) < 2:
            return "a run has no completed trial"
        ours, peer = self.scores.values()
        over = {scores.overrefusals.n for scores in (ours, peer)} - {0}
        known = zip(self.ours.fingerprints(self.split), self.peer.fingerprints(self.split), strict=True)
        if ours.refusals.n != peer.refusals.n or len(over) > 1 or any(a and b and a != b for a, b in known):
            return f"the {self.split} prompts differ"
        return None

    @property
    def keys(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What both are ordered by before their KL divergence: refused or broken, then overrefused, as far as both looked."""
        ours, peer = self.scores.values()
        broken = all(scores.broken is not None and scores.broken.n for scores in (ours, peer))
        over = bool(ours.overrefusals.n and peer.overrefusals.n)
        return ours.key(broken, over), peer.key(broken, over)

    @property
    def lower_kl(self) -> str | None:
        """The tool with the lower KL divergence; None if they differ by less than the noise of the measurement."""
        ours, peer = (scores.kl_divergence for scores in self.scores.values())
        if abs(ours - peer) <= max(self.ours.kl_noise_floor, self.peer.kl_noise_floor):
            return None
        return OURS if ours < peer else PEER

    @property
    def winner(self) -> str | None:
        """The tool with fewer failures, then fewer overrefusals, then the lower KL divergence; None if they are equal."""
        ours, peer = self.keys
        return self.lower_kl if ours == peer else OURS if ours < peer else PEER

    def document(self) -> dict[str, Any]:
        """For JSON."""
        seeds = {"seed": self.ours.seed, "heretic_seed": self.peer.seed}
        scores = {tool: scores.document() for tool, scores in self.scores.items()}
        verdict = {"winner": self.winner, "lower_kl": self.lower_kl}
        return {"model": self.ours.name, **seeds, "prompts": self.split, **scores, **verdict}


@dataclass(frozen=True)
class Tally:
    """All matches, and why other runs of the same models were not matched."""

    matches: Sequence[Match] = ()
    unmatched: Sequence[str] = ()

    @property
    def wins(self) -> Count:
        """Matches that ICONOCLAST wins."""
        return self._count(match.winner == OURS for match in self.matches)

    @property
    def ties(self) -> Count:
        """Matches that nobody wins."""
        return self._count(match.winner is None for match in self.matches)

    @property
    def lower_kl(self) -> Count:
        """Matches in which ICONOCLAST has the lower KL divergence."""
        return self._count(match.lower_kl == OURS for match in self.matches)

    def _count(self, those: Iterable[bool]) -> Count:
        return Count(sum(those), len(self.matches))

    def lines(self) -> list[str]:
        """What came out, in words."""
        if not self.matches:
            return list(self.unmatched)
        return [
            f"ICONOCLAST wins {self.wins.with_interval}, {self.ties.count} tied; lower KL in {self.lower_kl.with_interval}. "
            "Fewer refused or broken responses win, then fewer overrefusals, then the lower KL; KL within the noise floor is equal, "
            "and what only one of the tools has counted is left out.",
            *self.unmatched,
        ]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "matches": [match.document() for match in self.matches],
            "iconoclast_wins": self.wins.document(),
            "ties": self.ties.document(),
            "iconoclast_lower_kl": self.lower_kl.document(),
            "unmatched": list(self.unmatched),
        }


def tally(summaries: Sequence[Summary]) -> Tally:
    """Match the runs of ICONOCLAST and heretic: one of each a model, or, where there are more, those with the same seed."""
    matches: list[Match] = []
    unmatched: list[str] = []
    for name in dict.fromkeys(summary.name for summary in summaries):
        ours, peers = ([s for s in summaries if s.name == name and s.tool == tool] for tool in (OURS, PEER))
        if not ours or not peers:
            continue
        pairs = _pairs(ours, peers)
        if alone := len(ours) + len(peers) - 2 * len(pairs):
            unmatched.append(
                f"{name}: {alone} run{'s' * (alone > 1)} not matched: not one run of each tool with that seed."
            )
        for match in pairs:
            if match.problem is None:
                matches.append(match)
            else:
                unmatched.append(f"{name}: not matched: {match.problem}.")
    return Tally(matches, unmatched)


def _pairs(ours: Sequence[Summary], peers: Sequence[Summary]) -> list[Match]:
    if len(ours) == len(peers) == 1:
        return [Match(ours[0], peers[0])]
    by_seed = [_alone_with_their_seed(runs) for runs in (ours, peers)]
    return [Match(run, by_seed[1][seed]) for seed, run in by_seed[0].items() if seed in by_seed[1]]


def _alone_with_their_seed(runs: Sequence[Summary]) -> dict[int | None, Summary]:
    seeds = Counter(run.seed for run in runs)
    return {run.seed: run for run in runs if seeds[run.seed] == 1}
