"""`run`: the search, what it prints, and for a user at a terminal what follows."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.prompt import IntPrompt, Prompt
from typer import Argument, Context, Option

from iconoclast.cli.arguments import AsJsonOption, ConfigOption
from iconoclast.cli.chat import chat
from iconoclast.cli.console import err, out, print_json, program, say, shown_progress
from iconoclast.cli.export import export
from iconoclast.cli.flags import given_settings
from iconoclast.documents import Plain
from iconoclast.errors import UserError

if TYPE_CHECKING:
    from iconoclast.config.schema import Settings
    from iconoclast.runs.pipeline import Run

SAMPLES = 3
MENU = ["adapter", "merged", "chat", "more", "quit"]


def run(
    ctx: Context,
    model: Annotated[str | None, Argument(help="Hub id, model folder, .gguf file, or demo.")] = None,
    config: ConfigOption = None,
    out_folder: Annotated[Path | None, Option("--out", help="Run folder; the same as --study-checkpoint-dir.")] = None,
    workers: Annotated[int, Option(help="Processes that share the study on this machine.", min=1)] = 1,
    as_json: AsJsonOption = False,
) -> None:
    """Search for the edit that changes the behaviour most and everything else least.

    Runs the main job on MODEL, or continues it where it was interrupted. The results are in the run folder.
    """
    settings = given_settings(ctx, config, model=model, out=out_folder)
    together = workers > 1
    folder = _search_together(settings, workers) if together else search(settings, began=process_start())
    if as_json:
        print_json(summary_of(folder))
    elif not together and not settings.exit_after_optimization and sys.stdin.isatty() and sys.stdout.isatty():
        _menu(settings, folder)


def summary_of(folder: Path) -> Plain:
    """Return the summary of a run as a JSON document; none of its results is missing."""
    from iconoclast.runs.folder import RunFolder

    summary = RunFolder(folder).read_summary()
    return {} if summary is None else summary.document()


def process_start() -> float:
    """Return this process's start, from which time to the first trial counts, imports included."""
    import psutil

    return psutil.Process().create_time()


def search(settings: "Settings", samples: bool = False, began: float | None = None) -> Path:
    """Run or continue the search, print the front, and return the run folder."""
    from iconoclast.runs.starting import started_run

    with _resumable(), shown_progress() as progress, started_run(settings, progress, began) as run:
        progress.keep(run.folder.log)
        try:
            run.optimize(settings.n_trials, progress)
            run.finish(progress)
        except KeyboardInterrupt:
            run.write_summary("interrupted")
            config = shlex.quote(str(run.folder.config))
            say(f"{run.study.finished} trials are kept in {run.folder.path}.", to=err)
            say(f"To continue: {program()} run --config {config}", to=err)
            raise
        progress.close()
        _print_results(run)
        if samples:
            _print_samples(run)
        return run.folder.path


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from here.", to=err)
        raise


def _search_together(settings: "Settings", workers: int) -> Path:
    import torch

    from iconoclast.cluster.local import work_locally
    from iconoclast.cluster.status import shared_status_of
    from iconoclast.cluster.submit import prepared
    from iconoclast.reports.status import status_lines

    folder = prepared(settings)
    with _resumable(), shown_progress() as progress:
        work_locally(folder, workers, progress, torch.cuda.device_count())
    say(*status_lines(shared_status_of(folder)), f"Results: {folder.summary}")
    return folder.path


def _print_results(run: "Run") -> None:
    from iconoclast.reports.tables import (
        axes_table,
        finalists_table,
        front_table,
        report_lines,
        report_table,
        thinking_table,
    )

    best = run.best()
    out.print(front_table(run.front(), best, run.base, run.objectives))
    if best is None:
        return
    target = run.settings.kl_divergence_target
    kept = best.scores.kl_divergence <= target
    reason = run.objectives.rule(target, kept)
    if run.objectives.default:
        least = f"lowest KL of those with the fewest {run.base.failing}, give or take a standard error,"
        reason = f"{least if kept else 'no trial is'} within the KL target of {target:g}"
    if run.judged and run.finalists is not None:
        reason = run.finalists.rule
    fitted = f" {run.study.fitted} more are the fitted edit at as many scales." if run.study.fitted else ""
    say(
        f"* best: trial {best.index} ({reason}). KL differences below the noise floor of {run.noise_floor:.2g} mean nothing.",
        f"{run.study.finished} trials, {run.pruned} of them pruned: stopped when a completed one was certain to beat them.{fitted}",
    )
    if run.finalists is not None:
        out.print(finalists_table(run.finalists))
    if run.report is not None:
        out.print(report_table(run.report))
        if run.report.axes:
            out.print(axes_table(run.report.axes, run.report.metrics.failing))
        if run.report.with_thoughts is not None:
            out.print(thinking_table(run.report, run.report.with_thoughts))
        say(*report_lines(run.report))
    say(f"Results: {run.folder.summary}", f"Responses: {run.folder.samples}")


def _print_samples(run: "Run") -> None:
    from iconoclast.edits.edit import Edit
    from iconoclast.prompts import PromptSet
    from iconoclast.reports.tables import samples_table

    best = run.best()
    if best is None:
        return
    source = run.prompts.target_report or run.prompts.target_evaluation
    prompts = PromptSet(source.prompts[:SAMPLES], source.source)
    responses = run.evaluator.respond([Edit.nothing(), run.edit(best.parameters)], prompts)
    names = ("base model", f"trial {best.index}")
    out.print(samples_table([p.text for p in prompts], list(zip(names, responses, strict=True))))


def _menu(settings: "Settings", folder: Path) -> None:
    """Ask a user at a terminal what to do with a finished run, until there is nothing more."""
    from iconoclast.runs.folder import RunFolder

    while True:
        say("", "adapter: save a LoRA adapter    merged: save the whole model    chat: talk to a trial")
        say("more: run more trials           quit: leave")
        try:
            action = Prompt.ask("What now?", choices=MENU, default="quit", console=out)
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
