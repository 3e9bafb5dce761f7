"""Parts that pages have in common: key figures, tests, settings, prompt sets."""

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from iconoclast.config.schema import Settings
from iconoclast.config.specs import setting_specs
from iconoclast.evaluation.metrics import Metrics, Paired
from iconoclast.privacy import portable, public
from iconoclast.reports.pages.page import Rows, Section, Tile
from iconoclast.runs.documents import PromptSets
from iconoclast.runs.papers import DEMO_NAME
from iconoclast.scores import REFUSED_OR_BROKEN, Scores
from iconoclast.vocabulary import SYNONYMS


def shown_name(model: str | None) -> str:
    """Return a model's name for strangers: a local path without its folders."""
    return DEMO_NAME if model == "demo" else str(public(portable(model or "an unnamed model")))


def tiles(base: Scores, edited: Scores, noise_floor: float, paired: Paired | None = None) -> list[Tile]:
    """Return the figures that everybody looks for first."""
    p_value = "" if paired is None else f"p = {paired.failures.p_value:.2g}, exact McNemar test"
    shown = [
        Tile(edited.failing.capitalize(), str(base.failures), str(edited.failures), p_value),
        Tile("Complied", str(base.complied), str(edited.complied), _interval(edited.complied.interval)),
    ]
    if base.overrefusals.n:
        interval = _interval(edited.overrefusals.interval)
        shown.append(Tile("Benign prompts refused", str(base.overrefusals), str(edited.overrefusals), interval))
    shown.append(Tile("First-token KL", "0", f"{edited.kl_divergence:.4f}", f"nats; noise floor {noise_floor:.2g}"))
    if isinstance(edited, Metrics):
        low, high = edited.token_kl.interval
        about = f"nats; {low:.4f} to {high:.4f}"
        shown.append(Tile(f"KL over {edited.token_kl.tokens} tokens", "0", f"{edited.token_kl.value:.4f}", about))
    return shown


def section(title: str, *tables: Table) -> Section:
    """Make a section of tables for the terminal."""
    return Section(
        title,
        " ".join(str(table.caption) for table in tables if table.caption),
        {
            str(table.title): list(zip(*([str(c.header), *map(str, c.cells)] for c in table.columns), strict=True))
            for table in tables
        },
    )


def _interval(interval: tuple[float, float]) -> str:
    return "95 % interval {:.0%} to {:.0%}".format(*interval)


def test_rows(paired: Paired, failing: str = REFUSED_OR_BROKEN) -> Rows:
    """Return every paired test: only the first, only the second or the difference, p."""
    counted = {
        failing.capitalize(): paired.failures,
        "Refused": paired.refusals,
        "Overrefused": paired.overrefusals,
        "Borderline overrefused": paired.borderline_overrefusals,
    }
    rows = [
        (title, [str(test.only_before), str(test.only_after), f"{test.p_value:.2g}"])
        for title, test in counted.items()
        if test is not None
    ]
    for title, difference in {"First-token KL": paired.first_token_kl, "KL over tokens": paired.token_kl}.items():
        low, high = difference.interval
        said = f"{difference.value:+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append((title, ["", said, f"{difference.p_value:.2g}"]))
    return rows


def prompt_rows(sets: PromptSets) -> Rows:
    """Return source, number and checksum of every prompt set, by the glossary's name for it."""
    names = {own: name for name, own in SYNONYMS.items()}
    return [
        (
            names.get(name, name),
            [str(public(each["source"])), f"{each['n']} prompts", f"SHA-256 {str(each['sha256'])[:16]}…"],
        )
        for name, each in sets.items()
    ]


def setting_rows(settings: Settings) -> list[tuple[str, str, bool]]:
    """Return every setting, its value, and whether it is another than the default; local paths lose their folders."""
    document = public(portable(settings.model_dump(mode="json")))
    defaults = Settings().model_dump(mode="json")
    rows = []
    for spec in setting_specs():
        value, default = (_at(each, spec.path) for each in (document, defaults))
        rows.append((spec.key, json.dumps(value, ensure_ascii=False), value != default))
    return [row for row in rows if row[1] != "null" or row[2]]


def _at(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = document
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
