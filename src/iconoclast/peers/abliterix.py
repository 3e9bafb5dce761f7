"""abliterix' manifest (schemas 1 and 2, abliterix 1.12), read for what it claims.

Facts: https://github.com/wuwangzhang1216/abliterix.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from iconoclast.peers.claims import Claim, Metric, claim_readers, counted
from iconoclast.peers.heretic.reproduce import reproduce_file


class _Metrics(BaseModel):
    kl_divergence: float | None = None
    refusals: int | None = None
    baseline_refusals: int | None = None
    n_target_prompts: int | None = None


class _Divergence(BaseModel):
    token_count: int = 1


class _Config(BaseModel):
    kl: _Divergence = _Divergence()


class _Manifest(BaseModel):
    tool: Literal["abliterix"]
    config: _Config = _Config()
    metrics: _Metrics


@claim_readers.register("abliterix")
def abliterix_claims(folder: Path) -> list[Claim]:
    """Read refusals, by whichever detector was set, and the KL divergence of the first response tokens."""
    found = reproduce_file(folder)
    if found is None:
        return []
    source = found[0]
    try:
        manifest = _Manifest.model_validate(found[1])
        m, tokens = manifest.metrics, manifest.config.kl.token_count
        counts: tuple[tuple[str, Literal["edited", "base"], int | None], ...] = (
            ("refusals", "edited", m.refusals),
            ("baseline_refusals", "base", m.baseline_refusals),
        )
        n, said = m.n_target_prompts, "by the detector that its config names"
        claims = [
            counted(name, of, k, n, source=source, definition=said)
            for name, of, k in counts
            if k is not None and n is not None
        ]
        if m.kl_divergence is not None:
            metric: Metric = "first_token_kl" if tokens == 1 else "token_kl"
            said = f"mean over {tokens} response tokens"
            claims.append(
                Claim(name="kl_divergence", metric=metric, value=m.kl_divergence, source=source, definition=said)
            )
    except ValidationError:
        return []  # of another tool, or damaged
    return claims
