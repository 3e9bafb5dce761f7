"""A loaded causal language model with everything needed to prompt and edit it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, find_writers, input_device
from iconoclast.models.chat_template import ChatTemplate, token_ids
from iconoclast.models.probe import require_complete
from iconoclast.prompts import Prompt
from iconoclast.registry import require_known
from iconoclast.vocabulary import COMPONENTS, QUANTIZATIONS, Component, Quantization, Site

HALF_A_CHARACTER = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character."""


@dataclass
class LanguageModel:
    """A loaded causal language model with everything needed to prompt and edit it.

    Attributes:
        model: the transformers model, in evaluation mode with frozen parameters.
        tokenizer: pads on the left and has a chat template.
        name: the name by which the user asked for it.
        path: the folder, file or hub id that was loaded.
        dtype: the data type chosen, such as "bfloat16".
        response_prefix: text that every response starts with; part of the prompt for all measurements.
        template_date: the time that the chat template is told; None for the present.
        thinking: whether it may think before it answers.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    path: str
    dtype: str
    quantization: Quantization = "none"
    response_prefix: str = ""
    template_date: datetime | None = None
    thinking: bool = False
    _chats: dict[Any, ChatTemplate] = field(default_factory=dict, repr=False)
    _writers: dict[tuple[Component, ...], dict[Site, Writer]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_known(self.quantization, QUANTIZATIONS, "quantisation", ModelError)

    @property
    def device(self) -> torch.device:
        """Device that inputs go to."""
        return input_device(self.model)

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, d."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context(self) -> int | None:
        """Tokens the model can read and write at once; None if its configuration does not say."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) and longest > 0 else None

    def writers(self, components: Sequence[Component] = COMPONENTS) -> dict[Site, Writer]:
        """Return site → writer; raise ModelError unless edits of them are known to be complete (`require_complete`)."""
        key = tuple(components)
        if key not in self._writers:
            writers = find_writers(self.model, key)
            if self.device.type != "meta":
                require_complete(self.model, writers)
            self._writers[key] = writers
        return self._writers[key]

    def with_prefix(self, response_prefix: str) -> "LanguageModel":
        """Return the same model with responses that start with `response_prefix`."""
        return replace(self, response_prefix=response_prefix)

    def begun_as(self, other: "LanguageModel") -> "LanguageModel":
        """Return the same model with responses that start as another's do."""
        prefix, date, thinking = other.response_prefix, other.template_date, other.thinking
        return replace(self, response_prefix=prefix, template_date=date, thinking=thinking)

    @property
    def chat(self) -> ChatTemplate:
        """The tokenizer's chat template."""
        key = id(self.tokenizer), str(self.tokenizer.chat_template), self.template_date
        if key not in self._chats:
            self._chats[key] = ChatTemplate(self.tokenizer, self.name, self.template_date)
        return self._chats[key]

    def render(self, prompt: Prompt) -> str:
        """Return the text the model receives for `prompt`, up to where its response continues."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return self.render_messages([*system, {"role": "user", "content": prompt.text}])

    def render_messages(self, messages: Sequence[Mapping[str, str]], thinking: bool | None = None) -> str:
        """Return the text of a whole conversation, up to where the next response continues.

        With another `thinking` than the model's own, the template is told so, and the response begins at its own start.

        Raises:
            ModelError: the template fails, or leaves out what user or system say.
        """
        thinks = self.thinking if thinking is None else thinking
        return self.chat.render(messages, thinking=thinks) + self.response_prefix * (thinks == self.thinking)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of every prompt, rendered by `render`."""
        return self.encode_texts([self.render(prompt) for prompt in prompts])

    def token_text(self, token: int) -> str:
        """Return the text of one token; its name in the vocabulary where it is but a part of a character."""
        text = str(self.tokenizer.decode([token]))
        return str(self.tokenizer.convert_ids_to_tokens(token)) if HALF_A_CHARACTER in text else text

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise rendered texts as `chat_template.token_ids` does."""
        return token_ids(self.tokenizer, texts)

    def text(self, tokens: Any, special: bool = False) -> str:
        """Return the text of tokens, without special ones unless they are asked for."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special))
