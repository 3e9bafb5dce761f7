"""`summarize`: the table of many runs."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.console import print_table, say, write_figures
from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole


def summarize(
    paths: Annotated[list[Path], Argument(help="Run folders, folders of run folders, or batch_summary.json files.")],
    json_file: Annotated[Path | None, Option("--json", help="File for the table as JSON.")] = None,
    markdown: Annotated[Path | None, Option(help="File for the table as Markdown.")] = None,
) -> None:
    """Make one table of many runs: a row a run, its base model and its best trial."""
    from iconoclast.reports.summary import read_summaries
    from iconoclast.reports.summary_tables import summary_document, summary_markdown, summary_tables

    summaries, problems = read_summaries(paths)
    if summaries and not (json_file or markdown):
        tables, lines = summary_tables(summaries)
        for table in tables:
            print_table(table)
        say(*lines)
    elif summaries:
        for file in filter(None, (json_file, markdown)):
            _make_folder_of(file)
        write_figures(json_file, summary_document(summaries))
        if markdown is not None:
            write_whole(markdown, summary_markdown(summaries).encode())
            say(f"Wrote {markdown}")
    if problems:
        raise RunFolderError("\n".join([f"{len(problems)} skipped:", *problems] if summaries else problems))


def _make_folder_of(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be written: {error.strerror}. Give another file.") from None
