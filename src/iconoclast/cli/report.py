"""`report`: one web page about a run, an export, a comparison or an audit."""

import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from iconoclast import layout
from iconoclast.cli.arguments import AsJsonOption, PacmapOption, require_writable, run_and_trial
from iconoclast.cli.console import busy, print_json, say, shown_progress
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.runs.kinds import kind_of

if TYPE_CHECKING:
    from iconoclast.reports.pages.page import Page

PAGE = "report.html"


def report(
    source: Annotated[
        str,
        Argument(
            metavar="RUN|EXPORT|COMPARISON|AUDIT",
            help="Run folder (RUN:N means its trial N), export, comparison, or the JSON file of an audit.",
        ),
    ],
    to: Annotated[
        Path | None,
        Option(help="File for the page. Unset: report.html in the folder; of an export or audit, beside it."),
    ] = None,
    beside: Annotated[
        list[Path] | None, Option(help="Another run whose trials are drawn beside this run's; may be repeated.")
    ] = None,
    tokens: Annotated[
        bool, Option("--tokens", help="Measure what the edit does at every token (loads the model).")
    ] = False,
    pacmap: PacmapOption = False,
    open_: Annotated[bool, Option("--open", help="Show the page in the browser.")] = False,
    as_json: AsJsonOption = False,
) -> None:
    """Write one self-contained web page: what was done, what changed, all trials, the edit, the responses.

    It needs no network and can be given away: local paths have lost their folders. It holds the responses of the report.
    """
    require_writable(to)
    if tokens or pacmap:
        _measure(source, tokens, pacmap)
    with busy("Reading"):
        page, default = _page(source, beside or [])
    file = to or default
    page.write(file)
    say(f"Wrote {file}", *_absent(source, page))
    if as_json:
        print_json({"written": [str(file)]})
    if open_:
        webbrowser.open(file.resolve().as_uri())


def _absent(source: str, page: "Page") -> Iterator[str]:
    """Say which parts the page of a run could have, and how to get them."""
    ways = {"residuals": f"iconoclast plot {source}", "tokens": f"iconoclast report {source} --tokens"}
    for part, way in ways.items():
        if page.kind == "run" and not page.figures.get(part):
            yield f"It has no {part}. {way} measures them."


def _measure(source: str, tokens: bool, pacmap: bool) -> None:
    """Add to a run's folder what takes its model."""
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.geometry import complete_geometry
    from iconoclast.runs.saved import SavedRun
    from iconoclast.runs.tokens import token_view

    path, trial = run_and_trial(source)
    saved = SavedRun.open(folder := RunFolder(path), trial)
    with shown_progress() as progress:
        if pacmap:
            complete_geometry(folder, saved, progress, pacmap=True)
        if tokens:
            with saved.opened(progress) as bench:
                token_view(bench, saved.trial, progress).write(folder.tokens)


def _page(source: str, beside: list[Path]) -> "tuple[Page, Path]":
    """Return the page of whatever was named, and the file that it goes to unless another is given."""
    folder, trial = run_and_trial(source)
    comparison = folder if folder.name == layout.COMPARISON else folder / layout.COMPARISON
    kind = kind_of(folder)
    if beside and kind != "run":
        raise SettingsError("Other runs can be drawn beside a run only. Leave out --beside.")
    if trial != "best" and kind != "run":
        raise SettingsError(f"{source}: only runs have trials, and {folder} is not a run. Leave out the number.")
    if kind == "run":
        from iconoclast.reports.pages.of_run import RunPage

        return RunPage.open(folder, trial, beside).page(), folder / PAGE
    if comparison.is_file():
        from iconoclast.reports.pages.of_comparison import comparison_page

        return comparison_page(comparison), comparison.with_name(PAGE)
    if kind == "export":
        from iconoclast.reports.pages.of_export import export_page

        whole = folder.resolve()  # a file inside would not be in its checksums
        return export_page(folder), whole.with_name(f"{whole.name}-{PAGE}")
    if folder.suffix == ".json" and folder.is_file():
        from iconoclast.reports.pages.of_audit import audit_page

        return audit_page(folder), folder.with_name(f"{folder.stem}-{PAGE}")
    raise RunFolderError(f"{source} is not a run, an export, a comparison or an audit. Give the folder or file of one.")
