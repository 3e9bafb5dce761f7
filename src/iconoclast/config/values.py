"""What a value of a setting may be: types that say what is wrong in one line."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, StringConstraints

from iconoclast.constraints import Constraint
from iconoclast.vocabulary import known_methods

Marker = Annotated[str, StringConstraints(strip_whitespace=True, min_length=2)]
AxisWeight = Annotated[str, StringConstraints(pattern=r"^[^=]+=\d+(\.\d+)?$")]
MemoryLimit = Annotated[str, StringConstraints(pattern=r"^(\d+|cpu|mps|disk)=\d+(\.\d+)?\s*([KMGT]i?B)$")]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def _pattern(value: Any) -> Any:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"Input should be a regular expression: {error}") from None
    if not value:
        raise ValueError("Input should be a regular expression: an empty one is found everywhere")
    return value


def _rank(value: Any) -> Any:
    """One validator, so that a bad value is one problem and not one for every type it could have had."""
    if value == "auto":
        return value
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError('Input should be a number from 1 on, or "auto"')
    return value


def _method(value: Any) -> Any:
    """Like a Literal, but with the estimators of installed packages."""
    names = [f"'{name}'" for name in known_methods()]
    if f"'{value}'" not in names:
        raise ValueError(f"Input should be {', '.join(names[:-1])} or {names[-1]}")
    return value


def _date(value: Any) -> str:
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None).isoformat(timespec="seconds")
    except (TypeError, ValueError):
        raise ValueError("Input should be a date, as in 2026-11-28") from None


TemplateDate = Annotated[str, PlainValidator(_date)]


def _constraint(value: Any) -> Any:
    Constraint.parse(str(value))
    return value


def _objective(value: Any) -> Any:
    if not isinstance(value, str) or not value.removeprefix("-").strip():
        raise ValueError('Input should be the name of a score, such as "failures", or "-compliance" to maximise it')
    return value


ObjectiveText = Annotated[str, PlainValidator(_objective)]
ConstraintText = Annotated[str, PlainValidator(_constraint)]
Pattern = Annotated[str, PlainValidator(_pattern)]
Method = Annotated[str, PlainValidator(_method)]
Rank = Annotated[int | Literal["auto"], PlainValidator(_rank)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
