"""`benchmark`: a trial or an edited model beside its base, with lm-eval."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import (
    FiguresOption,
    IncludePathOption,
    LimitOption,
    TrialOption,
    require_writable,
    run_and_trial,
    separated,
)
from iconoclast.cli.console import out, say, shown_progress, write_figures
from iconoclast.documents import Plain
from iconoclast.errors import SettingsError
from iconoclast.privacy import portable

if TYPE_CHECKING:
    from iconoclast.evaluation.benchmarks import Side
    from iconoclast.models.language_model import LanguageModel
    from iconoclast.runs.saved import SavedRun


def benchmark(
    model: Annotated[
        str,
        Argument(metavar="RUN|MODEL", help="Run folder (RUN:N means its trial N), model, adapter folder or hub id."),
    ],
    tasks: Annotated[list[str], Option(help="Tasks of lm-eval, separated by commas; may be repeated.")],
    trial: TrialOption = None,
    against: Annotated[str | None, Option(help="Base model to compare MODEL with. An adapter knows its own.")] = None,
    include_path: IncludePathOption = None,
    limit: LimitOption = None,
    num_fewshot: Annotated[
        int | None, Option(help="Worked examples before each item. Unset: the task's.", min=0)
    ] = None,
    batch_size: Annotated[int, Option(help="Sequences in a batch.", min=1)] = 8,
    apply_chat_template: Annotated[
        bool, Option("--apply-chat-template", help="Put the items to the model as a user would.")
    ] = False,
    confirm_run_unsafe_code: Annotated[
        bool, Option("--confirm-run-unsafe-code", help="Allow tasks that run code which the model has written.")
    ] = False,
    json_file: FiguresOption = None,
) -> None:
    """Benchmark a trial or an edited model beside its base, with lm-eval (pip install 'iconoclast-edit[benchmark]')."""
    from iconoclast.evaluation import benchmarks
    from iconoclast.reports.capabilities import capabilities_lines, capabilities_table

    options = benchmarks.BenchmarkOptions(
        separated(tasks), include_path, limit, num_fewshot, batch_size, apply_chat_template, confirm_run_unsafe_code
    )
    benchmarks.require_lm_eval()
    # There is nothing to keep, and lm-eval ends its own processes by this signal, which must end them too.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    require_writable(json_file)
    about, edited, base = _subject(model, trial, against, apply_chat_template)
    with shown_progress() as progress:
        result = benchmarks.benchmark(options, edited, base, progress)
    found = result.capabilities()
    out.print(capabilities_table(found))
    say(*capabilities_lines(found))
    write_figures(json_file, result.document(**about))


def _subject(name: str, trial: str | None, against: str | None, templated: bool) -> "tuple[Plain, Side, Side | None]":
    """Find the sides of the comparison: for JSON, edited, base. No model is loaded yet."""
    from iconoclast.evaluation.benchmarks import loaded
    from iconoclast.models.adapters import adapter_base
    from iconoclast.models.names import resolve
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.kinds import kind_of
    from iconoclast.runs.saved import SavedRun

    named, which = run_and_trial(name, trial)
    folder = RunFolder(named.expanduser())
    if kind_of(folder.path) == "run":
        if against is not None:
            raise SettingsError("A run is compared with its own base model. Leave out --against.")
        saved = SavedRun.open(folder, which)
        load = cache(saved.load_model)
        about = {"model": portable(saved.settings.model), "trial": saved.trial.index, "against": None}
        return about, _side(load, saved), _side(load)
    if which != "best":
        raise SettingsError(f"{name} is not a run folder, so it has no trial {which}. Leave out --trial.")
    resolve(name)
    against = against or adapter_base(name)
    about = {"model": portable(name), "trial": None, "against": portable(against)}
    if against is None:
        return about, loaded(name, templated), None
    resolve(against)
    return about, loaded(name, templated), loaded(against, templated)


@contextmanager
def _side(load: Callable[[], "LanguageModel"], saved: "SavedRun | None" = None) -> Iterator["LanguageModel"]:
    """Load a run's model when its turn comes, with the trial's edit if the run is given."""
    from iconoclast.evaluation.benchmarks import edited_live

    lm = load()
    with edited_live(lm, saved.edit(lm), saved.settings.components) if saved else nullcontext():
        yield lm
