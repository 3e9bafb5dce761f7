"""The commands."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from iconoclast.cli.cluster import cluster_app
from iconoclast.cli.console import err, interruptible, out, quiet_imports
from iconoclast.cli.flags import with_settings
from iconoclast.config.layers import LoadedSettings, load_settings
from iconoclast.config.schema import Settings, settings_document
from iconoclast.config.specs import setting_specs
from iconoclast.errors import IconoclastError
from iconoclast.reports.text import print_lines, settings_lines, settings_reference
from iconoclast.version import __version__

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
app.add_typer(cluster_app, name="cluster", context_settings=CONTEXT)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file (TOML). Unset: the file that ICONOCLAST_CONFIG_TEMPLATE names, else ./config.toml.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; the same as --study-checkpoint-dir.")]
SampleCountOption = Annotated[int, typer.Option("--sample-count", help="Responses shown of each kind.", min=0)]
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
    workers: Annotated[
        int, typer.Option("--workers", help="Processes that share the study on this machine.", min=1)
    ] = 1,
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
    from iconoclast.cli.actions import run_action, run_together_action

    if workers == 1:
        run_action(settings)
    else:
        run_together_action(settings, workers)


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
    kind: Annotated[
        str, typer.Option("--format", help="adapter (PEFT), merged (whole model) or gguf (llama.cpp).")
    ] = "adapter",
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="Folder of a llama.cpp checkout, whose converter makes GGUF files."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Load what was written and measure it. Without, merged weights are written in the memory of a few matrices.",
        ),
    ] = True,
) -> None:
    """Write a trial's edit as an adapter, merged weights or a GGUF file, and measure what was written."""
    from iconoclast.cli.actions import export_action

    export_action(run_folder, trial, kind, to, llama_cpp, measure)


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


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model, adapter or run folder, hub id, or heretic journal.")],
    against: Annotated[
        str | None, typer.Option("--against", help="Its base model. Unset: the one that the settings name.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file (TOML) with prompts and markers. Unset: those of a run."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Measure an edited model, whoever made it, beside its base.

    Uses the report prompts of the settings, or the evaluation prompts if there are none. A run or journal can be
    followed by a colon and the number of a trial.
    """
    from iconoclast.cli.comparing import evaluate_action

    evaluate_action(model, against, config, json_file)


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Runs, exported or other models, adapters, heretic journals; two or more.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="Their base model. Unset: the one that the settings name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file (TOML). Unset: those of the first run or journal.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for comparison.json and summary.json.")] = None,
    sample_count: SampleCountOption = 3,
) -> None:
    """Measure several edited models of one base on the same prompts, with paired tests, and say which is better.

    Fewer refused or broken responses come first, then fewer overrefusals, then lower KL divergence. A run or journal
    can be followed by a colon and the number of a trial; without, its best trial is meant.
    """
    from iconoclast.cli.comparing import compare_action

    compare_action(models, against, config, to, sample_count)


def export_and_compare(
    iconoclast_checkpoint: Annotated[
        Path, typer.Option("--iconoclast-checkpoint", help="iconoclast_study.jsonl of a run, or its folder.")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for the results; must not exist yet.")],
    heretic_checkpoint: Annotated[
        Path | None, typer.Option("--heretic-checkpoint", help="Journal of a heretic study to compare with.")
    ] = None,
    sample_count: SampleCountOption = 5,
) -> None:
    """Export the best trial of a run as merged weights, and compare it with the best trial of a heretic study."""
    from iconoclast.cli.comparing import export_and_compare_action

    export_and_compare_action(iconoclast_checkpoint, heretic_checkpoint, output_dir, sample_count)


@app.command()
def benchmark(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run folder, model, adapter folder or hub id.")],
    tasks: Annotated[
        list[str], typer.Option("--tasks", help="Tasks of lm-eval, separated by commas; may be repeated.")
    ],
    trial: TrialOption = "best",
    against: Annotated[
        str | None, typer.Option("--against", help="Base model to compare MODEL with. An adapter knows its own.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="Folder with task files of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only so many items of each task.", min=1)] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", help="Worked examples before each item. Unset: the task's.", min=0)
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Sequences in a batch.", min=1)] = 8,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put the items to the model as a user would.")
    ] = False,
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run code which the model has written.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Benchmark a trial or an edited model beside its base, with lm-eval (pip install 'iconoclast[benchmark]')."""
    from iconoclast.cli.benchmark import benchmark_action
    from iconoclast.evaluation.benchmarks import BenchmarkOptions

    names = [name for entry in tasks for name in entry.split(",") if name]
    options = BenchmarkOptions(
        names, include_path, limit, num_fewshot, batch_size, apply_chat_template, confirm_run_unsafe_code
    )
    benchmark_action(model, trial, against, options, json_file)


@app.command()
def summarize(
    paths: Annotated[
        list[Path], typer.Argument(help="Run folders, folders of run folders, or batch_summary.json files.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the table as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="File for the table as Markdown.")] = None,
) -> None:
    """One table of many runs: a row a run, its base model and its best trial."""
    from iconoclast.cli.summarize import summarize_action

    summarize_action(paths, json_file, markdown)


@app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how a run stands: trials, best so far, whether a process works on it."""
    from iconoclast.cli.inspecting import status_action

    status_action(run_folder, as_json)


@app.command("list")
def list_runs(folder: Annotated[Path, typer.Argument(help="Folder with run folders.")] = Path("runs")) -> None:
    """List all runs below a folder."""
    from iconoclast.cli.inspecting import list_action

    list_action(folder)


@app.command()
def replay(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    trial: TrialOption = "best",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code of the model's repository run; the run is not asked.")
    ] = False,
) -> None:
    """Apply a recorded trial again, measure it, and grade the drift: exact, within noise, or changed.

    Names the versions, weights and prompts that differ from those of the run. Ends with an error if the scores changed.
    """
    from iconoclast.cli.inspecting import replay_action

    replay_action(run_folder, trial, json_file, trust_remote_code)


@app.command()
def verify(
    export_folder: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of an export.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Base model. Unset: the one that the export names.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file that names the prompts, as that of the run does.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Also measure the scores again.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
) -> None:
    """Check that an export is what its papers say: files, tensors against the base model, scores.

    Ends with an error if it is not.
    """
    from iconoclast.cli.inspecting import verify_action

    verify_action(export_folder, base, config, measure, json_file)


@app.command()
def upload(
    export_folder: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of an export.")],
    repo: Annotated[str, typer.Argument(help="Name on the hub, as in you/model.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody can see it. Without, it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
) -> None:
    """Send an export to the hub, private unless you say --public. Nothing else ever uploads anything."""
    from iconoclast.cli.inspecting import upload_action

    upload_action(export_folder, repo, public, dry_run)


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
    from iconoclast.models.names import resolve

    model = loaded.settings.model
    return {
        "model_path": None if model is None else resolve(model),
        "settings": settings_document(loaded.settings),
        "origins": {spec.key: loaded.origin(spec.key) for spec in setting_specs()},
    }


def main() -> None:
    """Entry point of `iconoclast`."""
    run_alone(lambda: app(prog_name="iconoclast"))


def run_alone(command: Callable[[], Any]) -> None:
    """A command as a program: exit code 0, 1 (failed), 2 (the user's mistake), 130 (interrupted, resumable)."""
    try:
        with interruptible():
            quiet_imports()
            command()
    except IconoclastError as error:
        print_lines(err, f"Error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_lines(err, "Interrupted.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: head, less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
