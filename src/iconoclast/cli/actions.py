"""What the commands do once their arguments are understood."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import psutil
from rich.prompt import IntPrompt, Prompt

from iconoclast.cli.console import err, out, program, quiet_libraries, shown_progress
from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.errors import SettingsError, UserError
from iconoclast.prompts import PromptSet
from iconoclast.reports.plots import front_figure, require_plotly, residual_figure, write_page
from iconoclast.reports.tables import before_after_table, front_table, report_lines, report_table, samples_table
from iconoclast.reports.text import plain, print_lines
from iconoclast.runs.conversation import Conversation
from iconoclast.runs.export import Exported, export_run, export_unmeasured, read_export
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.pipeline import Run, started_run
from iconoclast.runs.saved import SavedRun
from iconoclast.scores import Scores
from iconoclast.vocabulary import ExportFormat

SAMPLES = 3


def run_action(settings: Settings) -> None:
    """A run, then, for a user at a terminal, what to do with it."""
    quiet_libraries()
    folder = search(settings, began=psutil.Process().create_time())
    if settings.exit_after_optimization or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    _menu(settings, folder)


def run_together_action(settings: Settings, workers: int) -> None:
    """A run that several processes of this machine share."""
    import torch

    from iconoclast.cluster.local import work_locally
    from iconoclast.cluster.standing import standing, standing_lines
    from iconoclast.cluster.submit import prepared

    quiet_libraries()
    folder = prepared(settings)
    try:
        with shown_progress() as progress:
            work_locally(folder, workers, progress, torch.cuda.device_count())
    except KeyboardInterrupt:
        print_lines(err, "Interrupted. The same command goes on from here.")
        raise
    print_lines(out, *standing_lines(standing(folder.path)), f"Results: {folder.summary}")


def search(settings: Settings, samples: bool = False, began: float | None = None) -> Path:
    """Run or continue the search, print the front, and return the run folder."""
    try:
        with shown_progress() as progress, started_run(settings, progress, began) as run:
            progress.keep(run.folder.log)
            with _summarized(run):
                run.optimize(settings.n_trials, progress)
                run.finish(progress)
            progress.close()
            _print_results(run)
            if samples:
                _print_samples(run)
            return run.folder.path
    except KeyboardInterrupt:
        print_lines(err, "Interrupted. The same command goes on from here.")
        raise


@contextmanager
def _summarized(run: Run) -> Iterator[None]:
    """The summary is also written when the search is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        run.write_summary("interrupted")
        config = shlex.quote(str(run.folder.config))
        print_lines(
            err,
            f"{run.study.finished} trials are kept in {run.folder.path}.",
            f"To continue: {program()} run --config {config}",
        )
        raise


def demo_action(out_folder: Path, n_trials: int) -> None:
    """The demo: search, both exports, measured again, three responses."""
    quiet_libraries()
    settings = Settings(
        model="demo",
        n_trials=n_trials,
        study_checkpoint_dir=out_folder,
        exit_after_optimization=True,
    )
    search(settings, samples=True, began=psutil.Process().create_time())
    columns: list[tuple[str, Scores]] = []
    for kind in ("adapter", "merged"):
        result = _export_or_keep(out_folder, kind)
        if not columns:
            columns += [("base model", result.base), ("edit, live", result.live)]
        columns.append((f"{kind} export", result.exported or result.live))
    out.print(before_after_table("Before and after, on report prompts that chose nothing", columns))
    print_lines(out, f"Run folder: {out_folder}", f"Try it: {program()} chat {shlex.quote(str(out_folder))}")


def export_action(
    run_folder: Path, trial: str, kind: str, to: Path, llama_cpp: Path | None = None, measure: bool = True
) -> None:
    """Export a trial and show what the export measures."""
    quiet_libraries()
    if kind not in get_args(ExportFormat):
        raise SettingsError(f'There is no export format "{kind}". Use {", ".join(get_args(ExportFormat))}.')
    if not measure:
        if kind != "merged":
            raise SettingsError("Only merged weights can be written without measuring them. Add --format merged.")
        with shown_progress() as progress:
            _print_export(export_unmeasured(run_folder, trial, to, progress))
        return
    _print_export(_export(run_folder, trial, kind, to, llama_cpp))  # type: ignore[arg-type]


def chat_action(run_folder: Path, trial: str) -> None:
    """A conversation with the edited model."""
    quiet_libraries()
    saved = SavedRun.open(RunFolder(run_folder), trial)
    with err.status("Loading the model"):
        lm = saved.load_model()
        edit = saved.edit(lm)
    print_lines(err, f"Trial {saved.trial.index}. An empty line or Ctrl-D ends the conversation.")
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


def plot_action(run_folder: Path) -> None:
    """Plots of a run: residuals of the fitting prompts, and its trials."""
    quiet_libraries()
    require_plotly()
    saved = SavedRun.open(RunFolder(run_folder), "best")
    settings = saved.settings
    with shown_progress() as progress, saved.opened(progress) as bench:
        benign, target = bench.residuals(progress)
        prompts = bench.prompts
    sources = (settings.good_prompts, settings.bad_prompts)
    figures = {
        "residuals.html": residual_figure(
            benign,
            target,
            (sources[0].residual_plot_label or "Benign prompts", sources[1].residual_plot_label or "Target prompts"),
            (sources[0].residual_plot_color or "royalblue", sources[1].residual_plot_color or "darkorange"),
            ([p.text for p in prompts.benign], [p.text for p in prompts.target]),
        ),
        "trials.html": front_figure(saved.trials, settings.kl_divergence_target, saved.base.refusals.rate),
    }
    for name, figure in figures.items():
        file = run_folder / "plots" / name
        write_page(figure, file)
        print_lines(out, f"Wrote {file}")


def _export(run_folder: Path, trial: str, kind: ExportFormat, to: Path, llama_cpp: Path | None = None) -> Exported:
    with shown_progress() as progress:
        return export_run(run_folder, trial, kind, to, progress, llama_cpp)


def _export_or_keep(run_folder: Path, kind: ExportFormat) -> Exported:
    """Export the best trial beside the run, unless an earlier demo has done so."""
    best = SavedRun.open(RunFolder(run_folder), "best").trial
    to = run_folder / kind if not (run_folder / kind).exists() else run_folder / f"{kind}-trial-{best.index}"
    for there in (run_folder / kind, to):
        if (kept := read_export(there, best.index)) is not None:
            print_lines(out, f"The {kind} in {there} is of this trial.")
            return kept
    result = _export(run_folder, "best", kind, to)
    print_lines(out, f"Exported {kind} to {to}.")
    return result


def _print_results(run: Run) -> None:
    best = run.best()
    out.print(front_table(run.front(), best, run.base))
    if best is None:
        return
    target = run.settings.kl_divergence_target
    reason = (
        f"lowest KL of those with the fewest refused or broken, give or take a standard error, within the KL target of {target:g}"
        if best.scores.kl_divergence <= target
        else f"no trial is within the KL target of {target:g}"
    )
    measured, finished = len(run.study.trials()), run.study.finished
    print_lines(
        out,
        f"* best: trial {best.index} ({reason}). KL differences below the noise floor of {run.noise_floor:.2g} mean nothing.",
        f"{finished} trials, {finished - measured} of them pruned: stopped when a completed one was certain to beat them.",
    )
    if run.report is not None:
        out.print(report_table(run.report))
        print_lines(out, *report_lines(run.report))
    print_lines(out, f"Results: {run.folder.summary}", f"Responses: {run.folder.samples}")


def _print_samples(run: Run) -> None:
    best = run.best()
    source = run.prompts.target_report or run.prompts.target_evaluation
    if best is None:
        return
    prompts = PromptSet(source.prompts[:SAMPLES], source.source)
    responses = run.evaluator.respond([Edit.nothing(), run.edit(best.parameters)], prompts)
    names = ("base model", f"trial {best.index}")
    out.print(samples_table([p.text for p in prompts], list(zip(names, responses, strict=True))))


def _print_export(result: Exported) -> None:
    columns = [("base model", result.base), ("edit, live", result.live)]
    if result.exported is None:
        out.print(before_after_table(f"Export {result.folder}", columns))
        print_lines(out, result.prompts, "The export itself was not measured.")
        return
    out.print(before_after_table(f"Export {result.folder}", [*columns, ("export", result.exported)]))
    moved = result.exported.kl_divergence - result.live.kl_divergence
    refusals = result.exported.refusals.count - result.live.refusals.count
    print_lines(
        out,
        result.prompts,
        f"Difference of the export from the live edit: {refusals:+d} refusals, {moved:+.4f} KL.",
        *(
            [
                f"Low-rank approximation: largest relative error of a matrix {result.approximation_error:.1%}; rank "
                f"{result.sufficient_rank} brings all under 1 % (full_normalization_lora_rank, or auto)."
            ]
            if result.approximation_error
            else []
        ),
    )


def _menu(settings: Settings, folder: Path) -> None:
    """What a user at a terminal can do with a finished search."""
    choices: Sequence[str] = ("adapter", "merged", "chat", "more", "quit")
    while True:
        print_lines(out, "", "adapter: save a LoRA adapter    merged: save the whole model    chat: talk to a trial")
        print_lines(out, "more: run more trials           quit: leave")
        try:
            action = Prompt.ask("What now?", choices=list(choices), default="quit", console=out)
            if action == "quit":
                return
            if action == "more":
                summary = RunFolder(folder).read_json(RunFolder(folder).summary, ["completed_trials", "pruned_trials"])
                done = summary["completed_trials"] + summary["pruned_trials"]
                more = IntPrompt.ask("How many more?", default=8, console=out)
                search(settings.model_copy(update={"n_trials": done + more}))
                continue
            trial = Prompt.ask("Which trial?", default="best", console=out)
            if action == "chat":
                chat_action(folder, trial)
            else:
                to = Path(Prompt.ask("Into which folder?", default=str(folder / action), console=out))
                export_action(folder, trial, action, to)
        except EOFError:
            return
        except UserError as error:
            print_lines(err, f"Error: {error}")
