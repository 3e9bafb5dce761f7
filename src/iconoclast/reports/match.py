"""Match the runs of two tools that have the same model and prompts, and find which is better."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iconoclast.documents import Plain
from iconoclast.reports.summary import OURS, Measured, Summary
from iconoclast.scores import Count, Key, decided
from iconoclast.vocabulary import ExaminedSplit


@dataclass(frozen=True)
class Match:
    """Our run and a peer's, of the same model and measured on the same prompts."""

    ours: Summary
    peer: Summary

    @property
    def split(self) -> ExaminedSplit:
        """The prompts that both were measured on."""
        return "report" if self.ours.split == self.peer.split == "report" else "selection"

    @property
    def scores(self) -> dict[str, Measured]:
        """Both best trials, by tool."""
        best = {run.tool: run.measured(self.split)[1] for run in (self.ours, self.peer)}
        return {tool: scores for tool, scores in best.items() if scores is not None}

    @property
    def problem(self) -> str | None:
        """Reason why the two cannot be compared, if there is one."""
        if len(self.scores) < 2:
            return "a run has no completed trial"
        ours, peer = self.scores.values()
        if ours.strengthened:
            return "it strengthens the behaviour"
        over = {ours.overrefusals.n, peer.overrefusals.n} - {0}
        known = zip(self.ours.fingerprints(self.split), self.peer.fingerprints(self.split), strict=True)
        if ours.refusals.n != peer.refusals.n or len(over) > 1 or any(a and b and a != b for a, b in known):
            return f"the {'select' if self.split == 'selection' else self.split} prompts differ"
        return None

    @property
    def winner(self) -> str | None:
        """The better tool by the results that both have; None if they are equal."""
        ours, peer = self.scores.values()
        broken = ours.broken.n and peer.broken.n
        over = ours.overrefusals.n and peer.overrefusals.n
        keys = [
            (
                (scores.failures if broken else scores.refusals).count,
                scores.overrefusals.count if over else 0,
                scores.kl_divergence,
            )
            for scores in (ours, peer)
        ]
        return self._better(*keys)

    @property
    def lower_kl(self) -> str | None:
        """The tool with the lower KL divergence; None if they differ by less than the noise of the measurement."""
        return self._better(*((0, 0, scores.kl_divergence) for scores in self.scores.values()))

    def _better(self, ours: Key, peer: Key) -> str | None:
        if decided(ours, peer, max(self.ours.kl_noise_floor, self.peer.kl_noise_floor)) is None:
            return None
        return OURS if ours < peer else self.peer.tool

    def document(self) -> Plain:
        """Return the match as plain data, for JSON."""
        return {
            "model": self.ours.name,
            "seed": self.ours.seed,
            f"{self.peer.tool}_seed": self.peer.seed,
            "prompts": self.split,
            **{tool: scores.document() for tool, scores in self.scores.items()},
            "winner": self.winner,
            "lower_kl": self.lower_kl,
        }


@dataclass(frozen=True)
class Tally:
    """All matches, and why other runs of the same models were not matched."""

    matches: Sequence[Match] = ()
    unmatched: Sequence[str] = ()
    peers: Sequence[str] = ()
    """Tools that have run on one of our models."""

    @property
    def wins(self) -> Count:
        """Matches that we win."""
        return self._count(match.winner == OURS for match in self.matches)

    @property
    def ties(self) -> Count:
        """Matches that nobody wins."""
        return self._count(match.winner is None for match in self.matches)

    @property
    def lower_kl(self) -> Count:
        """Matches in which we have the lower KL divergence."""
        return self._count(match.lower_kl == OURS for match in self.matches)

    def _count(self, those: Iterable[bool]) -> Count:
        return Count(sum(those), len(self.matches))

    def lines(self) -> list[str]:
        """Describe the outcome in words."""
        if not self.matches:
            return list(self.unmatched)
        return [
            f"ICONOCLAST wins {self.wins.with_interval}, {self.ties.count} tied; lower KL in {self.lower_kl.with_interval}. "
            "Fewer refused or broken responses win, then fewer overrefusals, then the lower KL; KL within the noise floor is equal, "
            "and what only one of the tools has counted is left out.",
            *self.unmatched,
        ]

    def document(self) -> Plain:
        """Return all matches and how many were won as plain data, for JSON."""
        return {
            "matches": [match.document() for match in self.matches],
            "iconoclast_wins": self.wins.document(),
            "ties": self.ties.document(),
            "iconoclast_lower_kl": self.lower_kl.document(),
            "unmatched": list(self.unmatched),
        }


def tally(summaries: Sequence[Summary]) -> Tally:
    """Match our runs with each peer's: one of each per model, or those with the same seed where there are more."""
    matches: list[Match] = []
    unmatched: list[str] = []
    runs: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        runs.setdefault((summary.name, summary.tool), []).append(summary)
    contests = [(name, tool) for name, tool in runs if tool != OURS and (name, OURS) in runs]
    for name, tool in contests:
        ours, peers = runs[name, OURS], runs[name, tool]
        pairs = _pairs(ours, peers)
        if alone := len(ours) + len(peers) - 2 * len(pairs):
            unmatched.append(
                f"{name}: {alone} run{'s' * (alone > 1)} not matched: not one run of each tool with that seed."
            )
        matches += [match for match in pairs if match.problem is None]
        unmatched += [f"{name}: not matched: {match.problem}." for match in pairs if match.problem is not None]
    return Tally(matches, unmatched, list(dict.fromkeys(tool for _, tool in contests)))


def _pairs(ours: Sequence[Summary], peers: Sequence[Summary]) -> list[Match]:
    if len(ours) == len(peers) == 1:
        return [Match(ours[0], peers[0])]
    mine, theirs = _alone_with_their_seed(ours), _alone_with_their_seed(peers)
    return [Match(run, theirs[seed]) for seed, run in mine.items() if seed in theirs]


def _alone_with_their_seed(runs: Sequence[Summary]) -> dict[int | None, Summary]:
    seeds = Counter(run.seed for run in runs)
    return {run.seed: run for run in runs if seeds[run.seed] == 1}
