"""The command `benchmark`: which two models it compares, and how their figures are shown."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from iconoclast.cli.console import out, quiet_libraries, require_writable, shown_progress
from iconoclast.errors import SettingsError
from iconoclast.evaluation.benchmarks import (
    Benchmark,
    BenchmarkOptions,
    Difference,
    Figure,
    Side,
    benchmark,
    edited_live,
    loaded,
    require_lm_eval,
)
from iconoclast.files import write_json
from iconoclast.layout import TRIAL_INFORMATION
from iconoclast.models.adapters import adapter_base
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.names import resolve
from iconoclast.reports.text import plain, print_lines
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun


def benchmark_action(
    subject: str, trial: str, against: str | None, options: BenchmarkOptions, json_file: Path | None
) -> None:
    """Benchmark a run's trial beside its base model, or a model beside another or alone, and print the figures."""
    quiet_libraries()
    require_lm_eval()
    # There is nothing to keep, and lm-eval ends its own processes by this signal: to them, too, it must mean the end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    require_writable(json_file)
    about, edited, base = _subject(subject, trial, against, options.apply_chat_template)
    with shown_progress() as progress:
        result = benchmark(options, edited, base, progress)
    _print(result)
    if json_file is not None:
        write_json(json_file, about | result.document())
        print_lines(out, f"Wrote {json_file}")


def _subject(name: str, trial: str, against: str | None, templated: bool) -> tuple[dict[str, Any], Side, Side | None]:
    """What is compared: for JSON, the edited side, the base side. No model is loaded yet."""
    folder = RunFolder(Path(name).expanduser())
    if folder.config.is_file() and not (folder.path / TRIAL_INFORMATION).is_file():
        if against is not None:
            raise SettingsError("A run is compared with its own base model. Leave out --against.")
        saved = SavedRun.open(folder, trial)
        load = cache(saved.load_model)
        about = {"model": _shown(saved.settings.model), "trial": saved.trial.index, "against": None}
        return about, _trial_side(load, saved), _base_side(load)
    if trial != "best":
        raise SettingsError(f"{name} is not a run folder, so it has no trial {trial}. Leave out --trial.")
    resolve(name)
    against = against or adapter_base(name)
    about = {"model": _shown(name), "trial": None, "against": _shown(against)}
    if against is None:
        return about, loaded(name, templated), None
    resolve(against)
    return about, loaded(name, templated), loaded(against, templated)


@contextmanager
def _base_side(load: Callable[[], LanguageModel]) -> Iterator[LanguageModel]:
    yield load()


@contextmanager
def _trial_side(load: Callable[[], LanguageModel], saved: SavedRun) -> Iterator[LanguageModel]:
    lm = load()
    with edited_live(lm, saved.edit(lm), saved.settings.components):
        yield lm


def _shown(name: str | None) -> str | None:
    """A model's name, the user's home folder left out."""
    return None if name is None else name.replace(str(Path.home()), "~")


def _print(result: Benchmark) -> None:
    compared = any(row.base is not None for row in result.rows)
    table = Table(title=f"lm-eval {result.lm_eval_version}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("Task, metric", overflow="fold")
    for name in ("Items", *(("Base", "Edited", "Difference") if compared else ("Value",))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        figures = (row.base, row.edited, row.difference) if compared else (row.edited,)
        arrow = {True: "↑", False: "↓", None: ""}[row.higher_is_better]
        table.add_row(plain(f"{row.task} {row.metric}{arrow}"), str(row.n), *(_cell(figure) for figure in figures))
    out.print(table)
    print_lines(out, "± one standard error. ↑ higher is better, ↓ lower is better.")
    if compared:
        print_lines(
            out, "Errors of differences are of the differences item by item; with *, of two independent measurements."
        )
    if result.options.limit is not None:
        print_lines(out, f"Only the first {result.options.limit} items of each task: not to be compared with others.")


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "none"
    error = "" if figure.stderr is None else f" ± {figure.stderr:.3f}"
    if not isinstance(figure, Difference):
        return f"{figure.value:.3f}{error}"
    return f"{figure.value:+.3f}{error}{' *' if error and not figure.paired else ''}"
