"""Forward passes over many prompts: last-token residuals and next-token log-probabilities."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn

from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.loading import LanguageModel


class RowListener(Protocol):
    """What is applied to a batch (live edits) and must know which of its rows are left in it."""

    def applied(self, rows: Tensor) -> AbstractContextManager[None]:
        """While this lasts, row i of the batch is the listener's row `rows[i]`."""
        ...

    def keep(self, positions: Tensor) -> None:
        """Only these positions of the batch go on, in this order."""
        ...


class Unedited:
    """The listener that changes nothing."""

    @contextmanager
    def applied(self, rows: Tensor) -> Iterator[None]:
        """Nothing is applied."""
        yield

    def keep(self, positions: Tensor) -> None:
        """Nothing to follow."""


@dataclass(frozen=True)
class Padded:
    """A left-padded batch: ids, attention mask and positions, each [rows, tokens]."""

    ids: Tensor
    mask: Tensor
    positions: Tensor


def pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Padded:
    """Left-pad token sequences to the longest of them."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[pad_id] * (width - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return Padded(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of at most `size`, longest first, so that a batch holds sequences of like length."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def affordable_rows(lm: LanguageModel, tokens: int, batch_size: int, max_batch_size: int) -> int:
    """Rows per forward pass: `batch_size` if set, else what a quarter of the free memory holds, up to the limit."""
    if batch_size:
        return batch_size
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = torch.finfo(lm.model.dtype).bits // 8
    cache = 2 * config.num_hidden_layers * heads * head_dim * width * tokens
    activations = 8 * config.hidden_size * width * tokens
    logits = 12 * config.vocab_size
    free = torch.cuda.mem_get_info()[0] if lm.device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(max_batch_size, int(free / 4 / (cache + activations + logits))))


def inputs_of(lm: LanguageModel, **candidates: Any) -> dict[str, Any]:
    """The keyword arguments among `candidates` that this model's forward names."""
    parameters = inspect.signature(type(lm.model).forward).parameters
    return {name: value for name, value in candidates.items() if name in parameters}


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """While this lasts, the language-model head gets a contiguous input.

    With `logits_to_keep=1` it gets a slice, and PyTorch then copies the whole vocabulary matrix once per row when no
    gradient is needed: most of the time of a prefill.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def last_token_residuals(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    rows: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """The residual stream after every layer at the last token of each sequence: float32 [n, L, d], on the CPU.

    Taken by hooks on the layers themselves: the framework's own last hidden state has been through the final norm.
    """
    layers = decoder_layers(lm.model)
    result = torch.empty(len(sequences), len(layers), lm.hidden_size)
    caught: dict[int, Tensor] = {}

    def catch(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            caught[index] = hidden[:, -1].float().cpu()

        return hook

    handles = [layer.register_forward_hook(catch(i)) for i, layer in enumerate(layers)]
    try:
        with torch.inference_mode(), contiguous_head(lm.model):
            for batch in batches_by_length([len(s) for s in sequences], rows):
                _forward(lm, pad([sequences[i] for i in batch], _pad_id(lm), lm.device))
                result[batch] = torch.stack([caught[i] for i in range(len(layers))], dim=1)
                advance(len(batch))
    finally:
        for handle in handles:
            handle.remove()
    return result


def next_token_logprobs(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], rows: int, listener: RowListener | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Log-probabilities of the token after each sequence, in batches: (indices, float32 [rows, vocabulary]).

    Args:
        lm: the model.
        sequences: token ids; `listener` sees sequence i as its row i.
        rows: sequences per forward pass.
        listener: what is applied while the passes run.
    """
    listener = listener or Unedited()
    with contiguous_head(lm.model):
        for batch in batches_by_length([len(s) for s in sequences], rows):
            with torch.inference_mode(), listener.applied(torch.tensor(batch, device=lm.device)):
                logits = _forward(lm, pad([sequences[i] for i in batch], _pad_id(lm), lm.device))
            yield batch, logits[:, -1].float().log_softmax(-1)


def _forward(lm: LanguageModel, batch: Padded) -> Tensor:
    output = lm.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        **inputs_of(lm, position_ids=batch.positions, logits_to_keep=1, use_cache=False),
    )
    logits: Tensor = output.logits
    return logits


def _pad_id(lm: LanguageModel) -> int:
    pad_id = lm.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    return pad_id
