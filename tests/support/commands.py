"""The program's commands as its parser knows them, and docs/commands.md, which is made of them."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import typer

from iconoclast.cli.app import app
from iconoclast.cli.examples import EXAMPLES
from iconoclast.cli.flags import manner_options, setting_options

ROOT: Any = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__base__
"""What the parser raises: no such command, no such option, a missing or wrong value."""


def parsed(words: Sequence[str]) -> Any:
    """Parse the words after `iconoclast` and return the context of the command they call, or raise UsageError; run nothing."""
    command, name, words, parent = ROOT, "iconoclast", list(words), None
    while True:
        context = command.make_context(name, words, parent=parent)
        words = [*context._protected_args, *context.args]
        if not hasattr(command, "resolve_command") or not words:
            return context
        name, command, words = command.resolve_command(context, words)
        parent = context


def commands(command: Any = ROOT, name: str = "", parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Yield every command that does something: its name without `iconoclast`, the command, its context."""
    context = command.context_class(command, info_name=name.rpartition(" ")[2] or "iconoclast", parent=parent)
    if not hasattr(command, "list_commands"):
        yield name, command, context
        return
    for below in command.list_commands(context):
        yield from commands(command.get_command(context, below), f"{name} {below}".strip(), context)


@cache
def flags() -> set[str]:
    """All flags of all commands, with dashes."""
    own = [(ROOT, ROOT.context_class(ROOT)), *((command, context) for _, command, context in commands())]
    parameters = [parameter for command, context in own for parameter in command.get_params(context)]
    names = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
    return {name.replace(".", "-").replace("_", "-") for name in names if name.startswith("-")}


def document() -> str:
    """docs/commands.md."""
    return TEXT + "\n".join(_section(*each) for each in commands())


def _section(name: str, command: Any, context: Any) -> str:
    settings, everywhere = setting_options(), {p.name for p in manner_options()} | {"help"}
    parameters = command.get_params(context)
    own = [p for p in parameters if p.name not in everywhere and p not in settings]
    rows = [_row(*record) for p in own if (record := p.get_help_record(context))]
    table = ["| Argument or flag | |", "|---|---|", *rows, ""] if rows else []
    further = [SETTINGS, ""] if any(p in settings for p in parameters) else []
    words = re.sub(r"(?<!\n)\n(?!\n)", " ", str(command.help).strip())
    return "\n".join([f"## {name}", "", words, "", "```sh", EXAMPLES[name], "```", "", *table, *further])


def _row(names: str, says: str) -> str:
    names, says = (text.replace("  [", " [").replace("|", r"\|") for text in (names, says))
    return f"| `{names}` | {says} |"


SETTINGS = "Further flags: every [setting](settings.md)."

TEXT = """# Commands

Made by `python -m tests.support.commands > docs/commands.md`; a test compares it with the program.

`iconoclast --help` lists the commands, and `iconoclast COMMAND --help` says what stands here. Every command takes `--plain`
(progress as plain lines, as where there is no terminal), `--quiet` (results and errors only) and `--verbose` (how long each
step took, and other libraries' words). Without a command, `run` is meant. `RUN:3` is trial 3 of a run.

The exit code is 0, 1 if something failed or is not as it should be, 2 for a mistake in what was asked, and 130 if the command
was interrupted. A flag's name can be written with dots and underscores too: `--bad_prompts.split` is `--bad-prompts-split`.

## Completion

```sh
iconoclast --install-completion
```

lets bash, zsh, fish or PowerShell complete commands and flags with the Tab key, in every shell that is opened from then on.
It writes to your shell's start-up files; `iconoclast --show-completion` prints the script instead, to be put where you like.

"""

if __name__ == "__main__":
    print(document(), end="")
