"""The commands."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from iconoclast import __version__
from iconoclast.cli.console import err, interruptible, out, quiet_imports
from iconoclast.cli.flags import with_settings
from iconoclast.config import LoadedSettings, Settings, load_settings, setting_specs, settings_document
from iconoclast.errors import IconoclastError
from iconoclast.reports.text import print_lines, settings_lines, settings_reference

INTERRUPTED = 130
CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace(".", "-").replace("_", "-"),
}


class RunByDefault(TyperGroup):
    """Without a command's name, the options are those of `run`: `iconoclast --config FILE` starts a run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front unless a command, or an option of the group itself, comes first."""
        own = {name for parameter in self.params for name in parameter.opts} | {"-h", "--help"}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunByDefault,
    context_settings=CONTEXT,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(context_settings=CONTEXT, help="Look at the settings.", rich_markup_mode=None)
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file (TOML). Unset: the file that ICONOCLAST_CONFIG_TEMPLATE names, else ./config.toml.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; the same as --study-checkpoint-dir.")]
TrialOption = Annotated[str, typer.Option("--trial", help="Number of the trial, or best.")]


def _version(wanted: bool) -> None:
    if wanted:
        print_lines(out, f"iconoclast {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Representation editing of open-weight language models: find, measure, search and export low-rank edits.

    Start with `iconoclast demo`. Without a command, `run` is meant.
    """


@app.command()
@with_settings
def run(
    model: Annotated[str | None, typer.Argument(help="Hub id, model folder, .gguf file, or demo.")] = None,
    config: ConfigOption = None,
    out_folder: OutOption = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Search for the edit that changes the behaviour most and everything else least.

    Runs the main job on MODEL, or continues it where it was interrupted. The results are in the run folder.
    """
    if model is not None:
        flags["model"] = model
    if out_folder is not None:
        flags["study_checkpoint_dir"] = str(out_folder)
    settings = load_settings(flags, config).settings
    from iconoclast.cli.actions import run_action

    run_action(settings)


@app.command()
def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder; the exports go into it.")] = Path("demo-run"),
    n_trials: Annotated[int, typer.Option("--n-trials", help="Trials in total.", min=1)] = 24,
) -> None:
    """The whole job in minutes: SmolLM2-135M-Instruct learns not to decline everyday requests.

    Searches, exports an adapter and merged weights, measures both again, and shows the responses side by side.
    """
    from iconoclast.cli.actions import demo_action

    demo_action(out_folder, n_trials)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the export; it must not exist yet.")],
    trial: TrialOption = "best",
    kind: Annotated[str, typer.Option("--format", help="adapter (PEFT) or merged (whole model).")] = "adapter",
) -> None:
    """Write a trial's edit as an adapter or merged weights, and measure what was written."""
    from iconoclast.cli.actions import export_action

    export_action(run_folder, trial, kind, to)


@app.command()
def chat(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    trial: TrialOption = "best",
) -> None:
    """Talk to the model with a trial's edit applied. An empty line or Ctrl-D ends it."""
    from iconoclast.cli.actions import chat_action

    chat_action(run_folder, trial)


@app.command()
def plot(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Draw the residuals of both prompt sets and all trials, as web pages in RUN/plots."""
    from iconoclast.cli.actions import plot_action

    plot_action(run_folder)


@config_app.callback(invoke_without_command=True)
def config_root(ctx: typer.Context) -> None:
    """Look at the settings."""
    if ctx.invoked_subcommand is None:
        print_lines(out, ctx.get_help())


@config_app.command("show")
@with_settings
def config_show(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Show the effective settings and where each came from."""
    loaded = load_settings(flags, config)
    if as_json:
        out.print_json(data=_settings_json(loaded))
    else:
        print_lines(out, *settings_lines([(k, v, loaded.origin(k)) for k, v in _values(loaded.settings)]))


@config_app.command("reference")
def config_reference() -> None:
    """Print what every setting is for, in Markdown (docs/settings.md is made of it)."""
    print_lines(out, settings_reference().rstrip())


def _values(settings: Settings) -> list[tuple[str, Any]]:
    values = []
    for spec in setting_specs():
        value: Any = settings
        for name in spec.path:
            value = getattr(value, name, None)
        values.append((spec.key, value))
    return values


def _settings_json(loaded: LoadedSettings) -> dict[str, Any]:
    from iconoclast.models.loading import resolve

    model = loaded.settings.model
    return {
        "model_path": None if model is None else resolve(model),
        "settings": settings_document(loaded.settings),
        "origins": {spec.key: loaded.origin(spec.key) for spec in setting_specs()},
    }


def main() -> None:
    """Entry point: exit code 0, 1 (failed), 2 (the user's mistake), 130 (interrupted, resumable)."""
    try:
        with interruptible():
            quiet_imports()
            app(prog_name="iconoclast")
    except IconoclastError as error:
        print_lines(err, f"Error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_lines(err, "Interrupted.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: head, less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
