"""Where a response begins and ends, after reports of evaluations that measured thoughts in place of answers, or ran past them.

Kinds: chat templates that open a thinking block in the prompt; blocks with tags of a family's own, in template, vocabulary or
only in what the model writes; a first token that is the same for every prompt; turns that end with a token that only one of
generation settings, configuration, tokenizer and chat template names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from tokenizers import decoders
from torch.nn.functional import normalize
from transformers import GenerationConfig

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.evaluation.examination import Variant
from iconoclast.models import thinking
from iconoclast.models.decoding import decode, end_tokens
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.thinking import find_response_prefix
from iconoclast.prompts import Prompt
from iconoclast.runs.conversation import Conversation
from iconoclast.runs.workbench import Workbench
from tests.support.tiny import TEMPLATE, WORDS
from tests.wild.test_rendered_prompts import Notes

PROMPTS = [Prompt(f"Set my {word}") for word in WORDS]
OPENING = "<|assistant|>{% endif %}"
REASONED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.KEY %}BEFORE{{ m.KEY }}AFTER{% endif %}{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|channel|>", "<|message|>"]
HARMONY = REASONED.replace("BEFORE", "<|channel|>analysis<|message|>").replace(
    "AFTER", "<|end|><|assistant|><|channel|>final<|message|>"
)


def under(lm: LanguageModel, template: str, tokens: Sequence[str] = ()) -> LanguageModel:
    lm.tokenizer.chat_template = template
    lm.tokenizer.add_tokens(list(tokens))
    return lm


def opening(text: str) -> str:
    """Return a chat template that lets every response begin after `text`."""
    return TEMPLATE.replace(OPENING, f"<|assistant|>{text}{{% endif %}}")


def found(monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, answers: Mapping[str, Sequence[str]]) -> str:
    """Find the response prefix of a model that answers from a script: response prefix → responses."""

    def script(model: LanguageModel, ids: object, length: int, rows: int) -> list[list[int]]:
        return [model.encode_texts([text])[0][:length] for text in answers[model.response_prefix]]

    monkeypatch.setattr(thinking, "decode", script)
    return find_response_prefix(lm, PROMPTS[:2], 2)


# Blocks that the template opens


@pytest.mark.parametrize(
    ("opened", "closing", "tokens"),
    [
        ("<think>\n", "</think>", []),
        ("<ponder>", "</ponder>", []),
        ("[THINK]", "[/THINK]", []),
        ("◁think▷", "◁/think▷", ["◁think▷", "◁/think▷"]),
        ("<|START_MUSING|>", "<|END_MUSING|>", ["<|START_MUSING|>", "<|END_MUSING|>"]),
        ("<|inner_prefix|>", "<|inner_suffix|>", ["<|inner_prefix|>", "<|inner_suffix|>"]),
        ("<|channel>thought\n", "<channel|>", ["<|channel>", "<channel|>"]),
        ("<seed:think>", "</seed:think>", []),
    ],
)
def test_a_block_that_the_template_opens_is_closed(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, opened: str, closing: str, tokens: list[str]
) -> None:
    lm = under(tiny_lm, opening(opened), tokens)
    assert found(monkeypatch, lm, {closing: ["Yes", "No"]}) == closing
    assert found(monkeypatch, lm, {closing: ["\n\nYes", "\n\nNo"], closing + "\n\n": ["Yes", "No"]}) == closing + "\n\n"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_template_shows_how_it_closes_thoughts(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    template = REASONED.replace("KEY", key).replace("AFTER", "[BEGIN FINAL RESPONSE]\n")
    for before, opened in (("<t>", "<t>"), ("", "Here are my thoughts:\n")):
        lm = under(tiny_lm, template.replace("BEFORE", before).replace(OPENING, f"<|assistant|>{opened}{{% endif %}}"))
        closing = "[BEGIN FINAL RESPONSE]\n"
        assert found(monkeypatch, lm, {closing: ["Yes", "No"]}) == closing


@pytest.mark.parametrize(
    "template",
    [
        opening("<think>\n\n</think>\n\n"),
        opening("</think>"),
        REASONED.replace("KEY", "reasoning_content")
        .replace("BEFORE", "<think>")
        .replace("AFTER", "</think>")
        .replace(OPENING, "<|assistant|></think>{% endif %}"),
        # A conversation of several turns fails, so that nothing is known of the end of an answer.
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}<|im_start|>user\n"
        "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ],
)
def test_closed_blocks_and_marks_of_turns_are_left_alone(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    lm = under(tiny_lm, template, ["<|im_start|>", "<|im_end|>"])
    assert found(monkeypatch, lm, {"": ["Yes", "No"]}) == ""


def test_what_is_closed_is_said(tiny_lm: LanguageModel, tiny_settings: Settings) -> None:
    lm, notes = under(tiny_lm, opening("<think>\n")), Notes()
    bench = Workbench(tiny_settings, lm)
    bench.find_response_prefix(notes)
    assert bench.lm.response_prefix.startswith("</think>")
    assert any("opens <think>, which is closed with </think>" in line for line in notes.said)
    Workbench(tiny_settings.model_copy(update={"response_prefix": "Sure"}), lm).find_response_prefix(notes)
    assert "response_prefix does not close it" in notes.said[-1]


# Blocks that responses open


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        (("<ponder>", "</ponder>"), []),
        (("<|begin_of_thought|>", "<|end_of_thought|>"), ["<|begin_of_thought|>", "<|end_of_thought|>"]),
        (("◁think▷", "◁/think▷"), ["◁think▷", "◁/think▷"]),
        (("<|channel|>analysis<|message|>", "<|end|><|assistant|><|channel|>final<|message|>"), MARKS),
    ],
)
def test_a_block_with_tags_of_its_own_is_closed(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, block: tuple[str, str], tokens: list[str]
) -> None:
    template = HARMONY.replace("KEY", "thinking") if "analysis" in block[0] else TEMPLATE
    lm, closed = under(tiny_lm, template, tokens), "".join(block)
    answers = {"": [block[0] + "well", block[0] + "hm"], closed: ["Yes", "No"]}
    assert found(monkeypatch, lm, answers) == closed


def test_a_block_that_only_some_responses_open_is_closed_if_the_model_knows_it(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"": ["<ponder>well", "No"], "<ponder></ponder>": ["Yes", "No"]}
    assert found(monkeypatch, tiny_lm, answers) == ""
    assert found(monkeypatch, under(tiny_lm, TEMPLATE, ["<ponder>", "</ponder>"]), answers) == "<ponder></ponder>"


def test_a_block_that_holds_the_answer_is_not_closed(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "": ["<answer>Yes", "<answer>No"],
        "<answer></answer>": ["", ""],
        "<answer>": ["Yes", "No"],
    }
    assert found(monkeypatch, tiny_lm, answers) == "<answer>"


# The first token


def always_first(lm: LanguageModel, letter: str) -> None:
    """Let the token after <|assistant|> be the same for every prompt."""
    embedded: Any = lm.model.get_input_embeddings()
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        embedded.weight[4] *= 100
        head.weight[lm.tokenizer.convert_tokens_to_ids(letter)] = 20 * normalize(embedded.weight[4], dim=0)


@pytest.mark.parametrize(("letter", "start"), [("Z", "Z"), ("Ġ", " ")])
def test_a_first_token_that_never_differs_is_no_place_to_measure(
    tiny_lm: LanguageModel, tiny_settings: Settings, letter: str, start: str
) -> None:
    always_first(tiny_lm, letter)
    # As those of Llama 2, whose responses all start with a space, which is lost where it is the first of a text.
    decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    tiny_lm.tokenizer.backend_tokenizer.decoder = decoder
    writers = tiny_lm.writers()
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    edit = Edit(dict.fromkeys(writers, direction), dict.fromkeys(writers, 1.0))
    bench = Workbench(tiny_settings, tiny_lm)
    nothing = bench.evaluator("select").measure([edit])[0].kl_divergence
    bench.find_response_prefix()
    assert bench.lm.response_prefix.startswith(start)
    assert nothing < 1e-6 < 1e-3 < bench.evaluator("select").measure([edit])[0].kl_divergence


def test_half_a_character_is_no_start(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, tiny_lm, {"": ["你好", "使用"]}) == ""


# The end


def emitting(lm: LanguageModel, token: int) -> list[int]:
    """Let the model write `token` after a few others; return those."""
    whole = decode(lm, lm.encode(PROMPTS[:1]), 16, 1)[0]
    place = next(i for i in range(3, 16) if whole[i] not in whole[:i])
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[[token, whole[place]]] = head.weight[[whole[place], token]].clone()
    return whole[:place]


def in_generation_settings(lm: LanguageModel) -> None:
    lm.model.generation_config = GenerationConfig(eos_token_id=[1, 2])


def in_configuration(lm: LanguageModel) -> None:
    lm.model.config.eos_token_id = 2


def in_tokenizer(lm: LanguageModel) -> None:
    lm.tokenizer.eos_token = "<|system|>"


def in_template(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = TEMPLATE.replace("<|end|>", "<|system|>")


@pytest.mark.parametrize("named", [in_generation_settings, in_configuration, in_tokenizer, in_template])
def test_a_response_ends_at_every_end_that_anything_names(tiny_lm: LanguageModel, named: Any) -> None:
    tiny_lm.model.generation_config = GenerationConfig(eos_token_id=1)
    named(tiny_lm)
    assert set(end_tokens(tiny_lm)) == {1, 2}
    written = emitting(tiny_lm, 2)
    assert decode(tiny_lm, tiny_lm.encode(PROMPTS[:1]), 16, 1) == [written]
    said = "".join(Conversation(Variant("base", tiny_lm), longest=16).reply(PROMPTS[0].text))
    assert said == tiny_lm.tokenizer.decode(written, skip_special_tokens=True)


def test_what_ends_thoughts_as_it_ends_answers_is_no_end(tiny_lm: LanguageModel) -> None:
    template = HARMONY.replace("KEY", "thinking").replace("<|end|>", "<|system|>")
    assert end_tokens(under(tiny_lm, template)) == [1]
