"""A loaded causal language model with everything needed to prompt and edit it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, find_writers, input_device
from iconoclast.models.probe import require_complete
from iconoclast.prompts import Prompt
from iconoclast.registry import require_known
from iconoclast.vocabulary import COMPONENTS, QUANTIZATIONS, Component, Quantization, Site


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
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    path: str
    dtype: str
    quantization: Quantization = "none"
    response_prefix: str = ""
    _writers: dict[tuple[Component, ...], dict[Site, Writer]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_known(self.quantization, QUANTIZATIONS, "quantisation", ModelError)

    @property
    def device(self) -> torch.device:
        """Device that inputs go to."""
        return input_device(self.model)

    @property
    def layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
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

    def render(self, prompt: Prompt) -> str:
        """Return the text the model receives for `prompt`, up to where its response continues."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return self.render_messages([*system, {"role": "user", "content": prompt.text}])

    def render_messages(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of a whole conversation, up to where the next response continues."""
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=False,
                enable_thinking=False,
            )
        except (TemplateError, TypeError, ArithmeticError) as error:
            if messages[0]["role"] != "system":
                raise ModelError(
                    f"The chat template of {self.name} fails on a plain user message ({error}). Set chat_template to plain, raw, or a Jinja file."
                ) from None
            # Some templates have no system role: the instruction then opens the user's first turn.
            first = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            return self.render_messages([{"role": "user", "content": first}, *messages[2:]])
        return str(text) + self.response_prefix

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return self.encode_texts([self.render(prompt) for prompt in prompts])

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise rendered texts, to which the template has already added the special tokens."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids
