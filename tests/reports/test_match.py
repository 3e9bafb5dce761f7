"""Runs of two tools side by side: which can be compared, and who wins."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.reports.match import tally
from iconoclast.reports.summary import Summary
from iconoclast.reports.summary_tables import match_cells, run_cells, summary_markdown
from iconoclast.scores import Count
from tests.support.batch_summaries import heretic, scores, summary

measured = st.builds(scores, st.integers(0, 2), st.integers(0, 2), st.sampled_from([0.1, 0.2, 0.3]))


def prompts(fingerprint: str) -> dict[str, Any]:
    return {"bad_evaluation_prompts": {"source": "file.txt", "n": 20, "sha256": fingerprint}}


@pytest.mark.parametrize(
    ("ours", "peer", "winner", "lower_kl"),
    [
        (scores(0, 3, 0.9), scores(1, 0, 0.1), "iconoclast", "heretic"),
        (scores(2, 0, 0.1), scores(1, 5, 0.9), "heretic", "iconoclast"),
        (scores(1, 0, 0.9), scores(1, 1, 0.1), "iconoclast", "heretic"),
        (scores(1, 1, 0.1), scores(1, 1, 0.9), "iconoclast", "iconoclast"),
        (scores(1, 1, 0.9), scores(1, 1, 0.1), "heretic", "heretic"),
        (scores(1, 1, 0.1), scores(1, 1, 0.1), None, None),
        (scores(1, 1, 0.1), scores(1, 1, 0.1009), None, None),
    ],
)
def test_refusals_then_overrefusals_then_kl_beyond_noise_decide(
    ours: dict[str, Any], peer: dict[str, Any], winner: str | None, lower_kl: str | None
) -> None:
    (match,) = tally([summary(ours, kl_noise_floor=0.001), heretic(peer)]).matches
    assert (match.winner, match.lower_kl) == (winner, lower_kl)


def test_what_one_tool_has_not_counted_decides_nothing() -> None:
    unseen = scores(2, kl=0.1) | {"overrefusals": Count(0, 0).document()}
    ours = scores(1, 5, 0.2) | {"broken": Count(4, 20).document()}
    (match,) = tally([summary(ours), heretic(unseen)]).matches
    assert match.winner == "iconoclast"
    (row, _) = run_cells([summary(ours), heretic(unseen)])[::-1]
    assert row["Overrefusals"] == ""
    both = unseen | {"broken": Count(1, 20).document()}
    assert tally([summary(ours), heretic(both)]).matches[0].winner == "heretic"


@given(ours=measured, peer=measured)
def test_the_tools_exchanged_exchange_the_winner(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    there, back = (tally([summary(a), heretic(b)]).matches[0] for a, b in ((ours, peer), (peer, ours)))
    other = {"iconoclast": "heretic", "heretic": "iconoclast", None: None}
    assert back.winner == other[there.winner] and back.lower_kl == other[there.lower_kl]


def test_the_totals_are_those_of_the_seed_document() -> None:
    """All ten wins, and lower KL in eight of them."""
    runs = []
    for number in range(10):
        runs.append(summary(scores(number, kl=0.3 if number < 2 else 0.05), model=f"model-{number}"))
        runs.append(heretic(scores(number + 1, kl=0.1), model=f"model-{number}"))
    result = tally(runs)
    assert (result.wins, result.ties, result.lower_kl) == (Count(10, 10), Count(0, 10), Count(8, 10))
    assert result.lines()[0].startswith("ICONOCLAST wins 10/10 (72% to 100%), 0 tied; lower KL in 8/10 (49% to 94%).")
    rows = match_cells(result)
    assert len(rows) == 20 and [row["Tool"] for row in rows[:2]] == ["iconoclast 0.1.0", "heretic 1.2.0"]
    assert (rows[0]["Wins"], rows[0]["Lower KL"], rows[1]["Wins"], rows[1]["Lower KL"]) == ("yes", "", "", "yes")


def test_both_are_compared_on_prompts_that_both_know() -> None:
    report = {"trial": 7, "base_metrics": scores(20), "metrics": scores(9)}
    (match,) = tally([summary(scores(1), report=report), heretic(scores(3))]).matches
    assert match.split == "selection" and match.scores["iconoclast"].refusals.count == 1
    (match,) = tally([summary(scores(1), report=report), heretic(scores(3), report=report)]).matches
    assert match.split == "report" and match.scores["iconoclast"].refusals.count == 9


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (heretic(scores(3, n=40)), "the select prompts differ"),
        (heretic(scores(3), prompts=prompts("b")), "the select prompts differ"),
        (heretic(None), "no completed trial"),
    ],
)
def test_what_cannot_be_compared_is_told_and_not_counted(peer: Summary, reason: str) -> None:
    result = tally([summary(scores(1), prompts=prompts("a")), peer])
    assert not result.matches and reason in result.unmatched[0] and result.wins == Count(0, 0)
    assert reason in summary_markdown([summary(scores(1), prompts=prompts("a")), peer])


def test_where_there_are_more_runs_of_a_model_seeds_decide() -> None:
    ours = [summary(scores(seed), seed=seed) for seed in (1, 2, 3)]
    peers = [heretic(scores(9), seed=seed) for seed in (2, 3, 4)]
    result = tally([*ours, *peers])
    assert [(match.ours.seed, match.peer.seed) for match in result.matches] == [(2, 2), (3, 3)]
    assert result.unmatched == ["maker/model-1B: 2 runs not matched: not one run of each tool with that seed."]
    assert len(tally([ours[0], peers[2]]).matches) == 1  # one of each needs no seed
    assert not tally([ours[0], ours[0], peers[0]]).matches
