"""What a card or another tool's papers claim is read, and stands beside what was measured with the same definition."""

import json
from pathlib import Path
from typing import Any

import pytest

from iconoclast.audit.claims import beside, measured_in
from iconoclast.peers.known import read_claims
from iconoclast.reports.audit import claim_line
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES
from tests.support.heretic_journals import SETTINGS

PERFORMANCE = """
# An edited model

| Metric | This model | Original model ([some/model](https://example.org)) |
| :----- | :--------: | :---: |
| **KL divergence** | 0.0312 | 0 *(by definition)* |
| **Refusals** | 3/100 | 97/100 |
"""

INDEX = """---
model-index:
- name: edited
  results:
  - task: {type: text-generation}
    dataset: {name: everyday requests, type: everyday}
    metrics:
    - {type: refusal_rate, name: Refusal rate, value: 4.0}
    - {type: acc, name: accuracy, value: 0.61}
---
"""

ALONG_THE_HEADER = """
| Model | Refusals | Over-refusals | KL over 32 tokens | Soft refusals |
|---|---|---|---|---|
| base | 90 % | 1/50 | 0 | 4/50 |
| this model (base: some/model) | 2 % | 0/50 | 0.0200 | 3/50 |
"""

REPRODUCE: dict[str, Any] = {
    "version": "2",
    "settings": SETTINGS,
    "metrics": {"kl_divergence": 0.03121, "refusals": 3, "base_refusals": 97, "n_bad_prompts": 100},
}

MANIFEST = {
    "schema_version": 2,
    "tool": "abliterix",
    "config": {"kl": {"token_count": 8}},
    "metrics": {"kl_divergence": 0.004, "refusals": 7, "baseline_refusals": 50, "n_target_prompts": 60},
}


def metrics(refusals: int, kl: float) -> dict[str, Any]:
    return {
        "refusals": {"count": refusals, "n": 100, "interval": [max(0, refusals / 100 - 0.05), refusals / 100 + 0.05]},
        "first_token_kl": {"value": kl, "n": 100, "interval": [0.9 * kl, 1.1 * kl]},
    }


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    file = tmp_path / "measured.json"
    document = {"base_metrics": metrics(96, 0.0), "subject": {"metrics": metrics(31, 0.032)}, "prompts": {}}
    file.write_text(json.dumps({"schema_version": 1, **document}))
    return file


def test_a_card_and_the_papers_beside_it_say_a_figure_once(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(PERFORMANCE)
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce/reproduce.json").write_text(json.dumps(REPRODUCE))
    claims = {(c.metric, c.of): c for c in read_claims(tmp_path)}
    assert claims.keys() == {("first_token_kl", "edited"), ("refusals", "edited"), ("refusals", "base")}
    assert str(claims["refusals", "edited"].count) == "3/100" and str(claims["refusals", "base"].count) == "97/100"
    assert claims["first_token_kl", "edited"].value == pytest.approx(0.0312, abs=1e-4)


def test_results_in_the_metadata_and_tables_along_the_header_are_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(INDEX + ALONG_THE_HEADER)
    found = {(c.name, c.of): (c.metric, c.value) for c in read_claims(tmp_path)}
    assert found["Refusal rate", "edited"] == ("refusals", 0.04)
    assert found["accuracy", "edited"] == (None, 0.61)
    assert found["Refusals", "edited"] == ("refusals", 0.02) and found["Refusals", "base"] == ("refusals", 0.9)
    assert found["KL over 32 tokens", "edited"] == ("token_kl", 0.02) and ("KL over 32 tokens", "base") not in found
    assert found["Over-refusals", "base"] == ("overrefusals", 0.02)
    assert not any(name == "Soft refusals" for name, _ in found)


def test_the_manifest_of_abliterix_says_over_how_many_tokens_its_divergence_is(tmp_path: Path) -> None:
    (tmp_path / "reproduce.json").write_text(json.dumps(MANIFEST))
    found = {(c.metric, c.of): c.value for c in read_claims(tmp_path)}
    assert found == {("refusals", "edited"): 7 / 60, ("refusals", "base"): 50 / 60, ("token_kl", "edited"): 0.004}


@pytest.mark.parametrize(
    "card",
    ["| a |\n|---|\n| | |\n| KL | |", "---\nmodel-index: 3\n---\n", "| Refusals | 9/3 |\n", "---\n: [\n---\n|KL|"],
)
@pytest.mark.parametrize("papers", ["{", "[]", '{"metrics": 3}', json.dumps({**REPRODUCE, "metrics": {}})])
def test_a_damaged_card_claims_nothing(tmp_path: Path, card: str, papers: str) -> None:
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "reproduce.json").write_text(papers)
    assert read_claims(tmp_path) == []


def test_what_differs_by_more_than_chance_is_flagged(tmp_path: Path, measured: Path) -> None:
    (tmp_path / "README.md").write_text(INDEX + PERFORMANCE)
    found = {(c.name, c.of): c for c in beside(read_claims(tmp_path), measured_in(measured))}
    assert found["Refusals", "edited"].differs is True and found["Refusals", "edited"].measured == 0.31
    assert found["Refusals", "base"].differs is False
    assert found["KL divergence", "edited"].differs is False
    assert found["accuracy", "edited"].measured is None and found["accuracy", "edited"].differs is None


def test_the_audit_prints_claims_with_and_without_a_measurement(tmp_path: Path, measured: Path) -> None:
    for name in ("base", "edited"):
        FAMILIES["llama"].model().save_pretrained(tmp_path / name)
    (tmp_path / "edited/README.md").write_text(PERFORMANCE)
    command = ("audit", tmp_path / "edited", "--base", tmp_path / "base", "--weights-only")
    said = " ".join(iconoclast(*command).out.split())
    assert "Claimed, not measured: Refusals 3/100 (README.md, table)." in said
    file = tmp_path / "a.json"
    done = iconoclast(*command, "--measured", measured, "--json", file)
    said = " ".join(done.out.split())
    assert "Measured: 0.31 (0.26 to 0.36, 100 prompts), which differs by more than chance." in said
    claims = json.loads(file.read_text())["claims"]
    assert [claim["differs"] for claim in claims] == [False, True, False]


@pytest.mark.parametrize(("source", "differs"), [("some/set test[:100]", True), ("other/set test", None)])
def test_refusals_on_other_prompts_are_another_figure(
    tmp_path: Path, measured: Path, source: str, differs: bool | None
) -> None:
    card = INDEX.replace("everyday requests", "the set").replace("type: everyday", "type: some/set")
    (tmp_path / "README.md").write_text(card)
    document = json.loads(measured.read_text())
    measured.write_text(json.dumps({**document, "prompts": {"bad_report_prompts": {"source": source}}}))
    claim = beside(read_claims(tmp_path), measured_in(measured))[0]
    assert (claim.measured, claim.measured_on, claim.differs) == (0.31, source, differs)
    assert ("another figure" in claim_line(claim)) is (differs is None)


def test_a_rate_in_percent_is_one(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(INDEX.replace("Refusal rate, value: 4.0", '"Refusals (%)", value: 0.5'))
    assert read_claims(tmp_path)[0].value == 0.005


@pytest.mark.parametrize("content", ["{}", "[", '{"schema_version": 1, "base_metrics": {}}'])
def test_a_file_that_holds_no_measurement_gets_one_line(tmp_path: Path, content: str) -> None:
    FAMILIES["llama"].model().save_pretrained(tmp_path / "base")
    (tmp_path / "no.json").write_text(content)
    done = iconoclast(
        "audit", tmp_path / "base", "--base", tmp_path / "base", "--weights-only", "--measured", tmp_path / "no.json"
    )
    assert done.code == 2 and done.complaint.count("\n") == 0 and "no.json" in done.complaint
