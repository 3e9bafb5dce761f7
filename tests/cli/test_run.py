"""The commands as a user types them: whole processes, interrupted, killed, and at a terminal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
import tomli_w

from iconoclast.config.schema import Settings, settings_document
from tests.support.processes import Running, finished, started

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "iconoclast.cli"]


@pytest.fixture
def config(tiny_settings: Settings, tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    document = settings_document(tiny_settings)
    del document["study_checkpoint_dir"]
    file.write_text(tomli_w.dumps(document))
    return file


def typed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A new interpreter, as a user starts it."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def wait_for_line(process: Running, word: str) -> None:
    for line in process.stderr:
        if line.startswith(word):
            return
    raise AssertionError(f"the process ended before {word!r}")


def summary(folder: Path) -> dict[str, object]:
    return json.loads((folder / "batch_summary.json").read_text())


def trials_of(folder: Path) -> int:
    kept = summary(folder)
    return int(str(kept["completed_trials"])) + int(str(kept["pruned_trials"]))


def test_a_run_without_a_terminal_ends_and_shows_its_findings(config: Path, tmp_path: Path) -> None:
    done = typed("run", "--config", config, "--out", tmp_path / "run", "--n-trials", 3)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in log if line] == done.stderr.splitlines()[: len(log)]
    assert "Pareto front" in done.stdout and "batch_summary.json" in done.stdout
    assert "Ready for trials after" in done.stderr and "noise floor" in done.stderr
    assert trials_of(tmp_path / "run") == 3


def test_without_a_command_run_is_meant_and_variables_count(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    done = finished(
        ICONOCLAST_CONFIG_TEMPLATE=str(config),
        ICONOCLAST_EXIT_AFTER_OPTIMIZATION="true",
        ICONOCLAST_N_TRIALS="2",
        ICONOCLAST_STUDY_CHECKPOINT_DIR=str(folder),
    )
    assert done.returncode == 0, done.stderr
    assert trials_of(folder) == 2
    again = finished("--config", config, "--out", folder, "--n-trials", "4")
    assert again.returncode == 0, again.stderr
    assert trials_of(folder) == 4


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(config: Path, tmp_path: Path, stop: signal.Signals) -> None:
    arguments = ("run", "--config", config, "--out", tmp_path / "run", "--n-trials", 400)
    process = started(*arguments)
    wait_for_line(process, "Trial 3")
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "To continue" in rest and "Traceback" not in rest
    kept = summary(tmp_path / "run")
    assert kept["status"] == "interrupted" and 4 <= trials_of(tmp_path / "run") < 400


def test_a_killed_run_goes_on_with_the_trials_it_would_have_had(config: Path, tmp_path: Path) -> None:
    arguments = ("--config", config, "--n-trials", 10, "--exit-after-optimization")
    assert finished("run", *arguments, "--out", tmp_path / "whole").returncode == 0
    process = started("run", *arguments, "--out", tmp_path / "killed")
    wait_for_line(process, "Trial 3")
    process.kill()
    process.wait()
    before = trials_of(tmp_path / "killed")
    assert finished("run", *arguments, "--out", tmp_path / "killed").returncode == 0
    assert before in (3, 5, 7, 9)  # whole batches, and not all of them
    assert summary(tmp_path / "killed")["pareto_trials"] == summary(tmp_path / "whole")["pareto_trials"]


def test_export_measures_and_prints_the_difference(config: Path, tmp_path: Path) -> None:
    assert finished("run", "--config", config, "--out", tmp_path / "run", "--n-trials", 2).returncode == 0
    done = finished("export", tmp_path / "run", "--trial", "1", "--format", "merged", "--to", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "Difference of the export from the live edit: +0 refusals" in done.stdout
    plotted = finished("plot", tmp_path / "run")
    assert plotted.returncode == 0, plotted.stderr
    assert (tmp_path / "run" / "plots" / "residuals.html").is_file()


def test_chat_answers_from_a_pipe_and_ends_with_it(config: Path, tmp_path: Path) -> None:
    assert finished("run", "--config", config, "--out", tmp_path / "run", "--n-trials", 1).returncode == 0
    done = subprocess.run(
        [*COMMAND, "chat", str(tmp_path / "run")],
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert len(done.stdout) > 1


def test_at_a_terminal_a_finished_run_offers_what_to_do(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    terminal = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "run", "--config", str(config), "--out", str(folder), "--n-trials", "2"],
        timeout=120,
        encoding="utf-8",
        dimensions=(40, 200),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    adapter = str(tmp_path / "adapter")
    conversation = [
        ("What now", "more"), ("How many more", "2"),
        ("What now", "adapter"), ("Which trial", "77"), ("Into which folder", adapter),
        ('no completed trial "77"(?s:.*)What now', "adapter"), ("Which trial", ""), ("Into which folder", adapter),
        ("Difference of the export(?s:.*)What now", "chat"), ("Which trial", "best"), ("ends the conversation", "Hello"), ("Hello", ""),
        ("What now", "quit"),
    ]  # fmt: skip
    for question, answer in conversation:
        terminal.expect(question)
        terminal.sendline(answer)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert trials_of(folder) == 4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_command_line_answers_at_once() -> None:
    start = time.monotonic()
    assert typed("--version").stdout.startswith("iconoclast ")
    assert time.monotonic() - start < 3


def test_libraries_draw_no_bars_whenever_they_were_imported() -> None:
    program = (
        "import huggingface_hub.utils as hub\n"
        "from iconoclast.cli.console import quiet_libraries\n"
        "quiet_libraries()\n"
        "print(hub.are_progress_bars_disabled())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_DISABLE")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "True"
