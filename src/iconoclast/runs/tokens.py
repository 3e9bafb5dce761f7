"""What an edit does at every token of some prompts: the direction in the residual stream, and the first token's odds."""

from typing import Literal

import torch
from torch import Tensor

from iconoclast.edits.edit import Edit
from iconoclast.evaluation.examination import Variant
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.residuals import token_residuals
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import Prompt
from iconoclast.runs.documents import FirstToken, TokenPrompt, TokenView
from iconoclast.runs.geometry import LONGEST_TEXT
from iconoclast.runs.workbench import Workbench
from iconoclast.search.pareto import Trial

SetName = Literal["target", "benign"]

SHOWN: dict[SetName, int] = {"target": 4, "benign": 2}
"""Prompts of each set that are read, the first ones."""

MOST_TOKENS = 32
"""Tokens of a prompt that are kept, the last ones."""

LIKELIEST = 10
"""Tokens that can begin the response, of each model."""


def token_view(bench: Workbench, trial: Trial, progress: Progress | None = None) -> TokenView:
    """Read some of the prompts that are reported on, with and without a trial's edit."""
    progress, edit = progress or Silent(), bench.edit(trial.parameters)
    layers, directions = edited_directions(edit)
    live = bench.live(f"trial {trial.index}", edit)
    sets: dict[SetName, tuple[Prompt, ...]] = {
        "target": bench.sample.target.prompts,
        "benign": bench.sample.benign.prompts,
    }
    chosen = [(name, prompt) for name, most in SHOWN.items() for prompt in sets[name][:most]] if layers else []
    progress.start("Looking at the tokens of some prompts", len(chosen))
    shown = []
    for name, prompt in chosen:
        shown.append(_read(live, name, prompt, layers, directions))
        progress.advance()
    return TokenView(trial=trial.index, layers=layers, prompts=shown)


def edited_directions(edit: Edit) -> tuple[list[int], Tensor]:
    """Return the edited layers and the unit direction of each [n, d]: where the sites of a layer differ, the mean of their
    directions, weighted by the size of their strengths."""
    sums: dict[int, Tensor] = {}
    for site in edit.sites:
        weighted = abs(edit.strengths[site]) * edit.directions[site].float().cpu()
        sums[site.layer] = sums[site.layer] + weighted if site.layer in sums else weighted
    layers = [layer for layer, total in sums.items() if total.any()]
    return layers, torch.stack([sums[layer] / sums[layer].norm() for layer in layers]) if layers else torch.empty(0, 0)


def _read(live: Variant, name: SetName, prompt: Prompt, layers: list[int], directions: Tensor) -> TokenPrompt:
    ids = live.lm.encode([prompt])[0]
    residuals, base = token_residuals(live.lm, ids)
    with live.applied():
        edited_residuals, edited = token_residuals(live.lm, ids)
    unit = residuals.norm(dim=-1).median(0).values[layers, None]
    carried = [
        torch.einsum("tnd,nd->nt", each[-MOST_TOKENS:, layers], directions) / unit
        for each in (residuals, edited_residuals)
    ]
    return TokenPrompt(
        set=name,
        text=prompt.text[:LONGEST_TEXT],
        tokens=[live.lm.token_text(token) for token in ids[-MOST_TOKENS:]],
        base=[[round(value, 3) for value in row] for row in carried[0].tolist()],
        edited=[[round(value, 3) for value in row] for row in carried[1].tolist()],
        first=first_tokens(live.lm, base.exp(), edited.exp()),
    )


def first_tokens(lm: LanguageModel, base: Tensor, edited: Tensor) -> list[FirstToken]:
    """Return the tokens among the likeliest to begin the response before or after the edit, likeliest before first."""
    likeliest = [each.topk(min(LIKELIEST, len(each))).indices.tolist() for each in (base, edited)]
    return [
        FirstToken(token=lm.token_text(token), base=round(float(base[token]), 5), edited=round(float(edited[token]), 5))
        for token in dict.fromkeys([*likeliest[0], *likeliest[1]])
    ]
