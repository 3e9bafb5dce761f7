"""What a user at a terminal sees, at several widths; what one sees who is at none, or asks for another manner."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import tomli_w
import typer
from rich.console import Console

from iconoclast.cli.app import app
from iconoclast.cli.examples import EXAMPLES
from iconoclast.cli.view import View, about, span
from iconoclast.config.schema import Settings, settings_document
from iconoclast.progress import Phase
from tests.support.entry_point import QUICK, iconoclast, write_prompts

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PHASES = [Phase("Set-up", 1.0, 0.0), Phase("Search", 0.25, 240.0), Phase("Fit", 0.0, 500.0), Phase("Report", 0.0, None)]


def drawn(width: int, height: int = 40, phases: list[Phase] = PHASES) -> list[str]:
    """The lines of a picture."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    view = View(console)
    view.start("Trials", 200)
    view.advance(50)
    view.show("Best so far", "trial 7: 1/48 (0% to 11%) refused, 5 broken, 0/64 overrefused, KL 0.0123")
    view.expect(phases)
    with console.capture() as captured:
        console.print(view._picture())
    return CODES.sub("", captured.get()).splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_view_fits_into_every_width(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "Search" in text and "50 of 200" in text and "(0% to 11%)" in text and "Memory" in text


def test_time_is_said_for_every_phase_and_in_all_where_it_is_known() -> None:
    text = "\n".join(drawn(100))
    assert "the rest is not measured yet" in text and "about 8 min" in text and "25%, about 4 min" in text
    known = "\n".join(drawn(100, phases=[*PHASES[:3], Phase("Report", 0.0, 60.0)]))
    assert "about 13 min left" in known


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "about 5 s"), (42, "about 40 s"), (100, "about 2 min"), (7300, "about 2 h 02 min")]
)
def test_an_estimate_has_no_more_digits_than_are_meant(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_durations() -> None:
    assert [span(seconds) for seconds in (5, 65, 3700)] == ["0:05", "1:05", "1 h 01 min"]


# A real terminal


@pytest.fixture
def at_terminal(tiny_settings: Settings, tmp_path: Path) -> Callable[..., "pexpect.spawn[str]"]:
    """Starts a run at a terminal of some size."""
    file = tmp_path / "settings.toml"
    document = settings_document(tiny_settings) | {"exit_after_optimization": True}
    del document["study_checkpoint_dir"]
    file.write_text(tomli_w.dumps(document))

    # A size in the environment, as pytest's workers have it, would be that of every window.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}

    def start(*arguments: object, columns: int = 100) -> "pexpect.spawn[str]":
        return pexpect.spawn(
            sys.executable,
            ["-m", "iconoclast", "run", "--config", str(file), "--out", str(tmp_path / "run"), *map(str, arguments)],
            timeout=180,
            encoding="utf-8",
            dimensions=(30, columns),
            env={**environment, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
        )

    return start


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "others"), [(60, 200), (200, 60)])
def test_a_run_is_seen_at_a_terminal_whose_size_changes(
    columns: int, others: int, at_terminal: Callable[..., "pexpect.spawn[str]"]
) -> None:
    terminal = at_terminal("--n-trials", 40, columns=columns)
    terminal.expect("Trial 3:")
    terminal.setwinsize(20, others)
    terminal.expect(re.escape("\x1b[2J"))  # the window is drawn anew
    terminal.expect("Pareto front")
    before = str(terminal.before)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert "Search" in before and "Best so far" in before and "Noise floor" in before
    assert before.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in before  # the cursor is there again


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_cleanly_and_the_run_goes_on(
    at_terminal: Callable[..., "pexpect.spawn[str]"],
) -> None:
    terminal = at_terminal("--n-trials", 400)
    terminal.expect("Trial 3:")
    terminal.sendintr()
    terminal.expect("trials are kept in")
    terminal.expect("To continue")
    terminal.expect(pexpect.EOF)
    rest = str(terminal.before)
    terminal.close()
    assert terminal.exitstatus == 130 and "Traceback" not in rest and "\x1b[?25h" in rest
    again = at_terminal("--n-trials", 1, "--plain")
    again.expect("trials are there already")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
    assert "\x1b[?25l" not in str(again.before)  # plain: no cursor is hidden, nothing drawn over


# Other manners


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    assert iconoclast("run", tiny_folder, *QUICK, "--out", "run").code == 0
    return Path("run")


def test_quiet_says_results_only_and_verbose_how_long_each_step_took(run: Path) -> None:
    quiet, usual, verbose = (iconoclast("replay", run, *flag) for flag in (["--quiet"], [], ["--verbose"]))
    assert (quiet.err, quiet.out) == ("", usual.out)
    assert "took" not in usual.err and re.search(r"Loading .*: took 0:\d\d; memory ", verbose.err)
    assert [line for line in verbose.err.splitlines() if "took" not in line] == usual.err.splitlines()


def test_json_is_all_that_standard_output_holds(run: Path, tiny_folder: Path) -> None:
    def document(*arguments: object) -> Any:
        done = iconoclast(*arguments)
        assert done.code == 0, done.err
        return json.loads(done.out)

    config = run / "iconoclast_config.toml"
    assert document("run", "--config", config, "--out", run, "--json")["status"] == "complete"
    assert document("list", ".", "--json")[0]["state"] == "complete"
    assert document("export", run, "--to", "adapter", "--json")["problem"] == ""
    assert document("replay", run, "--json", "-")["grade"] == "exact"
    assert document("verify", "adapter", "--base", tiny_folder, "--no-measure", "--json", "-")["checks"]
    assert document("evaluate", run, "--json", "-")["subject"]
    assert document("compare", run, "adapter", "--config", config, "--json")["pairs"]
    assert document("summarize", run, "--json", "-")
    assert document("upload", "adapter", "you/model", "--dry-run", "--json")["sent"] is None
    assert document("report", run, "--json")["written"] == [str(run / "report.html")]
    assert document("behaviors", "new", "pack", "--json")["pack"] == "pack"
    assert not Path("-").exists()


# Help


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups, by the words that call them."""
    group = typer.main.get_command(app) if group is None else group
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = dict(commands())


def test_every_command_has_an_example_of_itself_and_no_other() -> None:
    assert {" ".join(path) for path in ALL} == EXAMPLES.keys()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_ends_with_its_example_which_can_be_typed(path: tuple[str, ...]) -> None:
    example = EXAMPLES[" ".join(path)]
    assert iconoclast(*path, "--help").out.rstrip().endswith(f"Example:\n  {example}")
    words = example.split(" > ")[0].split()
    assert words[: len(path) + 1] == ["iconoclast", *path]
    named = tuple(words[1 : 1 + max(len(path), 1)])
    named = next(each for each in (tuple(words[1:3]), tuple(words[1:2])) if each in ALL) if not path else named
    while hasattr(ALL[named], "commands"):
        named = (*named, words[1 + len(named)])
    ALL[named].make_context("iconoclast", words[1 + len(named) :])  # a wrong option would end the test


WITHOUT_RESULT = {"chat", "serve", "cluster work", "config reference"}
"""A conversation, a worker, and a document that is no figure."""


def test_every_command_with_a_result_prints_it_as_json() -> None:
    for path, command in ALL.items():
        if not hasattr(command, "commands"):
            options = {name for parameter in command.params for name in parameter.opts}
            assert ("--json" in options) != (" ".join(path) in WITHOUT_RESULT), path


def test_a_shell_completes_commands_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(words: str) -> list[str]:
        monkeypatch.setenv("_ICONOCLAST_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        return iconoclast().out.split()

    assert {"report", "replay", "restore"} <= set(completed("iconoclast re"))
    assert completed("iconoclast run --max-resp") == ["--max-response-length"]
