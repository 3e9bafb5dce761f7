"""A conversation with a model under an edit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TextStreamer

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.models.decoding import end_tokens
from iconoclast.models.forward import contiguous_head
from iconoclast.models.language_model import LanguageModel
from iconoclast.vocabulary import Component


class Conversation:
    """A conversation of several turns, the edit applied live.

    Args:
        components: residual writers that the edit may touch.
        system_prompt: opens the conversation.
        longest: most tokens in a reply.
    """

    def __init__(
        self,
        lm: LanguageModel,
        edit: Edit,
        components: Sequence[Component],
        system_prompt: str | None = None,
        longest: int = 1024,
    ) -> None:
        self._lm = lm
        self._components = components
        self._longest = longest
        self.carry(edit)
        self.restart(system_prompt)

    def carry(self, edit: Edit) -> None:
        """Apply another edit from the next reply on."""
        self._live = LiveEdits(self._lm.writers(self._components), [edit])

    def restart(self, system_prompt: str | None) -> None:
        """Forget what was said, and begin with this system prompt."""
        self._messages = [{"role": "system", "content": system_prompt}] if system_prompt else []

    def reply(self, message: str, emit: Callable[[str], None] = lambda piece: None) -> str:
        """Return the model's greedy reply; `emit` gets it piece by piece as it is written."""
        messages = [*self._messages, {"role": "user", "content": message}]
        ids = self._lm.encode_texts([self._lm.render_messages(messages)])
        inputs = torch.tensor(ids, device=self._lm.device)
        streamer = _Emitter(self._lm.tokenizer, emit)
        with torch.inference_mode(), contiguous_head(self._lm.model), self._live.applied():
            output: Any = self._lm.model.generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=self._longest,
                do_sample=False,
                streamer=streamer,
                eos_token_id=end_tokens(self._lm),
                pad_token_id=self._lm.tokenizer.pad_token_id,
            )
        text = self._lm.text(output[0, inputs.shape[1] :])
        self._messages = [*messages, {"role": "assistant", "content": text}]
        return text


class _Emitter(TextStreamer):
    """A streamer that hands finished text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on a piece of text that will not change any more."""
        self._emit(text)
