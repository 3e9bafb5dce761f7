"""Values of settings: flags over environment over file over defaults. The only module that reads the environment."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iconoclast.config.packs import load_pack
from iconoclast.config.schema import PromptSource, Settings, canonical
from iconoclast.config.specs import setting_specs
from iconoclast.documents import Plain
from iconoclast.errors import SettingsError

ENVIRONMENT_PREFIX = "ICONOCLAST_"
CONFIG_VARIABLE = "ICONOCLAST_CONFIG_TEMPLATE"
DEFAULT_CONFIG = Path("config.toml")
DEEPEST = 3
"""Names in the longest path examined; settings have two."""


@dataclass(frozen=True)
class LoadedSettings:
    """Effective settings, and the origin of every value that is not a default."""

    settings: Settings
    origins: Mapping[str, str]

    def origin(self, key: str) -> str:
        """Return where a setting's value came from: flag, variable, file or default."""
        return self.origins.get(key, "default")


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> LoadedSettings:
    """Load the effective settings: flags over environment over the TOML file over defaults.

    Args:
        flags: dotted key → value, as given on the command line.
        config: the TOML file; unset, the one that ICONOCLAST_CONFIG_TEMPLATE names, else ./config.toml if it exists.

    Raises:
        SettingsError: an unknown key (the nearest real one is named), a bad value, an unreadable file.
    """
    file = _config_file(config)
    flagged: Plain = {}
    for key, value in (flags or {}).items():
        _put(flagged, key.split("."), value)
    merged: Plain = {}
    origins: dict[str, str] = {}
    layers = ((_read_toml(file), f"file {file}"), (_read_environment(), "environment"), (flagged, "flag"))
    for values, origin in layers:
        if isinstance(pack := values.get("behavior"), str) and pack:  # it comes before earlier layers, as if typed here
            for name, value in load_pack(pack).as_settings().items():
                _check_known([key := canonical(name)], f"behaviour {pack}")
                merged[key] = value
                origins[key] = f"behaviour {pack}"
        for (first, *rest), value in _leaves(values):
            path = [canonical(first), *rest]
            _check_known(path, origin)
            if value == {}:  # an empty section says nothing
                continue
            if any(
                not isinstance(merged.get(path[0]), dict) and ".".join(path[:end]) in origins
                for end in range(1, len(path))
            ):
                raise SettingsError(
                    f"Setting {path[0]} ({origins[path[0]]}) must be a section with keys such as dataset and split."
                )
            _put(merged, path, value)
            origins[".".join(path)] = origin
    return LoadedSettings(_validate(merged, origins), origins)


def secret(variable: str) -> str:
    """Read an environment variable whose value must not be written anywhere; raise SettingsError if it is not set."""
    if value := os.environ.get(variable):
        return value
    raise SettingsError(f"The environment variable {variable} (api_key_variable) is not set. Put the key into it.")


def _config_file(config: Path | None) -> Path | None:
    variable = os.environ.get(CONFIG_VARIABLE)
    if not (config or variable):
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None
    named, source = (config, "--config") if config else (Path(variable or ""), CONFIG_VARIABLE)
    if not named.is_file():
        raise SettingsError(f"The settings file {named} ({source}) does not exist. Give the path of a TOML file.")
    return named


def _read_toml(file: Path | None) -> Plain:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig")) if file else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"The settings file {file} is not valid TOML: {error}.") from None
    except OSError as error:
        raise SettingsError(f"The settings file {file} cannot be read: {error.strerror}.") from None


def _read_environment() -> Plain:
    """Read the ICONOCLAST_* variables, keyed like the settings; nested ones are spelt GOOD_PROMPTS__SPLIT."""
    variables: dict[str, str | None] = {}
    for variable, value in os.environ.items():
        name = variable.upper()
        if name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_VARIABLE:
            first, *rest = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            path = [canonical(first), *rest]
            _check_known(path, "environment", shown=variable)
            variables[ENVIRONMENT_PREFIX.lower() + "__".join(path)] = value
    if not variables:
        return {}
    from pydantic_settings import EnvSettingsSource  # it is slow to import
    from pydantic_settings.exceptions import SettingsError as SourceError

    # pydantic-settings declares the argument as BaseSettings but reads only its fields.
    source = EnvSettingsSource(Settings, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__")  # type: ignore[arg-type]
    source.env_vars = variables
    try:
        return source()
    except SourceError as error:
        field = re.search(r'field "(\w+)"', str(error))
        variable = ENVIRONMENT_PREFIX + field[1].upper() if field else "One of the ICONOCLAST_ variables"
        raise SettingsError(
            f'{variable} is not valid JSON ({error.__cause__}). Write a list as \'["a", "b"]\' and a prompt set key by key, '
            "as in ICONOCLAST_GOOD_PROMPTS__SPLIT."
        ) from None


def _put(target: Plain, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
    target[path[-1]] = value


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and len(prefix) < DEEPEST:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _check_known(path: Sequence[str], origin: str, shown: str | None = None) -> None:
    known = {spec.key for spec in setting_specs()}
    sections = {name.split(".")[0] for name in known if "." in name}
    key = ".".join(path)
    if key in known | sections:
        return
    nearest = difflib.get_close_matches(key.lower(), sorted(known | sections), n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]}?" if nearest else "`iconoclast config show` lists the settings."
    raise SettingsError(f"Unknown setting {shown or key} ({origin}). {hint}")


def _validate(values: Plain, origins: Mapping[str, str]) -> Settings:
    # A prompt set given in part keeps the rest of its default only if the data set itself is not replaced.
    for name, field in Settings.model_fields.items():
        given = values.get(name)
        if isinstance(field.default, PromptSource) and isinstance(given, dict) and "dataset" not in given:
            values[name] = {**field.default.model_dump(exclude_none=True), **given}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("\n".join(_problem(problem, origins) for problem in error.errors())) from None


def _problem(problem: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    key = ".".join(part for part in problem["loc"] if isinstance(part, str))
    if not key:
        return f"Settings: {problem['msg'].removeprefix('Value error, ')}."
    section = key.rsplit(".", 1)[0]
    near = (k for k in origins if k == section or k.startswith(f"{section}."))
    origin = origins[key] if key in origins else origins.get(next(near, ""), "settings")
    if problem["type"] == "missing":
        return f"Setting {key} ({origin}) is missing. Give it, or leave out all of {section}."
    shown = json.dumps(problem["input"], default=str, ensure_ascii=False)
    return f"Setting {key} ({origin}) has a bad value {shown[:120]}: {problem['msg']}."
