"""What one candidate costs: ICONOCLAST at several batch widths against plain `generate`, interleaved.

    .venv/bin/python benchmarks/speed.py --data ../shared/data --widths 1 4 16 --rounds 3

The work of a candidate is that of METHODS: 20 requests of 96 new tokens, and the first-token log-probabilities of 64
knowledge prompts. `generate` does it once with nothing edited, all requests in one batch.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from iconoclast.config import Settings
from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.evaluation.measure import Evaluator, MeasureOptions
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models.forward import contiguous_head
from iconoclast.models.loading import LanguageModel, load_model
from iconoclast.prompts import PromptSet


def candidates(lm: LanguageModel, target: PromptSet, benign: PromptSet, count: int) -> list[Edit]:
    """Edits as a search tries them: strengths from weak to strong, peaks from the middle to the end."""
    directions = estimate_directions(lm, benign, target, subspace_rank=8)
    edits = []
    for i in range(count):
        share = i / max(1, count - 1)
        profile = Profile(0.5 + 1.5 * share, 12 + 17 * (i * 7 % count) / count, 0.3, 4 + 12 * (i * 5 % count) / count)
        spec = DirectionSpec("mean", scope="global", index=12 + 13 * (i * 3 % count) / count)
        edits.append(make_edit(lm, directions, {"attn.o_proj": profile, "mlp.down_proj": profile}, spec))
    return edits


def plain_generate(lm: LanguageModel, target: PromptSet, benign: PromptSet, tokens: int) -> None:
    """The same work by the library's own means: left-padded batches, greedy, nothing edited."""
    with torch.inference_mode(), contiguous_head(lm.model):
        for prompts, length in ((target, tokens), (benign, 1)):
            texts = [lm.render(prompt) for prompt in prompts]
            inputs = lm.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(lm.device)
            lm.model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=lm.tokenizer.pad_token_id)  # type: ignore[operator]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="folder with requests.jsonl and knowledge.jsonl")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--knowledge", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    def load(name: str, split: str) -> PromptSet:
        return PromptSet.load(str(arguments.data / f"{name}.jsonl"), split=split, column="text")

    lm = load_model(arguments.model)
    target, benign = (
        load("requests", f"select[:{arguments.requests}]"),
        load("knowledge", f"select[:{arguments.knowledge}]"),
    )
    edits = candidates(lm, load("requests", "fit"), load("knowledge", "fit"), max(arguments.widths))
    defaults = Settings()
    rules = ResponseRules(defaults.refusal_markers, defaults.disclaimer_markers)
    evaluator = Evaluator(lm, target, benign, rules, MeasureOptions(arguments.tokens, 1))
    evaluator.measure(edits[:1])  # the base model's log-probabilities, and warm memory

    ways: dict[str, Callable[[], object]] = {
        "plain generate": lambda: plain_generate(lm, target, benign, arguments.tokens)
    }
    for width in arguments.widths:
        # The same candidates at every width, so that rows leave at the same rate.
        chosen = edits[:: max(1, len(edits) // width)][:width]
        ways[f"{width} a batch"] = lambda chosen=chosen: evaluator.measure(chosen)
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            count = 1 if name == "plain generate" else int(name.split()[0])
            costs[name].append(seconds(work) / count)

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, values in costs.items():
        print(
            f"{name:>16}: {statistics.median(values):6.2f} s a candidate  {json.dumps([round(v, 2) for v in values])}"
        )


if __name__ == "__main__":
    main()
