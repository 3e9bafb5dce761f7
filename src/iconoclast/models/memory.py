"""Free memory, and the number of sequences that go through a model at once."""

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from iconoclast.errors import MeasurementError
from iconoclast.models.language_model import LanguageModel

_Result = TypeVar("_Result")


def free_memory(lm: LanguageModel) -> int:
    """Return the free bytes of the model's device."""
    return torch.cuda.mem_get_info()[0] if lm.device.type == "cuda" else int(psutil.virtual_memory().available)


def token_bytes(lm: LanguageModel) -> tuple[int, int]:
    """Return the bytes of one token's keys and values in all layers, and of one residual-stream state."""
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = torch.finfo(lm.model.dtype).bits // 8
    return 2 * lm.layers * heads * head_dim * width, lm.hidden_size * width


def affordable_rows(lm: LanguageModel, tokens: int, batch_size: int, max_batch_size: int) -> int:
    """Return `batch_size` if set, else the rows that a quarter of the free memory holds, up to the limit."""
    if batch_size:
        return batch_size
    cached, state = token_bytes(lm)
    row = (cached + 8 * state) * tokens + 12 * lm.model.config.get_text_config().vocab_size
    return max(1, min(max_batch_size, int(free_memory(lm) / 4 / row)))


class Rows:
    """The number of sequences per forward pass, halved whenever memory runs out."""

    def __init__(self, number: int) -> None:
        self.number = number

    def adaptively(self, run: Callable[[int], _Result]) -> _Result:
        """Call `run` with a number of rows, halved after each shortage; raise MeasurementError if one does not fit."""
        while True:
            try:
                return run(self.number)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if self.number == 1:
                    raise MeasurementError(
                        "Not even one sequence fits into the device's memory. Use quantization bnb_4bit or a smaller max_response_length."
                    ) from None
                self.number //= 2
