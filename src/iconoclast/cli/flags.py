"""Every setting as a command-line flag."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from iconoclast.config.specs import SettingSpec, list_item, setting_specs, without_none

SETTINGS_PANEL = "Settings (each can also stand in the TOML file or in an ICONOCLAST_ variable)"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one option per setting; it receives those that were used as `flags`, keyed by dotted name."""
    specs = {"setting__" + "__".join(spec.path): spec for spec in setting_specs()}
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        flags = {spec.key: arguments.pop(name) for name, spec in specs.items()}
        command(**arguments, flags={key: value for key, value in flags.items() if value is not None})

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(spec))
        for name, spec in specs.items()
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "flags"]
    parameters = [*kept, *options]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapper.__wrapped__
    return wrapper


def _annotation(spec: SettingSpec) -> Any:
    value_type = _value_type(spec.annotation)
    names = [spec.flag]
    if value_type is bool:
        names = [f"{spec.flag}/--no-{spec.flag.removeprefix('--')}"]
    return Annotated[
        value_type | None,
        typer.Option(*names, help=_help(spec), rich_help_panel=SETTINGS_PANEL, show_default=False),
    ]


def _value_type(annotation: Any) -> Any:
    """What the option takes; the settings check the value."""
    annotation = without_none(annotation)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if list_item(annotation) is not None:
        return list[str]
    if get_origin(annotation) is Literal or annotation is Path:
        return str
    return annotation if annotation in (int, float, bool) else str


def _help(spec: SettingSpec) -> str:
    inner = list_item(spec.annotation) or without_none(spec.annotation)
    choices = f" One of: {', '.join(get_args(inner))}." if get_origin(inner) is Literal else ""
    repeated = " Repeat for several." if list_item(spec.annotation) is not None else ""
    default = spec.default
    shown = "" if default is None or isinstance(default, list) else f" [default: {default}]"
    return f"{spec.description}{choices}{repeated}{shown}"
