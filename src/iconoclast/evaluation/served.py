"""A model behind an OpenAI-compatible endpoint, examined by its answers and the log-probabilities that it gives with them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx2
import torch

from iconoclast.documents import Plain
from iconoclast.errors import ModelError
from iconoclast.evaluation.base_responses import ROWS_READ_AT_ONCE
from iconoclast.evaluation.divergence import TruncatedKl, truncated_kl
from iconoclast.evaluation.endpoint import Endpoint, EndpointError
from iconoclast.evaluation.examination import Examination, Truncation
from iconoclast.evaluation.examiner import Examiner
from iconoclast.models.batching import batches_by_length
from iconoclast.models.decoding import end_tokens
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import continuation_logits
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import Prompt, PromptSet
from iconoclast.vocabulary import Label

TOPS = (1000, 100, 20, 5)
"""Numbers of log-probabilities a token that servers are asked for, until one gives them."""

UNREADABLE = "\ufffd"
"""What stands in a text for a token that is only a part of a letter."""

NOT_ONE = (ValueError, RecursionError, LookupError, TypeError, AttributeError)
"""Errors of reading a reply that is not a chat completion."""


@dataclass(frozen=True)
class Answered:
    """A server's answer: the text, a log-probability entry a token as JSON, and the prompt's tokens if it says."""

    text: str
    entries: Sequence[Mapping[str, Any]]
    prompt_tokens: int | None
    reasoning: bool


@dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible endpoint; make it with `find`. Whatever is measured is sent to it.

    Attributes:
        model: its name at the endpoint.
        top: log-probabilities that it gives a token.
        continues: whether it goes on with a message of the assistant's, as llama-server does.
    """

    endpoint: Endpoint
    model: str
    top: int
    continues: bool = False

    @classmethod
    def find(cls, url: str, model: str | None = None, api_key: str | None = None, **options: Any) -> "Server":
        """Ask an endpoint what it serves and what it tells.

        Raises:
            EndpointError: it does not answer, serves no such model, or gives no log-probabilities.
        """
        endpoint = Endpoint.at(url, api_key, "server", **{"concurrency": 4, "timeout": 600.0, **options})
        hasty = replace(endpoint, retries=0)
        with endpoint.client() as client:
            name = _served_model(hasty, client, model)
            return cls(endpoint, name, _top(cls(hasty, name, 0), client))

    @property
    def name(self) -> str:
        """Name in reports, without the folders of a local file."""
        path = Path(self.model)
        return path.name if path.is_absolute() or path.suffix == ".gguf" else self.model

    def ask(
        self,
        prompts: Sequence[Prompt],
        length: int,
        top: int = 0,
        extra: Mapping[str, Any] | None = None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[Answered]:
        """Return greedy responses of at most `length` tokens with `top` log-probabilities each; raise EndpointError.

        Args:
            extra: more keys of the requests; `messages` are put after those of the prompt.
        """
        if not prompts:
            return []
        with self.endpoint.client() as client, ThreadPool(min(self.endpoint.concurrency, len(prompts))) as pool:

            def one(prompt: Prompt) -> Answered:
                answered = self.answer(client, prompt, length, top, extra)
                advance(1)
                return answered

            return pool.map(one, prompts, chunksize=1)

    def answer(
        self, client: httpx2.Client, prompt: Prompt, length: int, top: int, extra: Mapping[str, Any] | None = None
    ) -> Answered:
        """Return the response to one prompt."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        extra = extra or {}
        request: Plain = {
            **extra,
            "model": self.model,
            "messages": [*system, {"role": "user", "content": prompt.text}, *extra.get("messages", ())],
            "temperature": 0,
            "max_tokens": length,
        }
        if top:
            request |= {"logprobs": True, "top_logprobs": top}
        try:
            return _read(self.endpoint.ask(client, "chat/completions", json.dumps(request)))
        except EndpointError as error:
            raise EndpointError(f"The server at {self.endpoint.url} gives no answer: {error}", error.again) from None


def _served_model(endpoint: Endpoint, client: httpx2.Client, model: str | None) -> str:
    """Return the name of the model to ask for; raise EndpointError unless it is served."""
    try:
        reply = endpoint.ask(client, "models")
        names = [str(each["id"]) for each in reply.json()["data"]]
    except EndpointError as error:
        if model is not None and "HTTP 404" in str(error):  # not all servers list their models
            return model
        raise EndpointError(f"The server at {endpoint.url} cannot be asked what it serves: {error}") from None
    except NOT_ONE:
        raise EndpointError(
            f"What is at {endpoint.url}/models is not a list of models. Give the URL up to /v1."
        ) from None
    if model is None and len(names) == 1:
        return names[0]
    if model not in names:
        wanted = "Which model is meant" if model is None else f"The model {model} is not served at {endpoint.url}"
        raise EndpointError(f"{wanted}? Name one of {', '.join(map(endpoint.told, names)) or 'none'} (--server-model).")
    return model


def _top(server: Server, client: httpx2.Client) -> int:
    """Return the most log-probabilities that a server gives, of TOPS."""
    refused = ""
    for top in TOPS:
        try:
            answered = server.answer(client, Prompt("Hello"), 1, top)
        except EndpointError as error:
            if "HTTP 4" not in str(error):
                raise
            refused = str(error)
            continue
        if answered.reasoning and not answered.text:
            raise EndpointError(f"{server.name} reasons before it answers, which is not measured. Serve it without.")
        if given := max((len(entry.get("top_logprobs") or ()) for entry in answered.entries), default=0):
            return given
    raise EndpointError(
        refused
        or f"The server at {server.endpoint.url} gives no log-probabilities, without which there is no KL divergence. "
        "Use one that answers top_logprobs, such as llama.cpp's llama-server or vLLM."
    )


def _read(reply: httpx2.Response) -> Answered:
    try:
        document = reply.json()
        choice = document["choices"][0]
        message = choice["message"]
        entries = (choice.get("logprobs") or {}).get("content") or []
        for entry in entries:
            [(float(each["logprob"]), str(each["token"])) for each in entry["top_logprobs"]]
        tokens = (document.get("usage") or {}).get("prompt_tokens")
        reasoning = bool(message.get("reasoning_content") or message.get("reasoning"))
        return Answered(str(message.get("content") or ""), entries, tokens, reasoning)
    except NOT_ONE:
        raise EndpointError("the reply is not a chat completion.") from None


class _Vocabulary:
    """The base model's tokens by what servers say of them."""

    def __init__(self, lm: LanguageModel) -> None:
        self._tokenizer = lm.tokenizer
        self._size = int(lm.model.config.get_text_config().vocab_size)

    @cached_property
    def _texts(self) -> list[str]:
        known = len(self._tokenizer)
        mark = self._tokenizer.encode("a", add_special_tokens=False)[-1]  # some decoders drop a space at the start
        before = len(str(self._tokenizer.decode([mark])))
        pairs = [[mark, token] for token in range(min(known, self._size))]
        return [text[before:] for text in self._tokenizer.batch_decode(pairs)]

    @cached_property
    def _by_text(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for token, text in enumerate(self._texts):
            found[text] = None if text in found else token
        return found

    def token(self, entry: Mapping[str, Any]) -> int | None:
        """Return the token of an entry; None if it is not a token of the base model, or may be several."""
        token, text = entry.get("id"), str(entry["token"])
        if not isinstance(token, int):
            return self._by_text.get(text)
        if not 0 <= token < len(self._texts):
            return None
        own = self._texts[token]
        return token if not text or own == text or UNREADABLE in own else None

    def listed(self, entry: Mapping[str, Any]) -> dict[int, float]:
        """Return the log-probabilities of an entry by token of the base model."""
        pairs = [(self.token(each), float(each["logprob"])) for each in entry["top_logprobs"]]
        return {token: logprob for token, logprob in pairs if token is not None}


def examine_served(examiner: Examiner, server: Server, progress: Progress | None = None) -> Examination:
    """Measure a served model beside the examiner's base.

    Its divergences are lower bounds, over the tokens of its own responses to benign prompts.

    Raises:
        EndpointError: the server fails.
        ModelError: responses are to start with a prefix, which this server cannot be told.
    """
    progress, lm, sample, options = progress or Silent(), examiner.base_lm, examiner.sample, examiner.options
    extra = _asked_as(lm, server)
    short = options.benign_response_length
    wanted: list[tuple[PromptSet | None, int, int]] = [
        (sample.target, options.response_length, 0),
        (sample.benign, short, server.top),
        (sample.borderline, short, 0),
    ]
    progress.start(f"Asking {server.name}", sum(len(prompts or ()) for prompts, _, _ in wanted))
    answers = [
        server.ask(prompts.prompts if prompts else (), length, top, extra, progress.advance)
        for prompts, length, top in wanted
    ]
    ids = lm.encode(sample.benign.prompts)
    bounds = _bounds(lm, ids, answers[1])
    means = [tuple(fmean(getattr(each, name) for each in some) for some in bounds) for name in ("least", "most")]
    truncation = Truncation(
        server.top,
        fmean(each.outside for some in bounds for each in some),
        tuple(some[0].most for some in bounds),
        means[1],
        sum(a.prompt_tokens not in (None, len(i)) for a, i in zip(answers[1], ids, strict=True)),
    )
    texts = [_texts(lm, some) for some in answers]
    target = [lm.tokenizer.encode(text, add_special_tokens=False) for text in texts[0]]
    kl = [some[0].least for some in bounds], means[0]
    return replace(examiner.examination(server.name, texts, target, kl, progress), truncation=truncation)


def served_labels(
    examiner: Examiner, server: Server, prompts: PromptSet, length: int, progress: Progress
) -> list[Label]:
    """Return what a served model's responses to other prompts are; raise as `examine_served` does."""
    lm = examiner.base_lm
    progress.start(f"Asking {server.name}: {prompts.source}", len(prompts))
    answers = server.ask(prompts.prompts, length, 0, _asked_as(lm, server), progress.advance)
    return examiner.labelled(prompts, _texts(lm, answers))


def _asked_as(lm: LanguageModel, server: Server) -> Plain:
    """Return the keys by which a server answers as the base model does: without thoughts, after the same prefix."""
    prefix = lm.response_prefix
    if prefix and not server.continues:
        raise ModelError(
            f"Responses of {lm.name} are to start with {prefix!r}, which a server cannot be told. "
            'Set response_prefix to "".'
        )
    extra: Plain = {"chat_template_kwargs": {"enable_thinking": False}} if lm.chat.turn.thinking else {}
    return extra | ({"messages": [{"role": "assistant", "content": prefix}]} if prefix else {})


def _texts(lm: LanguageModel, answers: Sequence[Answered]) -> list[str]:
    return [answer.text.removeprefix(lm.response_prefix) for answer in answers]  # llama-server repeats it


def _bounds(lm: LanguageModel, prompts: list[list[int]], answers: Sequence[Answered]) -> list[list[TruncatedKl]]:
    """Return, by prompt, the bounds of KL at every token of a response up to one that the base model does not have."""
    vocabulary, end = _Vocabulary(lm), (end_tokens(lm) or [0])[0]
    said: list[list[int]] = []
    for answer in answers:
        tokens = takewhile(lambda token: token is not None, map(vocabulary.token, answer.entries))
        said.append([token for token in tokens if token is not None])
    given = [[*ids, end] for ids in said]  # one more, so that what follows the last is read as well
    bounds: list[list[TruncatedKl]] = [[] for _ in prompts]
    lengths = [len(prompt) + len(ids) for prompt, ids in zip(prompts, given, strict=True)]
    for some in batches_by_length(lengths, ROWS_READ_AT_ONCE):
        logits = continuation_logits(lm, [prompts[i] for i in some], [given[i] for i in some])
        for i, own in zip(some, torch.split(logits, [len(given[i]) for i in some]), strict=True):
            base = own.float().log_softmax(-1)
            listed = [vocabulary.listed(entry) for entry in answers[i].entries[: len(given[i])]] or [{}]
            bounds[i] = [truncated_kl(token, each) for token, each in zip(base, listed, strict=False)]
    return bounds
