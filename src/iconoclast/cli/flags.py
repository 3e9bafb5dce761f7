"""Options that several commands share, declared once: every setting as a flag, and others."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import typer
from typer import Context, Option
from typer.core import TyperCommand

from iconoclast.config.layers import LoadedSettings, load_settings
from iconoclast.config.schema import SYNONYMS, Settings
from iconoclast.config.specs import SettingSpec, list_item, setting_specs, without_none

SETTINGS_PANEL = "Settings (each can also stand in the TOML file or in an ICONOCLAST_ variable)"


_SYNONYMS = {name.replace("_", "-"): own.replace("_", "-") for name, own in SYNONYMS.items()}


def own_flag(name: str) -> str:
    """Return the flag under which a prompt set's setting is declared: `--benign-prompts-split` is `--good-prompts-split`."""
    for synonym, own in _SYNONYMS.items():
        if name.startswith((f"--{synonym}-", f"{synonym}-")):
            return name.replace(synonym, own, 1)
    return name


class CommandWithOptions(TyperCommand):
    """A command with more options than its function has parameters; the values wait in `ctx.meta`.

    The options are made when the command is called or asked for help: the others need not wait for them.
    """

    option_sets: ClassVar[Sequence[Callable[[], Sequence[Any]]]] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the function's own parameters, the further options, and --help."""
        parameters = super().get_params(ctx)
        own = len(self.params)
        return [*parameters[:own], *self._further(), *parameters[own:]]

    def invoke(self, ctx: Any) -> Any:
        """Call the function without the further options; it asks for them by `given_settings` and the like."""
        for option in self._further():
            ctx.meta[_key(option.name)] = ctx.params.pop(option.name)
        return super().invoke(ctx)

    def _further(self) -> list[Any]:
        return [option for options in self.option_sets for option in options()]


def options_of(function: Callable[..., Any]) -> Sequence[Any]:
    """Make the options that Typer would give a command with this signature."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app).params


def given(ctx: Context, options: Sequence[Any]) -> dict[str, Any]:
    """Return what the user gave for these options, by parameter name; lists as lists."""
    values = {option.name: ctx.meta[_key(option.name)] for option in options}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _key(name: str) -> str:
    return f"iconoclast.option.{name}"


# Every setting as a flag


@cache
def setting_options() -> Sequence[Any]:
    """Make one option per setting."""

    def settings(**values: Any) -> None: ...

    parameters = [
        inspect.Parameter(_name(spec), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(spec))
        for spec in setting_specs()
    ]
    settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    settings.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return options_of(settings)


class SettingsCommand(CommandWithOptions):
    """A command with a flag for every setting: its function reads them by `given_settings`."""

    option_sets = (setting_options,)


def loaded_settings(ctx: Context, config: Path | None, **named: Any) -> LoadedSettings:
    """Load the settings that the command's flags, the environment and the file `config` give.

    Args:
        ctx: of a SettingsCommand.
        config: the settings file.
        named: settings that the command takes in another way, None if they were not given; they come before flags.

    Raises:
        SettingsError: one of them cannot be used.
    """
    values = given(ctx, setting_options())
    flags = {spec.key: values[_name(spec)] for spec in setting_specs() if values[_name(spec)] not in (None, [])}
    flags |= {key: str(value) for key, value in named.items() if value is not None}
    return load_settings(flags, config)


def given_settings(ctx: Context, config: Path | None, model: str | None = None, out: Path | None = None) -> Settings:
    """Load the settings of a command that takes a model and a run folder as well.

    Raises:
        SettingsError: one of them cannot be used.
    """
    return loaded_settings(ctx, config, model=model, study_checkpoint_dir=out).settings


def _name(spec: SettingSpec) -> str:
    return "setting__" + "__".join(spec.path)


def _annotation(spec: SettingSpec) -> Any:
    value_type = _value_type(spec.annotation)
    names = [spec.flag]
    if value_type is bool:
        names = [f"{spec.flag}/--no-{spec.flag.removeprefix('--')}"]
    return Annotated[
        value_type | None,
        Option(*names, help=_help(spec), rich_help_panel=SETTINGS_PANEL, show_default=False),
    ]


def _value_type(annotation: Any) -> Any:
    """Choose what the option takes; the settings check the value."""
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
