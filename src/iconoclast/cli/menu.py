"""The menu that follows a run at a terminal."""

from collections.abc import Callable
from pathlib import Path

from rich.prompt import IntPrompt, Prompt

from iconoclast.cli.chat import chat
from iconoclast.cli.console import err, out, say
from iconoclast.cli.export import export
from iconoclast.config.schema import Settings
from iconoclast.errors import UserError
from iconoclast.runs.folder import RunFolder

CHOICES = ["adapter", "merged", "chat", "more", "quit"]


def menu(settings: Settings, folder: Path, search: Callable[[Settings], Path]) -> None:
    """Ask a user at a terminal what to do with a finished run, until there is nothing more; `search` continues it."""
    while True:
        say("", "adapter: save a LoRA adapter    merged: save the whole model    chat: talk to a trial")
        say("more: run more trials           quit: leave")
        try:
            action = Prompt.ask("What now?", choices=CHOICES, default="quit", console=out)
            if action == "quit":
                return
            if action == "more":
                summary = RunFolder(folder).read_summary()
                done = 0 if summary is None else summary.finished_trials
                more = IntPrompt.ask("How many more?", default=8, console=out)
                search(settings.model_copy(update={"n_trials": done + more}))
                continue
            trial = Prompt.ask("Which trial?", default="best", console=out)
            if action == "chat":
                chat(str(folder), trial)
            else:
                to = Path(Prompt.ask("Into which folder?", default=str(folder / action), console=out))
                export(str(folder), to, trial, action)
        except EOFError:
            return
        except UserError as error:
            say(f"Error: {error}", to=err)
