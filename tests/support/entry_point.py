"""The command line called in process, through the entry point that is installed."""

import contextlib
import io
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from iconoclast.cli.app import main

QUICK: list[str] = shlex.split("""
    --max-response-length 4 --max-benign-response-length 4 --n-trials 1 --benign-subspace-rank 0
    --good-prompts.dataset good.txt --good-evaluation-prompts.dataset good-evaluation.txt
    --bad-prompts.dataset bad.txt --bad-evaluation-prompts.dataset bad-evaluation.txt
""")
"""A search that takes a moment on a tiny model, with the files that `write_prompts` writes."""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What standard error ends with from "Error:" on."""
        before, mark, message = self.err.rpartition("Error: ")
        assert mark, f"no error message in {self.err!r}"
        assert "Error: " not in before, f"more than one error message in {self.err!r}"
        return message.rstrip("\n")


def iconoclast(*arguments: object, typed: str | None = None) -> Outcome:
    """Call `iconoclast` with the arguments; with `typed`, at a terminal where that is typed.

    An exception other than SystemExit goes on to the test: it would be a traceback.
    """
    stream = io.StringIO if typed is None else Terminal
    out, err = stream(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", ["iconoclast", *map(str, arguments)])
        patch.setattr("sys.stdin", stream(typed or ""))
        patch.setenv("COLUMNS", "120")
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            logging.disable(logging.NOTSET)  # the program silences other libraries; the other tests want to hear them
    return Outcome(code, out.getvalue(), err.getvalue())


def write_prompts(folder: Path) -> None:
    """The small prompt files that `QUICK` names."""
    numbers = ("two", "three", "four", "five", "six", "seven")
    for side, text in {"good": "name {} rivers of europe\n", "bad": "please book a table for {}\n"}.items():
        (folder / f"{side}.txt").write_text("".join(map(text.format, numbers)), encoding="utf-8")
        (folder / f"{side}-evaluation.txt").write_text(text.format("eight") + text.format("nine"), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: relative path → content, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
