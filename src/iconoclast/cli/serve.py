"""`serve`: an OpenAI-compatible endpoint for a run or an export, with a page for the browser."""

from contextlib import suppress
from typing import Annotated

from typer import Option

from iconoclast.cli.arguments import TrialOption, WithOption, run_and_trial
from iconoclast.cli.chat import BaseOption, SourceArgument
from iconoclast.cli.console import err, say


def serve(
    source: SourceArgument,
    trial: TrialOption = None,
    base: BaseOption = None,
    beside: WithOption = None,
    port: Annotated[int, Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, Option(help="Address to listen on. Any but the default lets others in, without a key.")] = (
        "127.0.0.1"
    ),
) -> None:
    """Serve a run's edits, an export or a model to OpenAI's clients, and a page that asks two of them side by side.

    The models are base, edited, and trial-N for every trial of a run: nothing has to be exported. Ctrl-C ends it.
    """
    folder, trial = run_and_trial(source, trial)
    import asyncio

    from iconoclast.runs.voices import open_voices
    from iconoclast.serving import endpoint

    with err.status("Loading the model"):
        voices = open_voices(str(folder), trial, base, [run_and_trial(run) for run in beside or []])

    def ready(address: str) -> None:
        trials = len(voices.names) - 2
        models = ", ".join(voices.names[:2]) + (f" and {trials} trials (trial-N{voices.beside})" if trials > 0 else "")
        models += f"; edited is {voices.edited}" if voices.beside else ""
        say(f"Models: {models}. Ctrl-C ends it.", f"Page: {address}/", f"Endpoint: {address}/v1")
        if not endpoint.is_local(host):
            say("Whoever reaches this address can use the model: there is no key.", to=err)

    with suppress(KeyboardInterrupt):
        asyncio.run(endpoint.serve(endpoint.Endpoint(voices, host), host, port, ready))
