"""Benchmarks of an edited model and its base through lm-eval, from the extra `benchmark`."""

import difflib
import importlib.util
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import MeasurementError, UserError
from iconoclast.evaluation.capabilities import Asked, BenchmarkDocument, Capabilities, Measured, Results, Row, rows
from iconoclast.evaluation.tqdm_internals import heard_bars
from iconoclast.models.adapters import adapter_base, put_adapter
from iconoclast.models.forward import contiguous_head
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.progress import Progress, Silent
from iconoclast.vocabulary import COMPONENTS, Component

# The seeds of lm-eval's own command line, so that the figures are the same as there.
SEED, PYTHON_SEED = 1234, 0

# Resamples for metrics whose standard error lm-eval finds by the bootstrap; a thousand give it to 2 %.
BOOTSTRAPS = 1000

Side = AbstractContextManager[LanguageModel]
"""One of the models to compare, loaded when the context is entered."""


class BenchmarkError(UserError):
    """A benchmark that cannot be run as requested."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of lm-eval, under its names.

    Attributes:
        tasks: names of tasks, groups and tags, or paths of task files.
        include_path: a folder with more task files.
        limit: maximum number of items per task.
        num_fewshot: worked examples before each item; by default each task's own number; a task set to 0 keeps 0.
        apply_chat_template: presentation of the items as a user would put them.
        confirm_run_unsafe_code: permission for tasks that run code written by the model.
    """

    tasks: Sequence[str]
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False
    confirm_run_unsafe_code: bool = False


@dataclass(frozen=True)
class Benchmark:
    """The results, with what is needed to reproduce them."""

    rows: Sequence[Row]
    options: BenchmarkOptions
    lm_eval_version: str

    def capabilities(self) -> Capabilities:
        """Return the results as they stand in documents."""
        named = ("limit", "num_fewshot", "batch_size", "apply_chat_template")
        options = {name: getattr(self.options, name) for name in named}
        return Capabilities(lm_eval_version=self.lm_eval_version, **options, rows=list(self.rows))

    def document(self, model: str, trial: int | None = None, against: str | None = None) -> BenchmarkDocument:
        """Return them as they are written, of a run's trial or of a model against its base."""
        found, tasks = self.capabilities(), dict[str, dict[str, Measured]]()
        for row in found.rows:
            tasks.setdefault(row.task, {})[row.metric] = row.measured()
        asked = {name: getattr(found, name) for name in Asked.model_fields}
        return BenchmarkDocument(**asked, model=model, trial=trial, against=against, tasks=tasks)


def task_faults(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return `more` and what lm-eval raises while it sets up a task whose data are out of reach or whose definition is wrong."""
    from datasets.exceptions import DatasetsError  # not at the top: every run imports this module

    return (*more, OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, DatasetsError, TemplateError)


def require_lm_eval() -> None:
    """Raise BenchmarkError if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise BenchmarkError("Benchmarks need lm-eval: pip install 'iconoclast-edit[benchmark]'")


def benchmark(
    options: BenchmarkOptions,
    edited: Side,
    base: Side | None = None,
    progress: Progress | None = None,
    tasks: Any = None,
) -> Benchmark:
    """Measure a model, or an edited model beside its base, with lm-eval.

    Tasks are set up before any model is loaded, unless `load_tasks` has done so, and one model is loaded at a time.

    Raises:
        BenchmarkError: lm-eval is not installed, or a task is unknown, unsafe, or cannot be set up.
        MeasurementError: lm-eval broke down.
    """
    require_lm_eval()
    progress = progress or Silent()
    if tasks is None:
        progress.start("Setting up the tasks", 0)
        with heard_bars(progress, "Tasks"):
            tasks = load_tasks(options)
    of_base = None if base is None else evaluated("Base model", base, tasks, options, progress)
    of_edited = evaluated("Model" if base is None else "Edited model", edited, tasks, options, progress)
    return Benchmark(rows(of_edited, of_base), options, metadata.version("lm_eval"))


def beside_base(options: BenchmarkOptions) -> Callable[[str, str, Progress], Capabilities]:
    """Set the tasks up, and return what measures an edited model and its base with them.

    Raises:
        BenchmarkError: lm-eval is not installed, or does not know a task.
    """
    require_lm_eval()
    tasks = load_tasks(options)

    def measure(edited: str, base: str, progress: Progress) -> Capabilities:
        sides = [loaded(name, options.apply_chat_template) for name in (edited, base)]
        return benchmark(options, sides[0], sides[1], progress, tasks).capabilities()

    return measure


@contextmanager
def loaded(name: str, templated: bool = False) -> Iterator[LanguageModel]:
    """Load a model, or a PEFT adapter on its base, or raise ModelError; only `templated` needs a chat template."""
    base = adapter_base(name)
    lm = load_model(name if base is None else base, chat_template=None if templated else "raw")
    if base is not None:
        put_adapter(lm, name)
    yield lm


@contextmanager
def edited_live(lm: LanguageModel, edit: Edit, components: Sequence[Component] = COMPONENTS) -> Iterator[LanguageModel]:
    """Apply an edit to every row of every batch while the context lasts."""
    with LiveEdits(lm.writers(components), [edit]).applied():
        yield lm


def load_tasks(options: BenchmarkOptions) -> Any:
    """Return lm-eval's tasks with their data; raise BenchmarkError if one is unknown, unsafe, or cannot be set up."""
    from lm_eval.tasks import TaskManager

    folder = options.include_path
    if folder is not None and not folder.is_dir():
        raise BenchmarkError(f"There is no folder {folder}. Give the folder of your task files with --include-path.")
    names = list(dict.fromkeys(options.tasks))
    if not names:
        raise BenchmarkError("No task is named. Give at least one with --tasks.")
    manager = TaskManager(include_path=folder)
    known = manager.task_index
    for name in names:
        if name not in known and not Path(name).is_file():
            near = difflib.get_close_matches(name, list(known), 3)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise BenchmarkError(
                f'lm-eval knows no task "{name}".{meant} Task files of your own need --include-path FOLDER.'
            )
    if not options.confirm_run_unsafe_code:  # first, because setting such a task up may run code
        _refuse_unsafe([name for name in names if name in known and (known[name].cfg or {}).get("unsafe_code")])
    _seed()
    try:
        tasks = manager.load(names)
    except task_faults() as error:
        raise BenchmarkError(
            f"lm-eval cannot set up {', '.join(names)}: {_reason(error)}. "
            "Data sets of the hub need a network the first time; some tasks need more packages."
        ) from None
    _check(tasks["tasks"], options)
    return tasks


def evaluated(label: str, side: Side, tasks: Any, options: BenchmarkOptions, progress: Progress) -> Results:
    """Let lm-eval measure a model; raise MeasurementError if it breaks down."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    progress.start(f"{label}: loading", 0)
    with side as lm, contiguous_head(lm.model), heard_bars(progress, label):
        _start_like_lm_eval(tasks["tasks"], options.num_fewshot)
        try:
            results: Results = lm_eval.evaluate(
                HFLM(lm.model, tokenizer=lm.tokenizer, batch_size=options.batch_size, enable_thinking=False),
                tasks,
                limit=options.limit,
                bootstrap_iters=BOOTSTRAPS,
                apply_chat_template=options.apply_chat_template,
                fewshot_as_multiturn=options.apply_chat_template,
                confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            )
        except task_faults(AssertionError) as error:
            raise MeasurementError(f"lm-eval breaks down on {lm.name}: {_reason(error)}") from error
    return results


def _start_like_lm_eval(tasks: Mapping[str, Any], num_fewshot: int | None) -> None:
    """Prepare tasks as `lm_eval.simple_evaluate` does, but without its call to git, which complains on the terminal."""
    for task in tasks.values():
        default = task.get_config("num_fewshot")
        if num_fewshot is not None and default != 0:
            task.set_config("num_fewshot", num_fewshot)
        elif default is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEED)
    _seed()


def _seed() -> None:
    from transformers import set_seed  # it imports PEFT and bitsandbytes: a quarter of what a run imports

    set_seed(SEED)
    random.seed(PYTHON_SEED)


def _check(tasks: Mapping[str, Any], options: BenchmarkOptions) -> None:
    if not options.confirm_run_unsafe_code:
        _refuse_unsafe([name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)])
    pictures = [name for name, task in tasks.items() if getattr(task, "MULTIMODAL", False)]
    if pictures:
        raise BenchmarkError(f"{', '.join(pictures)} asks about pictures or sound. Only tasks of text can be run.")


def _refuse_unsafe(names: Sequence[str]) -> None:
    if names:
        raise BenchmarkError(
            f"{', '.join(names)} runs code that the model writes. Allow it with --confirm-run-unsafe-code, in a sandbox."
        )


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if any(c.islower() for c in line)]  # not "#### WARNING"
    return (lines[0] if lines else type(error).__name__).rstrip(".").replace(str(Path.home()), "~")
