"""`status`: how a run stands, with queue and workers if many processes share it."""

from pathlib import Path

from iconoclast.cli.arguments import AsJsonOption, RunArgument
from iconoclast.cli.console import print_json, say
from iconoclast.runs.references import split_reference


def status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run stands: trials, best so far, whether a process works on it, and the queue and workers if it has any."""
    _show(run, as_json)


def cluster_status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run on a cluster stands: the queue, the workers, the trials, the best so far."""
    _show(run, as_json, shared=True)


def _show(run: str, as_json: bool, shared: bool = False) -> None:
    from iconoclast.reports.status import status_lines
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.status import is_shared, status_of

    source, trial = split_reference(run)
    folder = RunFolder(Path(source))
    find = status_of
    if shared or is_shared(folder):
        from iconoclast.cluster.status import shared_status_of as find  # it is slow to import

    status = find(folder, trial)
    if as_json:
        print_json(status.document())
    else:
        say(*status_lines(status))
