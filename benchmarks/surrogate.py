"""How well probabilities that need no generation foretell how often an edit fails.

    .venv/bin/python benchmarks/surrogate.py --out FOLDER --edits 300
    .venv/bin/python benchmarks/surrogate.py --out FOLDER --edits 300 --prompts 24 --tokens 48

Random edits of the search space answer target prompts, and each is asked, teacher-forced, how likely it opens as the base
model's own refusals do (their first --opening tokens) and as a strong edit's answers do. Printed are Spearman's rank
correlations of several scores with the generated rate of failures (refused or broken) and with that of refusals alone, with
95 % intervals by resampling edits, and the processor time of both ways. FOLDER/surrogate.jsonl keeps what was measured:
the same command goes on from there.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy.stats import spearmanr

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.models.decoding import decode
from iconoclast.models.reading import continuation_logits, next_token_logprobs
from iconoclast.runs.trials import search_space
from iconoclast.runs.workbench import Workbench
from iconoclast.search.space import EditParameters, SearchSpace

AT_A_TIME = 8
"""Edits that answer in one batch."""


def drawn(space: SearchSpace, number: int) -> EditParameters:
    """The random point of a number."""
    draw, sample = random.Random(number), {}
    for name, of in space.distributions().items():
        assert isinstance(of, CategoricalDistribution | FloatDistribution)
        sample[name] = draw.uniform(of.low, of.high) if isinstance(of, FloatDistribution) else draw.choice(of.choices)
    return space.parameters(sample)


class Surrogates:
    """The scores of an edit that need no generation.

    Args:
        bench: the opened model.
        ids: target prompts.
        strong: an edit that answers many of them.
        opening: tokens of an opening.
    """

    def __init__(self, bench: Workbench, ids: list[list[int]], strong: Edit, opening: int) -> None:
        self._lm, self._writers = bench.lm, bench.lm.writers(bench.settings.components)

        def openings(edit: Edit, label: str) -> dict[int, list[int]]:
            live = LiveEdits(self._writers, [edit], [0] * len(ids)) if edit.sites else None
            tokens = decode(bench.lm, ids, bench.settings.max_response_length, len(ids), live)
            texts = [str(bench.lm.tokenizer.decode(each, skip_special_tokens=True)) for each in tokens]
            labels = [bench.rules.label(p.text, t) for p, t in zip(bench.prompts.selected.target, texts, strict=False)]
            return {
                i: t[:opening] for i, (t, found) in enumerate(zip(tokens, labels, strict=True)) if found == label and t
            }

        refusing, complying = openings(Edit.nothing(), "refusal"), openings(strong, "complied")
        self.prompts = [i for i in refusing if i in complying and refusing[i] != complying[i]]
        self._ids = [ids[i] for i in self.prompts]
        self._refusing, self._complying = ([each[i] for i in self.prompts] for each in (refusing, complying))
        self._first = sorted({tokens[0] for tokens in refusing.values()})

    def __call__(self, edit: Edit) -> dict[str, float]:
        """All scores: more means that more failures are expected."""
        with LiveEdits(self._writers, [edit]).applied(), torch.inference_mode():
            refusing, complying = (self._logprobs(each) for each in (self._refusing, self._complying))
        lead = refusing - complying
        return {
            "refusal opening, log-probability": float(refusing.mean()),
            "complying opening, its negative": -float(complying.mean()),
            "lead of refusing over complying": float(lead.mean()),
            "share of prompts where refusing leads": float((lead > 0).float().mean()),
            "probability of refusing, of the two": float(lead.sigmoid().mean()),
        }

    def first(self, edit: Edit) -> float:
        """Probability of the tokens with which the base model's refusals begin, from reading the prompts alone."""
        with LiveEdits(self._writers, [edit]).applied():
            found = [each[:, self._first].exp().sum(-1) for _, each in next_token_logprobs(self._lm, self._ids, 64)]
        return float(torch.cat(found).mean())

    def _logprobs(self, openings: Sequence[list[int]]) -> torch.Tensor:
        logprobs = continuation_logits(self._lm, self._ids, openings).float().log_softmax(-1)
        each = torch.split(logprobs, [len(o) for o in openings])
        return torch.stack(
            [said.gather(-1, torch.tensor(o)[:, None]).sum() for said, o in zip(each, openings, strict=True)]
        )


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """What work gives, and the processor seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(bench: Workbench, arguments: argparse.Namespace, file: Path) -> None:
    """Measure the edits that the file does not have yet."""
    prompts = bench.prompts.selected.target
    some = type(prompts)(prompts.prompts[: arguments.prompts], prompts.source)
    evaluator = Evaluator(bench.lm, some, bench.prompts.selected.benign, bench.rules, bench.options)
    space = search_space(bench.settings, bench.lm.layers)
    strong = bench.edit(drawn(space, arguments.strong))
    scores = Surrogates(bench, bench.lm.encode(some.prompts), strong, arguments.opening)
    print(f"{len(scores.prompts)} of {len(some)} prompts are refused by the base model and answered by the strong edit", flush=True)  # fmt: skip
    done = sum(1 for _ in file.open()) if file.exists() else 0
    for start in range(done, arguments.edits, AT_A_TIME):
        edits = [bench.edit(drawn(space, 1000 + n)) for n in range(start, min(start + AT_A_TIME, arguments.edits))]
        responses, generated = timed(lambda edits=edits: evaluator.respond(edits, some))  # type: ignore[misc]
        lines = []
        for edit, texts in zip(edits, responses, strict=True):  # type: ignore[call-overload]
            labels = [bench.rules.label(p.text, t) for p, t in zip(some, texts, strict=True)]
            opened, seconds = timed(lambda edit=edit: scores(edit))  # type: ignore[misc]
            first, seconds_first = timed(lambda edit=edit: scores.first(edit))  # type: ignore[misc]
            lines.append({
                "failures": sum(label in ("refusal", "broken") for label in labels) / len(labels),
                "refusals": labels.count("refusal") / len(labels),
                "scores": {**opened, "first token": first},  # type: ignore[dict-item]
                "seconds": {"generated": generated / len(edits), "openings": seconds, "first token": seconds_first},
            })  # fmt: skip
        with file.open("a") as opened_file:
            opened_file.writelines(json.dumps(line) + "\n" for line in lines)
        print(f"{start + len(edits)} edits", flush=True)


def interval(x: Sequence[float], y: Sequence[float], draws: int = 1000) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95 % interval by resampling."""
    draw, found = random.Random(0), []
    for _ in range(draws):
        some = draw.choices(range(len(x)), k=len(x))
        found.append(float(spearmanr([x[i] for i in some], [y[i] for i in some]).statistic))
    found.sort()
    return float(spearmanr(x, y).statistic), found[int(0.025 * draws)], found[int(0.975 * draws)]


def table(file: Path) -> None:
    """Print what the file says."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    print(f"{len(lines)} random edits\n\n| score | with failures | with refusals |\n|---|---|---|")
    for name in lines[0]["scores"]:
        x = [line["scores"][name] for line in lines]
        both = (interval(x, [line[what] for line in lines]) for what in ("failures", "refusals"))
        print(f"| {name} | {' | '.join(f'{r:.2f} ({low:.2f} to {high:.2f})' for r, low, high in both)} |")
    for what in ("generated", "openings", "first token"):
        print(f"{what}: {statistics.median(line['seconds'][what] for line in lines):.2f} s of the processor an edit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--opening", type=int, default=6, help="tokens of an opening")
    parser.add_argument("--strong", type=int, default=142, help="number of the random edit whose answers are taken")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "surrogate.jsonl"
    if not arguments.table:
        settings = Settings(model=arguments.model, max_response_length=arguments.tokens, response_prefix="")
        with Workbench.open(settings) as bench:
            bench.directions = bench.estimate_directions(*bench.residuals())
            measure(bench, arguments, file)
    table(file)


if __name__ == "__main__":
    main()
