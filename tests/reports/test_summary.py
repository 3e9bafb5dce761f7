"""Batch summaries of many runs: which are found, and what is read of them."""

import math
from pathlib import Path
from typing import Any

import pytest

from iconoclast.errors import RunFolderError, UserError
from iconoclast.reports.summary import find_summaries, read_summaries, read_summary
from tests.support.batch_summaries import document, saved, scores, summary


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/home/someone/models/qwen", "qwen"),
        ("/home/someone/models/qwen/", "qwen"),
        ("~/models/qwen", "qwen"),
        ("../someone/qwen", "qwen"),
        ("./qwen.gguf", "qwen.gguf"),
        ("C:\\Users\\someone\\qwen", "qwen"),
        ("/", "/"),
    ],
)
def test_a_model_is_named_without_the_folders_of_its_author(model: str, name: str) -> None:
    assert summary(scores(0), model=model).name == name


def test_summaries_are_found_anywhere_but_in_exports(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", document(scores(0))), saved(tmp_path / "deep" / "down" / "b", document())
    export = saved(first.parent / "adapter", document(scores(9)))
    (export.parent / "trial_information.json").write_text("{}")
    saved(tmp_path / ".cache", document(scores(9)))
    assert find_summaries(first) == find_summaries(first.parent) == [first]
    assert find_summaries(tmp_path) == [first, second]
    with pytest.raises(RunFolderError, match="is an export"):
        find_summaries(export.parent)


def test_a_summary_that_is_named_twice_is_one_row(tmp_path: Path) -> None:
    file = saved(tmp_path / "a", document(scores(0)))
    assert len(read_summaries([tmp_path, file, file.parent])[0]) == 1


def test_rows_are_in_order_of_models_tools_and_seeds(tmp_path: Path) -> None:
    for number, changes in enumerate(
        [
            dict[str, Any](model="zeta"),
            {"model": "Alpha", "tool": "heretic"},
            {"model": "alpha", "seed": 10},
            {"model": "Alpha", "seed": 2},
            {"model": "Alpha"},
        ]
    ):
        saved(tmp_path / str(number), document(scores(0), **changes))
    found, _ = read_summaries([tmp_path])
    order = [(s.name, s.tool, s.seed) for s in found]
    assert order == [
        ("Alpha", "iconoclast", None),
        ("Alpha", "iconoclast", 2),
        ("Alpha", "heretic", None),
        ("alpha", "iconoclast", 10),
        ("zeta", "iconoclast", None),
    ]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in document(scores(0)).items() if key != name}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged: Expecting value"),
        ('{"schema_version": 1,', "is damaged: Expecting property name"),
        ("[" * 5000, "is damaged: "),
        ("[]", "an object with a schema_version"),
        ('{"name": "something else"}', "an object with a schema_version"),
        (without("model"), "model: Field required"),
        (document(scores(0), model=3), "model: "),
        (document(scores(0), completed_trials="18"), "completed_trials: "),
        (document({**scores(0), "refusals": 3}), "pareto_trials.0.refusals: "),
        (document({**scores(0), "refusals": {"count": 21, "n": 20}}), "pareto_trials.0.refusals: "),
        (document(scores(0, kl=math.nan)), "kl_divergence: "),
        (
            document({**scores(0), "first_token_kl": {"value": 0.1, "n": 1, "interval": [0.0, math.nan]}}),
            "first_token_kl.interval",
        ),
        (document(scores(0), best_trial=99), "best trial 99 is not among the pareto_trials"),
        (document(scores(0), schema_version=2), "schema version 2, and this version of ICONOCLAST knows 1"),
        ({"schema_version": 2, "everything": "else"}, "schema version 2"),
    ],
)
def test_a_file_that_is_no_summary_is_named_in_one_line(
    tmp_path: Path, content: dict[str, Any] | str, reason: str
) -> None:
    file = saved(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_summary(file)
    message = str(caught.value)
    assert message.startswith(f"{file} ") and reason in message and "\n" not in message and len(message) < 400


def test_bytes_that_are_no_text_and_folders_are_no_summaries(tmp_path: Path) -> None:
    file = saved(tmp_path / "a", "")
    file.write_bytes(b"\xff\xfe\x00{")
    (tmp_path / "b" / "batch_summary.json").mkdir(parents=True)
    found, problems = read_summaries([tmp_path, tmp_path / "nowhere", tmp_path / "b"])
    assert not found and len(problems) == 3
    assert "does not exist" in problems[0] and "no batch_summary.json" in problems[1] and str(file) in problems[2]
