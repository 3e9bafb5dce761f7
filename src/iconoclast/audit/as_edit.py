"""What an audit has found as an Edit, which can be applied, measured and compared like one of our own."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from iconoclast.audit.document import AuditDocument, TensorFinding
from iconoclast.edits.edit import Edit
from iconoclast.errors import ModelError
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.names import local_path
from iconoclast.models.skeleton import load_skeleton
from iconoclast.vocabulary import COMPONENTS, NORMALIZATIONS, RowNormalization, Site

ALIKE = 0.999
"""Cosine from which directions of experts are one."""

UNTOUCHED = ("unchanged", "rounded")


def edit_of(document: AuditDocument, directions: Mapping[str, Tensor]) -> Edit:
    """Return the edit that an audit has found; one that was cut to a low rank is made whole.

    Raises:
        ModelError: the model is not a rank-one edit of matrices that write to the residual stream, in one row normalisation.
    """
    changed = {t.name: t for t in document.tensors if t.status not in UNTOUCHED and t.construction != "weak"}
    normalization = _normalization(document, changed)
    if vague := next(
        (t.name for t in changed.values() if t.strength_error is None and t.hidden_norm is not None), None
    ):
        raise ModelError(
            f"Quantisation has swallowed a part of what was taken from {vague}: how strong the edit is, is not known."
        )
    skeleton, checkpoint = load_skeleton(document.base, COMPONENTS), Checkpoint.find(local_path(document.base))
    assert checkpoint is not None  # the audit has read it
    found: dict[Site, tuple[Tensor, float]] = {}
    readings: dict[Site, Tensor] = {}
    for site, writer in skeleton.writers(COMPONENTS).items():
        names = [
            name
            for name in checkpoint.names(skeleton.model, writer.parameter, writer.stored.shape) or ()
            if name in changed
        ]
        if names:
            (v, alike), (reading, read_alike) = (_agreed(directions, names, kind) for kind in ("direction", "reading"))
            strengths = [changed.pop(name).strength or 0.0 for name in names]
            if v is None or not (alike and read_alike) or max(strengths) - min(strengths) > 0.02:
                raise ModelError(f"The experts of {site.module} lose different directions, which one edit cannot do.")
            found[site] = v, sum(strengths) / len(strengths)
            if reading is not None:
                readings[site] = reading
    if changed:
        raise ModelError(
            f"{next(iter(changed))} changed too, which does not write to the residual stream: it is not an edit."
        )
    return Edit({s: v for s, (v, _) in found.items()}, {s: x for s, (_, x) in found.items()}, normalization, readings)


def _agreed(directions: Mapping[str, Tensor], names: Sequence[str], kind: str) -> tuple[Tensor | None, bool]:
    """Return the direction of a kind that the matrices of some tensors have, and whether all have the same."""
    of_kind = [
        d for k, d in directions.items() if k.endswith(f".{kind}") and k.startswith(tuple(f"{n}." for n in names))
    ]
    return next(iter(of_kind), None), all(abs(float(d @ of_kind[0])) >= ALIKE for d in of_kind)


def _normalization(document: AuditDocument, changed: Mapping[str, TensorFinding]) -> RowNormalization:
    odd = next((t for t in changed.values() if t.construction != "rank_one"), None)
    if odd is not None:
        raise ModelError(f"{document.edited} is not a rank-one edit: {odd.name} is {odd.construction or odd.status}.")
    if not changed:
        raise ModelError(
            f"{document.edited} has the weights of {document.base}, or differs by rounding: there is no edit."
        )
    known = next((each for each in NORMALIZATIONS if each == document.row_normalization), None)
    if known is None:
        ways = sorted({str(t.row_normalization) for t in changed.values()})
        raise ModelError(
            f"{document.edited} treats rows as {' and '.join(ways)}, and an edit in one way of {NORMALIZATIONS}."
        )
    return known
