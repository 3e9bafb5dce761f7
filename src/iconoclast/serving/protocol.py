"""OpenAI's protocol: what a request asks for, and how answers, streams and errors are written."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from iconoclast.documents import Part, Plain, first_problem
from iconoclast.errors import UserError
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.sampling import Likely, Piece, Sampling

Answered = Mapping[str, object]
"""What is answered, or a part of it, to be written as JSON."""

LONGEST = 1024
"""Tokens of an answer, unless the request says otherwise."""

UNHEARD = ("tools", "functions", "response_format", "logit_bias", "frequency_penalty", "presence_penalty", "audio")
"""What would change an answer and is not done here: asked for, it is refused."""

NOTHING: tuple[Any, ...] = (None, 0, [], {}, {"type": "text"})
"""Values with which it asks for nothing."""


class RequestError(UserError):
    """A request that is not understood, or asks for what is not done here; `param` is the key at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TextPart(Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Part):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return it as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Part):
    """Options of a stream beside the answer."""

    include_usage: bool = False


class ChatRequest(Part):
    """A request for an answer. Keys that change nothing here, such as `user`, are left out.

    Attributes:
        temperature: unset, 0: answers are greedy, as in all measurements.
        strength: factor of the edit's strengths; a key of our own.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: Literal[1] | None = 1
    strength: float = 1
    chat_template_kwargs: Plain = Field(default={})

    @classmethod
    def read(cls, body: bytes) -> "ChatRequest":
        """Read a request; raise RequestError for one that is not understood."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The request is not JSON: {error}.") from None
        for name in UNHEARD if isinstance(asked, dict) else ():
            if asked.get(name) not in NOTHING:
                raise RequestError(f"{name} is not done here. Leave it out.", name)
        try:
            return cls.model_validate(asked)
        except ValidationError as error:
            param = ".".join(map(str, error.errors()[0]["loc"][:1])) or None
            raise RequestError(f"{first_problem(error)}.", param) from None

    @property
    def plain_messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        return [message.plain() for message in self.messages]

    @property
    def thinking(self) -> bool:
        """True if the request lets the model think."""
        return any(bool(self.chat_template_kwargs.get(name)) for name in ("enable_thinking", "thinking"))

    @property
    def sampling(self) -> Sampling:
        """How tokens are to be drawn, and when to stop."""
        return Sampling(
            temperature=self.temperature or 0,
            top_p=1 if self.top_p is None else self.top_p,
            seed=self.seed,
            longest=self.max_completion_tokens or self.max_tokens or LONGEST,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
            top=(self.top_logprobs or 0) if self.logprobs else 0,
        )


@dataclass
class Answer:
    """An answer on its way to the client, whole or in chunks."""

    request: ChatRequest
    lm: LanguageModel
    prompt_tokens: int
    tokens: int = 0
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece]) -> Answered:
        """Return the whole answer."""
        self.tokens = len(pieces)
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        return {
            **self._document("chat.completion", {"message": message}, pieces, pieces[-1].ended),
            "usage": self._usage(),
        }

    def opening(self) -> str:
        """Return the first event of a stream."""
        return event(self._document("chat.completion.chunk", {"delta": {"role": "assistant", "content": ""}}))

    def chunk(self, piece: Piece) -> str:
        """Return the event of a piece."""
        self.tokens += 1
        return event(
            self._document("chat.completion.chunk", {"delta": {"content": piece.text}}, [piece], piece.ended or None)
        )

    def closing(self) -> str:
        """Return the last events of a stream."""
        options = self.request.stream_options
        usage = {**self._document("chat.completion.chunk"), "choices": [], "usage": self._usage()}
        return (event(usage) if options and options.include_usage else "") + "data: [DONE]\n\n"

    def _document(
        self, kind: str, content: Answered | None = None, pieces: Sequence[Piece] = (), ended: str | None = None
    ) -> Answered:
        told = {"content": [self._token(piece) for piece in pieces]} if self.request.logprobs else None
        choice = {"index": 0, **(content or {}), "logprobs": told, "finish_reason": ended}
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}
        return {**head, "choices": [choice]}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }

    def _token(self, piece: Piece) -> Answered:
        return {**self._likely(piece.chosen), "top_logprobs": [self._likely(each) for each in piece.top]}

    def _likely(self, likely: Likely) -> Answered:
        text = self.lm.token_text(likely.token)
        whole = str(self.lm.tokenizer.decode([likely.token])) == text
        return {"token": text, "logprob": likely.logprob, "bytes": list(text.encode()) if whole else None}


def event(document: object) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def model_list(names: Iterable[str], created: int) -> Answered:
    """Return the list of models."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Answered:
    """Return what is said of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "iconoclast"}


def error(message: str, status: int = 400, param: str | None = None, code: str | None = None) -> Answered:
    """Return an error as OpenAI's clients expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
