"""What one candidate costs, how that grows, and where the time goes.

    .venv/bin/python benchmarks/speed.py --data DATA cost          # against plain `generate`, interleaved rounds
    .venv/bin/python benchmarks/speed.py --data DATA prompts       # more prompts; likewise tokens, layers
    .venv/bin/python benchmarks/speed.py --data DATA equality      # batched scores against one-at-a-time scores
    .venv/bin/python benchmarks/speed.py --data DATA profile       # where the time goes, and the naive limit
    .venv/bin/python benchmarks/speed.py --data DATA setup         # what comes before the first trial
    .venv/bin/python benchmarks/speed.py --data DATA forward       # norms and gated networks in fewer passes

The work of a candidate is that of METHODS unless a table varies it: 20 requests of 96 new tokens, and the first-token
log-probabilities of 64 knowledge prompts. `generate` does it once with nothing edited, all requests in one batch.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from optuna.distributions import FloatDistribution
from torch.profiler import ProfilerActivity, profile

from iconoclast.config.schema import Settings
from iconoclast.directions.estimators import Directions, DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import estimate_directions, make_edit, residuals
from iconoclast.models import packed as packed_module
from iconoclast.models.forward import contiguous_head
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed
from iconoclast.prompts import PromptSet
from iconoclast.search.space import SearchSpace

WIDTHS = (1, 2, 4, 8, 16, 32)


def fit_prompts(data: Path) -> list[PromptSet]:
    """The benign and the target prompts that directions are estimated from."""
    return [
        PromptSet.load(str(data / f"{name}.jsonl"), split="fit", column="text") for name in ("knowledge", "requests")
    ]


@dataclass
class Bench:
    """The model, its directions, and the prompts to measure on."""

    lm: LanguageModel
    directions: Directions
    data: Path
    rounds: int

    def prompts(self, name: str, count: int) -> PromptSet:
        """The first prompts of the select split."""
        return PromptSet.load(str(self.data / f"{name}.jsonl"), split=f"select[:{count}]", column="text")

    def evaluator(
        self, requests: int = 20, knowledge: int = 64, tokens: int = 96, lower: bool = True, warm: bool = True
    ) -> Evaluator:
        """An evaluator as a search has it."""
        defaults = Settings()
        evaluator = Evaluator(
            self.lm,
            self.prompts("requests", requests),
            self.prompts("knowledge", knowledge),
            ResponseRules(defaults.refusal_markers, defaults.disclaimer_markers),
            MeasureOptions(response_length=tokens, benign_response_length=1),
        )
        if lower:
            evaluator.leave_out_lower_layers()
        if warm:
            evaluator.measure([Edit.nothing()])
        return evaluator

    def sampled(self, count: int) -> list[Edit]:
        """Candidates at random from the search space, as the first trials of a search are."""
        settings = Settings()
        space = SearchSpace(self.lm.layers, settings.components, settings.direction_methods, settings.direction_scopes)
        generator = torch.Generator().manual_seed(0)
        writers = self.lm.writers()
        edits = []
        for _ in range(count):
            sample: dict[str, Any] = {}
            for name, d in space.distributions().items():
                share = float(torch.rand((), generator=generator))
                if isinstance(d, FloatDistribution):
                    sample[name] = d.low + share * (d.high - d.low)
                else:
                    sample[name] = d.choices[int(share * len(d.choices))]
            edits.append(space.parameters(sample).edit(self.directions, writers, "pre"))
        return edits

    def from_layer(self, first: int, count: int) -> list[Edit]:
        """Candidates that edit every layer from `first` on."""
        profile_of = {
            c: Profile(1.0, self.lm.layers - 1, 0.5, self.lm.layers - 1 - first)
            for c in ("attn.o_proj", "mlp.down_proj")
        }
        return [
            make_edit(self.lm, self.directions, profile_of, DirectionSpec("mean", index=15 + i)) for i in range(count)
        ]


Ways = dict[str, tuple[int, Callable[[], object]]]
"""Name → (candidates, work)."""


def compare(ways: Ways, rounds: int) -> None:
    """Run all ways in turn, several times, and print what a candidate costs."""
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (count, work) in ways.items():
            start = time.perf_counter()
            work()
            costs[name].append((time.perf_counter() - start) / count)
    for name, values in costs.items():
        raw = json.dumps([round(value, 2) for value in values])
        print(f"{name:>34}: {statistics.median(values):6.2f} s a candidate  {raw}", flush=True)


def chosen(edits: Sequence[Edit], width: int) -> list[Edit]:
    """`width` of the edits, from all over the list: the same kind at every width, so that rows leave at the same rate."""
    return [edits[i * len(edits) // width] for i in range(width)]


def plain_generate(lm: LanguageModel, target: PromptSet, benign: PromptSet, tokens: int) -> None:
    """The same work by the library's own means: left-padded batches, greedy, nothing edited."""
    with torch.inference_mode(), contiguous_head(lm.model):
        for prompts, length in ((target, tokens), (benign, 1)):
            texts = [lm.render(prompt) for prompt in prompts]
            inputs = lm.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(lm.device)
            lm.model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=lm.tokenizer.pad_token_id)  # type: ignore[operator]


def cost(bench: Bench) -> None:
    evaluator, edits = bench.evaluator(), bench.sampled(max(WIDTHS))
    whole = bench.evaluator(lower=False)
    ways: Ways = {
        "plain generate, nothing edited": (1, lambda: plain_generate(bench.lm, evaluator.target, evaluator.benign, 96))
    }
    for width in WIDTHS:
        ways[f"{width} a batch"] = (width, partial(evaluator.measure, chosen(edits, width)))
    ways["16 a batch, lower layers each time"] = (16, lambda: whole.measure(chosen(edits, 16)))
    compare(ways, bench.rounds)


def varied(bench: Bench, evaluators: Iterator[tuple[str, Evaluator]], edits: Sequence[Edit]) -> None:
    compare({name: (len(edits), partial(e.measure, edits)) for name, e in evaluators}, bench.rounds)


def prompts(bench: Bench) -> None:
    sizes = ((10, 32), (20, 64), (40, 128), (80, 128))
    varied(bench, ((f"{r} requests, {k} knowledge", bench.evaluator(r, k)) for r, k in sizes), bench.sampled(8))


def tokens(bench: Bench) -> None:
    varied(bench, ((f"{n} tokens", bench.evaluator(tokens=n)) for n in (24, 48, 96, 192)), bench.sampled(8))


def layers(bench: Bench) -> None:
    evaluator = bench.evaluator()
    last = bench.lm.layers - 1
    ways: Ways = {}
    for first in (last - 2, 2 * last // 3, last // 2, last // 4, 0):
        edits = bench.from_layer(first, 8)
        ways[f"layers {first} to {last} edited"] = (8, partial(evaluator.measure, edits))
    compare(ways, bench.rounds)


def equality(bench: Bench) -> None:
    evaluator, edits = bench.evaluator(), bench.sampled(16)
    together, alone = evaluator.measure(edits), [evaluator.measure([edit])[0] for edit in edits]
    refusals = [abs(a.refusals.count - b.refusals.count) for a, b in zip(together, alone, strict=True)]
    divergences = [abs(a.kl_divergence - b.kl_divergence) for a, b in zip(together, alone, strict=True)]
    print(f"16 candidates in one batch against one at a time; noise floor {evaluator.noise_floor():.4f} nats")
    print(f"  KL: median difference {statistics.median(divergences):.4f}, largest {max(divergences):.4f}")
    print(f"  refusals of {len(evaluator.target)}: differences {sorted(refusals)}")
    for a, b in zip(together, alone, strict=True):
        print(f"    {a.refusals.count:3d} | {b.refusals.count:3d}   {a.kl_divergence:.4f} | {b.kl_divergence:.4f}")


GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
    "edits (batched products)": ("aten::bmm", "aten::baddbmm"),
    "argmax": ("aten::max", "aten::amax", "aten::argmax"),
    "copies and conversions": ("aten::copy_", "aten::cat", "aten::index", "aten::_to_copy", "aten::clone"),
}


def profiled(bench: Bench) -> None:
    evaluator, edits = bench.evaluator(), bench.sampled(16)
    start = time.perf_counter()
    evaluator.measure(edits)
    plain = (time.perf_counter() - start) / len(edits)
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        evaluator.measure(edits)
    rows = taken.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"16 candidates a batch, {plain:.2f} s a candidate:")
    left = 100.0
    for name, prefixes in GROUPS.items():
        share = 100 * sum(row.self_cpu_time_total for row in rows if row.key.startswith(prefixes)) / total
        left -= share
        print(f"  {name:>28}: {share:4.1f} %")
    print(f"  {'everything else':>28}: {left:4.1f} %")

    lm, config = bench.lm, bench.lm.model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in lm.model.parameters()) - head * (1 if config.tie_word_embeddings else 2)
    lengths = [len(ids) for ids in lm.encode(evaluator.target.prompts)]
    read = sum(lengths) + sum(len(ids) for ids in lm.encode(evaluator.benign.prompts))
    new = 96 * len(lengths)
    operations = 2 * body * (read + new) + 2 * head * (new + len(evaluator.benign))
    a, b = torch.randn(1024, 1536, dtype=lm.model.dtype), torch.randn(1536, 1536, dtype=lm.model.dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(50))
    speed = 2 * 1024 * 1536 * 1536 / best
    print(
        f"naive limit: {operations / 1e12:.2f} TFLOP at {speed / 1e12:.2f} TFLOP/s = {operations / speed:.2f} s a candidate"
    )


def forward(bench: Bench) -> None:
    """Candidates on laid-out weights, with the norms and gated networks as their authors wrote them and as `packed` has them."""
    evaluator = bench.evaluator()

    def work(faster: bool, edits: Sequence[Edit]) -> None:
        way = packed_module._faster if faster else lambda *of: None
        with mock.patch.object(packed_module, "_faster", way), packed(bench.lm.model):
            evaluator.measure(edits)

    ways: Ways = {}
    for width in (8, 16):
        for name, faster in (("as written", False), ("in fewer passes", True)):
            ways[f"{width} a batch, {name}"] = (width, partial(work, faster, bench.sampled(width)))
    compare(ways, bench.rounds)


def setup(bench: Bench) -> None:
    """The parts of a run's set-up, each made once from nothing, beside the trials of its first and its later batches."""
    sets = fit_prompts(bench.data)
    evaluator = bench.evaluator(lower=False, warm=False)
    random, later = bench.sampled(8), bench.sampled(16)
    command = [sys.executable, "-c", "from iconoclast.runs import pipeline"]
    parts: dict[str, Callable[[], object]] = {
        "imports": lambda: subprocess.run(command, check=True, capture_output=True),
        "loading the model": lambda: load_model(bench.lm.name),
        f"residuals of {sum(map(len, sets))} prompts": lambda: [residuals(bench.lm, prompts) for prompts in sets],
        "base model's log-probabilities": lambda: evaluator.reference,
        "noise floor": evaluator.noise_floor,
        "states of the lower layers": evaluator.leave_out_lower_layers,
        "base model's answers": lambda: evaluator.measure([Edit.nothing()]),
        "8 candidates in a batch": lambda: evaluator.measure(random),
        "16 candidates in a batch": lambda: evaluator.measure(later),
    }
    for name, work in parts.items():
        print(f"{name:>34}: {_seconds(work):6.2f} s", flush=True)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


TABLES = {
    "cost": cost,
    "prompts": prompts,
    "tokens": tokens,
    "layers": layers,
    "equality": equality,
    "profile": profiled,
    "setup": setup,
    "forward": forward,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[], help="all of them unless named")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="folder with requests.jsonl and knowledge.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lm = load_model(arguments.model)
    directions = estimate_directions(lm, *fit_prompts(arguments.data), subspace_rank=8)
    bench = Bench(lm, directions, arguments.data, arguments.rounds)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in arguments.tables or TABLES:
        print(f"\n{name}", flush=True)
        with nullcontext() if name == "forward" else packed(lm.model):  # as a run has it
            TABLES[name](bench)


if __name__ == "__main__":
    main()
