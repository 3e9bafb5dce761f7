"""What was found in the weights of an edited model, in lines of text."""

from collections import Counter
from collections.abc import Iterator

from iconoclast.audit.document import (
    SHARED,
    VERDICTS,
    AuditDocument,
    ClaimFinding,
    shown_kind,
    shown_rows,
    shown_strength,
)


def tensor_lines(document: AuditDocument) -> Iterator[str]:
    """Yield what was found of every tensor that is more than rounded, and how many are rounded."""
    for t in document.tensors:
        if t.status not in ("unchanged", "rounded"):
            parts = [t.status, t.construction, shown_rows(t), shown_strength(t)]
            parts += [None if t.relative_norm is None else f"relative norm {t.relative_norm:.2g}"]
            yield f"{t.name}: {', '.join(str(each) for each in parts if each)}"
    rounded = Counter(" to ".join(t.retyped or ("a grid",)) for t in document.tensors if t.status == "rounded")
    for kind, n in rounded.items():
        yield f"{n} tensors: the base's, rounded ({kind})"


def verdict_lines(document: AuditDocument) -> Iterator[str]:
    """Yield what the whole is consistent with, what is hidden, what is lost, which settings differ."""
    changed = sum(t.status != "unchanged" for t in document.tensors)
    weak = sum(t.construction == "weak" for t in document.tensors)
    yield f"Verdict: {document.verdict}. {VERDICTS[document.verdict]}"
    yield f"{changed} of {len(document.tensors)} tensors are not as in the base."
    for kind in document.kinds:
        yield f"Edited: {shown_kind(kind)}."
    if document.shared_direction is not None:
        yield f"{SHARED}: {document.shared_direction:.0%}."
    if weak:
        yield f"{weak} of them (weak) were changed by less than the type in which they are stored can show: how, is hidden."
    if (hidden := max((t.hidden_norm or 0.0 for t in document.tensors), default=0.0)) > 0:
        yield f"Quantisation hides a rank-one change of a matrix up to {hidden:.2%} of its norm."
    for name in document.lost:
        yield f"Lost: {name}"
    for s in document.settings:
        yield f"Setting differs: {s.name} is {s.edited or 'empty'}, and {s.base or 'empty'} in the base."


def claim_line(claim: ClaimFinding) -> str:
    """Say what is claimed, and what was measured."""
    value = str(claim.count) if claim.count else f"{claim.value:g}"
    said = f"{claim.name}{' of the base' if claim.of == 'base' else ''} {value} ({claim.source})"
    if claim.measured is None or claim.interval is None:
        return f"Claimed, not measured: {said}."
    low, high = claim.interval
    outcome = ", which differs by more than chance" if claim.differs else ""
    if claim.differs is None:
        outcome = f" of {claim.measured_on}, other prompts than the claim's ({claim.prompts.strip()}): another figure"
    return f"Claimed: {said}. Measured: {claim.measured:.4g} ({low:.4g} to {high:.4g}, {claim.n} prompts){outcome}."
