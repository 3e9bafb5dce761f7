"""Options that several commands share, declared once: every setting as a flag, and others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

import typer
from typer import Context, Option
from typer.core import TyperCommand

from iconoclast.cli.console import STANDARD_OUTPUT, Manner, in_manner
from iconoclast.cli.examples import write_example
from iconoclast.vocabulary import SYNONYMS

if TYPE_CHECKING:
    from iconoclast.config.layers import LoadedSettings
    from iconoclast.config.schema import Settings
    from iconoclast.config.specs import SettingSpec

GIVEN = "iconoclast.given"
"""Key of our values in Click's `ctx.meta`, which all libraries share."""


def own_flag(name: str) -> str:
    """Return the flag under which a prompt set's setting is declared: `--benign-prompts-split` is `--good-prompts-split`."""
    for synonym, own in SYNONYMS.items():
        synonym, own = synonym.replace("_", "-"), own.replace("_", "-")
        if name.startswith((f"--{synonym}-", f"{synonym}-")):
            return name.replace(synonym, own, 1)
    return name


class CommandWithOptions(TyperCommand):
    """A command with more options than its function has parameters; the values wait in `ctx.meta`.

    The options are made when the command is called or asked for help, so that the others need not wait for them.
    """

    option_sets: ClassVar[Sequence[Callable[[], Sequence[Any]]]] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the function's own parameters, the further options, and --help."""
        parameters = super().get_params(ctx)
        own = len(self.params)
        return [*parameters[:own], *self._further(), *parameters[own:]]

    def invoke(self, ctx: Any) -> Any:
        """Call the function without the further options; it reads them by `given_settings` and the like."""
        ctx.meta[GIVEN] = {option.name: ctx.params.pop(option.name) for option in self._further()}
        manner = {name: ctx.meta[GIVEN][name] for name in ("plain", "quiet", "verbose")}
        as_json = bool(ctx.params.get("as_json")) or ctx.params.get("json_file") == STANDARD_OUTPUT
        with in_manner(Manner(**manner, as_json=as_json)):
            return super().invoke(ctx)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """End the help with an example."""
        write_example(ctx, formatter)

    def _further(self) -> list[Any]:
        sets: list[Callable[[], Sequence[Any]]] = [*self.option_sets, manner_options]
        return [option for options in sets for option in options()]


@dataclass(frozen=True)
class MannerFlags:
    """Manner in which a command shows its work."""

    plain: Annotated[bool, Option("--plain", help="Show progress as plain lines, as where there is no terminal.")] = (
        False
    )
    quiet: Annotated[bool, Option("--quiet", help="Show results and errors only.")] = False
    verbose: Annotated[
        bool, Option("--verbose", help="Show how long each step took, too, and other libraries' words.")
    ] = False


@cache
def manner_options() -> Sequence[Any]:
    """Return the options of how progress is shown, which every command has."""
    return options_of(MannerFlags)


def options_of(function: Callable[..., Any]) -> Sequence[Any]:
    """Make the options that Typer would give a command with this signature."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app).params


def given(ctx: Context, options: Sequence[Any]) -> dict[str, Any]:
    """Return what the user gave for these options, by parameter name; lists as lists."""
    values = {option.name: ctx.meta[GIVEN][option.name] for option in options}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@cache
def setting_options() -> Sequence[Any]:
    """Return an option for every setting."""
    from iconoclast.config.specs import setting_specs

    fields = [(_name(spec), _annotation(spec), None) for spec in setting_specs()]
    return options_of(make_dataclass("SettingFlags", fields))


class SettingsCommand(CommandWithOptions):
    """A command with a flag for every setting: its function reads them by `given_settings`."""

    option_sets = (setting_options,)


def loaded_settings(ctx: Context, config: Path | None, **named: Any) -> "LoadedSettings":
    """Load settings from a SettingsCommand's flags, the environment and `config`; raise SettingsError for bad ones.

    Settings `named`, which the command takes in another way, come before flags unless they are None.
    """
    from iconoclast.config.layers import load_settings
    from iconoclast.config.specs import setting_specs

    values = given(ctx, setting_options())
    flags = {spec.key: values[_name(spec)] for spec in setting_specs() if values[_name(spec)] not in (None, [])}
    flags |= {key: str(value) for key, value in named.items() if value is not None}
    return load_settings(flags, config)


def given_settings(ctx: Context, config: Path | None, model: str | None = None, out: Path | None = None) -> "Settings":
    """Load the settings of a command that takes a model and a run folder as well; errors as `loaded_settings`."""
    return loaded_settings(ctx, config, model=model, study_checkpoint_dir=out).settings


def _name(spec: "SettingSpec") -> str:
    return "setting__" + "__".join(spec.path)


def _annotation(spec: "SettingSpec") -> Any:
    value_type = _value_type(spec.annotation)
    name = f"{spec.flag}/--no-{spec.flag.removeprefix('--')}" if value_type is bool else spec.flag
    return Annotated[value_type | None, Option(name, help=_help(spec), show_default=False)]


def _value_type(annotation: Any) -> Any:
    """Choose the option's type; the settings check the value."""
    from iconoclast.config.specs import list_item, without_none

    annotation = without_none(annotation)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if list_item(annotation) is not None:
        return list[str]
    return annotation if annotation in (int, float, bool) else str


def _help(spec: "SettingSpec") -> str:
    from iconoclast.config.specs import list_item, without_none

    item = list_item(spec.annotation)
    inner = item or without_none(spec.annotation)
    choices = f" One of: {', '.join(get_args(inner))}." if get_origin(inner) is Literal else ""
    repeated = " Repeat for several." if item else ""
    shown = "" if spec.default is None or isinstance(spec.default, list) else f" [default: {spec.default}]"
    return f"{spec.description}{choices}{repeated}{shown}"
