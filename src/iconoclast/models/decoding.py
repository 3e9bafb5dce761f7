"""Greedy decoding of many rows at once; a row leaves the batch when it is decided."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from iconoclast.models.forward import (
    RowListener,
    Unedited,
    batches_by_length,
    contiguous_head,
    inputs_of,
    pad,
)
from iconoclast.models.loading import LanguageModel
from iconoclast.prompts import Prompt

CHECK_EVERY = 8
"""Tokens between two looks at which rows are decided (each look costs a device synchronisation)."""

Decided = Callable[[int, list[int]], bool]
"""(sequence index, response tokens so far) → whether nothing that is still to come matters."""


def decode(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    max_new_tokens: int,
    rows: int,
    listener: RowListener | None = None,
    decided: Decided | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """The greedy continuation of every sequence, end-of-text token left out.

    Args:
        lm: the model.
        sequences: token ids; `listener` sees sequence i as its row i.
        max_new_tokens: longest continuation.
        rows: sequences per batch.
        listener: what is applied while decoding, told which rows go on.
        decided: asked every few tokens; a decided row stops there, its continuation cut short.
        advance: told how many sequences are finished.
    """
    listener = listener or Unedited()
    results: list[list[int]] = [[] for _ in sequences]
    for batch in batches_by_length([len(s) for s in sequences], rows):
        with (
            torch.inference_mode(),
            contiguous_head(lm.model),
            listener.applied(torch.tensor(batch, device=lm.device)),
        ):
            _decode_batch(lm, [sequences[i] for i in batch], batch, max_new_tokens, listener, decided, results, advance)
    return results


THINKING_BLOCKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)


def find_response_prefix(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int = 16) -> str:
    """What every response of the model starts with, so that measurements begin where responses differ.

    A thinking block that opens there is closed at once: the response proper is what is measured.

    Args:
        lm: the model, without a response prefix.
        prompts: a few prompts of unlike kinds; a phrase that only like prompts share is not a prefix.
        rows: sequences per batch.
        longest: tokens to look at.
    """
    prefix = ""
    for _ in range(2):  # a second look, at what follows a thinking block
        found = _common_start(lm.with_prefix(prefix), prompts, rows, longest)
        block = next((block for block in THINKING_BLOCKS if found.lstrip().startswith(block[0])), None)
        if block is None or prefix:
            return prefix + found
        prefix = block[0] + block[1]
    return prefix


def _common_start(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int) -> str:
    ids = lm.encode(prompts)
    for length in (1, longest):  # most models need one token to show that there is no prefix
        responses = decode(lm, ids, length, rows)
        common = [
            tokens[0] for tokens in itertools.takewhile(lambda t: len(set(t)) == 1, zip(*responses, strict=False))
        ]
        if not common:
            return ""
    text = lm.tokenizer.decode(common, skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that end a response."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    return list(ids) if isinstance(ids, list | tuple) else [] if ids is None else [int(ids)]


def _decode_batch(
    lm: LanguageModel,
    sequences: list[Sequence[int]],
    indices: list[int],
    max_new_tokens: int,
    listener: RowListener,
    decided: Decided | None,
    results: list[list[int]],
    advance: Callable[[int], None],
) -> None:
    pad_id = lm.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    batch = pad(sequences, pad_id, lm.device)
    ends = end_tokens(lm.model)
    stop = torch.tensor(ends, device=lm.device)
    cache = DynamicCache(config=lm.model.config)
    ids, mask, positions = batch.ids, batch.mask, batch.positions
    tokens = torch.empty(len(sequences), 0, dtype=torch.long, device=lm.device)
    alive = list(indices)  # sequence index of each row still in the batch
    for step in range(1, max_new_tokens + 1):
        logits = lm.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            **inputs_of(lm, position_ids=positions, logits_to_keep=1, use_cache=True),
        ).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, ids], dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
        if step % CHECK_EVERY == 0 or step == max_new_tokens:
            ended = torch.isin(tokens, stop).any(1).tolist()
            so_far = [_until_end(row, ends) for row in tokens.tolist()]
            done = [
                e or step == max_new_tokens or (decided is not None and decided(index, text))
                for e, index, text in zip(ended, alive, so_far, strict=True)
            ]
            for index, text, finished in zip(alive, so_far, done, strict=True):
                if finished:
                    results[index] = text
            advance(sum(done))
            if all(done):
                return
            if any(done):
                kept = torch.tensor([i for i, d in enumerate(done) if not d], device=lm.device)
                alive = [alive[i] for i in kept.tolist()]
                cache.batch_select_indices(kept)
                listener.keep(kept)
                ids, mask, positions, tokens = _select(kept, ids, mask, positions, tokens)


def _select(kept: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[kept] for tensor in tensors)


def _until_end(row: list[int], ends: list[int]) -> list[int]:
    return next((row[:i] for i, token in enumerate(row) if token in ends), row)
