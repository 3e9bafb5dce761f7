"""`plot`: the residuals of the fitting prompts, and the trials of a run."""

from iconoclast.cli.arguments import RunArgument, run_and_trial
from iconoclast.cli.console import out, quiet_libraries
from iconoclast.cli.progress import shown_progress
from iconoclast.reports.text import print_lines
from iconoclast.runs.folder import RunFolder


def plot(run: RunArgument) -> None:
    """Draw the residuals of both prompt sets and all trials, as web pages in RUN/plots."""
    folder, trial = run_and_trial(run)
    from iconoclast.reports.plots import front_figure, require_plotly, residual_figure, write_page
    from iconoclast.runs.saved import SavedRun

    quiet_libraries()
    require_plotly()
    saved = SavedRun.open(RunFolder(folder), trial)
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
        file = folder / "plots" / name
        write_page(figure, file)
        print_lines(out, f"Wrote {file}")
