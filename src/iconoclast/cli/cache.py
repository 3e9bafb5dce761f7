"""`cache list`, `size` and `clear`: what was computed for earlier runs."""

from datetime import datetime

import typer
from rich.table import Table

from iconoclast.cli.arguments import AsJsonOption
from iconoclast.cli.console import print_json, print_table, say
from iconoclast.cli.flags import CommandWithOptions
from iconoclast.documents import Plain
from iconoclast.reports.text import plain
from iconoclast.runs.cache import Cache, Entry, cache_folder

MIB = 2**20

cache_app = typer.Typer(
    help="Look at what was computed for models and prompts, with which later runs on both start.", rich_markup_mode=None
)


@cache_app.command("list", cls=CommandWithOptions)
def list_entries(as_json: AsJsonOption = False) -> None:
    """List what is kept, the latest used first."""
    entries = Cache(cache_folder()).entries()
    if as_json:
        rows = [
            {"kind": e.kind, "model": e.model, "bytes": e.size, "used": e.used, "file": str(e.file)} for e in entries
        ]
        print_json(rows)
        return
    table = Table("What", "Model", "MiB", "Last used")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        table.add_row(entry.kind or "damaged", plain(entry.model), f"{entry.size / MIB:.1f}", used)
    if entries:
        print_table(table)
    size()


@cache_app.command("size", cls=CommandWithOptions)
def size(as_json: AsJsonOption = False) -> None:
    """Say how much is kept, and where."""
    entries = Cache(cache_folder()).entries()
    if as_json:
        print_json(_document(entries))
        return
    say(f"{_amount(entries)} in {cache_folder()}.")


@cache_app.command("clear", cls=CommandWithOptions)
def clear(as_json: AsJsonOption = False) -> None:
    """Remove everything that is kept. It is computed again when it is needed."""
    cache = Cache(cache_folder())
    entries = cache.entries()
    cache.clear()
    if as_json:
        print_json(_document(entries))
        return
    say(f"Removed {_amount(entries)} from {cache_folder()}.")


def _document(entries: list[Entry]) -> Plain:
    return {"folder": str(cache_folder()), "entries": len(entries), "bytes": sum(e.size for e in entries)}


def _amount(entries: list[Entry]) -> str:
    return f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}, {sum(e.size for e in entries) / MIB:.1f} MiB"
