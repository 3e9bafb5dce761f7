"""The model card of an export: says that the model was edited, how, and what changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.version import __version__

COUNTED = (
    ("Refusals", "refusals"),
    ("Soft refusals", "soft_refusals"),
    ("Broken responses", "broken"),
    ("Complied", "complied"),
    ("Overrefusals", "overrefusals"),
    ("Broken benign responses", "benign_broken"),
)
"""Counts of `Scores` as tables show them: title, attribute."""

MEASURED = "Measured on this export, loaded from these files, against its base."
NOT_MEASURED = "These files were not measured; the figures are of the same edit applied to the base model while it ran."
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}
DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_LICENCE = "apache-2.0"


def model_card(
    *,
    base: str,
    licence: str | None,
    kind: str,
    trial: Trial,
    row_normalization: str,
    sites: int,
    sets: Mapping[str, Any],
    prompts: str,
    before: Scores,
    after: Scores,
    measured: bool,
    approximation_error: float,
) -> str:
    """The README.md of an exported model, in the format of the hub.

    Args:
        base: the base model, without the folders of a local path.
        licence: licence of the base model, as the hub writes it, if it is known.
        kind: adapter, merged or gguf.
        trial: what was exported.
        row_normalization: none, pre or full.
        sites: number of edited matrices.
        sets: all prompt sets of the run: name → source, n, sha256.
        prompts: the prompt sets that `before` and `after` were measured on.
        before: scores of the base model.
        after: scores of the export itself, loaded from this folder's files, or of the edit that it was written from.
        measured: whether they are of the export itself.
        approximation_error: largest relative error of a site's update in an adapter.
    """
    direction = trial.parameters.direction
    where = (
        f"one for all layers, taken at layer {direction.index:.2f}"
        if direction.scope == "global"
        else "each layer's own"
    )
    name = _shown_name(base)
    approximate = (
        f"\nThe adapter is a low-rank approximation of the edit; the largest relative error of a matrix is {approximation_error:.1%}.\n"
        if approximation_error
        else ""
    )
    relation = _relation(base, licence, kind)
    licence = DEMO_LICENCE if base == "demo" else licence
    return f"""---
{relation}library_name: {LIBRARIES[kind]}
pipeline_tag: text-generation
tags:
- iconoclast
- representation-editing
- edited
---

# An edited version of {name}

**This model was edited.** Its weights differ from {name} by an edit made with ICONOCLAST {__version__}, which changes how often the
model refuses. It was not trained further. {_in_words(before, after)}

## What was edited

{sites} matrices that write to the residual stream ({_components(trial)}) write less of a direction that separates prompts
that show the behaviour from prompts that do not: a strength below 1 weakens the direction, 1 removes it, more than 1
reverses it. {_strengths(trial)} Direction: {direction.method}, {where}. Row normalisation: {row_normalization}. The exact
parameters are in `trial_information.json`, the settings and prompt sets in `iconoclast_config.toml`.
{approximate}
## What changed

{MEASURED if measured else NOT_MEASURED} {prompts}

| | base | this model |
|---|---|---|
{chr(10).join(f"| {name} | {a} | {b} |" for name, a, b in score_rows(before, after))}

Refusals are target prompts refused and overrefusals benign prompts refused, found by marker phrases; soft refusals turn
the request away in other words; broken responses are empty, loop, or are in the wrong script. With 95 % intervals. Compliance is a heuristic from 0 to 1. KL is that of the first response token on benign prompts, in nats.

## How to load it

```python
{_snippet(kind, base)}
```

## How to reproduce and verify it

`iconoclast run --config iconoclast_config.toml --out FOLDER` makes a run like the one that this is trial {trial.index} of, the
same one on the same machine with the same versions; the prompt sets are

{chr(10).join(f"- `{set_name}`: {each['source']}, {each['n']} prompts, SHA-256 `{each['sha256'][:16]}…`" for set_name, each in sets.items())}

`edit.safetensors` holds the direction and the strength of every edited matrix, and `trial_information.json` the versions.
`iconoclast verify THIS_FOLDER --base BASE_MODEL` checks the sums of all files, that nothing but the declared matrices
differs from the base model and that they differ by the declared edit, and, with the same prompts, the scores.
`sha256sum -c SHA256SUMS` checks the sums alone.

## Limits and licence

The edit acts on one behaviour as these prompts show it; other prompts can behave otherwise. A response without a marker
phrase counts as no refusal, and only the coarsest nonsense counts as broken: read some. Responses were greedy and as long as
`max_response_length`; nothing else was evaluated: no abilities, no other languages, no safety. A model that refuses less also
refuses less where it should: whoever deploys it should expect that and answers for its use. The licence of {name}
applies{f" ({licence})" if licence else "; it is not known to the program that wrote this card"}.
"""


def _relation(base: str, licence: str | None, kind: str) -> str:
    """The lines of the card's front matter that say where the model comes from."""
    hub = DEMO_BASE if base == "demo" else base if base.count("/") == 1 else None
    known = DEMO_LICENCE if base == "demo" else licence
    lines = [f"license: {known}"] if known else []
    if hub is not None:
        lines += [f"base_model: {hub}", f"base_model_relation: {'adapter' if kind == 'adapter' else 'finetune'}"]
    return "".join(f"{line}\n" for line in lines)


def _shown_name(base: str) -> str:
    """A name that says something to a stranger, and nothing of the author's folders."""
    return "SmolLM2-135M-Instruct" if base == "demo" else base


def _snippet(kind: str, base: str) -> str:
    if kind == "gguf":
        return 'from llama_cpp import Llama\n\nmodel = Llama("THIS FOLDER/model.gguf")'
    if kind == "merged":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
        )
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{DEMO_BASE if base == "demo" else base}", dtype="auto")\n'
        'model = PeftModel.from_pretrained(base, "THIS FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")'
    )


def _strengths(trial: Trial) -> str:
    peaks = (
        f"{component} peaks at {profile.max_weight:.2f} in layer {profile.max_weight_position:.1f}"
        for component, profile in trial.parameters.profiles.items()
    )
    return f"Strength: {', '.join(peaks)}."


def score_rows(before: Scores, after: Scores) -> Sequence[tuple[str, str, str]]:
    """The before/after table: name, base, edited."""
    return [
        *((title, getattr(before, name).with_interval, getattr(after, name).with_interval) for title, name in COUNTED),
        ("Disclaimer hits", f"{before.disclaimer_hits}", f"{after.disclaimer_hits}"),
        ("Compliance", f"{before.compliance:.2f}", f"{after.compliance:.2f}"),
        ("First-token KL", f"{before.kl_divergence:.4f}", f"{after.kl_divergence:.4f}"),
    ]


def _components(trial: Trial) -> str:
    return ", ".join(trial.parameters.profiles)


def _in_words(before: Scores, after: Scores) -> str:
    return (
        f"Of {before.refusals.n} prompts that show the behaviour, the base model refused {before.refusals.count}, answered "
        f"{before.broken.count} with broken text and complied with {before.complied.count}; this model refuses "
        f"{after.refusals.count}, answers {after.broken.count} with broken text and complies with {after.complied.count}."
    )


def trial_information(trial: dict[str, Any], **more: Any) -> dict[str, Any]:
    """trial_information.json: the trial with what was measured of its export."""
    return {"iconoclast_version": __version__, "trial": trial, **more}
