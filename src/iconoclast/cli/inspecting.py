"""The commands `status`, `list`, `replay`, `verify` and `upload`."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from iconoclast.cli.console import out, print_table, quiet_libraries, require_writable, shown_progress
from iconoclast.config.layers import load_settings
from iconoclast.errors import MeasurementError, RunFolderError
from iconoclast.files import write_json
from iconoclast.reports.text import print_lines
from iconoclast.runs.folder import RunFolder


def status_action(run: Path, as_json: bool) -> None:
    """How a run stands, from its files alone."""
    status = status_of(RunFolder(run))
    if as_json:
        out.print_json(json.dumps(status))
        return
    best = status["best"]
    lines = [
        f"{run}: {status['state']}, {status['finished']} of {status['n_trials']} trials ({status['pruned']} pruned).",
        f"Model: {status['model']}. Last written: {status['written']}.",
    ]
    if best is not None:
        lines.append(
            f"Best trial so far: {best['index']}: {best['refusals']['count']} of {best['refusals']['n']} refused, "
            f"{best['broken']['count']} broken, {best['overrefusals']['count']} of {best['overrefusals']['n']} overrefused, "
            f"KL {best['kl_divergence']:.4f}."
        )
    if status["state"] == "interrupted":
        lines.append(f"Continue it: iconoclast run --config {run / 'iconoclast_config.toml'} --out {run}")
    print_lines(out, *lines)


def list_action(folder: Path) -> None:
    """All runs below a folder, one line each.

    Raises:
        RunFolderError: there is none.
    """
    table = Table(box=SIMPLE_HEAD, title=f"Runs in {folder}", title_justify="left")
    for name in ("run", "model", "state", "trials", "best", "refused", "broken", "KL", "written"):
        table.add_column(name, justify="right" if name in ("trials", "refused", "broken", "KL") else "left")
    damaged: list[str] = []
    for run in _runs(folder):
        try:
            status = status_of(run)
        except RunFolderError as error:
            table.add_row(_short(run.path, folder), "", "damaged")
            damaged.append(str(error))
            continue
        best: dict[str, Any] = status["best"] or {}
        table.add_row(
            _short(run.path, folder),
            Path(status["model"]).name,
            status["state"],
            f"{status['finished']}/{status['n_trials']}",
            str(best.get("index", "")),
            f"{best['refusals']['count']}/{best['refusals']['n']}" if best else "",
            str(best["broken"]["count"]) if best else "",
            f"{best['kl_divergence']:.4f}" if best else "",
            status["written"][:16],
        )
    if not table.rows:
        raise RunFolderError(f"There is no run in {folder}. A run folder has an iconoclast_config.toml and a journal.")
    print_table(table)
    print_lines(out, *damaged)


def status_of(folder: RunFolder) -> dict[str, Any]:
    """State (working, complete, interrupted, begun), trials and best trial of a run.

    Raises:
        RunFolderError: there is no run, or its files are damaged.
    """
    settings = folder.settings()
    summary = folder.read_json(folder.summary) if folder.summary.is_file() else {}
    completed, pruned = (int(summary.get(f"{kind}_trials", 0)) for kind in ("completed", "pruned"))
    if folder.in_use():
        state = "working"
    elif not summary:
        state = "begun"
    else:
        state = "complete" if summary.get("status") == "complete" else "interrupted"
    front = {trial["index"]: trial for trial in summary.get("pareto_trials", [])}
    newest = max(file.stat().st_mtime for file in folder.path.iterdir())
    return {
        "run": str(folder.path),
        "model": settings.model,
        "state": state,
        "n_trials": settings.n_trials,
        "finished": completed + pruned,
        "pruned": pruned,
        "best": front.get(summary.get("best_trial")),
        "written": datetime.fromtimestamp(newest).astimezone().isoformat(" ", "seconds"),
    }


def replay_action(run: Path, trial: str, json_file: Path | None, trust_remote_code: bool = False) -> None:
    """Measure a recorded trial again, and say how far it is from what was recorded.

    Raises:
        MeasurementError: the scores have changed.
    """
    from iconoclast.runs.replay import replay

    quiet_libraries()
    require_writable(json_file)
    with shown_progress() as progress:
        result = replay(run, trial, progress, trust_remote_code)
    for each in result.drifts:
        lines = "; ".join(each.differences) or "every score is the same number"
        print_lines(out, f"{each.what}: {each.grade} ({lines})")
    if result.changed:
        print_lines(out, "Not as it was:", *(f"  {line}" for line in result.changed))
    else:
        print_lines(out, "Same versions, machine, weights and prompts as when the run was last started.")
    if json_file is not None:
        write_json(json_file, result.document())
        print_lines(out, f"Wrote {json_file}")
    if result.grade == "changed":
        raise MeasurementError(f"Trial {result.trial} of {run} does not measure as it was recorded.")


def verify_action(export: Path, base: str | None, config: Path | None, measure: bool, json_file: Path | None) -> None:
    """Check an export against its papers.

    Raises:
        MeasurementError: something is not as declared.
    """
    from iconoclast.runs.verify import verify

    quiet_libraries()
    require_writable(json_file)
    prompts = None if config is None else load_settings({}, config).settings
    with shown_progress() as progress:
        checks = verify(export, base, measure, prompts, progress)
    marks = {True: "as declared", False: "NOT AS DECLARED", None: "not checked"}
    for check in checks:
        print_lines(out, f"{check.name}: {marks[check.passed]}. {check.detail}")
    if json_file is not None:
        write_json(json_file, {"checks": [check.document() for check in checks]})
        print_lines(out, f"Wrote {json_file}")
    if any(check.passed is None for check in checks):
        print_lines(out, "Not everything was checked: what was not is no proof.")
    if any(check.passed is False for check in checks):
        raise MeasurementError(f"{export} is not what its papers say.")


def upload_action(export: Path, repo: str, public: bool, dry_run: bool) -> None:
    """Send an export to the hub, or show what would be sent."""
    from iconoclast.runs.upload import plan, upload

    quiet_libraries()
    planned = plan(export, repo, not public)
    print_lines(out, *planned.lines())
    if dry_run:
        print_lines(out, "Nothing was sent.")
        return
    print_lines(out, f"Sent: {upload(planned)}")


def _short(run: Path, folder: Path) -> str:
    return str(run.relative_to(folder)) if run != folder else run.name


def _runs(folder: Path) -> Iterator[RunFolder]:
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder.")
    for config in sorted(folder.rglob("iconoclast_config.toml")):
        if not (config.parent / "trial_information.json").exists():
            yield RunFolder(config.parent)
