"""`summarize`: the table of many runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.console import out, print_table
from iconoclast.errors import RunFolderError
from iconoclast.files import write_json, write_whole
from iconoclast.reports.summary import Summary, read_summaries
from iconoclast.reports.summary_tables import summary_document, summary_markdown, summary_tables
from iconoclast.reports.text import print_lines


def summarize(
    paths: Annotated[list[Path], Argument(help="Run folders, folders of run folders, or batch_summary.json files.")],
    json_file: Annotated[Path | None, Option("--json", help="File for the table as JSON.")] = None,
    markdown: Annotated[Path | None, Option(help="File for the table as Markdown.")] = None,
) -> None:
    """One table of many runs: a row a run, its base model and its best trial."""
    summaries, problems = read_summaries(paths)
    if summaries and (json_file or markdown):
        _write(summaries, json_file, markdown)
    elif summaries:
        _print(summaries)
    if problems:
        raise RunFolderError("\n".join([f"{len(problems)} skipped:", *problems] if summaries else problems))


def _write(summaries: Sequence[Summary], json: Path | None, markdown: Path | None) -> None:
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
        print_table(table)
    print_lines(out, *lines)
