"""`config show`, `config reference` and `config schemas`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Context

from iconoclast.cli.arguments import AsJsonOption, ConfigOption
from iconoclast.cli.console import out
from iconoclast.cli.flags import SettingsCommand, loaded_settings
from iconoclast.config.layers import LoadedSettings
from iconoclast.config.schema import Settings, settings_document
from iconoclast.config.specs import setting_specs
from iconoclast.reports.text import print_lines, settings_lines, settings_reference

config_app = typer.Typer(help="Look at the settings.", rich_markup_mode=None)


def config_root(ctx: Context) -> None:
    """Look at the settings."""
    if ctx.invoked_subcommand is None:
        print_lines(out, ctx.get_help())


@config_app.command("show", cls=SettingsCommand)
def show(ctx: Context, config: ConfigOption = None, as_json: AsJsonOption = False) -> None:
    """Show the effective settings and where each came from."""
    loaded = loaded_settings(ctx, config)
    if as_json:
        out.print_json(data=_document(loaded))
    else:
        print_lines(out, *settings_lines([(k, v, loaded.origin(k)) for k, v in _values(loaded.settings)]))


@config_app.command("schemas")
def write_schemas(to: Annotated[Path, Argument(help="Folder for the schemas.")]) -> None:
    """Write the JSON schema of every file of runs and exports (docs/schemas are made of it)."""
    from iconoclast.files import write_whole
    from iconoclast.runs.documents import schemas

    to.mkdir(parents=True, exist_ok=True)
    for name, content in schemas().items():
        write_whole(to / name, content.encode())
        print_lines(out, f"Wrote {to / name}")


@config_app.command("reference")
def reference() -> None:
    """Print what every setting is for, in Markdown (docs/settings.md is made of it)."""
    print_lines(out, settings_reference().rstrip())


def _values(settings: Settings) -> list[tuple[str, Any]]:
    values = []
    for spec in setting_specs():
        value: Any = settings
        for name in spec.path:
            value = getattr(value, name, None)
        values.append((spec.key, value))
    return values


def _document(loaded: LoadedSettings) -> dict[str, Any]:
    from iconoclast.models.names import resolve

    model = loaded.settings.model
    return {
        "model_path": None if model is None else resolve(model),
        "settings": settings_document(loaded.settings),
        "origins": {spec.key: loaded.origin(spec.key) for spec in setting_specs()},
    }
