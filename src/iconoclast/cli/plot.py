"""`plot`: the residuals of the fitting prompts, and the trials of a run."""

from iconoclast.cli.arguments import RunArgument, run_and_trial
from iconoclast.cli.console import say, shown_progress
from iconoclast.runs.folder import RunFolder


def plot(run: RunArgument) -> None:
    """Draw the residuals of both prompt sets and all trials, as web pages in RUN/plots."""
    folder, trial = run_and_trial(run)
    from iconoclast.reports.plots import front_figure, require_plotly, residual_figure, write_page
    from iconoclast.runs.saved import SavedRun

    require_plotly()
    saved = SavedRun.open(RunFolder(folder), trial)
    settings = saved.settings
    with shown_progress() as progress, saved.opened(progress) as bench:
        residuals = bench.residuals(progress)
        texts = [prompt.text for prompt in bench.prompts.benign], [prompt.text for prompt in bench.prompts.target]
    benign, target = settings.good_prompts, settings.bad_prompts
    labels = benign.residual_plot_label or "Benign prompts", target.residual_plot_label or "Target prompts"
    colors = benign.residual_plot_color or "royalblue", target.residual_plot_color or "darkorange"
    trials = front_figure(saved.trials, settings.kl_divergence_target, saved.base.refusals.rate)
    figures = {"residuals.html": residual_figure(*residuals, labels, colors, texts), "trials.html": trials}
    for name, figure in figures.items():
        file = folder / "plots" / name
        write_page(figure, file)
        say(f"Wrote {file}")
