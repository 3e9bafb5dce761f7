"""`cluster submit` and `cluster script`: a job array, or the batch script of one."""

import shlex

from typer import Context

from iconoclast.cli.cluster.jobs import ConfigOption, ModelArgument, OutOption, Work, given_jobs
from iconoclast.cli.console import out
from iconoclast.cli.flags import given_settings
from iconoclast.errors import SettingsError
from iconoclast.reports.text import print_lines


def submit(
    ctx: Context, model: ModelArgument = None, config: ConfigOption = None, out_folder: OutOption = None
) -> None:
    """Search one study with many workers: a job array that shares the run folder.

    The same command again adds workers to a run that is not complete.
    """
    options, work_options = given_jobs(ctx)
    from iconoclast.cluster.submit import prepared
    from iconoclast.cluster.submit import submit as submit_run
    from iconoclast.cluster.work import is_done

    folder = prepared(given_settings(ctx, config, model=model, out=out_folder))
    if is_done(folder):
        raise SettingsError(f"{folder.path} has all its trials. Ask for more with --n-trials.")
    number = submit_run(folder, options, Work(folder.path, work_options))
    path = shlex.quote(str(folder.path))
    print_lines(
        out,
        f"Submitted job {number}: {options.workers} workers on {folder.path}.",
        f"How it stands: iconoclast cluster status {path}",
        f"End it, to go on later: iconoclast cluster cancel {path}",
    )


def script(
    ctx: Context, model: ModelArgument = None, config: ConfigOption = None, out_folder: OutOption = None
) -> None:
    """Write the batch script of `submit`, for clusters that take scripts only. Nothing is submitted."""
    jobs = given_jobs(ctx)
    from iconoclast.cluster.submit import prepared, write_script

    folder = prepared(given_settings(ctx, config, model=model, out=out_folder))
    print_lines(out, f"Submit it: sbatch {shlex.quote(str(write_script(folder, *jobs)))}")
