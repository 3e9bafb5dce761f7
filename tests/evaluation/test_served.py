"""A served model measures as the same model loaded here, as far as its log-probabilities go."""

import json
import socketserver
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.errors import ModelError, UserError
from iconoclast.evaluation.divergence import kl_divergence, truncated_kl
from iconoclast.evaluation.endpoint import Endpoint
from iconoclast.evaluation.evaluator import MeasureOptions
from iconoclast.evaluation.examination import Examination, ExaminedPrompts, Variant, paired
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.served import Server, examine_served
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.prompts import PromptSet
from tests.support.chat_server import ChatServer, Reply, serving
from tests.support.tiny import save_tiny

TARGET = PromptSet.of([f"Please set my {word}" for word in ("alarm", "table", "taxi", "light")])
BENIGN = PromptSet.of([f"What is a {word}?" for word in ("prime", "sonnet", "river")])
OPTIONS = MeasureOptions(response_length=8, benign_response_length=5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def other(tmp_path: Path, tiny_lm: LanguageModel) -> LanguageModel:
    """The tiny model, moved a little."""
    lm = load_model(str(save_tiny(tmp_path / "other")), dtypes=["float32"])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return lm


def examiner(lm: LanguageModel) -> Examiner:
    rules = ResponseRules(["ee", "zz", "qx"])
    return Examiner(Variant("base", lm), ExaminedPrompts(TARGET, BENIGN, None, "report"), rules, OPTIONS)


def served(lm: LanguageModel, server: ChatServer) -> Examination:
    with serving(server) as url:
        return examine_served(examiner(lm), Server.find(url, timeout=20.0))


def over_own_responses(base: LanguageModel, other: LanguageModel) -> list[float]:
    """KL over the tokens of the other model's own responses, one pass a prompt."""
    found = []
    for prompt in base.encode(BENIGN.prompts):
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        whole = other.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
        with torch.inference_mode():
            logprobs = [
                lm.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for lm in (base, other)
            ]
        found.append(float(kl_divergence(*logprobs).mean()))
    return found


def test_a_server_that_gives_all_probabilities_measures_as_the_model_itself(
    tiny_lm: LanguageModel, other: LanguageModel
) -> None:
    found, direct = served(tiny_lm, ChatServer(other)), examiner(tiny_lm).examine(Variant("other", other))
    assert [a.response for a in found.target] == [a.response for a in direct.target]
    assert [a.label for a in found.benign] == [a.label for a in direct.benign]
    assert found.by_length == direct.by_length and found.name == "tiny"
    assert found.scores.kl_by_prompt == pytest.approx(direct.scores.kl_by_prompt, abs=1e-4)
    assert found.token_kl == pytest.approx(over_own_responses(tiny_lm, other), abs=1e-4)
    assert found.truncation is not None and (found.truncation.outside, found.truncation.top) == (0, 261)
    assert found.truncation.first_token_kl == pytest.approx(found.scores.kl_by_prompt)
    document = found.metrics().document()
    json.dumps(document, allow_nan=False)
    assert document["perplexity"] is None and document["truncation"]["unlike_prompts"]["count"] == 0
    assert paired(direct, found).failures.p_value == 1


@pytest.mark.parametrize(("most", "ids"), [(20, True), (5, True), (20, False)])
def test_with_few_probabilities_the_bounds_hold_the_true_divergence(
    tiny_lm: LanguageModel, other: LanguageModel, most: int, ids: bool
) -> None:
    found = served(tiny_lm, ChatServer(other, most, ids))
    assert found.truncation is not None and found.truncation.top == most and 0 < found.truncation.outside < 1
    direct = examiner(tiny_lm).examine(Variant("other", other)).scores.kl_by_prompt
    for least, true, at_most in (
        *zip(found.scores.kl_by_prompt, direct, found.truncation.first_token_kl, strict=True),
        *zip(found.token_kl, over_own_responses(tiny_lm, other), found.truncation.token_kl, strict=True),
    ):
        assert least <= true + 1e-5 and true <= at_most and least < at_most


@given(st.integers(0, 1000), st.integers(1, 30))
def test_bounds_hold_for_any_distributions_and_meet_where_everything_is_listed(seed: int, listed: int) -> None:
    torch.manual_seed(seed)
    base, own = (torch.randn(30) * 2).log_softmax(-1), (torch.randn(30) * 2).log_softmax(-1)
    own = own.clamp(min=float(base.min())).log_softmax(-1)
    best = own.topk(listed)
    bounds = truncated_kl(base, dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    true = float(kl_divergence(base, own))
    assert bounds.least <= true + 1e-5
    assert true <= bounds.most + 1e-5 or float(own.min()) < float(base.min())
    if listed == 30:
        assert bounds.least == pytest.approx(true, abs=1e-5) == bounds.most and bounds.outside == 0


def test_nothing_listed_says_nothing(tiny_lm: LanguageModel) -> None:
    bounds = truncated_kl(torch.randn(9).log_softmax(-1), {})
    assert bounds.least == pytest.approx(0, abs=1e-6) and bounds.outside == pytest.approx(1) and bounds.most > 0


def test_a_server_with_another_template_is_noticed(tiny_lm: LanguageModel, other: LanguageModel) -> None:
    other.tokenizer.chat_template = "Be brief. " + str(other.tokenizer.chat_template)
    found = served(tiny_lm, ChatServer(other))
    assert found.truncation is not None and found.truncation.unlike == len(BENIGN)


def test_tokens_that_are_not_those_of_the_base_are_not_listed(tiny_lm: LanguageModel, other: LanguageModel) -> None:
    def shifted(path: str, reply: Reply) -> Reply:
        return (reply[0], json.loads(json.dumps(reply[1]).replace('"id": 7', '"id": 8'))) if "chat" in path else reply

    found = served(tiny_lm, ChatServer(other, spoil=shifted))
    assert found.truncation is not None and found.truncation.outside > 0


def test_a_prefix_of_responses_cannot_be_asked_for(tiny_lm: LanguageModel) -> None:
    with serving(ChatServer(tiny_lm)) as url, pytest.raises(ModelError, match="response_prefix"):
        examine_served(examiner(tiny_lm.with_prefix("Well, ")), Server.find(url))


def test_a_server_that_continues_messages_is_told_the_prefix(tiny_lm: LanguageModel, other: LanguageModel) -> None:
    prefixed = [lm.with_prefix("Well, ") for lm in (tiny_lm, other)]
    with serving(ChatServer(other)) as url:
        server = replace(Server.find(url, timeout=20.0), continues=True)
        found = examine_served(examiner(prefixed[0]), server)
    direct = examiner(prefixed[0]).examine(Variant("other", prefixed[1]))
    assert [a.response for a in found.target] == [a.response for a in direct.target]
    assert found.scores.kl_by_prompt == pytest.approx(direct.scores.kl_by_prompt, abs=1e-4)
    assert found.truncation is not None and found.truncation.unlike == 0


def replying(to: str, status: int, content: Any) -> Callable[[str, Reply], Reply]:
    return lambda path, reply: (status, content) if path == to else reply


WITHOUT = {"choices": [{"message": {"content": "Hello"}, "logprobs": None}]}
REASONING = {"choices": [{"message": {"content": None, "reasoning_content": "Well"}}]}


@pytest.mark.parametrize(
    ("changes", "model", "said"),
    [
        ({"names": ("a", "b")}, None, r"Which model is meant\? Name one of a, b"),
        ({}, "tony", r"The model tony is not served at .*\? Name one of tiny"),
        ({"spoil": replying("models", 200, "<html>")}, None, "is not a list of models. Give the URL up to /v1"),
        ({"spoil": replying("models", 403, "no entry")}, None, "cannot be asked what it serves: HTTP 403 no entry"),
        (
            {"spoil": replying("chat/completions", 200, {"choices": []})},
            None,
            "gives no answer: the reply is not a chat",
        ),
        ({"spoil": replying("chat/completions", 200, "[" * 9)}, None, "gives no answer: the reply is not a chat"),
        ({"spoil": replying("chat/completions", 500, "out of memory")}, None, "HTTP 500 out of memory"),
        ({"spoil": replying("chat/completions", 404, "no such model")}, None, "HTTP 404 no such model"),
        ({"spoil": replying("chat/completions", 200, WITHOUT)}, None, "gives no log-probabilities, .* llama-server"),
        ({"spoil": replying("chat/completions", 200, REASONING)}, None, "reasons before it answers"),
        ({"most": 4}, None, "HTTP 400 .*top_logprobs must be at most 4"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    tiny_lm: LanguageModel, changes: dict[str, Any], model: str | None, said: str
) -> None:
    with serving(replace(ChatServer(tiny_lm), **changes)) as url, pytest.raises(UserError, match=said) as caught:
        Server.find(url, model)
    assert "\n" not in str(caught.value)


def test_a_model_can_be_named_where_none_are_listed(tiny_lm: LanguageModel) -> None:
    with serving(ChatServer(tiny_lm, spoil=replying("models", 404, "Not Found"))) as url:
        assert Server.find(url, "mine").model == "mine"


@pytest.mark.parametrize(
    ("model", "name"), [("/home/me/a.gguf", "a.gguf"), ("set/a.gguf", "a.gguf"), ("you/model", "you/model")]
)
def test_reports_name_a_model_without_its_folders(model: str, name: str) -> None:
    assert Server(Endpoint.at("http://localhost/v1", None, "server"), model, 5).name == name


def test_nobody_there_is_said_in_one_line() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    with pytest.raises(UserError, match=r"cannot be asked what it serves: .*refused"):
        Server.find(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(UserError, match="must look like http://localhost:8000/v1"):
        Server.find("http://me:secret@host/v1")
