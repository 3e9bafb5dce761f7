"""The table of many runs: what its rows and its documents say."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from iconoclast.config.schema import Settings
from iconoclast.reports.summary import Summary, read_summary
from iconoclast.reports.summary_tables import run_cells, summary_document, summary_markdown
from iconoclast.runs.starting import started_run
from iconoclast.scores import Count, Mean, Scores, wilson_interval
from tests.support.batch_summaries import heretic, scores, summary


def one_row(one: Summary) -> dict[str, str]:
    (row,) = run_cells([one])
    return row


def test_the_summary_of_a_run_is_read(tiny_settings: Settings) -> None:
    with started_run(tiny_settings) as run:
        run.optimize(2)
        run.measure_report()
        written = run.write_summary("complete").document()
    row = one_row(read_summary(run.folder.summary))
    best = Scores.from_document(written["report"]["metrics"])
    assert row["Prompts"] == "report" and row["Status"] == "complete" and row["Model"] == "tiny-llama0"
    assert row["Refusals"] == best.refusals.with_interval and row["KL"].startswith(f"{best.kl_divergence:.4f}")


def test_a_row_says_what_the_summary_says() -> None:
    assert one_row(summary(scores(1, 2, 0.0362), seed=3)) == {
        "Model": "maker/model-1B",
        "Run": "",
        "Tool": "iconoclast 0.1.0",
        "Seed": "3",
        "Status": "complete",
        "Trials": "18 + 6 pruned",
        "Prompts": "select",
        "Base refusals": "17/20",
        "Base overrefusals": "1/64",
        "Refusals": "1/20 (1% to 24%)",
        "Overrefusals": "2/64 (1% to 11%)",
        "KL": "0.0362",
    }


def test_a_report_on_the_best_trial_gives_the_figures() -> None:
    report = {"trial": 7, "base_metrics": scores(90, n=100), "metrics": scores(4, n=100)}
    assert one_row(summary(scores(0), report=report))["Refusals"].startswith("4/100 ")
    assert one_row(summary(scores(0), report=report))["Base refusals"] == "90/100"
    on_selection = one_row(summary(scores(0), report={**report, "split": "selection"}))
    assert on_selection["Prompts"] == "select" and on_selection["Refusals"].startswith("4/100 ")
    of_an_earlier_best = one_row(summary(scores(0), report={**report, "trial": 2}))
    assert of_an_earlier_best["Prompts"] == "select" and of_an_earlier_best["Refusals"].startswith("0/20 ")


def test_a_run_without_a_completed_trial_has_a_row() -> None:
    row = one_row(summary(None, status="running", completed_trials=0, pruned_trials=0))
    assert row["Status"] == "running" and row["Base refusals"] == "17/20" and row["Refusals"] == row["KL"] == ""


def test_a_column_that_one_summary_has_is_there_for_all() -> None:
    broken = Count(3, 20)
    kl = Mean(0.05, 64, (0.04, 0.0612))
    full = summary({**scores(1), "broken": broken.document(), "first_token_kl": kl.document()})
    plain = summary(scores(1))
    assert "Broken" not in one_row(plain) and "Seed" not in one_row(plain)
    rows = run_cells([plain, full])
    assert [row["Broken"] for row in rows] == ["", broken.with_interval]
    assert rows[1]["KL"] == "0.0500 (0.0400 to 0.0612)"


def test_every_count_in_the_json_has_its_n_and_interval() -> None:
    result = summary_document([summary(scores(1)), heretic(scores(3)), summary(None, model="other")])
    run = result["runs"][0]
    counts = [run["base"]["refusals"], run["best"]["refusals"], run["best"]["overrefusals"]]
    totals = [result["contest"][name] for name in ("iconoclast_wins", "ties", "iconoclast_lower_kl")]
    for count in [*counts, *totals]:
        assert count["interval"] == list(wilson_interval(count["count"], count["n"]))
    assert result["schema_version"] == 1 and run["version"] == "0.1.0" and result["runs"][1]["version"] == "1.2.0"
    assert result["runs"][2]["best"] is None
    assert result["contest"]["matches"][0]["winner"] == "iconoclast"
    json.dumps(result, allow_nan=False)


def test_without_a_second_tool_there_is_no_contest() -> None:
    runs = [summary(scores(1)), heretic(scores(3), model="another/model")]
    assert summary_document(runs)["contest"] is None
    assert "heretic on the same" not in summary_markdown(runs)


def cells(line: str) -> list[str]:
    """The cells of a row as GitHub reads them."""
    parts = re.split(r"(?<!\\)((?:\\\\)*)\|", line)
    joined = [parts[i] + (parts[i + 1] if i + 1 < len(parts) else "") for i in range(0, len(parts), 2)]
    return [re.sub(r"\\([!-/:-@[-`{-~])", r"\1", cell).strip() for cell in joined[1:-1]]


@given(model=st.text("ab|`\n\\*_<>[]&~$\r\t\x1b-. ", min_size=1, max_size=12))
def test_a_model_name_cannot_break_the_markdown(model: str) -> None:
    text = summary_markdown([summary(scores(1), model=f"x{model}y")])
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 3
    header, rule, row = map(cells, table)
    assert len(header) == len(rule) == len(row) == 11
    shown = summary(scores(1), model=f"x{model}y").name
    assert row[0] == "".join(c if c.isprintable() else "�" for c in shown)
    assert not re.search(r"(?<!\\)[`<]", table[2].replace(r"\\", ""))
