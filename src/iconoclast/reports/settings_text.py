"""The settings as text: a line each, and the reference in Markdown."""

import json
from collections.abc import Sequence
from typing import Any

from iconoclast.config.specs import SettingSpec, prompt_sets, setting_specs
from iconoclast.vocabulary import SYNONYMS


def settings_lines(rows: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Return a line for every setting: key, value, origin."""
    return [f"{key} = {_shown(value)}  # {origin}" for key, value, origin in rows]


FIRST = (
    *("model", "behavior", "n_trials", "fit", "study_checkpoint_dir", "seed", "refusal_markers", "max_response_length"),
    *("kl_divergence_target", "strengthen", "thinking", "system_prompt", "chat_template", "quantization"),
    *("benign_subspace_rank", "components", "row_normalization"),
)
"""Commonly changed settings, which the reference shows first."""


def settings_reference() -> str:
    """Describe every setting in Markdown: the commonly changed ones, prompt sets, all others."""
    plain_specs = [spec for spec in setting_specs() if spec.path[0] not in prompt_sets()]
    first = sorted((spec for spec in plain_specs if spec.key in FIRST), key=lambda spec: FIRST.index(spec.key))
    some_set = next(iter(prompt_sets()))
    keys = [spec for spec in setting_specs() if spec.path[0] == some_set]
    other_names = {own: f"`{name}`" for name, own in SYNONYMS.items()}
    sets = []
    for name, (source, description) in prompt_sets().items():
        default = "" if source is None else f"`{source.dataset}`, `{source.split}`"
        sets.append(f"| `{name}` | {other_names.get(name, '')} | {default} | {description} |")
    parts = [
        "# Settings",
        "Made by `iconoclast config reference`. Each setting is a key of the TOML file, a flag of `iconoclast run`, and an\n"
        "environment variable: `ICONOCLAST_` and the key in capitals, a section and its key joined by two underscores, lists\n"
        "as JSON. Flags come before the environment, the environment before the file, the file before the defaults.",
        "## Commonly changed",
        _settings_table(first),
        "## Prompt sets",
        "Each set is a section, as in `[bad_prompts]`, or goes by its other name. Unset ones are the package's own.",
        "\n".join(["| Section | Other name | Default | What it is for |", "|---|---|---|---|", *sets]),
        f"Every section has these keys; the flags are those of its name, as in `--{some_set.replace('_', '-')}.split`.",
        "\n".join(
            ["| Key | What it is for |", "|---|---|", *(f"| `{spec.path[1]}` | {spec.description} |" for spec in keys)]
        ),
        "## Advanced",
        _settings_table([spec for spec in plain_specs if spec.key not in FIRST]),
    ]
    return "\n\n".join(parts) + "\n"


def _settings_table(specs: Sequence[SettingSpec]) -> str:
    lines = ["| Key | Flag | Default | What it is for |", "|---|---|---|---|"]
    for spec in specs:
        default = "" if spec.default is None else f"`{_shown(spec.default)}`"
        if isinstance(spec.default, list) and len(spec.default) > 6:
            default = f"{len(spec.default)} phrases"
        lines.append(f"| `{spec.key}` | `{spec.flag}` | {default} | {spec.description} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "(unset)" if value is None else json.dumps(value, ensure_ascii=False, default=str)
