"""The settings as the command line and the documentation see them."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from iconoclast.config.schema import PromptSource, Settings


@dataclass(frozen=True)
class SettingSpec:
    path: tuple[str, ...]
    annotation: Any
    default: Any
    description: str

    @property
    def key(self) -> str:
        """Dotted name, as in `good_prompts.split`."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """Kebab-case flag, as in `--good-prompts.split`."""
        return "--" + self.key.replace("_", "-")


def setting_specs(
    model: type[BaseModel] = Settings, prefix: tuple[str, ...] = (), default: Any = None
) -> Iterator[SettingSpec]:
    """Yield every setting, nested ones flattened, in order of definition."""
    for name, field in model.model_fields.items():
        value = getattr(default, name) if default is not None else field.get_default()
        inner = without_none(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_specs(inner, (*prefix, name), value)
        else:
            value = None if value is PydanticUndefined else value
            yield SettingSpec((*prefix, name), field.annotation, value, _description(field))


def prompt_sets() -> dict[str, tuple[PromptSource | None, str]]:
    """Return the settings that are prompt sets: name → (default, description)."""
    return {
        name: (field.default, _description(field))
        for name, field in Settings.model_fields.items()
        if without_none(field.annotation) is PromptSource
    }


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def list_item(annotation: Any) -> Any | None:
    """Return the item type of a list annotation, None for anything else."""
    return get_args(annotation)[0] if get_origin(annotation) is list else None


def without_none(annotation: Any) -> Any:
    """Return X for the annotation `X | None`."""
    kept = [part for part in get_args(annotation) if part is not type(None)]
    return kept[0] if get_origin(annotation) in (Union, types.UnionType) and len(kept) == 1 else annotation
