"""Seconds of a forward and backward pass of the demo model by scaled dot product and by plain attention, in turn.

OMP_NUM_THREADS=1 taskset -c 0 .venv/bin/python benchmarks/attention.py
"""

import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.reading import differentiable_logits
from iconoclast.models.transformers_internals import eager_attention

TOKENS, RESPONSE, ROUNDS = 768, 8, 3
FIRST_EDITED = 3


def seconds(lm: LanguageModel, attention: AbstractContextManager[None], length: int) -> float:
    """Time one pass over about 768 tokens in rows of `length`."""
    random = torch.Generator().manual_seed(0)
    rows = max(1, TOKENS // length)
    prompts = torch.randint(5, 4000, (rows, length - RESPONSE), generator=random).tolist()
    responses = torch.randint(5, 4000, (rows, RESPONSE), generator=random).tolist()
    begin = time.perf_counter()
    with attention, torch.enable_grad():
        logits = differentiable_logits(lm, prompts, responses)
    logits.float().log_softmax(-1).mean().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians as a Markdown table."""
    lm = load_model("demo")
    layer = lm.model.model.layers[FIRST_EDITED]
    layer.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    print("| tokens a row | rows | scaled dot product, s | plain, s |\n|---|---|---|---|")
    for length in (48, 96, 192, 384, 768, 1536):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            ways: tuple[AbstractContextManager[None], ...] = (nullcontext(), eager_attention(lm.model))
            for kept, attention in zip(times, ways, strict=True):
                kept.append(seconds(lm, attention, length))
        sdpa, plain = map(statistics.median, times)
        print(f"| {length} | {max(1, TOKENS // length)} | {sdpa:.2f} | {plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
