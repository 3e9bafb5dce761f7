"""For every setting a value of its own that is not its default."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from iconoclast.config.specs import SettingSpec, list_item, setting_specs, without_none

SPECS = {spec.key: spec for spec in setting_specs()}


# Settings whose text must have a form of its own.
PATTERNS = {
    "axis_weights": "words={}",
    "constraints": "broken <= 0.{}",
    "max_memory": "cpu={}GiB",
    "full_normalization_lora_rank": "auto",
    "direction_methods": "median",
    "template_date": "2026-11-28T09:30:00",
}


def _example(number: int, spec: SettingSpec) -> Any:
    if spec.key == "objectives":
        return ["overrefusals", "-compliance"]
    kind = without_none(spec.annotation)
    item = list_item(kind)
    return _scalar(number, spec, kind, spec.default) if item is None else [_scalar(number, spec, item, None)]


def _scalar(number: int, spec: SettingSpec, kind: Any, default: Any) -> Any:
    if spec.key in PATTERNS:
        return PATTERNS[spec.key].format(number)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != default)
    if kind is bool:
        return not default
    if kind is int:
        return 1000 + number
    if kind is float:
        return round(0.501 + number / 1000, 3)  # between 0.5 and 1, where every number may lie
    return f"words, for {spec.key}"


EXAMPLES: dict[str, Any] = {
    key: _example(number, spec) for number, (key, spec) in enumerate(SPECS.items()) if key != "behavior"
}
"""Without the pack, which stands for other settings and is none itself once they are loaded."""


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables in tables → dotted keys."""
    values: dict[str, Any] = {}
    for name, value in document.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return values
