"""`summarize`: what is printed, written and skipped."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iconoclast.cli.summarize import summarize
from iconoclast.errors import UserError
from iconoclast.reports.summary import read_summaries
from iconoclast.reports.summary_tables import summary_document, summary_markdown
from tests.support.batch_summaries import document, saved, scores


def test_the_table_alone_loads_no_torch() -> None:
    check = "import sys, iconoclast.cli.summarize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_bad_file_is_skipped_and_told_after_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "good", document(scores(0), model="maker/good"))
    bad = [saved(tmp_path / "damaged", "{"), saved(tmp_path / "newer", document(scores(0), schema_version=9))]
    with pytest.raises(UserError) as caught:
        summarize([tmp_path], None, None)
    assert "maker/good" in capsys.readouterr().out
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 skipped:" and [str(file) in line for file, line in zip(bad, lines[1:], strict=True)]
    assert caught.value.exit_code == 2


def test_where_nothing_can_be_read_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        summarize([tmp_path / "nowhere"], tmp_path / "table.json", None)
    assert not list(tmp_path.iterdir())


def test_without_files_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", document(scores(1, 2, 0.0362), model="maker/[bold]model"))
    saved(tmp_path / "b", document(scores(3), model="maker/[bold]model", tool="heretic"))
    summarize([tmp_path], None, None)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "0.0362" in line and "pruned" in line]
    assert "[bold]model" in line and "1/20 (1% to 24%)" in line and "2/64 (1% to 11%)" in line
    assert "ICONOCLAST wins 1/1" in printed


def test_with_files_both_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "a", document(scores(1)))
    files = tmp_path / "new" / "table.json", tmp_path / "new" / "table.md"
    summarize([tmp_path / "a"], *files)
    found, _ = read_summaries([tmp_path / "a"])
    assert json.loads(files[0].read_text()) == summary_document(found)
    assert files[1].read_text() == summary_markdown(found)
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"Wrote {file}" for file in files]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "a", document(scores(1)))
    for place in (tmp_path, tmp_path / "a" / "batch_summary.json" / "table.json"):
        with pytest.raises(UserError, match=re.escape(f"{place} cannot be written")):
            summarize([tmp_path / "a"], place, None)
