"""`chat`: a conversation with the edited model, the base model beside it."""

import math
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from rich.table import Table

from iconoclast.cli.arguments import RunArgument, TrialOption, run_and_trial
from iconoclast.cli.console import err, out, say
from iconoclast.reports.text import plain
from iconoclast.runs.folder import RunFolder

if TYPE_CHECKING:
    from iconoclast.runs.conversation import Conversation

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
HELP = """\
/both               let both models answer, side by side on a wide terminal
/base, /edited      let only one of them answer; each remembers what it was asked itself
/strength FACTOR    multiply the strengths of the trial's edit: 0 is the base model, 1 the trial
/system TEXT        start anew with this system prompt; without a text, with none
/reset              start anew
/help               show this list
/quit               leave, as an empty line and Ctrl-D do"""
SIDE_BY_SIDE = 100
"""Columns from which a terminal takes two responses side by side."""


def chat(run: RunArgument, trial: TrialOption = None) -> None:
    """Talk to the model with a trial's edit applied, or to it and the base model. /help lists commands."""
    folder, trial = run_and_trial(run, trial)
    from iconoclast.edits.edit import Edit
    from iconoclast.runs.conversation import Conversation
    from iconoclast.runs.saved import SavedRun

    saved = SavedRun.open(RunFolder(folder), trial)
    with err.status("Loading the model"):
        lm = saved.load_model()
        edit = saved.edit(lm)
    components, system = saved.settings.components, saved.settings.system_prompt
    base, edited = (Conversation(lm, each, components, system) for each in (Edit.nothing(), edit))
    talk = Talk(f"trial {saved.trial.index}", base, edited, lambda factor: edited.carry(edit.scaled(factor)), system)
    say(f"Trial {saved.trial.index}. /help lists commands; an empty line or Ctrl-D ends the conversation.", to=err)
    if sys.stdin.isatty():
        with suppress(ImportError):  # lines can be edited and called back
            import_module("readline")
    while (line := _line()) and talk.hear(line):
        pass


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


class Talk:
    """Two conversations, and which of them hear what is said.

    Args:
        trial: name of the edited model.
        strengthen: multiplies the strengths of the trial's edit by a factor.
        system: system prompt of both.
    """

    def __init__(
        self,
        trial: str,
        base: "Conversation",
        edited: "Conversation",
        strengthen: Callable[[float], None],
        system: str | None,
    ) -> None:
        self._models = {"base model": base, trial: edited}
        self._listeners = {"base": ["base model"], "edited": [trial], "both": ["base model", trial]}
        self._listening = self._listeners["edited"]
        self._strengthen = strengthen
        self._system = system

    def hear(self, line: str) -> bool:
        """Obey a command, or let the models answer; return whether the conversation goes on."""
        found = COMMAND.fullmatch(line)
        if found is None:
            self._answer(line)
        elif found[1] == "quit":
            return False
        else:
            say(self._obey(found[1], (found[2] or "").strip()), to=err)
        return True

    def _obey(self, command: str, text: str) -> str:
        if command == "help":
            return HELP
        if command in self._listeners and not text:
            self._listening = self._listeners[command]
            return f"From now on answers: {' and '.join(self._listening)}."
        if command == "strength":
            return self._change(text)
        if command == "system" or (command == "reset" and not text):
            self._system = self._system if command == "reset" else text or None
            for conversation in self._models.values():
                conversation.restart(self._system)
            return f"A new conversation. System prompt: {self._system or 'none'}"
        if command in self._listeners or command == "reset":
            return f"/{command} takes nothing after it. Give it alone, then the message."
        return f"There is no /{command}. /help lists the commands."

    def _change(self, text: str) -> str:
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            return "/strength takes a number, such as /strength 0.5. The edit is as it was."
        self._strengthen(factor)
        return f"The edit's strengths are those of the trial times {factor:g}."

    def _answer(self, message: str) -> None:
        both = len(self._listening) > 1
        try:
            if both and out.is_terminal and out.width >= SIDE_BY_SIDE:
                self._answer_side_by_side(message)
                return
            for name in self._listening:
                if both:
                    say(f"{name}:")
                self._models[name].reply(message, _print_piece)
                out.print()
        except KeyboardInterrupt:  # ends a long reply, not the conversation
            out.print()

    def _answer_side_by_side(self, message: str) -> None:
        table = Table(expand=True)
        for name in self._listening:
            table.add_column(name, ratio=1)
        with err.status("Both models answer"):
            table.add_row(*(plain(self._models[name].reply(message).strip()) for name in self._listening))
        out.print(table)


def _print_piece(piece: str) -> None:
    out.print(plain(piece), end="", soft_wrap=True, highlight=False)
