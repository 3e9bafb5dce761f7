"""heretic's reproduce.json (format 2, heretic 1.4), read for what it claims. Facts: https://github.com/p-e-w/heretic."""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from iconoclast.peers.claims import LONGEST, Claim, claim_readers, counted

FILES = ("reproduce/reproduce.json", "reproduce.json")
"""Where heretic, and abliterix after it, put it."""


class _Prompts(BaseModel):
    dataset: str
    split: str | None = None

    def __str__(self) -> str:
        return self.dataset + (f" [{self.split}]" if self.split else "")


class _Settings(BaseModel):
    good_evaluation_prompts: _Prompts
    bad_evaluation_prompts: _Prompts
    max_response_length: int = 100


class _Metrics(BaseModel):
    kl_divergence: float
    refusals: int
    base_refusals: int
    n_bad_prompts: int


class _Reproduce(BaseModel):
    settings: _Settings
    metrics: _Metrics


def reproduce_file(folder: Path) -> tuple[str, object] | None:
    """Return the name and content of the file that says how a model was made; None without a readable one."""
    for name in FILES:
        file = folder / name
        try:
            if file.is_file() and file.stat().st_size <= LONGEST:
                return name, json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
    return None


@claim_readers.register("heretic")
def heretic_claims(folder: Path) -> list[Claim]:
    """Read refusals and the KL divergence of the first response token, on heretic's evaluation prompts."""
    found = reproduce_file(folder)
    if found is None:
        return []
    try:
        stated = _Reproduce.model_validate(found[1])
        s, m = stated.settings, stated.metrics
        prompts = str(s.bad_evaluation_prompts)
        said = {
            "source": found[0],
            "definition": f"markers in {s.max_response_length} tokens, on {prompts}",
            "prompts": prompts,
        }
        return [
            counted("refusals", "edited", m.refusals, m.n_bad_prompts, **said),
            counted("base_refusals", "base", m.base_refusals, m.n_bad_prompts, **said),
            Claim(
                name="kl_divergence",
                metric="first_token_kl",
                value=m.kl_divergence,
                source=found[0],
                definition=f"of the first response token, on {s.good_evaluation_prompts}",
                prompts=str(s.good_evaluation_prompts),
            ),
        ]
    except ValidationError:
        return []  # of another tool, or damaged
