"""Benchmarks through lm-eval: its figures are the right ones, of the right model, and their differences' errors too."""

import importlib.util
import json
import math
import random
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from iconoclast.cli.benchmark import benchmark as benchmark_command
from iconoclast.cli.console import interruptible
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.errors import IconoclastError, ModelError, RunFolderError, SettingsError, UserError
from iconoclast.evaluation.benchmarks import (
    Benchmark,
    BenchmarkError,
    BenchmarkOptions,
    benchmark,
    edited_live,
    loaded,
)
from iconoclast.evaluation.capabilities import FigureDifference, Row, rows
from iconoclast.library import applied
from iconoclast.models.anatomy import site_directions
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.export import export_run, export_runs, export_unmeasured
from iconoclast.scores import Count

# Answers of one length: a random model likes short ones.
draw = random.Random(0)
THINGS = [["".join(draw.choices(string.ascii_lowercase, k=3)) for _ in range(3)] for _ in range(24)]
CHOICE: list[dict[str, Any]] = [
    {"question": f"What is thing {i}?", "choices": things, "answer": i % 3} for i, things in enumerate(THINGS)
]
NUMBERS: list[dict[str, Any]] = [
    {"question": f"What is {i} plus {i}?", "choices": [f"{2 * i:02}", f"{99 - i}"], "answer": 0} for i in range(9)
]

CHOICE_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""

MCC = "mcc, aggregation: matthews_corrcoef"

WORDS_TASK = """
task: tiny_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["zzz"], max_gen_toks: 6, do_sample: false}}
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: ""
process_results: !function scoring.letters
metric_list:
  - {{metric: letters, aggregation: mean, higher_is_better: false}}
"""

SCORING = """
def letters(doc, results):
    return {"letters": sum(c.isalpha() for c in results[0])}
"""

GROUP = """
group: tiny_group
task: [tiny_things, tiny_numbers]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""

HUB_TASK = """
task: tiny_hub
dataset_path: iconoclast-tests/there-is-no-such-data
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
"""


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks whose data lie beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, items in {"things": CHOICE, "numbers": NUMBERS}.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items))
        text = CHOICE_TASK.format(name=f"tiny_{name}", data=data, cache=folder / "cache")
        (folder / f"{name}.yaml").write_text(text)
        if name == "things":
            correlation = text.replace("tiny_things", "tiny_correlation").replace("acc_norm, aggregation: mean", MCC)
            (folder / "correlation.yaml").write_text(correlation)
    words = WORDS_TASK.format(data=folder / "things.jsonl", cache=folder / "cache")
    (folder / "words.yaml").write_text(words)
    (folder / "scoring.py").write_text(SCORING)
    (folder / "unsafe.yaml").write_text(words.replace("tiny_words", "tiny_unsafe") + "unsafe_code: true\n")
    sampled = words.replace("tiny_words", "tiny_sampled").replace(
        "do_sample: false", "do_sample: true, temperature: 1.0"
    )
    (folder / "sampled.yaml").write_text(sampled)
    (folder / "group.yaml").write_text(GROUP)
    (folder / "hub.yaml").write_text(HUB_TASK)
    return folder


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval without its own fourteen thousand task files, which take it seconds to read."""
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))


@pytest.fixture
def options(own_tasks: None, task_files: Path) -> BenchmarkOptions:
    return BenchmarkOptions(["tiny_group", "tiny_words"], include_path=task_files, batch_size=4)


def strong_edit(lm: LanguageModel) -> Edit:
    torch.manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(lm.layers, lm.hidden_size), dim=1)
    everywhere = Profile.triangle(peak=2.0, position=2, span=9)
    profiles = {"attn.o_proj": everywhere, "mlp.down_proj": everywhere}
    return Edit.build(site_directions(lm.writers(), directions), profiles)


def by_name(result: Benchmark) -> dict[tuple[str, str], Row]:
    return {(row.task, row.metric): row for row in result.rows}


# Against the model itself


@pytest.fixture
def side_by_side(options: BenchmarkOptions, tiny_lm: LanguageModel) -> dict[tuple[str, str], Row]:
    return by_name(benchmark(options, edited_live(tiny_lm, strong_edit(tiny_lm)), nullcontext(tiny_lm)))


def worth(difference: FigureDifference | None) -> tuple[float | None, float | None, bool]:
    assert difference is not None
    return difference.value, difference.stderr, difference.paired


def about(value: float) -> Any:
    """A number that equals the value but for rounding."""
    return pytest.approx(value)


@torch.no_grad()
def accuracy(lm: LanguageModel, item: dict[str, Any]) -> float:
    """1 if the model finds the right choice likelier than the others."""
    scores = []
    for choice in item["choices"]:
        ids = torch.tensor(lm.encode_texts([f"Q: {item['question']}\nA: {choice}"]))
        continuation = len(lm.encode_texts([f" {choice}"])[0])
        logprobs = lm.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        scores.append(logprobs.gather(1, ids[0, 1:, None])[-continuation:].sum().item())
    return float(scores.index(max(scores)) == item["answer"])


@torch.no_grad()
def letters(lm: LanguageModel, item: dict[str, Any]) -> float:
    """How many letters the model answers with."""
    ids = torch.tensor(lm.encode_texts([f"Q: {item['question']}\nA:"]))
    answer = lm.model.generate(  # type: ignore[operator]
        input_ids=ids, max_new_tokens=6, do_sample=False
    )[0, ids.shape[1] :]
    return sum(c.isalpha() for c in lm.tokenizer.decode(answer, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("task", "metric", "measure", "items"),
    [
        ("tiny_things", "acc", accuracy, CHOICE),
        ("tiny_numbers", "acc", accuracy, NUMBERS),
        ("tiny_group", "acc", accuracy, CHOICE + NUMBERS),
        ("tiny_words", "letters", letters, CHOICE),
    ],
)
def test_both_columns_are_what_the_model_itself_says(
    side_by_side: dict[tuple[str, str], Row],
    tiny_lm: LanguageModel,
    task: str,
    metric: str,
    measure: Callable[[LanguageModel, dict[str, Any]], float],
    items: list[dict[str, Any]],
) -> None:
    base = [measure(tiny_lm, item) for item in items]
    with applied(tiny_lm, strong_edit(tiny_lm)):
        edited = [measure(tiny_lm, item) for item in items]
    assert base != edited
    moved = [after - before for before, after in zip(base, edited, strict=True)]
    row = side_by_side[task, metric]
    assert row.n == len(items)
    assert row.base is not None and row.base.value == pytest.approx(fmean(base))
    assert row.edited.value == pytest.approx(fmean(edited))
    assert worth(row.difference) == (about(fmean(moved)), about(stdev(moved) / math.sqrt(len(moved))), True)
    if task != "tiny_group":  # lm-eval pools a group's error from its tasks'
        assert row.edited.stderr == pytest.approx(stdev(edited) / math.sqrt(len(items)))
    assert row.edited.stderr is not None and row.base.stderr is not None


def test_which_way_is_better_is_known(side_by_side: dict[tuple[str, str], Row]) -> None:
    assert side_by_side["tiny_group", "acc"].higher_is_better is True
    assert side_by_side["tiny_words", "letters"].higher_is_better is False


def test_an_edit_of_nothing_changes_nothing(options: BenchmarkOptions, tiny_lm: LanguageModel) -> None:
    drawn = replace(options, tasks=["tiny_group", "tiny_words", "tiny_sampled"])  # both sides draw the same
    result = benchmark(drawn, edited_live(tiny_lm, Edit.nothing()), nullcontext(tiny_lm))
    assert {row.task for row in result.rows} == {*drawn.tasks, "tiny_things", "tiny_numbers"}
    for row in result.rows:
        assert row.base == row.edited and worth(row.difference) == (0.0, 0.0, True)


def test_the_figures_are_those_of_lm_eval_alone(own_tasks: None, task_files: Path, tiny_lm: LanguageModel) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["tiny_group", "tiny_words"]
    alone = lm_eval.simple_evaluate(
        HFLM(tiny_lm.model, tokenizer=tiny_lm.tokenizer, batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=task_files),
        num_fewshot=2,
        limit=5,
    )["results"]
    few = BenchmarkOptions(names, include_path=task_files, batch_size=4, num_fewshot=2, limit=5)
    result = by_name(benchmark(few, nullcontext(tiny_lm)))
    assert result
    for (task, metric), row in result.items():
        assert row.edited.value == alone[task][f"{metric},none"]
        assert row.edited.stderr == alone[task][f"{metric}_stderr,none"]
        assert row.base is None and row.difference is None
    assert result["tiny_things", "acc"].n == 5 and result["tiny_group", "acc"].n == 10


def test_the_chat_template_is_applied_when_asked_for(task_files: Path, own_tasks: None, tiny_lm: LanguageModel) -> None:
    seen: list[str] = []
    encode = tiny_lm.tokenizer.encode
    tiny_lm.tokenizer.encode = lambda text, **options: seen.append(text) or encode(text, **options)
    for templated in (False, True):
        options = BenchmarkOptions(
            ["tiny_numbers"], include_path=task_files, limit=2, apply_chat_template=templated, num_fewshot=1
        )
        seen.clear()
        benchmark(options, nullcontext(tiny_lm))
        assert any("<|user|>Q: What is 1 plus 1?" in text for text in seen) is templated


# The arithmetic of differences


def lm_eval_results(
    value: float, stderr: object, items: list[Any], metric: str = "acc", rule: str = "none"
) -> dict[str, Any]:
    """Results as lm-eval gives them, of one task."""
    samples = [
        {"doc_id": i, "doc_hash": str(i), "filter": rule, "metrics": [metric], metric: item}
        for i, item in enumerate(items)
    ]
    measured = {"alias": "task", "sample_len": len(items), f"{metric},{rule}": value, f"{metric}_stderr,{rule}": stderr}
    return {
        "results": {"task": measured},
        "samples": {"task": samples},
        "group_subtasks": {},
        "higher_is_better": {"task": {metric: True}},
    }


def test_a_mean_is_compared_item_by_item() -> None:
    base = lm_eval_results(0.75, 0.25, [1, 0, 1, 1])
    edited = lm_eval_results(0.5, 0.2887, [1, 1, 0, 0])
    (row,) = rows(edited, base)
    assert row.base is not None and row.difference is not None and row.difference.interval is not None
    assert row.base.interval == Count(3, 4).interval and row.edited.interval == Count(2, 4).interval
    assert row.difference.p_value == 1.0 and row.difference.interval[0] <= -0.25 <= row.difference.interval[1]
    # The differences are 0, 1, -1, -1: their mean is -1/4, their variance 11/12.
    assert worth(row.difference) == (-0.25, about(math.sqrt(11 / 12 / 4)), True)


def test_what_is_no_mean_is_compared_by_its_two_errors() -> None:
    base = lm_eval_results(7.0, 0.3, [-1.0, -2.0], "perplexity")
    edited = lm_eval_results(9.0, 0.4, [-2.0, -2.5], "perplexity")
    (row,) = rows(edited, base)
    assert worth(row.difference) == (2.0, about(0.5), False)


def test_a_difference_beyond_chance_is_told_from_one_within() -> None:
    base, edited = (
        lm_eval_results(0.75, 0.1, [1] * 15 + [0] * 5),
        lm_eval_results(0.25, 0.1, [0] * 10 + [1] * 5 + [0] * 5),
    )
    (row,) = rows(edited, base)
    assert row.difference is not None and row.difference.p_value == pytest.approx(2 / 2**10)  # ten of ten one way
    lengths = [float(n) for n in range(20)]
    longer = [n + 2 + 0.1 * (n % 3) for n in lengths]
    (row,) = rows(lm_eval_results(fmean(longer), 0.1, longer), lm_eval_results(fmean(lengths), 0.1, lengths))
    assert row.difference is not None and row.difference.interval is not None and row.difference.p_value is not None
    assert row.difference.p_value < 0.001 and 2 < row.difference.interval[0] < row.difference.interval[1] < 2.2


def test_other_items_are_not_paired() -> None:
    base, edited = lm_eval_results(0.5, 0.3, [1, 0]), lm_eval_results(0.5, 0.4, [1, 0])
    edited["samples"]["task"][1]["doc_hash"] = "another"
    assert worth(rows(edited, base)[0].difference) == (0.0, about(0.5), False)


def test_without_errors_there_is_a_difference_without_one() -> None:
    tuples = [(1, 2), (3, 4)]
    (row,) = rows(lm_eval_results(2.0, "N/A", tuples), lm_eval_results(1.5, "N/A", tuples))
    assert row.edited.stderr is None and worth(row.difference) == (0.5, None, False)
    (row,) = rows(lm_eval_results(math.nan, "N/A", tuples), lm_eval_results(1.5, "N/A", tuples))
    assert row.edited.value is None and worth(row.difference) == (None, None, False)


def test_a_filter_is_part_of_the_metrics_name() -> None:
    (row,) = rows(lm_eval_results(0.5, 0.5, [1, 0], "exact_match", "strict-match"))
    assert (row.metric, row.n, row.base, row.difference) == ("exact_match,strict-match", 2, None, None)


# Mistakes


def refusal(options: BenchmarkOptions, lm: LanguageModel) -> str:
    @contextmanager
    def never() -> Iterator[LanguageModel]:
        pytest.fail("a model is loaded before the tasks are known to be good")
        yield lm

    with pytest.raises(BenchmarkError) as caught:
        benchmark(options, never())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tiny_lm: LanguageModel) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'iconoclast-edit[benchmark]'" in refusal(BenchmarkOptions(["tiny_words"]), tiny_lm)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny_unsafe", "--confirm-run-unsafe-code"),
        ("tiny_hub", "cannot set up tiny_hub"),
        ("tiny_word", 'knows no task "tiny_word". Did you mean tiny_words or'),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(
    task_files: Path, own_tasks: None, tiny_lm: LanguageModel, name: str, expected: str
) -> None:
    assert expected in refusal(BenchmarkOptions([name], include_path=task_files), tiny_lm)


def test_a_hub_task_without_a_network_says_so(task_files: Path, own_tasks: None, tiny_lm: LanguageModel) -> None:
    assert "need a network" in refusal(BenchmarkOptions(["tiny_hub"], include_path=task_files), tiny_lm)


def test_at_least_one_task_is_needed(own_tasks: None, tiny_lm: LanguageModel) -> None:
    assert "--tasks" in refusal(BenchmarkOptions([]), tiny_lm)


def test_an_absent_folder_of_tasks_is_named(own_tasks: None, tmp_path: Path, tiny_lm: LanguageModel) -> None:
    assert "absent" in refusal(BenchmarkOptions(["a"], include_path=tmp_path / "absent"), tiny_lm)


def test_unsafe_tasks_run_when_confirmed(task_files: Path, own_tasks: None, tiny_lm: LanguageModel) -> None:
    options = BenchmarkOptions(["tiny_unsafe"], include_path=task_files, confirm_run_unsafe_code=True)
    assert [row.task for row in benchmark(options, nullcontext(tiny_lm)).rows] == ["tiny_unsafe"]


def test_what_breaks_down_in_lm_eval_is_one_line(
    task_files: Path, own_tasks: None, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_lm.model.config, "max_position_embeddings", 5)  # no room for six new tokens
    with pytest.raises(IconoclastError, match=r"breaks down .* maximum sequence length"):
        benchmark(BenchmarkOptions(["tiny_words"], include_path=task_files), nullcontext(tiny_lm))


# The terminal


class Heard:
    """Remembers progress."""

    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []

    def start(self, task: str, total: int) -> None:
        self.tasks.append([task, total, 0])

    def advance(self, steps: int = 1) -> None:
        self.tasks[-1][2] += steps

    def note(self, message: str) -> None:
        pytest.fail(message)


def test_lm_eval_is_quiet_and_its_progress_is_heard(
    options: BenchmarkOptions, tiny_lm: LanguageModel, capfd: pytest.CaptureFixture[str]
) -> None:
    before, heard = (tqdm.__init__, tqdm.update), Heard()
    benchmark(options, edited_live(tiny_lm, strong_edit(tiny_lm)), nullcontext(tiny_lm), heard)
    assert capfd.readouterr() == ("", "")
    choices = sum(len(item["choices"]) for item in CHOICE + NUMBERS)
    for side in ("Base model", "Edited model"):
        assert [f"{side}: running loglikelihood requests", choices, choices] in heard.tasks
        assert [f"{side}: running generate_until requests", len(CHOICE), len(CHOICE)] in heard.tasks
    assert (tqdm.__init__, tqdm.update) == before


# The command


@pytest.fixture
def finished(copied_run: Path) -> Path:
    return copied_run


def benchmark_action(
    subject: str, trial: str, against: str | None, options: BenchmarkOptions, file: Path | None
) -> None:
    """Run the command with these options."""
    benchmark_command(
        subject,
        list(options.tasks),
        trial,
        against,
        options.include_path,
        options.limit,
        options.num_fewshot,
        options.batch_size,
        options.apply_chat_template,
        options.confirm_run_unsafe_code,
        file,
    )


@pytest.fixture
def documented(options: BenchmarkOptions, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the command and reads the JSON that it writes."""

    def call(subject: object, trial: str = "best", against: object = None) -> dict[str, Any]:
        file = tmp_path / "benchmark.json"
        benchmark_action(str(subject), trial, None if against is None else str(against), options, file)
        return json.loads(file.read_text())

    return call


def test_a_run_and_its_exports_have_the_same_figures(
    finished: Path, documented: Callable[..., dict[str, Any]], tmp_path: Path, tiny_folder: Path
) -> None:
    export_run(finished, "2", "adapter", tmp_path / "adapter")
    export_run(finished, "2", "merged", tmp_path / "merged")
    run, adapter = documented(finished, "2"), documented(tmp_path / "adapter")
    merged = documented(tmp_path / "merged", against=tiny_folder)
    assert run["tasks"] == adapter["tasks"] == merged["tasks"]
    assert (run["trial"], run["against"]) == (2, None)
    assert (adapter["trial"], adapter["against"]) == (None, str(tiny_folder))
    letters = run["tasks"]["tiny_words"]["letters"]
    assert letters["base"] != letters["edited"]


def test_an_export_says_what_was_measured_of_its_trial(
    finished: Path, documented: Callable[..., dict[str, Any]], tmp_path: Path, tiny_folder: Path
) -> None:
    document, file = documented(finished, "2"), tmp_path / "benchmark.json"
    export_runs([(finished, "2")], "adapter", tmp_path / "adapter", capabilities=file)
    card = (tmp_path / "adapter/README.md").read_text()
    letters = document["tasks"]["tiny_words"]["letters"]
    cells = [f"{letters[side]['value']:.3f} (" for side in ("base", "edited")]
    assert "## Capabilities" in card and "no capabilities" not in card
    assert any(
        line.startswith("| tiny_words | letters |") and all(c in line for c in cells) for line in card.split("\n")
    )
    told = TrialInformation.read(tmp_path / "adapter/trial_information.json").capabilities
    assert told is not None and {row.task for row in told.rows} == document["tasks"].keys()
    assert "no capabilities" in (export_unmeasured(finished, "2", tmp_path / "plain").folder / "README.md").read_text()
    with pytest.raises(RunFolderError, match=r"is of trial 2 on .* not of trial 1"):
        export_runs([(finished, "1")], "adapter", tmp_path / "other", capabilities=file)
    documented(tiny_folder)
    with pytest.raises(RunFolderError, match="is of trial None"):
        export_runs([(finished, "2")], "adapter", tmp_path / "other", capabilities=file)
    file.write_text('{"schema_version": 1}')
    with pytest.raises(RunFolderError, match="not a file of"):
        export_unmeasured(finished, "2", tmp_path / "other", capabilities=file)
    assert not (tmp_path / "other").exists()


def test_the_document_and_the_table_hold_everything(
    finished: Path, documented: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    document = documented(finished)
    assert document["schema_version"] == 1 and document["lm_eval_version"]
    assert {"model", "trial", "limit", "num_fewshot", "batch_size", "apply_chat_template"} <= document.keys()
    assert document["tasks"]["tiny_group"]["acc"].keys() == {"n", "higher_is_better", "base", "edited", "difference"}
    assert document["tasks"]["tiny_group"]["acc"]["difference"].keys() == {
        "value", "stderr", "paired", "interval", "p_value",
    }  # fmt: skip
    table = capsys.readouterr().out
    for word in ("tiny_things", "acc↑", "letters↓", "Base", "Edited", "Difference", "±", "33"):
        assert word in table


def test_a_model_alone_has_one_column(
    documented: Callable[..., dict[str, Any]], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = documented(tiny_folder)
    figures = document["tasks"]["tiny_words"]["letters"]
    assert figures["base"] is None and figures["difference"] is None and figures["edited"]["stderr"] > 0
    assert "Value" in capsys.readouterr().out


def test_a_resampled_metric_has_an_unpaired_error(
    own_tasks: None, task_files: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = BenchmarkOptions(["tiny_correlation"], include_path=task_files)
    with interruptible():  # as in the program; lm-eval resamples in processes that inherit it
        benchmark_action(str(finished), "2", None, options, tmp_path / "benchmark.json")
    figures = json.loads((tmp_path / "benchmark.json").read_text())["tasks"]["tiny_correlation"]["mcc"]
    errors = [figures[name]["stderr"] for name in ("base", "edited", "difference")]
    assert figures["difference"]["paired"] is False and errors[2] == pytest.approx(math.hypot(*errors[:2]))
    shown = capfd.readouterr()
    assert " *" in shown.out and "Traceback" not in shown.err and "bootstrapping" not in shown.out
    assert all(line.endswith(" ...") for line in shown.err.splitlines() if ":" in line)


def test_the_home_folder_stays_out_of_the_document(
    documented: Callable[..., dict[str, Any]], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    document = documented(tiny_folder)
    assert document["model"] == f"~/{tiny_folder.name}"
    assert str(tiny_folder.parent) not in json.dumps(document)


def test_misplaced_options_and_files_are_refused_at_once(
    finished: Path, options: BenchmarkOptions, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="Leave out --against"):
        benchmark_action(str(finished), "best", "demo", options, None)
    with pytest.raises(SettingsError, match="Leave out --trial"):
        benchmark_action(str(tiny_folder), "3", None, options, None)
    with pytest.raises(UserError, match=r"file.json cannot be written\. Give a file in a folder that exists"):
        benchmark_action(str(tiny_folder), "best", None, options, tmp_path / "absent" / "file.json")
    with pytest.raises(ModelError, match="no model at"):
        benchmark_action(str(tmp_path / "absent"), "best", None, options, None)


def test_an_adapter_that_names_no_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="base_model_name_or_path"), loaded(str(tmp_path)):
        pass
    config = {"base_model_name_or_path": str(tiny_folder), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors"), loaded(str(tmp_path)):
        pass


def test_a_model_without_a_chat_template_is_measured(tmp_path: Path, tiny_folder: Path) -> None:
    lm = load_model(str(tiny_folder), dtypes=["float32"])
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.chat_template = None
    lm.tokenizer.save_pretrained(tmp_path)
    with loaded(str(tmp_path)) as bare:
        assert bare.layers == lm.layers
    with pytest.raises(ModelError, match="chat template"), loaded(str(tmp_path), templated=True):
        pass
