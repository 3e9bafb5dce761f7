"""What a model is really given, after reports of evaluations in which the model never saw what its users had written.

Kinds: chat templates that leave out the system prompt without a word, that write only content in parts, that lose a text or
write nothing; templates with the date, under which the same run is another tomorrow; a beginning-of-text token that stands
there twice or not at all.
"""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers.utils import chat_template_utils

from iconoclast.cluster.submit import prepared
from iconoclast.config.schema import Settings
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.models.chat_template import prepare_tokenizer
from iconoclast.models.language_model import LanguageModel
from iconoclast.progress import Silent
from iconoclast.prompts import Prompt
from iconoclast.runs.export import export_run
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.replay import replay
from iconoclast.runs.starting import started_run
from iconoclast.runs.workbench import Workbench
from tests.support.tiny import TEMPLATE

ASK = Prompt("Set an alarm.", "Be brief.")
USERS_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + USERS_ONLY
)
IN_PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}<|end|>{% endfor %}<|assistant|>"
)
FIRST_PART = "{% for m in messages %}<|{{ m.role }}|>{{ m.content[0].text }}<|end|>{% endfor %}<|assistant|>"
USERS_PARTS = USERS_ONLY.replace("m.content", "m.content[0].text")
DATED = "<|system|>Today is {{ strftime_now('%d %B %Y') }}.<|end|>" + TEMPLATE


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def under(lm: LanguageModel, template: str) -> LanguageModel:
    lm.tokenizer.chat_template = template
    return lm


# Texts


@pytest.mark.parametrize("template", [USERS_ONLY, NO_SYSTEM, USERS_PARTS])
def test_a_system_prompt_that_the_template_leaves_out_opens_the_users_turn(
    tiny_lm: LanguageModel, template: str
) -> None:
    lm = under(tiny_lm, template)
    assert lm.render(ASK) == "<|user|>Be brief.\n\nSet an alarm.<|end|><|assistant|>"
    assert lm.render(Prompt("Set an alarm.")) == "<|user|>Set an alarm.<|end|><|assistant|>"


def test_a_run_with_such_a_system_prompt_has_other_directions_and_says_so(
    tiny_lm: LanguageModel, tiny_settings: Settings
) -> None:
    lm, found, notes = under(tiny_lm, USERS_ONLY), [], Notes()
    for system in (None, "Be brief."):
        bench = Workbench(tiny_settings.model_copy(update={"system_prompt": system}), lm)
        bench.find_response_prefix(notes)
        found.append(bench.estimate_directions(*bench.residuals()).raw["mean"])
    assert not found[0].equal(found[1])
    assert sum("opens the user's turn" in line for line in notes.said) == 1


@pytest.mark.parametrize("template", [IN_PARTS, FIRST_PART])
def test_a_template_that_writes_parts_is_given_parts(
    tiny_lm: LanguageModel, tiny_settings: Settings, template: str
) -> None:
    lm, notes = under(tiny_lm, template), Notes()
    assert lm.render(ASK) == "<|system|>Be brief.<|end|><|user|>Set an alarm.<|end|><|assistant|>"
    Workbench(tiny_settings, lm).find_response_prefix(notes)
    assert any("lists of parts" in line for line in notes.said)


def test_a_template_that_leaves_out_the_beginning_of_text_is_said(
    tiny_lm: LanguageModel, tiny_settings: Settings
) -> None:
    opening = TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", 2)])
    tiny_lm.tokenizer._tokenizer.post_processor = opening
    for template, said in ((TEMPLATE, 1), ("<|system|>" + TEMPLATE, 0)):
        notes = Notes()
        Workbench(tiny_settings, under(tiny_lm, template)).find_response_prefix(notes)
        assert sum("leaves out <|system|>, with which its tokenizer begins" in line for line in notes.said) == said


def test_a_system_prompt_alone_can_be_in_parts(tiny_lm: LanguageModel) -> None:
    lm = under(tiny_lm, FIRST_PART.replace("m.content[0].text", "m.content if m.role == 'user' else m.content[0].text"))
    assert lm.render(ASK) == "<|system|>Be brief.<|end|><|user|>Set an alarm.<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{# nothing #}", "renders nothing"),
        ("{% for m in prompts %}{{ m.content }}{% endfor %}", "renders nothing|fails on a plain user message"),
        ("<|user|>{{ query }}<|assistant|>", "leaves out the user's text"),
        ("{{ messages[0].content[:10] }}<|assistant|>", "leaves out the user's text"),
        ("{{ raise_exception('a tool is needed') }}", "fails on a plain user message .*a tool is needed"),
    ],
)
def test_a_template_that_loses_the_prompt_is_an_error(tiny_lm: LanguageModel, template: str, problem: str) -> None:
    with pytest.raises(ModelError, match=f"chat template of .* ({problem}).*Set chat_template to plain, raw") as caught:
        under(tiny_lm, template).encode([ASK])
    assert "\n" not in str(caught.value)


def test_a_text_that_a_template_cuts_is_an_error_though_others_are_whole(tiny_lm: LanguageModel) -> None:
    lm = under(tiny_lm, TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]"))
    assert lm.encode([ASK])
    with pytest.raises(ModelError, match="changes a text of the user: 'What does </think> mean"):
        lm.encode([Prompt("What does </think> mean in a template?")])


def test_what_templates_trim_and_switches_they_take_are_no_loss(tiny_lm: LanguageModel) -> None:
    lm = under(tiny_lm, TEMPLATE.replace("message['content']", "message['content'] | replace('/no_think', '') | trim"))
    assert lm.render(Prompt(" Set\nan  alarm. ", "/no_think Be brief.")).startswith(
        "<|system|>Be brief.<|end|><|user|>Set\n"
    )


# Beginning of text


def beginning(lm: LanguageModel, processor: str) -> int:
    """Let the tokenizer put <|user|> before a text, and perhaps the end token after it; return its id."""
    token = int(lm.tokenizer.convert_tokens_to_ids("<|user|>"))  # type: ignore[arg-type]
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=processor, special_tokens=[("<|user|>", token), ("<|end|>", 1)]
    )
    return token


@pytest.mark.parametrize("processor", ["<|user|> $A", "<|user|> $A <|end|>"])
@pytest.mark.parametrize("ready", ["plain", "raw"])
def test_plain_and_raw_prompts_begin_as_the_tokenizer_begins_a_text(
    tiny_lm: LanguageModel, ready: str, processor: str
) -> None:
    prepare_tokenizer(tiny_lm.tokenizer, ready, "tiny")
    bare = tiny_lm.encode([ASK])[0]
    token = beginning(tiny_lm, processor)
    assert token not in bare and tiny_lm.encode([ASK])[0] == [token, *bare]


def test_a_chat_template_writes_its_beginning_of_text_or_means_none(tiny_lm: LanguageModel) -> None:
    token = beginning(tiny_lm, "<|user|> $A <|end|>")
    inner = "{{ messages[0].content }}<|assistant|>"
    for template, expected in ((inner, 0), ("<|user|>" + inner, 1)):
        under(tiny_lm, template)
        messages = [{"role": "user", "content": "Hi"}]
        known: Any = tiny_lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tiny_lm.encode([Prompt("Hi")])[0] == known and known.count(token) == expected


# Dates and other ids


@pytest.fixture
def dated(tiny_settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a run whose chat template has the date in it."""
    model = shutil.copytree(str(tiny_settings.model), tmp_path / "dated")
    (model / "chat_template.jinja").write_text(DATED)
    return tiny_settings.model_copy(update={"model": str(model)})


def later(patch: pytest.MonkeyPatch) -> None:
    """Turn the clock that chat templates see to the year 2040."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2040, 5, 6)

    patch.setattr(chat_template_utils, "datetime", Later)


def run(settings: Settings, trials: int = 2) -> Path:
    with started_run(settings) as started:
        started.optimize(trials)
        started.measure_report()
        started.write_summary("complete")
        return started.folder.path


def test_a_template_is_told_the_date_of_the_first_start_for_ever(
    dated: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(dated)
    first = json.loads((folder / "manifest.json").read_text())["rendering"]
    later(monkeypatch)
    assert run(dated, 4) == folder
    assert json.loads((folder / "baseline.json").read_text())["rendering"] == first
    assert json.loads((folder / "batch_summary.json").read_text())["report"]["rendering"] == first
    again = replay(folder, "best")
    assert again.changed == [] and again.grade == "exact"
    exported = export_run(folder, "best", "merged", tmp_path / "merged")
    assert not exported.problem and exported.exported is not None
    assert abs(exported.exported.kl_divergence - exported.live.kl_divergence) < 1e-4


def test_a_submitted_run_hands_its_date_to_all_workers(dated: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    told = prepared(dated).settings().template_date
    later(monkeypatch)
    run(dated)
    folder = RunFolder(dated.study_checkpoint_dir)  # type: ignore[arg-type]
    assert told is not None and folder.settings().template_date == told


def test_a_run_of_an_earlier_version_is_dated_by_its_first_start(dated: Settings) -> None:
    folder = run(dated)
    manifest = json.loads((folder / "manifest.json").read_text())
    config = folder / "iconoclast_config.toml"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "template_date" not in line))
    del manifest["rendering"]
    manifest["starts"][0]["at"] = "2026-11-22T09:30:00+00:00"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = RunFolder(folder).dated(dated).template_date
    assert told is not None and told.startswith(("2026-11-21", "2026-11-22", "2026-11-23"))


def another_date(settings: Settings, folder: Path) -> Settings:
    config = folder / "iconoclast_config.toml"
    line = next(line for line in config.read_text().splitlines() if line.startswith("template_date"))
    config.write_text(config.read_text().replace(line, 'template_date = "2040-05-06"'))
    return settings.model_copy(update={"template_date": "2040-05-06T00:00:00"})


def another_template(settings: Settings, folder: Path) -> Settings:
    (Path(str(settings.model)) / "chat_template.jinja").write_text(DATED.replace("Today is", "It is"))
    return settings


def another_tokenizer(settings: Settings, folder: Path) -> Settings:
    file = Path(str(settings.model)) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(content))
    return settings


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (another_date, r"was told 20\d\d-.* then, 2040-05-06T00:00:00 now"),
        (another_template, "chat template has changed"),
        (another_tokenizer, "tokenizer has changed"),
    ],
)
def test_other_token_ids_are_named_at_a_restart_and_a_replay(dated: Settings, change: Any, cause: str) -> None:
    folder = run(dated)
    changed = change(dated, folder)
    with pytest.raises(RunFolderError, match=f"token ids of good_prompts: the .*{cause}"):
        run(changed, 4)
    again = replay(folder, "best")
    assert any("token ids of bad_evaluation_prompts" in line for line in again.changed)
    assert len(again.changed) == 4


def test_a_date_that_no_template_reads_changes_nothing(tiny_settings: Settings) -> None:
    folder = run(tiny_settings)
    run(tiny_settings.model_copy(update={"template_date": "2040-05-06T00:00:00"}), 4)
    assert replay(folder, "best").changed == []
