"""`chat`: a conversation with the edited model, the base model beside it."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

from rich.live import Live
from rich.table import Table
from typer import Argument, Option

from iconoclast.cli.arguments import TrialOption, WithOption, run_and_trial
from iconoclast.cli.console import err, out, say
from iconoclast.errors import UserError
from iconoclast.reports.text import plain

if TYPE_CHECKING:
    from iconoclast.runs.talk import Talk

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
SIDE_BY_SIDE = 100
"""Columns from which a terminal takes two responses side by side."""

SourceArgument = Annotated[
    str, Argument(metavar="RUN|EXPORT|MODEL", help="Run folder (RUN:N means its trial N), export, adapter, or model.")
]
BaseOption = Annotated[str | None, Option(help="Base model of an export. Unset: the one that it names.")]


def chat(source: SourceArgument, trial: TrialOption = None, base: BaseOption = None, beside: WithOption = None) -> None:
    """Talk to a trial, an export or any model, and to its base model beside it. /help lists commands."""
    folder, trial = run_and_trial(source, trial)
    from iconoclast.runs.talk import Talk
    from iconoclast.runs.voices import open_voices

    with err.status("Loading the model"):
        talk = Talk(open_voices(str(folder), trial, base, [run_and_trial(run) for run in beside or []]))
    say(
        f"{talk.title[:1].upper()}{talk.title[1:]}. /help lists commands; an empty line or Ctrl-D ends the conversation.",
        to=err,
    )
    for line in typed(talk.choices):
        if not line or not hear(talk, line):
            break


def typed(choices: list[str]) -> Iterator[str]:
    """Yield what the user says; at a terminal, with history and completion of `choices`."""
    read = _prompt(choices) if sys.stdin.isatty() else input
    while True:
        try:
            line = read()
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{read()}"
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            continue
        yield line.strip()


def _prompt(choices: list[str]) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    class Choices(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            begun = document.text_before_cursor
            return (Completion(each, -len(begun)) for each in choices if begun[:1] == "/" and each.startswith(begun))

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ", completer=Choices(), key_bindings=keys, multiline=True, reserve_space_for_menu=5
    )
    return session.prompt


def hear(talk: "Talk", line: str) -> bool:
    """Obey a command, or let the models answer; return whether the conversation goes on."""
    found = COMMAND.fullmatch(line)
    if found is not None and found[1] == "quit":
        return False
    try:
        if found is None:
            _answer(talk, line)
        else:
            say(talk.obey(found[1], (found[2] or "").strip()), to=err)
    except UserError as error:
        say(str(error), to=err)
    return True


def _answer(talk: "Talk", message: str) -> None:
    both = len(talk.listening) > 1
    try:
        if both and out.is_terminal and out.width >= SIDE_BY_SIDE:
            _answer_side_by_side(talk, message)
            return
        for name in talk.listening:
            if both:
                say(f"{talk.titles[name]}:")
            for piece in talk.reply(name, message):
                out.print(plain(piece), end="", soft_wrap=True, highlight=False)
            out.print()
    except KeyboardInterrupt:  # ends a long reply, not the conversation
        say("\nStopped. What was said so far is part of the conversation.")


def _answer_side_by_side(talk: "Talk", message: str) -> None:
    said = dict.fromkeys(talk.listening, "")

    def table() -> Table:
        shown = Table(expand=True)
        for name in said:
            shown.add_column(talk.titles[name], ratio=1)
        shown.add_row(*(plain(text.strip()) for text in said.values()))
        return shown

    try:
        with Live(console=out, transient=True, get_renderable=table):
            for name in said:
                for piece in talk.reply(name, message):
                    said[name] += piece
    finally:
        out.print(table())
