"""How near a low-rank update comes to an edit. No torch."""

from pydantic.dataclasses import dataclass

from iconoclast.documents import Value


@dataclass(frozen=True)
class Approximation(Value):
    """The accuracy of an adapter's update, before its rank is padded to that of the adapter; see `edits.edit.LowRank`."""

    module: str
    rank: int
    error: float
    sufficient_rank: int
