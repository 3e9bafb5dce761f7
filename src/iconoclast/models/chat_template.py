"""Chat templates: preparation of a tokenizer, and what a template makes of messages, checked."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from iconoclast.errors import ModelError
from iconoclast.models.transformers_internals import template_clock

# Ready templates for tokenizers that bring none.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "raw": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}

REMEDY = "Set chat_template to plain, raw, or a Jinja file."

FAILURES = (TemplateError, TypeError, ArithmeticError, ValueError, LookupError, AttributeError)
"""What a template can raise while it is rendered."""
SYSTEM, USER = "Speak as a lighthouse keeper.", "Which way lies the harbour?"
ANSWER, LATER = "Zuerst nach Norden.", "Und dann?"
"""Messages with which a template is tried."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which templates look for the thoughts of an answer."""
TAG = re.compile(r"[<\[◁⟨〈【«]\|?[^\s<>\[\]|/'\"{}()]{1,40}\|?[>\]▷⟩〉】»]")
"""A tag that opens something."""
Messages = Sequence[Mapping[str, str]]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, name: str) -> None:
    """Set left padding, a pad token and a chat template; raise ModelError without a usable template."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if chat_template is not None:
        tokenizer.chat_template = TEMPLATES.get(chat_template) or _read(chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {name} has no chat template, so prompts cannot be put to it as a user would. {REMEDY}"
        )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise rendered texts. A chat template writes the special tokens itself; a ready one (plain, raw) leaves
    those before a text to the tokenizer."""
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template not in TEMPLATES.values():
        return rows
    opening = opening_tokens(tokenizer)
    return [row if row[: len(opening)] == opening else [*opening, *row] for row in rows]


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens with which a tokenizer begins every text: a beginning-of-text token, or none."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:start])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what a tokenizer does, apart from padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend else dict(tokenizer.get_vocab())
    told = {**content, "padding": None, "truncation": None, "special": tokenizer.special_tokens_map}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Layout:
    """Form of messages in which the template writes them all.

    Attributes:
        parts: content is a list of parts, {"type": "text", "text": …}.
        system: the system prompt has its role, its role with parts, or it opens the user's turn.
    """

    parts: bool = False
    system: str = "role"

    def of(self, messages: Messages) -> list[dict[str, Any]]:
        """Lay out the messages."""
        if self.system == "user" and len(messages) > 1 and messages[0]["role"] == "system":
            first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            messages = [first, *messages[2:]]
        laid_out: list[dict[str, Any]] = []
        for message in messages:
            parts = self.system == "parts" if message["role"] == "system" else self.parts
            content = [{"type": "text", "text": message["content"]}] if parts else message["content"]
            laid_out.append({**message, "content": content})
        return laid_out


LAYOUTS = [Layout(parts, system) for parts, system in product((False, True), ("role", "parts", "user"))]


@dataclass(frozen=True)
class Turn:
    """Texts that a template writes around an answer.

    Attributes:
        lead: before the user's text.
        opening: after the user's text, up to where a response continues.
        header: between the user's text and an answer.
        after: between an answer and the next user's text; empty if the template cannot say.
        thinking: what opens and what closes a thinking block before an answer, if the template knows one.
        opened: whether every response begins in that block.
    """

    lead: str
    opening: str
    header: str
    after: str
    thinking: tuple[str, str] | None
    opened: bool


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        name: of the model, for messages.
        now: the time that the template is told; None for the present.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, now: datetime | None = None) -> None:
        self._tokenizer, self._name, self._now = tokenizer, name, now
        self._layouts: dict[bool, Layout] = {}

    def render(self, messages: Messages, generation: bool = True, thinking: bool = False) -> str:
        """Return the text of a conversation; raise ModelError unless every text of user and system is in it."""
        layout = self.layout(messages[0]["role"] == "system")
        try:
            text = self._apply(layout.of(messages), generation, thinking)
        except FAILURES as error:
            raise self._error(f"fails on a message ({error})") from None
        for message in messages:
            if message["role"] != "assistant" and not _within(message["content"], text):
                raise self._error(f"leaves out or changes a text of the {message['role']}: {message['content'][:60]!r}")
        return text

    def layout(self, with_system: bool) -> Layout:
        """Find the first layout with which the template writes user and system texts; raise ModelError if there is none."""
        if with_system not in self._layouts:
            self._layouts[with_system] = self._find_layout(with_system)
        return self._layouts[with_system]

    @cached_property
    def turn(self) -> Turn:
        """Texts around an answer."""
        user = {"role": "user", "content": USER}
        answer = {"role": "assistant", "content": ANSWER}
        lead, _, opening = self.render([user]).rpartition(USER)
        whole = thought = ""
        with suppress(*FAILURES):
            whole = self._apply(self.layout(False).of([user, answer, {"role": "user", "content": LATER}]), False)
        with suppress(*FAILURES):
            thinking = {**answer, **dict.fromkeys(REASONING, SYSTEM)}
            thought = self._apply(self.layout(False).of([user, thinking]), False)
        header, found, rest = whole.partition(ANSWER)
        # A template that leaves out answers says nothing of them: then its opening is taken for the header.
        header, after = (header.rpartition(USER)[2], rest.partition(LATER)[0]) if found else (opening, "")
        return Turn(lead, opening, header, after, *_thinking(thought.rpartition(USER)[2], opening, header))

    def _find_layout(self, with_system: bool) -> Layout:
        messages = [{"role": "user", "content": USER}]
        if with_system:
            messages = [{"role": "system", "content": SYSTEM}, *messages]
        problem = ""
        for layout in LAYOUTS if with_system else [Layout(), Layout(parts=True)]:
            try:
                text = self._apply(layout.of(messages), True)
            except FAILURES as error:
                problem = problem or f"fails on a plain user message ({error})"
                continue
            if all(_within(m["content"], text) for m in messages) and "'type': 'text'" not in text:
                return layout
            problem = problem or ("leaves out the user's text" if text.strip() else "renders nothing")
        raise self._error(problem)

    def _apply(self, messages: list[dict[str, Any]], generation: bool, thinking: bool = False) -> str:
        switches: dict[str, Any] = (
            {"enable_thinking": True, "thinking": True} if thinking else {"enable_thinking": False}
        )
        with template_clock(self._now) if self._now else nullcontext():
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=generation, tokenize=False, **switches
            )
        return str(text)

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"The chat template of {self._name} {problem}. {REMEDY}")


def _thinking(thought: str, opening: str, header: str) -> tuple[tuple[str, str] | None, bool]:
    """Return what stands around SYSTEM, the thoughts before an answer, and whether `opening` begins them."""
    before, _, rest = thought.partition(SYSTEM)
    closing, found, _ = rest.partition(ANSWER)
    closer = closing.strip()
    if not found or not closer:
        return None, False
    inside = opening.removeprefix(before) if opening.startswith(before) else closer
    opened = closer not in inside and not (inside.strip() and closer.startswith(inside.strip())) and opening != header
    if before.strip() == header.strip():  # no mark begins the thoughts, at most words of theirs
        return (inside if opened else "", closing), opened
    starts = [len(os.path.commonprefix([before, opening]))]  # noqa: RUF071 - letters are meant
    starts += [tag.start() for tag in TAG.finditer(before)][-1:]
    return (before[min(starts) :], closing), opened


def _words(text: str) -> str:
    # Templates trim texts, and take switches such as /no_think out of them.
    return " ".join(word for word in text.casefold().split() if not word.startswith("/"))


def _within(text: str, rendered: str) -> bool:
    return _words(text) in _words(rendered)


def _read(chat_template: str) -> str:
    file = Path(os.path.expanduser(chat_template))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if not file.is_file():
        raise ModelError(f"chat_template {chat_template} is neither plain nor raw nor a Jinja file.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"The chat template {chat_template} is not UTF-8 text. Convert it to UTF-8.") from None
    except OSError as error:
        raise ModelError(f"The chat template {chat_template} cannot be read: {error.strerror}.") from None
