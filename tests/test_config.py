"""Settings are typed, described and strict, and each knows where it came from."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from iconoclast.config.layers import LoadedSettings, load_settings
from iconoclast.config.schema import PromptSource, Settings, settings_document
from iconoclast.errors import SettingsError
from tests.support.setting_examples import EXAMPLES, SPECS, flat

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lies in the working directory, in particular no config.toml."""
    monkeypatch.chdir(tmp_path)


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return "ICONOCLAST_" + key.replace(".", "__").upper()


def write(name: str, values: Mapping[str, Any]) -> None:
    """A settings file in the working directory."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]  # JSON values are TOML values too
    Path(name).write_text("".join(lines), encoding="utf-8")


@pytest.fixture(params=["flag", "environment", "file"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedSettings]:
    """Loads settings that were given as flags, in the environment, or in a file: one test, three sources."""

    def load(values: Mapping[str, Any]) -> LoadedSettings:
        if request.param == "flag":
            return load_settings(values)
        if request.param == "file":
            write("config.toml", values)
            return load_settings()
        with monkeypatch.context() as patch:
            for key, value in values.items():
                patch.setenv(variable(key), json.dumps(value) if isinstance(value, list) else str(value))
            return load_settings()

    load.source = request.param  # type: ignore[attr-defined]
    return load


# Described


def test_every_setting_has_a_purpose_a_flag_and_a_default():
    for key, spec in SPECS.items():
        assert re.fullmatch(r"\S+ \S+ .+\.", spec.description), key
        assert re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)?", spec.flag)
        assert spec.flag.removeprefix("--").replace("-", "_") == key
    defaults = {key: value for key, value in flat(Settings().model_dump()).items() if key in SPECS}
    assert {key: SPECS[key].default for key in defaults} == defaults


# Layers


def test_every_setting_can_be_given_in_every_way(given):
    loaded = given(EXAMPLES)
    effective = flat(loaded.settings.model_dump(mode="json"))
    assert effective == EXAMPLES
    assert list(effective) == list(EXAMPLES)
    assert {key: origin.split()[0] for key, origin in loaded.origins.items()} == dict.fromkeys(EXAMPLES, given.source)


@pytest.mark.parametrize("key", ["system_prompt", "good_prompts.split"])
def test_flags_before_environment_before_file_before_defaults(key, monkeypatch):
    sources = ("flag", "environment", "file config.toml", "default")
    for present in (c for n in range(4) for c in combinations(sources[:3], n)):
        write("config.toml", {key: "file config.toml"} if "file config.toml" in present else {})
        with monkeypatch.context() as patch:
            if "environment" in present:
                patch.setenv(variable(key), "environment")
            loaded = load_settings({key: "flag"} if "flag" in present else {})
        first = (*present, "default")[0]  # combinations keep the order of precedence
        assert loaded.origin(key) == first
        assert flat(loaded.settings.model_dump())[key] == (first if present else SPECS[key].default)


def test_a_list_of_a_higher_layer_replaces_the_list_below_it(monkeypatch):
    write("config.toml", {"dtypes": ["float32", "float16"]})
    monkeypatch.setenv("ICONOCLAST_DTYPES", '["bfloat16"]')
    assert load_settings().settings.dtypes == ["bfloat16"]


def test_settings_of_one_prompt_set_can_come_from_three_places(monkeypatch):
    write("config.toml", {f"good_prompts.{k}": f"{k}.csv" for k in ("dataset", "split", "column")})
    monkeypatch.setenv("ICONOCLAST_GOOD_PROMPTS__SPLIT", "train[5:]")
    loaded = load_settings({"good_prompts.column": "Goal"})
    assert loaded.settings.good_prompts == PromptSource(dataset="dataset.csv", split="train[5:]", column="Goal")
    origins = [loaded.origin(f"good_prompts.{name}") for name in ("dataset", "split", "column", "prefix")]
    assert origins == ["file config.toml", "environment", "flag", "default"]


def test_a_prompt_set_in_the_environment_can_be_one_json_object(monkeypatch):
    monkeypatch.setenv("ICONOCLAST_BAD_PROMPTS", '{"dataset": "b.csv", "column": "Goal"}')
    monkeypatch.setenv("ICONOCLAST_BAD_PROMPTS__SPLIT", "train[:3]")
    assert load_settings().settings.bad_prompts == PromptSource(dataset="b.csv", column="Goal", split="train[:3]")
    monkeypatch.setenv("ICONOCLAST_BAD_PROMPTS", '{"dataset": "b.csv", "splti": "train"}')
    with pytest.raises(SettingsError, match=r"bad_prompts\.splti \(environment\).*Did you mean bad_prompts\.split\?"):
        load_settings()


def test_the_environment_is_read_in_any_case_and_only_ours(monkeypatch):
    for name, value in {"iconoclast_Exit_After_Optimization": "1", "ICON_SEED": "9", "BATCH_SIZE": "9"}.items():
        monkeypatch.setenv(name, value)
    loaded = load_settings()
    assert loaded.origins == {"exit_after_optimization": "environment"}
    assert loaded.settings.exit_after_optimization
    monkeypatch.setenv("iconoclast_n_trails", "9")
    with pytest.raises(SettingsError, match=r"Unknown setting iconoclast_n_trails .*n_trials\?"):
        load_settings()


def test_a_new_data_set_inherits_nothing_of_the_default_one(given):
    assert given({"good_prompts.dataset": "a.txt"}).settings.good_prompts == PromptSource(dataset="a.txt")


def test_a_new_split_keeps_the_rest_of_the_default_data_set(given):
    source = given({"good_prompts.split": "report"}).settings.good_prompts
    assert source == Settings().good_prompts.model_copy(update={"split": "report"})


def test_settings_built_directly_read_nothing_else(monkeypatch):
    monkeypatch.setenv("ICONOCLAST_N_TRIALS", "9")
    write("config.toml", {"n_trials": 8})
    assert Settings().n_trials == 200


# Files


def test_a_named_file_before_the_variable_before_the_folder(monkeypatch):
    assert load_settings() == LoadedSettings(Settings(), {})
    for seed, name in enumerate(("config.toml", "named-by-variable.toml", "named.toml")):
        write(name, {"seed": seed + 1})
    assert load_settings().settings.seed == 1
    monkeypatch.setenv("ICONOCLAST_CONFIG_TEMPLATE", "named-by-variable.toml")
    assert load_settings().settings.seed == 2
    assert load_settings(config=Path("named.toml")).settings.seed == 3


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_configuration_that_comes_along_means_what_it_says(file):
    document = flat(tomllib.loads(file.read_text(encoding="utf-8")))
    loaded = load_settings(config=file)
    effective = flat(settings_document(loaded.settings))
    assert effective == {**effective, **document}
    assert loaded.origins == dict.fromkeys(document, f"file {file}")
    assert loaded.settings.model


def test_settings_written_as_toml_are_read_back_the_same():
    text = {"bad_report_prompts.dataset": "é.csv", "system_prompt": "two\nlines"}
    settings = load_settings({"model": "x", "study_checkpoint_dir": "a/b", **text}).settings
    Path("config.toml").write_text(tomli_w.dumps(settings_document(settings)), encoding="utf-8")
    assert load_settings().settings == settings


# Strict


def test_a_misspelt_key_is_answered_with_the_nearest_one(given):
    for misspelt, nearest in {
        "n_trails": "n_trials",
        "modle": "model",
        "kl_target": "kl_divergence_target",
        "good_prompts.splti": "good_prompts.split",
        "bad_evaluation_prompts.colum": "bad_evaluation_prompts.column",
        "god_prompts.split": "good_prompts.split",
        "n_trials.value": "n_trials",
    }.items():
        shown = variable(misspelt) if given.source == "environment" else misspelt
        expected = rf"^Unknown setting {shown} \({given.source}.*\)\. Did you mean {nearest}\?$"
        with pytest.raises(SettingsError, match=expected):
            given({misspelt: "1"})


def test_a_key_spelt_as_elsewhere_is_answered_with_its_name():
    for misspelt, nearest in {"Model": "model", "MODEL": "model", "n-trials": "n_trials"}.items():
        write("config.toml", {misspelt: "7"})
        with pytest.raises(SettingsError, match=rf"{misspelt} \(file config\.toml\)\. Did you mean {nearest}\?"):
            load_settings()


def test_a_key_like_no_other_is_answered_with_where_to_look():
    with pytest.raises(SettingsError, match=r"qqqqq.*`iconoclast config show` lists the settings"):
        load_settings({"qqqqq": "1"})


# Typed


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("n_trials", "many", "valid integer"),
        ("n_trials", 0, "greater than or equal to 1"),
        ("n_trials", 1.5, "valid integer"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("winsorization_quantile", 0.5, "greater than 0.5"),
        ("winsorization_quantile", 1.01, "less than or equal to 1"),
        ("direction_variance_floor", 0, "greater than 0"),
        ("kl_divergence_target", "nan", "finite"),
        ("kl_divergence_target", float("inf"), "finite"),
        ("overrefusal_penalty", float("inf"), "finite"),
        ("overrefusal_penalty", -0.1, "greater than or equal to 0"),
        ("exit_after_optimization", "maybe", "valid boolean"),
        ("quantization", "8bit", "'bnb_4bit'"),
        ("row_normalization", "PRE", "'pre'"),
        ("model", "", "at least 1 character"),
        ("dtypes", [], "at least 1 item"),
        ("dtypes", ["float8"], "'float32'"),
        ("components", ["attn.q_proj"], "'attn.o_proj'"),
        ("refusal_markers", ["   "], "at least 2 characters"),
    ],
)
def test_a_bad_value_is_shown_with_what_may_stand_there(key, value, rule):
    with pytest.raises(SettingsError) as caught:
        load_settings({key: value})
    shown = json.dumps(value[0] if isinstance(value, list) and value else value)
    assert re.fullmatch(rf"Setting {key} \(flag\) has a bad value {re.escape(shown)}: .*{rule}.*\.", str(caught.value))


def test_a_bad_value_is_blamed_on_where_it_was_given(given):
    for key, value in {"n_trials": "many", "model": "", "dtypes": [], "good_prompts.dataset": ""}.items():
        with pytest.raises(SettingsError, match=rf"^Setting {key} \({given.source}.* has a bad value [^\n]*$"):
            given({key: value})


def test_all_bad_values_are_told_at_once():
    with pytest.raises(SettingsError, match=r"(?s)quantization.*\n.*n_trials"):
        load_settings({"n_trials": 0, "quantization": "8bit"})


def test_a_prompt_set_without_a_data_set_says_what_is_missing(given):
    with pytest.raises(SettingsError, match=rf"good_report_prompts\.dataset \({given.source}.*\) is missing"):
        given({"good_report_prompts.split": "test"})


@pytest.mark.parametrize("text", ['good_prompts = "a.txt"', '[[good_prompts]]\ndataset = "a.txt"'])
def test_a_prompt_set_must_be_a_table_even_beside_a_flag(text):
    Path("config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"good_prompts \(file config\.toml\) has a bad value .*a\.txt"):
        load_settings()
    with pytest.raises(SettingsError, match=r"good_prompts \(file config\.toml\) must be a section"):
        load_settings({"good_prompts.split": "train"})


def test_prompt_sets_go_by_other_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[target_select_prompts]\ndataset = "target.txt"\n')
    monkeypatch.setenv("ICONOCLAST_BENIGN_PROMPTS__DATASET", "benign.txt")
    settings = load_settings({"target_prompts.split": "fit[:9]"}, file).settings
    assert settings.bad_evaluation_prompts.dataset == "target.txt" and settings.good_prompts.dataset == "benign.txt"
    assert settings.bad_prompts.split == "fit[:9]"
    source = PromptSource(dataset="x.txt")
    assert Settings(benign_report_prompts=source) == Settings(good_report_prompts=source)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="are the same setting"):
        Settings(benign_prompts=source, good_prompts=source)  # type: ignore[call-arg]
