"""Every setting is a flag, and `config show` tells what came of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from iconoclast.config.schema import Settings, settings_document
from iconoclast.version import __version__
from tests.support.entry_point import QUICK, iconoclast, write_prompts
from tests.support.setting_examples import EXAMPLES, SPECS, flat

COMMANDS = ("run", "demo", "export", "chat", "plot", "evaluate", "compare", "export-and-compare", "status", "config")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(*arguments: object) -> dict[str, Any]:
    """The output of `config show --json`."""
    outcome = iconoclast("config", "show", "--json", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    document: dict[str, Any] = json.loads(outcome.out)
    return document


def flags(values: Mapping[str, Any]) -> Iterator[str]:
    """The settings as flags."""
    for key, value in values.items():
        if isinstance(value, bool):
            yield SPECS[key].flag if value else SPECS[key].flag.replace("--", "--no-")
        else:
            for each in value if isinstance(value, list) else [value]:
                yield from (SPECS[key].flag, str(each))


# Every setting is a flag


def test_every_setting_is_a_flag():
    document = shown(*flags(EXAMPLES))
    assert flat(document["settings"]) == EXAMPLES
    assert document["origins"] == dict.fromkeys(EXAMPLES, "flag") | {"behavior": "default"}


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_switches_back_what_the_environment_switched(value, monkeypatch):
    values = {key: value for key, example in EXAMPLES.items() if isinstance(example, bool) and "." not in key}
    for key in values:
        monkeypatch.setenv("ICONOCLAST_" + key.upper(), str(not value))
    settings = shown(*flags(values))["settings"]
    assert {key: settings[key] for key in values} == values


@pytest.mark.parametrize("command", [["run"], ["config", "show"]], ids=" ".join)
def test_help_lists_every_flag_with_its_description(command):
    words = iconoclast(*command, "--help").out.split()
    for spec in SPECS.values():
        assert spec.flag in words
        assert "".join(spec.description.split()) in "".join(words)  # lines are broken at hyphens too


def test_a_flag_given_several_times_makes_a_list():
    settings = shown("--dtypes", "float32", "--dtypes", "bfloat16", "--refusal-markers", "no, thanks")["settings"]
    assert (settings["dtypes"], settings["refusal_markers"]) == (["float32", "bfloat16"], ["no, thanks"])


def test_dots_dashes_and_underscores_name_the_same_flag():
    for flag in ("--good-prompts.split", "--good_prompts.split", "--good-prompts-split"):
        assert shown(flag, "report")["settings"]["good_prompts"]["split"] == "report"


# config show


def test_config_show_prints_every_setting_and_its_origin_as_json():
    document = shown()
    assert document["settings"] == settings_document(Settings())
    assert document["origins"] == dict.fromkeys(SPECS, "default")
    assert list(document["origins"]) == list(SPECS)


def test_config_show_prints_one_line_a_setting(monkeypatch):
    Path("config.toml").write_text('system_prompt = "be brief"\nseed = 5\n', encoding="utf-8")
    monkeypatch.setenv("ICONOCLAST_GOOD_PROMPTS__SPLIT", "report")
    monkeypatch.setenv("ICONOCLAST_SEED", "6")
    outcome = iconoclast("config", "show", "--n-trials", "7")
    assert (outcome.code, outcome.err) == (0, "")
    for key in SPECS:
        [line] = [line for line in outcome.out.splitlines() if line.strip(" │").startswith(f"{key} ")]
        value, origin = {
            "n_trials": ("7", "flag"),
            "good_prompts.split": ("report", "environment"),
            "seed": ("6", "environment"),
            "system_prompt": ("be brief", "file config.toml"),
        }.get(key, ("", "default"))
        assert value in line.removeprefix(key)
        assert origin in line


def test_config_show_shows_markup_and_escapes_as_text():
    outcome = iconoclast("config", "show", "--system-prompt", "[bold]be brief[/bold]\x1b[2J")
    assert "[bold]be brief[/bold]" in outcome.out
    assert "\x1b" not in outcome.out


def test_config_show_resolves_the_model_without_loading_it(tiny_folder):
    assert shown("--model", tiny_folder)["model_path"] == str(tiny_folder)


# Commands


@pytest.mark.parametrize("command", [*([c] for c in COMMANDS), ["config", "show"]], ids=" ".join)
def test_every_command_explains_itself(command):
    assert f"\n  {command[0]} " in iconoclast("--help").out
    for flag in ("-h", "--help"):
        outcome = iconoclast(*command, flag)
        assert (outcome.code, outcome.err) == (0, "")
        assert f"iconoclast {' '.join(command)} " in outcome.out.splitlines()[0]


def test_the_version_is_that_of_the_package():
    assert iconoclast("--version").out == f"iconoclast {__version__}\n"


# The menu


@pytest.mark.parametrize("told_by", ["flag", "environment"])
def test_at_a_terminal_a_menu_follows_unless_told_to_exit(told_by, tiny_folder, folder, monkeypatch):
    write_prompts(folder)
    run = ["--model", tiny_folder, "--out", "here", *QUICK]
    assert "What now?" in iconoclast(*run, typed="quit\n").out
    if told_by == "environment":
        monkeypatch.setenv("ICONOCLAST_EXIT_AFTER_OPTIMIZATION", "true")
    outcome = iconoclast(*run, *(["--exit-after-optimization"] if told_by == "flag" else []), typed="quit\n")
    assert outcome.code == 0
    assert "What now?" not in outcome.out


def test_the_list_of_commands_has_whole_sentences() -> None:
    listed = iconoclast("--help").out
    assert "..." not in listed.split("Commands:")[1] and "everything else least." in " ".join(listed.split())
