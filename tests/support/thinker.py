"""A tiny model with a chat template that lets it think, whose thoughts and answers a test decides."""

from collections.abc import Callable, Sequence
from typing import Any

from iconoclast.models import decoding
from iconoclast.models.language_model import LanguageModel

SWITCHED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The model opens its block itself, and the template closes an empty one if it is not to think."""
OPENED = SWITCHED.replace("<think>\n\n</think>\n\n{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}")
"""The template opens the block unless it is told not to."""
ALWAYS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
"""The template opens the block whatever it is told, and leaves thoughts out."""
CHANNELS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}"
    "<|end|><|assistant|>{% endif %}{% if m.role == 'assistant' %}<|channel|>final<|message|>{% endif %}{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Thoughts and answers in channels, with a first token that is always the same."""


def saying(monkeypatch: Any, said: Callable[[str], str]) -> None:
    """Let every model respond to a rendered prompt as `said` says, token by token, whatever its weights are."""
    real = decoding.decode

    def decode(
        lm: LanguageModel, sequences: Sequence[list[int]], most: int, rows: int, listener: Any = None,
        callbacks: Any = None, lower: Any = None,
    ) -> list[list[int]]:  # fmt: skip
        real(lm, sequences, 1, rows, listener, callbacks and decoding.Callbacks(None, callbacks.first), lower)
        results = []
        for index, ids in enumerate(sequences):
            response = lm.tokenizer.encode(said(lm.text(ids, special=True)), add_special_tokens=False)[:most]
            ends = (
                i
                for i in range(1, len(response) + 1)
                if callbacks and callbacks.decided and callbacks.decided(index, response[:i])
            )
            results.append(response[: next(ends, len(response))])
            if callbacks:
                callbacks.advance(1)
        return results

    evaluation = ("evaluation.evaluator", "evaluation.examiner", "evaluation.base_responses")
    for place in ("models.thinking", "runs.fits", *evaluation):
        monkeypatch.setattr(f"iconoclast.{place}.decode", decode)
