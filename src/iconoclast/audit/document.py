"""audit.json: what an edited model's files say beside its base's. No torch."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from iconoclast.audit.behavior import Character
from iconoclast.documents import UNLESS_NONE, Document, Part
from iconoclast.evaluation.capabilities import Capabilities
from iconoclast.peers.claims import Claim
from iconoclast.version import __version__
from iconoclast.vocabulary import RowNormalization

TensorStatus = Literal["unchanged", "rounded", "changed", "missing", "added"]
"""What became of a tensor; `rounded` is its base's value in a coarser type, and nothing else."""

Construction = Literal["rank_one", "several", "low_rank", "dense", "mixed", "requantised", "weak", "unreadable"]
"""What a change is consistent with.

`several` are directions that are weakened together, as in a merge of edited models; `mixed` is a rank-one edit with other
changes on top, as in an edited model that was trained; `weak` is below what the stored type can tell, `unreadable` a type
not compared.
"""

Verdict = Literal[
    "untouched",
    "rank_one",
    "several",
    "low_rank",
    "dense",
    "requantised",
    "weak",
    "parts",
    "unreadable",
    "mixed",
    "unseen",
]
"""What the whole edit is consistent with; weak, unreadable and requantised tensors have no say beside other kinds.

`unseen` are the weights behind an endpoint.
"""

VERDICTS: Mapping[Verdict, str] = {
    "untouched": "The weights are those of the base, bit by bit.",
    "rank_one": "Every change beyond rounding is a rank-one edit: a matrix writes less, or the reverse, of one direction.",
    "several": "Every changed matrix writes less of several directions, as after a merge of edited models.",
    "low_rank": "Every change has low rank and reads more than the edited matrix itself, as a trained adapter does.",
    "dense": "The changes are dense, as training makes them.",
    "requantised": "The weights are those of the base, rounded to a coarser type.",
    "weak": "Some weights are not just the base's rounded, but what was changed is less than the stored type can tell.",
    "parts": "Tensors are missing or added, and all others are those of the base, bit by bit.",
    "unreadable": "What changed is of types or values that cannot be compared: see the matrices one by one.",
    "mixed": "The changes are of several kinds: see the matrices one by one.",
    "unseen": "The weights behind the endpoint were not seen.",
}
"""A sentence about each verdict, for people."""

Normalization = RowNormalization | Literal["restored"]
"""Those of `edits.edit.Edit`, and rows that are edited as they are and then get their norms back."""


SHOWN_ERROR = 0.001
"""Relative error of a strength from which it is shown."""


SHARED = "How much of the directions one for all layers would hold"
"""What `AuditDocument.shared_direction` is, for people."""


class TensorFinding(Part):
    """One tensor of the base or of the edited model.

    Attributes:
        name: as in the checkpoint.
        retyped: types before and after, in safetensors' names, where they differ.
        relative_norm: ‖W' − W‖ / ‖W‖ (Frobenius).
        rank: number of singular values of W' − W above the rounding of the stored type, the largest of all experts.
        rank_is_a_lower_bound: whether no more values were computed.
        energy: r → share of ‖W' − W‖² in the first r singular values.
        hidden_norm: of a matrix that is quantised, relative norm up to which a rank-one change could not be told from rounding.
        strength: λ of the rank-one edit that the change is consistent with; see `edits.edit.Edit`.
        row_normalization: which one of that edit.
        cut: rank to which its update is cut, as adapters do where row norms are restored.
        reading_cosine: where an edit takes what the matrix has along another direction than it writes less of, their cosine.
        along: rows if the direction lies in the outputs of a matrix [outputs, inputs], as edits of residual writers do.
        error: what the re-derived edit misses, relative to the change, beyond the rounding of the stored type.
        strength_error: bound of the relative error of `strength` that this rounding leaves; without one, quantisation has swallowed
            a part of the edit, which is stronger.
        direction_error: bound of 1 − |cosine| between the recovered direction and the true one.
    """

    name: str
    status: TensorStatus
    retyped: tuple[str, str] | None = UNLESS_NONE
    relative_norm: float | None = None
    rank: int | None = None
    rank_is_a_lower_bound: bool | None = UNLESS_NONE
    energy: Mapping[int, float] | None = UNLESS_NONE
    construction: Construction | None = UNLESS_NONE
    hidden_norm: float | None = UNLESS_NONE
    strength: float | None = UNLESS_NONE
    row_normalization: Normalization | None = UNLESS_NONE
    cut: int | None = UNLESS_NONE
    along: Literal["rows", "columns"] | None = UNLESS_NONE
    reading_cosine: float | None = UNLESS_NONE
    error: float | None = UNLESS_NONE
    strength_error: float | None = UNLESS_NONE
    direction_error: float | None = UNLESS_NONE


def shown_strength(tensor: TensorFinding) -> str:
    """Return a tensor's strength with the error that rounding leaves, if that is worth showing; empty without a strength."""
    if tensor.strength is None:
        return ""
    if tensor.strength_error is None and tensor.hidden_norm is not None:
        return f"strength {tensor.strength:.3f} or more"
    error = f" ± {tensor.strength_error:.1%}" if (tensor.strength_error or 0.0) >= SHOWN_ERROR else ""
    return f"strength {tensor.strength:.3f}{error}"


def shown_rows(tensor: TensorFinding, reading: bool = True) -> str:
    """Return how a rank-one edit treats rows and, with `reading`, whether it reads another direction than it writes."""
    cut = [f"rank {tensor.cut}"] if tensor.cut else []
    read = [] if tensor.reading_cosine is None or not reading else [f"read at cosine {tensor.reading_cosine:.2f}"]
    return ", ".join([tensor.row_normalization or "", *cut, *read]).removeprefix(", ")


class KindFinding(Part):
    """Rank-one edits of one kind of matrix.

    Attributes:
        kind: its name in a layer.
        layers: those in which it was edited.
        strengths: of each of these, the mean of experts.
    """

    kind: str
    layers: list[int]
    strengths: list[float]


def by_kind(tensors: Iterable[TensorFinding]) -> list[KindFinding]:
    """Return layers and strengths of the rank-one edits of every kind of matrix; the strength of experts is their mean."""
    found: dict[str, dict[int, list[float]]] = {}
    for tensor in tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        numbers = [int(part) for part in parts if part.isdigit()]
        if tensor.strength is not None and numbers:
            kind = ".".join(part for part in parts[-3:] if not part.isdigit())
            found.setdefault(kind, {}).setdefault(numbers[0], []).append(tensor.strength)
    return [
        KindFinding(kind=kind, layers=sorted(at), strengths=[sum(at[i]) / len(at[i]) for i in sorted(at)])
        for kind, at in sorted(found.items())
    ]


def shown_kind(found: KindFinding) -> str:
    """Return where a kind of matrix was edited and how strongly, in words."""
    first, last, low, high = found.layers[0], found.layers[-1], min(found.strengths), max(found.strengths)
    count = len(found.layers)
    layers = "layers" if count == last - first + 1 else f"{count} layers from"
    where = f"layer {first}" if count == 1 else f"{layers} {first} to {last}"
    return f"{found.kind} in {where}, strength {low:.3f}" + (f" to {high:.3f}" if low < high else "")


class SettingFinding(Part):
    """A setting that base and edited model both have, with other values.

    Attributes:
        name: as in the configuration or, where one of both is a GGUF file, in its header; or vocabulary, merges, chat template.
        base: its value, of a long one what stands where the two begin to differ; None if it is empty.
        edited: the same.
    """

    name: str
    base: str | None
    edited: str | None


class ClaimFinding(Claim):
    """A claim, and what was measured with the same definition; without a measurement it is claimed and no more.

    Attributes:
        measured: rate or nats, with its 95 % interval and the number of prompts.
        measured_on: source of the prompts.
        differs: whether they differ by more than the intervals of both allow; None without a measurement, and where the
            claim names other prompts, on which it is another figure.
    """

    measured: float | None = None
    interval: tuple[float, float] | None = UNLESS_NONE
    n: int | None = UNLESS_NONE
    measured_on: str | None = UNLESS_NONE
    differs: bool | None = UNLESS_NONE


class AuditDocument(Document):
    """audit.json: an edited model beside its base.

    Attributes:
        verdict: what the whole edit is consistent with.
        row_normalization: of a rank-one edit, where all matrices agree.
        kinds: rank-one edits by kind of matrix: layers and strengths.
        shared_direction: mean squared cosine of their directions with the one that they share most; 1 if there is but one.
        lost: what only the base has: files beside the weights (tokenizer, template, processor …), and tensors, those of a part together.
        settings: what both say beside the weights, and say differently.
        directions: file of the singular directions, beside this one.
        claims: figures on the card and in other tools' papers.
        behavior: what `evaluate` measures, beside the base; None with --weights-only.
        character: how the responses themselves differ; None as above.
        capabilities: what lm-eval measures of both, if the user names tasks.
    """

    what: ClassVar[str] = "audit"

    iconoclast_version: str = __version__
    base: str
    edited: str
    verdict: Verdict
    row_normalization: Normalization | None = None
    kinds: list[KindFinding] = Field(default=[], exclude_if=lambda value: not value)
    shared_direction: float | None = UNLESS_NONE
    tensors: list[TensorFinding]
    lost: list[str]
    settings: list[SettingFinding] = Field(default=[], exclude_if=lambda value: not value)
    directions: str | None = None
    claims: list[ClaimFinding] = Field(default=[], exclude_if=lambda value: not value)
    behavior: Mapping[str, Any] | None = None
    character: Character | None = None
    capabilities: Capabilities | None = UNLESS_NONE
