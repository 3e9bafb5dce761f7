"""An edited model beside its base: a finding for every tensor, and what the whole is consistent with."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite
from typing import cast

import torch
from torch import Tensor
from torch.linalg import svdvals

from iconoclast.audit.claims import beside
from iconoclast.audit.constructions import ALIKE, low_rank, rank_one, several
from iconoclast.audit.document import AuditDocument, Construction, TensorFinding, Verdict, by_kind
from iconoclast.audit.gguf_file import GgufFile
from iconoclast.audit.matrix import Spectrum, edge, slack, spectrum
from iconoclast.audit.pairs import Adapted, Source, carried, half_steps, open_pair, same
from iconoclast.audit.quantisation import Errors, Steps, errors, even, noise, shrunk
from iconoclast.audit.rank_one_fit import SWAMPED, RankOne
from iconoclast.audit.roundings import on_levels, requantised
from iconoclast.audit.settings import differing
from iconoclast.documents import Plain
from iconoclast.errors import ModelError
from iconoclast.models.checkpoint import DTYPES, PAPERS
from iconoclast.models.gguf_tensors import CODEBOOKS, readable
from iconoclast.peers.known import read_claims
from iconoclast.progress import Progress, Silent

SILENT = {"weak", "unreadable", None}
"""Constructions that have no say in the verdict."""

GRAINED = 0.9
"""Share of values that a type holds exactly from which they are taken to have been of it."""

HIDDEN: dict[Errors, Construction] = {"same": "requantised", "even": "requantised", "parted": "weak"}
"""What a quantised matrix is in which no direction stands out."""

MOSTLY = 0.8
"""Share of the changed tensors that are dense where all count as trained."""


@dataclass
class _Seen:
    """Findings of the matrices of one tensor; `directions` are those of all tensors, `alike` as in `rank_one`."""

    directions: dict[str, Tensor]
    alike: float
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    kinds: list[Construction] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    fits: list[RankOne] = field(default_factory=list)
    bounded: bool = False
    energy: dict[int, float] | None = None
    hidden: float = 0.0


def audit(base: str, edited: str, progress: Progress | None = None) -> tuple[AuditDocument, dict[str, Tensor]]:
    """Compare an edited model with its base, file to file; return what was found and the singular directions.

    Raises:
        ModelError: files are missing, damaged, or of another model.
    """
    progress = progress or Silent()
    one, other = open_pair(base, edited)
    names = sorted(one.places.keys() | other.places.keys(), key=_in_order)
    settings = differing(one, other)
    directions: dict[str, Tensor] = {}
    progress.start("Comparing tensors", len(names))
    tensors = []
    for name in names:
        tensors.append(_finding(name, one, other, directions))
        progress.advance()
    if _mostly_fitted(tensors):
        rest = {i: t.name for i, t in enumerate(tensors) if t.construction == "low_rank" and t.rank == 1}
        for i, name in rest.items():  # beside so many fitted matrices, a reading that has gone far is one all the same
            tensors[i] = _finding(name, one, other, directions, alike=0.0)
    verdict = _verdict(tensors)
    used = {t.row_normalization for t in tensors if t.row_normalization}
    document = AuditDocument(
        base=base,
        edited=edited,
        verdict=verdict,
        row_normalization=next(iter(used)) if verdict == "rank_one" and len(used) == 1 else None,
        kinds=by_kind(tensors),
        shared_direction=_shared_direction(directions),
        tensors=tensors,
        claims=beside(read_claims(other.folder), None),
        lost=[*_lost(one, other), *_lost_tensors(tensors)],
        settings=settings,
    )
    return document, directions


def _shared_direction(directions: Mapping[str, Tensor]) -> float | None:
    """Return the mean squared cosine of the rank-one edits' directions with the one that they share most.

    It is 1 where all have the same direction, and about 1 / d of d where they have nothing in common. None unless there are
    two directions or more, all in one space.
    """
    found = [v for name, v in directions.items() if name.endswith(".direction")]
    if len(found) < 2 or len({len(v) for v in found}) > 1:
        return None
    return float(svdvals(torch.stack(found).double())[0] ** 2 / len(found))


def _in_order(name: str) -> list[str]:
    """Sort layer 10 after layer 9."""
    return [part.zfill(6) if part.isdigit() else part for part in name.split(".")]


def _mostly_fitted(tensors: list[TensorFinding]) -> bool:
    """Check that nearly all changes are rank-one edits, and some of them read a direction of their own."""
    kinds = [t.construction for t in tensors if t.construction not in SILENT]
    fitted = any(t.reading_cosine is not None for t in tensors)
    return fitted and kinds.count("rank_one") >= MOSTLY * len(kinds)


def _finding(
    name: str, one: Source, other: Source, directions: dict[str, Tensor], alike: float = ALIKE
) -> TensorFinding:
    if name not in other.places:
        return TensorFinding(name=name, status="missing")
    if name not in one.places:
        return TensorFinding(name=name, status="added")
    if same(one, other, name):
        return TensorFinding(name=name, status="unchanged", relative_norm=0.0, rank=0)
    before, after = one.places[name], other.places[name]
    if before.shape != after.shape:
        raise ModelError(
            f"{name} is {list(before.shape)} in the base and {list(after.shape)} in the edited model: it is of another base."
        )
    retyped = None if before.dtype == after.dtype else (before.dtype, after.dtype)
    if not all(each.dtype in DTYPES or readable(each.dtype) for each in (before, after)):
        return TensorFinding(name=name, status="changed", retyped=retyped, construction="unreadable")
    seen = _Seen(directions, alike)
    matrices = zip(
        one.matrices(name), other.matrices(name), half_steps(one, name), half_steps(other, name), strict=False
    )
    for index, (w, x, first, second) in enumerate(matrices):
        key = f"{name}.{index}" if len(before.shape) == 3 else name
        _look(w, x, _steps(first, second, after.dtype), seen, key)
    return _summed(name, retyped, seen)


def _steps(one: Tensor | None, other: Tensor | None, kind: str) -> Steps | None:
    """Return how finely one of both or both are quantised, the edited one to the type `kind`; None if neither is."""
    if one is not None and other is not None:
        return Steps(torch.hypot(one, other), alone=False)
    half = other if one is None else one
    return None if half is None else Steps(half, one is None and not kind.startswith(CODEBOOKS))


def _grain(before: Tensor, after: Tensor) -> torch.dtype:
    """Return the type that W' was rounded to: that of W if it is the coarser one and nearly all values are of it."""
    coarser = torch.finfo(before.dtype).eps > torch.finfo(after.dtype).eps
    held = coarser and float((after.to(before.dtype).float() == after.float()).float().mean()) > GRAINED
    return before.dtype if held else after.dtype


def _look(before: Tensor, after: Tensor, steps: Steps | None, seen: _Seen, key: str) -> None:
    """Look at one matrix, as it is stored; `steps` if one of both is quantised."""
    w, x, dtype = before.float(), after.float(), _grain(before, after)
    seen.squares[0] += float((x - w).norm()) ** 2
    seen.squares[1] += float(w.norm()) ** 2
    if torch.equal(w, x):
        return
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(w).all()):
        seen.kinds.append("unreadable")
        return
    # Converters write vectors in float32, and some that are stored less one with it.
    finer = w.ndim == 1 and torch.equal(after.to(before.dtype), before)
    if finer or (requantised(w, x, dtype) if steps is None else w.ndim != 2 and even(w, x, steps.half)):
        seen.kinds.append("requantised")
    elif w.ndim != 2 or min(w.shape) < 2:
        seen.kinds.append("dense")
    elif steps is None:
        rounding = slack(w, x, dtype)
        _name(w, x, rounding, spectrum(w, x, rounding), seen, key)
    else:
        _look_quantised(w, x, steps, seen, key)


def _look_quantised(w: Tensor, x: Tensor, steps: Steps, seen: _Seen, key: str) -> None:
    rounding, told = noise(w, x, steps.half), errors(w, x, steps)
    seen.hidden = max(seen.hidden, edge(rounding) / max(float(w.norm()), 1e-30))
    if told == "same":
        seen.kinds.append("requantised")
        return
    found = spectrum(w, x, rounding, dithered=True)
    if told is not None and (found.rank == 0 or shrunk(w, x, rounding).rank == 0):
        seen.kinds.append(HIDDEN[told])
        return
    # Where the base is on levels of its own, errors have a pattern, of which no direction but a projection's tells anything.
    _name(w, x, rounding, found, seen, key, HIDDEN[told] if told is not None and on_levels(w) else None)


def _name(
    w: Tensor,
    x: Tensor,
    rounding: Tensor,
    found: Spectrum,
    seen: _Seen,
    key: str,
    otherwise: Construction | None = None,
) -> None:
    """Name what a change is consistent with, and keep its directions; `otherwise` if it is not a projection."""
    fit = rank_one(w, x, rounding, found, seen.alike)
    kind = _kind(w, x, found, fit)
    if otherwise is not None and kind != "rank_one":
        seen.kinds.append(otherwise)
        return
    kept = max(1, min(found.rank, 8))
    seen.directions[f"{key}.left"] = found.left[:, :kept].mT.contiguous()
    seen.directions[f"{key}.right"] = found.right[:, :kept].mT.contiguous()
    seen.energy = seen.energy or found.energy()
    seen.bounded |= found.bounded
    if fit is not None and kind == "rank_one":
        seen.directions[f"{key}.direction"] = fit.direction.contiguous()
        if fit.reading is not None:
            seen.directions[f"{key}.reading"] = fit.reading.contiguous()
        seen.fits.append(fit)
    seen.ranks.append(1 if kind == "rank_one" and fit and fit.row_normalization in ("none", "pre") else found.rank)
    seen.kinds.append(kind)


def _kind(w: Tensor, x: Tensor, found: Spectrum, fit: RankOne | None) -> Construction:
    if fit is not None and fit.exact:
        return "rank_one"
    if not found.dithered and found.total <= SWAMPED * found.noise:
        return "weak"
    if several(w, x, found):
        return "several"
    return "low_rank" if low_rank(found) else "dense" if fit is None else "mixed"


def _summed(name: str, retyped: tuple[str, str] | None, seen: _Seen) -> TensorFinding:
    """Put together what was found of the matrices of a tensor."""
    kind = _kind_of(seen.kinds)
    change, whole = seen.squares
    return TensorFinding(
        name=name,
        status="rounded" if kind == "requantised" else "changed",
        retyped=retyped,
        relative_norm=(change / whole) ** 0.5 if whole > 0 and isfinite(change + whole) else None,
        rank=max(seen.ranks, default=None),
        rank_is_a_lower_bound=seen.bounded or None,
        energy=seen.energy,
        construction=kind,
        hidden_norm=seen.hidden or None,
        **(_fit_of(seen.fits) if kind == "rank_one" else {}),
    )


def _kind_of(found: Sequence[Construction]) -> Construction:
    """Return what the changes of a tensor's matrices are together: weak ones have no say beside others, several kinds are dense."""
    if not found:  # the same values in another type
        return "requantised"
    kinds = set(found)
    if "weak" in kinds and kinds <= {"weak", "requantised"}:
        return "weak"
    kinds.discard("weak")
    return kinds.pop() if len(kinds) == 1 else "dense"


def _fit_of(fits: Sequence[RankOne]) -> Plain:
    """Return the fields of a finding that tell of its rank-one edits; none unless they are alike in construction."""
    if len({(fit.row_normalization, fit.along) for fit in fits}) != 1:
        return {}
    own_readings = any(fit.reading is not None for fit in fits)
    return {
        "strength": float(torch.tensor([fit.strength for fit in fits]).median()),
        "row_normalization": fits[0].row_normalization,
        "cut": max((fit.cut for fit in fits if fit.cut), default=None),
        "along": fits[0].along,
        "reading_cosine": min(fit.cosine for fit in fits) if own_readings else None,
        "error": max(fit.error for fit in fits),
        "strength_error": _largest([fit.strength_error for fit in fits]),
        "direction_error": _largest([fit.direction_error for fit in fits]),
    }


def _largest(bounds: list[float | None]) -> float | None:
    """Return the largest bound; None if one is not known."""
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def _verdict(tensors: list[TensorFinding]) -> Verdict:
    changed = Counter(t.construction for t in tensors if t.status != "unchanged")
    if not changed:
        return "untouched"
    if changed.keys() <= {"weak", "requantised"} and changed["weak"]:
        return "weak"
    if changed.keys() <= SILENT:
        return "weak" if changed["weak"] else "unreadable" if changed["unreadable"] else "parts"
    telling = Counter(cast("dict[Verdict, int]", {kind: n for kind, n in changed.items() if kind not in SILENT}))
    if len(telling) > 1:
        del telling["requantised"]  # an edited model is often stored in a coarser type
    if telling["dense"] >= MOSTLY * telling.total() and telling.keys() <= {"dense", "low_rank"}:
        return "dense"  # training touches few rows of an embedding
    return next(iter(telling)) if len(telling) == 1 else "mixed"


def _lost(one: Source, other: Source) -> list[str]:
    """Name the papers that only the base has: files or, where one of both is a GGUF file, what stands in its header."""
    if isinstance(other, Adapted):
        return []
    if isinstance(one, GgufFile) or isinstance(other, GgufFile):
        return sorted(carried(one) - carried(other))
    has = {file.name for file in other.folder.iterdir()}
    papers = (f.name for f in one.folder.iterdir() if any(fnmatchcase(f.name, p) for p in PAPERS))
    return sorted(name for name in papers if name not in has)


def _lost_tensors(tensors: list[TensorFinding]) -> list[str]:
    """Name the tensors that only the base has, those of a whole part (a vision tower, a draft head) or of all layers together."""
    kept = {_part(t.name) for t in tensors if t.status != "missing"}
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.status == "missing":
            alike = re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name)
            found.setdefault(alike if _part(tensor.name) in kept else f"{_part(tensor.name)}.*", []).append(tensor.name)
    return [names[0] if len(names) == 1 else f"{group} ({len(names)} tensors)" for group, names in found.items()]


def _part(name: str) -> str:
    """Return the part of a model that a tensor is of: two words of its name at most, without its last."""
    return ".".join([word for word in name.split(".")[:-1] if not word.isdigit()][:2])
