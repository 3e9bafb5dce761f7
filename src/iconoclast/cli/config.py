"""`config show`, `config reference` and `config schemas`."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Context

from iconoclast.cli.arguments import AsJsonOption, ConfigOption
from iconoclast.cli.console import print_json, say
from iconoclast.cli.flags import CommandWithOptions, SettingsCommand, loaded_settings

config_app = typer.Typer(help="Look at the settings.", rich_markup_mode=None)


@config_app.command("show", cls=SettingsCommand)
def show(ctx: Context, config: ConfigOption = None, as_json: AsJsonOption = False) -> None:
    """Show the effective settings and where each came from."""
    from iconoclast.config.schema import settings_document
    from iconoclast.config.specs import setting_specs
    from iconoclast.models.names import resolve
    from iconoclast.reports.settings_text import settings_lines

    loaded = loaded_settings(ctx, config)
    origins = {spec.key: loaded.origin(spec.key) for spec in setting_specs()}
    if not as_json:
        rows = [(spec.key, _value(loaded.settings, spec.path), origins[spec.key]) for spec in setting_specs()]
        say(*settings_lines(rows))
        return
    model = loaded.settings.model
    path = None if model is None else resolve(model)
    print_json({"model_path": path, "settings": settings_document(loaded.settings), "origins": origins})


def _value(settings: Any, path: Sequence[str]) -> Any:
    """Look up a setting; None in a section that is not set."""
    return reduce(lambda section, name: getattr(section, name, None), path, settings)


@config_app.command("schemas", cls=CommandWithOptions)
def write_schemas(to: Annotated[Path, Argument(help="Folder for the schemas.")], as_json: AsJsonOption = False) -> None:
    """Write the JSON schemas of documents of runs, exports and measurements (docs/schemas is made of them)."""
    from iconoclast.files import write_whole
    from iconoclast.runs.documents import schemas

    to.mkdir(parents=True, exist_ok=True)
    for name, content in schemas().items():
        write_whole(to / name, content.encode())
        say(f"Wrote {to / name}")
    if as_json:
        print_json({"written": [str(to / name) for name in schemas()]})


@config_app.command("reference", cls=CommandWithOptions)
def reference() -> None:
    """Print what every setting is for, in Markdown (docs/settings.md is made of it)."""
    from iconoclast.reports.settings_text import settings_reference

    say(settings_reference().rstrip())
