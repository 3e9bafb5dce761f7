"""The table of many runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from iconoclast.cli.console import out
from iconoclast.errors import RunFolderError
from iconoclast.reports.summaries import Summary, read_summaries, summary_document, summary_markdown, summary_tables
from iconoclast.reports.text import print_lines

WIDEST = 10_000
"""Columns that a table can take where there is no terminal."""


def summarize_action(paths: Sequence[Path], json: Path | None, markdown: Path | None) -> None:
    """Write the table of the runs that the paths mean to these files; print it if there are none.

    Raises:
        RunFolderError: summaries are missing or cannot be read; all others have been shown or written then.
    """
    summaries, problems = read_summaries(paths)
    if summaries and (json or markdown):
        _write(summaries, json, markdown)
    elif summaries:
        _print(summaries)
    if problems:
        raise RunFolderError("\n".join([f"{len(problems)} skipped:", *problems] if summaries else problems))


def _write(summaries: Sequence[Summary], json: Path | None, markdown: Path | None) -> None:
    from iconoclast.runs.folder import write_json, write_whole  # these load torch, which the table alone does not need

    if json is not None:
        with _writing(json):
            write_json(json, summary_document(summaries))
    if markdown is not None:
        with _writing(markdown):
            write_whole(markdown, summary_markdown(summaries).encode())


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunFolderError(f"{file} cannot be written: {error.strerror}. Give another file.") from None
    print_lines(out, f"Wrote {file}")


def _print(summaries: Sequence[Summary]) -> None:
    tables, lines = summary_tables(summaries)
    for table in tables:
        _print_table(table)
    print_lines(out, *lines)


def _print_table(table: Table) -> None:
    """As wide as the terminal; elsewhere as wide as it is, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)
