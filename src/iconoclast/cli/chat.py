"""`chat`: a conversation with the edited model, the base model beside it."""

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.live import Live
from rich.table import Table
from typer import Argument, Option

from iconoclast.cli.arguments import TrialOption, WithOption, run_and_trial
from iconoclast.cli.console import err, out, say
from iconoclast.errors import UserError
from iconoclast.files import write_json
from iconoclast.reports.text import plain

if TYPE_CHECKING:
    from iconoclast.runs.conversation import Conversation
    from iconoclast.runs.voices import Voices

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
HELP = """\
/both               let both models answer, side by side on a wide terminal
/base, /edited      let only one of them answer; each remembers what it was asked itself
/trial N            let another trial of the run answer in place of the edited model
/strength FACTOR    multiply the strengths of the edit: 0 is the base model, 1 the edit as it is
/thinking on|off    let a model that can think do so before it answers, or not; both: one after the other
/system TEXT        start anew with this system prompt; without a text, with none
/reset              start anew
/save FILE          write what was said into a JSON file
/help               show this list
/quit               leave, as an empty line and Ctrl-D do
A line that ends with a backslash goes on in the next, as after Alt-Enter. Ctrl-C stops a response."""
SIDE_BY_SIDE = 100
"""Columns from which a terminal takes two responses side by side."""

ALONE = ("base", "edited", "both", "reset", "help")
"""Commands that take nothing after them."""

SourceArgument = Annotated[
    str, Argument(metavar="RUN|EXPORT|MODEL", help="Run folder (RUN:N means its trial N), export, adapter, or model.")
]
BaseOption = Annotated[str | None, Option(help="Base model of an export. Unset: the one that it names.")]


def chat(source: SourceArgument, trial: TrialOption = None, base: BaseOption = None, beside: WithOption = None) -> None:
    """Talk to a trial, an export or any model, and to its base model beside it. /help lists commands."""
    folder, trial = run_and_trial(source, trial)
    from iconoclast.runs.voices import open_voices

    with err.status("Loading the model"):
        talk = Talk(open_voices(str(folder), trial, base, [run_and_trial(run) for run in beside or []]))
    say(
        f"{talk.title[:1].upper()}{talk.title[1:]}. /help lists commands; an empty line or Ctrl-D ends the conversation.",
        to=err,
    )
    for line in typed(talk.choices):
        if not line or not talk.hear(line):
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


class Talk:
    """A conversation with the base model and one with an edit of it, and which of them hear what is said."""

    def __init__(self, voices: "Voices", longest: int = 1024) -> None:
        self._voices, self._longest = voices, longest
        self._system = voices.system
        self._thinking: list[bool] = []
        """With thoughts, without, or both; empty as long as models answer as they were measured."""
        self._conversations: dict[str, Conversation] = {}
        """Those that were begun: base, edited."""
        self._titles = {"base": "base model", "edited": voices.edited}
        self._edited, self._named = "edited", voices.edited
        self._listening = [voices.names[:2][-1]]
        self._with(self._listening[0])
        self._commands: dict[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "base": lambda _: self._listen("base"),
            "edited": lambda _: self._listen("edited"),
            "both": lambda _: self._listen("base", "edited"),
            "reset": lambda _: self._restart(self._system),
            "system": lambda text: self._restart(text or None),
            "trial": self._change_trial,
            "strength": self._change_strength,
            "thinking": self._think,
            "save": self._save,
        }

    @property
    def title(self) -> str:
        """Who listens."""
        return " and ".join(self._titles[name] for name in self._listening)

    @property
    def choices(self) -> list[str]:
        """Commands, for completion."""
        trials = [name.replace("-", " ") for name in self._voices.names if name.startswith("trial-")]
        return [
            *(f"/{name}" for name in [*self._commands, "quit", *trials]),
            "/thinking on",
            "/thinking off",
            "/thinking both",
        ]

    def hear(self, line: str) -> bool:
        """Obey a command, or let the models answer; return whether the conversation goes on."""
        found = COMMAND.fullmatch(line)
        if found is not None and found[1] == "quit":
            return False
        try:
            if found is None:
                self._answer(line)
            else:
                say(self._obey(found[1], (found[2] or "").strip()), to=err)
        except UserError as error:
            say(str(error), to=err)
        return True

    def _obey(self, command: str, text: str) -> str:
        if command not in self._commands:
            return f"There is no /{command}. /help lists the commands."
        if text and command in ALONE:
            return f"/{command} takes nothing after it. Give it alone, then the message."
        return self._commands[command](text)

    def _with(self, name: str) -> "Conversation":
        """The conversation with a model, begun if it was not."""
        from iconoclast.runs.conversation import Conversation

        if name not in self._conversations:
            begun = Conversation(self._voices.voice(name), self._system, self._longest)
            begun.thinking = self._thinking[0] if self._thinking else begun.thinking
            self._conversations[name] = begun
        return self._conversations[name]

    def _listen(self, *names: str) -> str:
        for name in names:
            self._with(name)
        self._listening = list(names)
        return f"From now on answers: {self.title}."

    def _restart(self, system: str | None) -> str:
        self._system = system
        for conversation in self._conversations.values():
            conversation.restart(system)
        return f"A new conversation. System prompt: {system or 'none'}"

    def _change_trial(self, text: str) -> str:
        self._with("edited").voice = self._voices.voice(f"trial-{text}")
        self._edited, self._named = f"trial-{text}", f"trial {text}{self._voices.beside}"
        self._titles["edited"] = self._named
        return f"The edited model is {self._named} from now on, at its own strengths."

    def _change_strength(self, text: str) -> str:
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            return "/strength takes a number, such as /strength 0.5. The edit is as it was."
        self._with("edited").voice = self._voices.voice(self._edited, factor)
        self._titles["edited"] = self._named if factor == 1 else f"{self._named}, strengths times {factor:g}"
        return f"The edit's strengths are its own times {factor:g}."

    def _think(self, text: str) -> str:
        from iconoclast.runs.conversation import thinks

        modes = {"on": [True], "off": [False], "both": [False, True]}
        if text not in modes:
            return "/thinking takes on, off or both."
        lm = self._with(self._listening[0]).voice.lm
        if text != "off" and not thinks(lm):
            return f"The chat template of {lm.name} has no switch for thinking. It goes on as before."
        self._thinking = modes[text]
        for conversation in self._conversations.values():
            conversation.thinking = self._thinking[0]
        return f"Thinking is {text}."

    def _save(self, text: str) -> str:
        file = Path(text).expanduser()
        if not text or file.exists() or not file.parent.is_dir():
            return "/save takes the name of a new file, in a folder that exists, such as /save talk.json."
        begun = {title: self._conversations.get(name) for name, title in self._titles.items()}
        write_json(
            file, {"conversations": [{"title": title, **each.document()} for title, each in begun.items() if each]}
        )
        return f"Wrote {file}"

    def _answer(self, message: str) -> None:
        both = len(self._listening) > 1
        try:
            if both and out.is_terminal and out.width >= SIDE_BY_SIDE:
                self._answer_side_by_side(message)
                return
            for name in self._listening:
                if both:
                    say(f"{self._titles[name]}:")
                for piece in self._reply(name, message):
                    out.print(plain(piece), end="", soft_wrap=True, highlight=False)
                out.print()
        except KeyboardInterrupt:  # ends a long reply, not the conversation
            say("\nStopped. What was said so far is part of the conversation.")

    def _reply(self, name: str, message: str) -> Iterator[str]:
        conversation, both = self._with(name), len(self._thinking) > 1
        before = conversation.messages if both else []
        for thinking in self._thinking if both else [conversation.thinking]:
            if both:  # the last answer is the one that is remembered
                conversation.messages, conversation.thinking = before, thinking
                yield f"\n[{'thinking first' if thinking else 'without thinking'}] "
            with closing(conversation.reply(message)) as pieces:
                yield from pieces

    def _answer_side_by_side(self, message: str) -> None:
        said = dict.fromkeys(self._listening, "")

        def table() -> Table:
            shown = Table(expand=True)
            for name in said:
                shown.add_column(self._titles[name], ratio=1)
            shown.add_row(*(plain(text.strip()) for text in said.values()))
            return shown

        try:
            with Live(console=out, transient=True, get_renderable=table):
                for name in said:
                    for piece in self._reply(name, message):
                        said[name] += piece
        finally:
            out.print(table())
