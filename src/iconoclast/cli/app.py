"""The program: its commands put together, and how it ends."""

import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from iconoclast.cli.audit import audit
from iconoclast.cli.behaviors import behaviors_app
from iconoclast.cli.benchmark import benchmark
from iconoclast.cli.cache import cache_app
from iconoclast.cli.chat import chat
from iconoclast.cli.cluster.app import cluster_app
from iconoclast.cli.compare import compare
from iconoclast.cli.config import config_app
from iconoclast.cli.console import err, interruptible, quiet_libraries, say
from iconoclast.cli.demo import demo
from iconoclast.cli.evaluate import evaluate
from iconoclast.cli.examples import write_example
from iconoclast.cli.export import export
from iconoclast.cli.export_and_compare import export_and_compare
from iconoclast.cli.flags import CommandWithOptions, SettingsCommand, own_flag
from iconoclast.cli.list import list_runs
from iconoclast.cli.plot import plot
from iconoclast.cli.replay import replay
from iconoclast.cli.report import report
from iconoclast.cli.restore import restore
from iconoclast.cli.run import run
from iconoclast.cli.serve import serve
from iconoclast.cli.status import status
from iconoclast.cli.summarize import summarize
from iconoclast.cli.upload import upload
from iconoclast.cli.verify import verify
from iconoclast.errors import IconoclastError
from iconoclast.version import __version__

INTERRUPTED = 130
CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: own_flag(name.replace(".", "-").replace("_", "-")),
}


class Listing(TyperGroup):
    """Lists its commands with whole sentences, where click cuts them off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command and the first sentence of its help."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=200)) for name, each in commands if each])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """End the help with an example."""
        write_example(ctx, formatter)


class RunByDefault(Listing):
    """Without a command's name, the options are those of `run`: `iconoclast --config FILE` starts a run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front unless a command, or an option of the group itself, comes first."""
        own = {name for parameter in self.params for name in parameter.opts} | {"-h", "--help"}
        completing = ctx.resilient_parsing  # then nothing stands for the commands' names
        if (not args and not completing) or (args and args[0].startswith("-") and args[0] not in own):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunByDefault,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(config_app, name="config", cls=Listing, context_settings=CONTEXT)
app.add_typer(behaviors_app, name="behaviors", cls=Listing, context_settings=CONTEXT)
app.add_typer(cache_app, name="cache", cls=Listing, context_settings=CONTEXT)
app.add_typer(cluster_app, name="cluster", cls=Listing, context_settings=CONTEXT)
app.command(cls=SettingsCommand)(run)
ORDINARY: tuple[Callable[..., None], ...] = (
    demo, report, export, chat, serve, plot, evaluate, compare, export_and_compare, benchmark, summarize, status,
    replay, verify, upload, audit, restore,
)  # fmt: skip
for command in ORDINARY:
    app.command(cls=CommandWithOptions)(command)
app.command("list", cls=CommandWithOptions)(list_runs)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"iconoclast {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def root(version: VersionOption = False) -> None:
    """Representation editing of open-weight language models: find, measure, search and export low-rank edits.

    Start with `iconoclast demo`. Without a command, `run` is meant.
    """


def main() -> None:
    """Run the command line."""
    name_namesakes()
    run_alone(lambda: app(prog_name="iconoclast"))


def name_namesakes() -> None:
    """Say so if another distribution here brings a package and a command of the same name."""
    for name, versions in (("iconoclast", r"[1-9]"), ("iconoclast-llm", "")):  # ours was called iconoclast until 0.2
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if re.match(versions, found):
            say(
                f"{name} {found} is installed here too. It is another project, whose package and command have the same name: files "
                f"of one replace the other's. Uninstall both, then install iconoclast-edit, or give each its own environment.",
                to=err,
            )


def run_alone(command: Callable[[], Any]) -> None:
    """Run a command as a program: exit code 0, 1 (failed), 2 (the user's mistake), 130 (interrupted, resumable)."""
    try:
        with interruptible():
            quiet_libraries()
            command()
    except IconoclastError as error:
        say(f"Error: {error}", to=err)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("Interrupted.", to=err)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: head, less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
