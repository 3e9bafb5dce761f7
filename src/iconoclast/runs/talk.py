"""Conversations with an edited model and its base, and the commands that change who answers, and how."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from iconoclast.files import write_json
from iconoclast.runs.conversation import Conversation, thinks
from iconoclast.runs.voices import Voices

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
"""What the user can type, for /help."""
ALONE = ("base", "edited", "both", "reset", "help")
"""Commands that take nothing after them."""


class Talk:
    """A conversation with the base model and one with an edit of it, and which of them hear what is said.

    Attributes:
        listening: names of those that hear it: base, edited.
        titles: what they are called, for people.
    """

    def __init__(self, voices: Voices, longest: int = 1024) -> None:
        self._voices, self._longest = voices, longest
        self._system = voices.system
        self._thinking: list[bool] = []
        """With thoughts, without, or both; empty as long as models answer as they were measured."""
        self._conversations: dict[str, Conversation] = {}
        """Those that were begun: base, edited."""
        self.titles = {"base": "base model", "edited": voices.edited}
        self._edited, self._named = "edited", voices.edited
        self.listening = [voices.names[:2][-1]]
        self._with(self.listening[0])
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
        return " and ".join(self.titles[name] for name in self.listening)

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

    def obey(self, command: str, text: str) -> str:
        """Obey a command and say what has changed, or why nothing has; raise UserError if a model cannot be asked."""
        if command not in self._commands:
            return f"There is no /{command}. /help lists the commands."
        if text and command in ALONE:
            return f"/{command} takes nothing after it. Give it alone, then the message."
        return self._commands[command](text)

    def _with(self, name: str) -> Conversation:
        """The conversation with a model, begun if it was not."""
        if name not in self._conversations:
            begun = Conversation(self._voices.voice(name), self._system, self._longest)
            begun.thinking = self._thinking[0] if self._thinking else begun.thinking
            self._conversations[name] = begun
        return self._conversations[name]

    def _listen(self, *names: str) -> str:
        for name in names:
            self._with(name)
        self.listening = list(names)
        return f"From now on answers: {self.title}."

    def _restart(self, system: str | None) -> str:
        self._system = system
        for conversation in self._conversations.values():
            conversation.restart(system)
        return f"A new conversation. System prompt: {system or 'none'}"

    def _change_trial(self, text: str) -> str:
        self._with("edited").voice = self._voices.voice(f"trial-{text}")
        self._edited, self._named = f"trial-{text}", f"trial {text}{self._voices.beside}"
        self.titles["edited"] = self._named
        return f"The edited model is {self._named} from now on, at its own strengths."

    def _change_strength(self, text: str) -> str:
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            return "/strength takes a number, such as /strength 0.5. The edit is as it was."
        self._with("edited").voice = self._voices.voice(self._edited, factor)
        self.titles["edited"] = self._named if factor == 1 else f"{self._named}, strengths times {factor:g}"
        return f"The edit's strengths are its own times {factor:g}."

    def _think(self, text: str) -> str:
        modes = {"on": [True], "off": [False], "both": [False, True]}
        if text not in modes:
            return "/thinking takes on, off or both."
        lm = self._with(self.listening[0]).voice.lm
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
        begun = {title: self._conversations.get(name) for name, title in self.titles.items()}
        write_json(
            file, {"conversations": [{"title": title, **each.document()} for title, each in begun.items() if each]}
        )
        return f"Wrote {file}"

    def reply(self, name: str, message: str) -> Iterator[str]:
        """Yield a model's reply piece by piece: with and without thoughts one after the other, if both are asked for."""
        conversation, both = self._with(name), len(self._thinking) > 1
        before = conversation.messages if both else []
        for thinking in self._thinking if both else [conversation.thinking]:
            if both:  # the last answer is the one that is remembered
                conversation.messages, conversation.thinking = before, thinking
                yield f"\n[{'thinking first' if thinking else 'without thinking'}] "
            with closing(conversation.reply(message)) as pieces:
                yield from pieces
