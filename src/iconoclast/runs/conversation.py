"""A conversation with one of the models that can be asked."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

from iconoclast.documents import Plain
from iconoclast.evaluation.examination import Variant
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.sampling import Sampling, respond

Messages = Sequence[Mapping[str, str]]


def encoded(voice: Variant, messages: Messages, thinking: bool = False) -> list[int]:
    """Return the tokens of a conversation, up to where the voice's answer begins.

    Raises:
        ModelError: the chat template leaves out what a message says.
    """
    return voice.lm.encode_texts([voice.lm.render_messages(messages, thinking)])[0]


def thinks(lm: LanguageModel) -> bool:
    """Check that the model's template can let it think and keep it from thinking."""
    messages = [{"role": "user", "content": "Hello"}]
    return lm.render_messages(messages, thinking=True) != lm.render_messages(messages, thinking=False)


class Conversation:
    """A conversation of several turns, answered greedily.

    Attributes:
        voice: who answers from the next message on.
        thinking: whether the model may think before it answers.
        messages: what was said, the system prompt first.
    """

    def __init__(self, voice: Variant, system_prompt: str | None = None, longest: int = 1024) -> None:
        self.voice = voice
        self.thinking = voice.lm.thinking
        self._sampling = Sampling(longest=longest)
        self.restart(system_prompt)

    def restart(self, system_prompt: str | None) -> None:
        """Forget what was said, and begin with this system prompt."""
        self.messages = [{"role": "system", "content": system_prompt}] if system_prompt else []

    def reply(self, message: str) -> Generator[str, None, None]:
        """Yield the reply piece by piece; what was said until then is remembered if it is closed before its end."""
        messages = [*self.messages, {"role": "user", "content": message}]
        ids, said = encoded(self.voice, messages, self.thinking), ""
        with closing(respond(self.voice.lm, ids, self._sampling, self.voice.applied)) as pieces:
            try:
                for piece in pieces:
                    said += piece.text
                    yield piece.text
            finally:
                self.messages = [*messages, {"role": "assistant", "content": self._without_thoughts(said)}]

    def document(self) -> Plain:
        """Return what was said and by whom, for JSON."""
        return {"model": self.voice.name, "thinking": self.thinking, "messages": self.messages}

    def _without_thoughts(self, text: str) -> str:
        """Leave out thoughts, which no model was trained to read again."""
        block = self.voice.lm.chat.turn.thinking if self.thinking else None
        return text.rpartition(block[1].strip())[2].lstrip() if block else text
