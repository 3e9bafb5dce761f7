"""The three splits are disjoint, and what the settings say about prompts is true of them."""

from pathlib import Path

import pytest

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.runs.splits import Prompts


def test_prompts_in_two_splits_are_an_error_that_says_what_to_do(tiny_settings: Settings) -> None:
    same = tiny_settings.model_copy(update={"bad_evaluation_prompts": tiny_settings.bad_prompts})
    with pytest.raises(
        PromptsError, match='put "bad_prompts and bad_evaluation_prompts" into the setting allow_overlap'
    ):
        Prompts.load(same)
    assert Prompts.load(tiny_settings).overlaps() == {}


@pytest.mark.parametrize("pair", ["bad_prompts and bad_evaluation_prompts", "bad_evaluation_prompts and bad_prompts"])
def test_an_overlap_is_allowed_by_name(tiny_settings: Settings, pair: str) -> None:
    changes = {"bad_evaluation_prompts": tiny_settings.bad_prompts, "allow_overlap": [pair]}
    prompts = Prompts.load(tiny_settings.model_copy(update=changes))
    assert prompts.overlaps() == {"bad_prompts and bad_evaluation_prompts": 4}


@pytest.mark.parametrize("pair", ["bad_prompts", "bad_prompts and seed", "bad_prompts and good_promts"])
def test_an_allowance_for_sets_that_do_not_exist_is_an_error(tiny_settings: Settings, pair: str) -> None:
    with pytest.raises(SettingsError, match="allow_overlap names"):
        Prompts.load(tiny_settings.model_copy(update={"allow_overlap": [pair]}))


def test_one_report_set_alone_is_refused(tiny_settings: Settings) -> None:
    with pytest.raises(SettingsError, match="both"):
        Prompts.load(tiny_settings.model_copy(update={"good_report_prompts": None}))


def test_own_prompts_are_reported_on_their_report_split() -> None:
    prompts = Prompts.load(Settings(model="-"))
    assert prompts.benign_report is not None and prompts.benign_report.source == "builtin:everyday/benign report"
    assert prompts.target_report is not None and prompts.target_report.source == "builtin:everyday/target report"
    assert not prompts.overlaps()
    others = PromptSource(dataset="builtin:everyday/benign", split="select[:8]")
    assert Prompts.load(Settings(model="-", good_evaluation_prompts=others)).benign_report is None


@pytest.fixture
def axes(tiny_settings: Settings, tmp_path: Path) -> Settings:
    file = tmp_path / "axes.csv"
    file.write_text("text,kind\nSet my clock,home\nBook a taxi,travel\nBook a table,travel\nbook a TABLE,food\n")
    source = PromptSource(dataset=str(file), axis="kind", column="text")
    return tiny_settings.model_copy(update={"bad_evaluation_prompts": source})


def test_a_prompt_of_several_axes_stands_in_the_set_once(axes: Settings) -> None:
    prompts = Prompts.load(axes).target_evaluation
    assert [(p.text, p.axes) for p in prompts] == [
        ("Set my clock", ("home",)),
        ("Book a taxi", ("travel",)),
        ("Book a table", ("travel", "food")),
    ]


def test_weights_are_of_axes_that_are_there(axes: Settings, tiny_settings: Settings) -> None:
    assert Prompts.load(axes.model_copy(update={"axis_weights": ["food=2.5"]}))
    with pytest.raises(SettingsError, match="is not an axis of bad_evaluation_prompts: they have food, home, travel"):
        Prompts.load(axes.model_copy(update={"axis_weights": ["fod=2"]}))
    with pytest.raises(SettingsError, match=r"set bad_evaluation_prompts\.axis"):
        Prompts.load(tiny_settings.model_copy(update={"axis_weights": ["food=2"]}))


def test_an_axis_column_that_is_missing_or_empty_is_an_error(axes: Settings) -> None:
    source = axes.bad_evaluation_prompts.model_copy(update={"axis": "sort"})
    with pytest.raises(PromptsError, match="the axis column sort is missing or empty"):
        Prompts.load(axes.model_copy(update={"bad_evaluation_prompts": source}))
