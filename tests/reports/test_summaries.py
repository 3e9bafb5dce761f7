"""The table of many runs: which summaries are found and read, what their rows say, and who wins where two tools meet."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.cli.summarize import summarize as summarize_action
from iconoclast.config.schema import Settings
from iconoclast.errors import RunFolderError, UserError
from iconoclast.reports.match import tally
from iconoclast.reports.summary import Summary, find_summaries, read_summaries, read_summary
from iconoclast.reports.summary_tables import match_cells, run_cells, summary_document, summary_markdown
from iconoclast.runs.pipeline import started_run
from iconoclast.scores import Count, Mean, Scores, wilson_interval


def scores(refusals: int, overrefusals: int = 0, kl: float = 0.05, n: int = 20) -> dict[str, Any]:
    return Scores(Count(refusals, n), Count(overrefusals, 64), 0, 0.5, kl).document()


def document(best: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A batch_summary.json whose trial 7 is the best one."""
    trials = [] if best is None else [{"index": 7, **best}, {"index": 2, **scores(5, kl=0.01)}]
    return {
        "schema_version": 1,
        "iconoclast_version": "0.1.0",
        "status": "complete",
        "model": "maker/model-1B",
        "completed_trials": 18,
        "pruned_trials": 6,
        "prompts": {},
        "base_metrics": scores(17, 1, 0.0),
        "best_trial": None if best is None else 7,
        "pareto_trials": trials,
        "report": None,
        **changes,
    }


def summary(best: dict[str, Any] | None = None, **changes: Any) -> Summary:
    return Summary.model_validate_json(json.dumps(document(best, **changes)))


def heretic(best: dict[str, Any] | None = None, **changes: Any) -> Summary:
    return summary(best, tool="heretic", heretic_version="1.2.0", **changes)


def saved(folder: Path, content: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "batch_summary.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def one_row(one: Summary) -> dict[str, str]:
    (row,) = run_cells([one])
    return row


def test_the_table_alone_loads_no_torch() -> None:
    check = "import sys, iconoclast.cli.summarize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


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
        "Prompts": "selection",
        "Base refusals": "17/20",
        "Base overrefusals": "1/64",
        "Refusals": "1/20 (1% to 24%)",
        "Overrefusals": "2/64 (1% to 11%)",
        "KL": "0.0362",
    }


def test_figures_are_of_the_report_prompts_if_the_best_trial_was_measured_on_them() -> None:
    report = {"trial": 7, "base_metrics": scores(90, n=100), "metrics": scores(4, n=100)}
    assert one_row(summary(scores(0), report=report))["Refusals"].startswith("4/100 ")
    assert one_row(summary(scores(0), report=report))["Base refusals"] == "90/100"
    on_selection = one_row(summary(scores(0), report={**report, "split": "selection"}))
    assert on_selection["Prompts"] == "selection" and on_selection["Refusals"].startswith("4/100 ")
    of_an_earlier_best = one_row(summary(scores(0), report={**report, "trial": 2}))
    assert of_an_earlier_best["Prompts"] == "selection" and of_an_earlier_best["Refusals"].startswith("0/20 ")


def test_a_run_without_a_completed_trial_has_a_row() -> None:
    row = one_row(summary(None, status="running", completed_trials=0, pruned_trials=0))
    assert row["Status"] == "running" and row["Base refusals"] == "17/20" and row["Refusals"] == row["KL"] == ""


def test_what_only_some_summaries_have_has_a_column_if_one_has_it() -> None:
    broken = Count(3, 20)
    kl = Mean(0.05, 64, (0.04, 0.0612))
    full = summary({**scores(1), "broken": broken.document(), "first_token_kl": kl.document()})
    plain = summary(scores(1))
    assert "Broken" not in one_row(plain) and "Seed" not in one_row(plain)
    rows = run_cells([plain, full])
    assert [row["Broken"] for row in rows] == ["", broken.with_interval]
    assert rows[1]["KL"] == "0.0500 (0.0400 to 0.0612)"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/home/someone/models/qwen", "qwen"),
        ("/home/someone/models/qwen/", "qwen"),
        ("~/models/qwen", "qwen"),
        ("../someone/qwen", "qwen"),
        ("./qwen.gguf", "qwen.gguf"),
        ("C:\\Users\\someone\\qwen", "qwen"),
        ("/", "/"),
    ],
)
def test_a_model_is_named_without_the_folders_of_its_author(model: str, name: str) -> None:
    assert summary(scores(0), model=model).name == name


def test_summaries_are_found_in_files_run_folders_and_folders_of_runs_but_not_in_exports(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", document(scores(0))), saved(tmp_path / "deep" / "down" / "b", document())
    export = saved(first.parent / "adapter", document(scores(9)))
    (export.parent / "trial_information.json").write_text("{}")
    saved(tmp_path / ".cache", document(scores(9)))
    assert find_summaries(first) == find_summaries(first.parent) == [first]
    assert find_summaries(tmp_path) == [first, second]
    with pytest.raises(RunFolderError, match="is an export"):
        find_summaries(export.parent)


def test_a_summary_that_is_named_twice_is_one_row(tmp_path: Path) -> None:
    file = saved(tmp_path / "a", document(scores(0)))
    assert len(read_summaries([tmp_path, file, file.parent])[0]) == 1


def test_rows_are_in_order_of_models_tools_and_seeds(tmp_path: Path) -> None:
    for number, changes in enumerate(
        [
            dict[str, Any](model="zeta"),
            {"model": "Alpha", "tool": "heretic"},
            {"model": "alpha", "seed": 10},
            {"model": "Alpha", "seed": 2},
            {"model": "Alpha"},
        ]
    ):
        saved(tmp_path / str(number), document(scores(0), **changes))
    found, _ = read_summaries([tmp_path])
    order = [(s.name, s.tool, s.seed) for s in found]
    assert order == [
        ("Alpha", "iconoclast", None),
        ("Alpha", "iconoclast", 2),
        ("Alpha", "heretic", None),
        ("alpha", "iconoclast", 10),
        ("zeta", "iconoclast", None),
    ]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in document(scores(0)).items() if key != name}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Invalid JSON"),
        ('{"schema_version": 1,', "Invalid JSON"),
        ("[" * 5000, "Invalid JSON"),
        ("[]", "no batch summary"),
        ('{"name": "something else"}', "schema_version: Field required"),
        (without("model"), "model: Field required"),
        (document(scores(0), model=3), "model: "),
        (document(scores(0), completed_trials="18"), "completed_trials: "),
        (document({**scores(0), "refusals": 3}), "pareto_trials.0.refusals: "),
        (document({**scores(0), "refusals": {"count": 21, "n": 20}}), "pareto_trials.0.refusals: "),
        (document(scores(0, kl=math.nan)), "kl_divergence: "),
        (
            document({**scores(0), "first_token_kl": {"value": 0.1, "n": 1, "interval": [0.0, math.nan]}}),
            "first_token_kl.interval",
        ),
        (document(scores(0), best_trial=99), "best trial 99 is not among the pareto_trials"),
        (document(scores(0), schema_version=2), "schema version 2; this version of iconoclast reads up to 1"),
        ({"schema_version": 2, "everything": "else"}, "schema version 2"),
    ],
)
def test_a_file_that_is_no_summary_is_named_in_one_line(
    tmp_path: Path, content: dict[str, Any] | str, reason: str
) -> None:
    file = saved(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_summary(file)
    message = str(caught.value)
    assert message.startswith(f"{file} ") and reason in message and "\n" not in message and len(message) < 400


def test_bytes_that_are_no_text_and_folders_are_no_summaries(tmp_path: Path) -> None:
    file = saved(tmp_path / "a", "")
    file.write_bytes(b"\xff\xfe\x00{")
    (tmp_path / "b" / "batch_summary.json").mkdir(parents=True)
    found, problems = read_summaries([tmp_path, tmp_path / "nowhere", tmp_path / "b"])
    assert not found and len(problems) == 3
    assert "does not exist" in problems[0] and "no batch_summary.json" in problems[1] and str(file) in problems[2]


def test_one_bad_file_among_many_is_skipped_and_told_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "good", document(scores(0), model="maker/good"))
    bad = [saved(tmp_path / "damaged", "{"), saved(tmp_path / "newer", document(scores(0), schema_version=9))]
    with pytest.raises(UserError) as caught:
        summarize_action([tmp_path], None, None)
    assert "maker/good" in capsys.readouterr().out
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 skipped:" and [str(file) in line for file, line in zip(bad, lines[1:], strict=True)]
    assert caught.value.exit_code == 2


def test_where_nothing_can_be_read_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        summarize_action([tmp_path / "nowhere"], tmp_path / "table.json", None)
    assert not list(tmp_path.iterdir())


def test_without_files_the_table_is_printed_one_line_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", document(scores(1, 2, 0.0362), model="maker/[bold]model"))
    saved(tmp_path / "b", document(scores(3), model="maker/[bold]model", tool="heretic"))
    summarize_action([tmp_path], None, None)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "0.0362" in line and "pruned" in line]
    assert "[bold]model" in line and "1/20 (1% to 24%)" in line and "2/64 (1% to 11%)" in line
    assert "ICONOCLAST wins 1/1" in printed


def test_with_files_both_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", document(scores(1)))
    files = tmp_path / "new" / "table.json", tmp_path / "new" / "table.md"
    summarize_action([tmp_path / "a"], *files)
    found, _ = read_summaries([tmp_path / "a"])
    assert json.loads(files[0].read_text()) == summary_document(found)
    assert files[1].read_text() == summary_markdown(found)
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"Wrote {file}" for file in files]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "a", document(scores(1)))
    for place in (tmp_path, tmp_path / "a" / "batch_summary.json" / "table.json"):
        with pytest.raises(UserError, match=re.escape(f"{place} cannot be written")):
            summarize_action([tmp_path / "a"], place, None)


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
def test_refusals_come_before_overrefusals_and_those_before_kl_beyond_the_noise(
    ours: dict[str, Any], peer: dict[str, Any], winner: str | None, lower_kl: str | None
) -> None:
    (match,) = tally([summary(ours, kl_noise_floor=0.001), heretic(peer)]).matches
    assert (match.winner, match.lower_kl) == (winner, lower_kl)


def test_what_one_tool_has_not_counted_is_left_out_of_the_verdict() -> None:
    unseen = scores(2, kl=0.1) | {"overrefusals": Count(0, 0).document()}
    ours = scores(1, 5, 0.2) | {"broken": Count(4, 20).document()}
    (match,) = tally([summary(ours), heretic(unseen)]).matches
    assert match.winner == "iconoclast"
    (row, _) = run_cells([summary(ours), heretic(unseen)])[::-1]
    assert row["Overrefusals"] == ""
    both = unseen | {"broken": Count(1, 20).document()}
    assert tally([summary(ours), heretic(both)]).matches[0].winner == "heretic"


measured = st.builds(scores, st.integers(0, 2), st.integers(0, 2), st.sampled_from([0.1, 0.2, 0.3]))


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


def test_both_are_compared_on_prompts_that_both_were_measured_on() -> None:
    report = {"trial": 7, "base_metrics": scores(20), "metrics": scores(9)}
    (match,) = tally([summary(scores(1), report=report), heretic(scores(3))]).matches
    assert match.split == "selection" and match.scores["iconoclast"].refusals.count == 1
    (match,) = tally([summary(scores(1), report=report), heretic(scores(3), report=report)]).matches
    assert match.split == "report" and match.scores["iconoclast"].refusals.count == 9


def prompts(fingerprint: str) -> dict[str, Any]:
    return {"bad_evaluation_prompts": {"source": "file.txt", "n": 20, "sha256": fingerprint}}


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (heretic(scores(3, n=40)), "the selection prompts differ"),
        (heretic(scores(3), prompts=prompts("b")), "the selection prompts differ"),
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
