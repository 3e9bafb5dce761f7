"""`chat`: a conversation with the edited model."""

import sys
from contextlib import suppress

from iconoclast.cli.arguments import RunArgument, TrialOption, run_and_trial
from iconoclast.cli.console import err, out, say
from iconoclast.reports.text import plain
from iconoclast.runs.folder import RunFolder


def chat(run: RunArgument, trial: TrialOption = None) -> None:
    """Talk to the model with a trial's edit applied. An empty line or Ctrl-D ends it."""
    folder, trial = run_and_trial(run, trial)
    from iconoclast.runs.conversation import Conversation
    from iconoclast.runs.saved import SavedRun

    saved = SavedRun.open(RunFolder(folder), trial)
    with err.status("Loading the model"):
        lm = saved.load_model()
        edit = saved.edit(lm)
    say(f"Trial {saved.trial.index}. An empty line or Ctrl-D ends the conversation.", to=err)
    conversation = Conversation(lm, edit, saved.settings.components, saved.settings.system_prompt)
    while True:
        try:
            message = out.input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not message:
            return
        with suppress(KeyboardInterrupt):  # Ctrl-C ends a long reply, not the conversation
            conversation.reply(message, lambda piece: out.print(plain(piece), end="", soft_wrap=True, highlight=False))
        out.print()
