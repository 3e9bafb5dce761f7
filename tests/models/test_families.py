"""Every architecture family: its sites are complete, and the live edit, the adapter and the merged weights are one model."""

from pathlib import Path

import pytest

from iconoclast.vocabulary import NORMALIZATIONS
from tests.support.families import FAMILIES, REFUSED, conformance, refusal

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_live_adapter_and_merged_are_one_model(name: str, tmp_path: Path) -> None:
    result = conformance(FAMILIES[name], tmp_path)
    assert len(result.adapter) == (3 if FAMILIES[name].adapter else 0)
    assert result.attention_sites or result.feed_forward_sites
    for normalization in NORMALIZATIONS:
        assert result.effect[normalization] > 0.05  # the edit shows
        assert result.adapter.get(normalization, 0) < 1e-3 * result.effect[normalization], normalization
        assert result.merged[normalization] < 1e-3 * result.effect[normalization], normalization
    assert result.along < 1e-4
    assert result.rows_apart < 1e-4
    assert result.decoded == 3
    assert documented(name)[3] == f"{result.attention_sites} + {result.feed_forward_sites}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_edited_is_refused_by_name(name: str) -> None:
    message = refusal(REFUSED[name])
    assert "Layer 0" in message or "stands between" in message or "streams" in message or "cache of its own" in message
    assert documented(name)[2] == message


def documented(name: str) -> list[str]:
    """The cells of a family's row."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return next([c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} |"))


def test_the_table_in_the_documentation_has_every_family() -> None:
    rows = {
        line.split("|")[1].strip() for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    }
    missing = {*FAMILIES, *REFUSED} - rows
    assert not missing, f"run `python -m tests.support.families > docs/architectures.md` for {sorted(missing)}"
