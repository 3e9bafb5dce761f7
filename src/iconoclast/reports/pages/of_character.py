"""Sections of an audit's page: how the responses differ, what moved most, what benchmarks say."""

from collections.abc import Iterator, Sequence

from iconoclast.audit.behavior import Character, NamedSet, Response, Stance, Trait
from iconoclast.evaluation.capabilities import Capabilities, Figure, Row
from iconoclast.privacy import portable, public
from iconoclast.reports.character import differs
from iconoclast.reports.pages.page import Section
from iconoclast.reports.pages.responses import Exchange, exchanges
from iconoclast.runs.documents import Sample, SampledResponse

MODELS = ("base model", "edited model")

CHARACTER = """How the responses themselves differ; English words are counted, sentiment is pleasant less unpleasant ones. A measure differs beyond chance if its p is under 0.05
divided by the number of measures in the table; these come first. Intervals are of the paired difference, by the bootstrap."""

CAPABILITIES = """Measured by lm-eval {} on both models, item by item the same. p: exact McNemar test of items that are right or
wrong, bootstrap of other means; with *, of two independent measurements. One in twenty is under 0.05 by chance."""


def character_section(character: Character) -> Section:
    """Return kinds of prompts by how much they moved, measures, stances, and the data sets that the user named."""
    opinions = character.stances or []
    placed = [character.first_named] if character.first_named else []
    return Section(
        "Character",
        CHARACTER,
        {
            "Kinds of prompts": [["prompts", "other label", "other text"], *([k.name, str(k.other_label), str(k.other_text)] for k in character.kinds)],
            "Measures": [["prompts", "measure", *_COLUMNS], *_sorted(character.traits)],
            "Either/or questions": [["preferred", "to", *_COLUMNS], *_sorted([*opinions, *placed])],
            "Data sets": [["data set", "of", "base refuses", "edited refuses", "base broken", "edited broken", "p"], *map(_set_row, character.sets)],
        },
    )  # fmt: skip


_COLUMNS = ("base", "edited", "difference", "p", "beyond chance")


def _sorted(found: Sequence[Trait | Stance]) -> list[list[str]]:
    beyond = [each for each in found if differs(each, len(found))]
    rest = [each for each in found if each not in beyond]
    return [[*_named(each), *_compared(each), "yes" if each in beyond else ""] for each in (*beyond, *rest)]


def _named(each: Trait | Stance) -> tuple[str, str]:
    return (each.set, each.measure.replace("_", " ")) if isinstance(each, Trait) else (each.first, each.second)


def _compared(each: Trait | Stance) -> tuple[str, ...]:
    low, high = each.difference.interval
    difference = f"{each.difference.value:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{each.base:.2f}", f"{each.edited:.2f}", difference, f"{each.difference.p_value:.2g}"


def _set_row(each: NamedSet) -> list[str]:
    refused, broken = ((each.base[label], each.edited[label]) for label in ("refusal", "broken"))
    shown = [*(count.with_interval for count in refused), *map(str, broken), f"{each.refusals.p_value:.2g}"]
    return [str(public(portable(each.source))), each.kind, *shown]


def moved_most(character: Character) -> list[Exchange]:
    """Return the prompts whose responses moved most, what differs marked."""

    def said(each: Response) -> SampledResponse:
        return SampledResponse(response=each.response, label=each.label)

    rows = [
        Sample(
            set=row.set, prompt=row.prompt, responses=dict(zip(MODELS, map(said, (row.base, row.edited)), strict=True))
        )
        for row in character.moved
    ]
    return exchanges(rows)[0]


def capability_section(found: Capabilities) -> Section:
    """Return every metric of every task, beside the base, with the paired tests."""
    about = CAPABILITIES.format(found.lm_eval_version)
    if found.limit is not None:
        about += f" Only the first {found.limit} items of each task: not to be compared with other figures."
    head = ["task", "metric", "items", "base", "edited", "difference", "p"]
    return Section("Capabilities", about, {"Tasks": [head, *(list(_task_row(row)) for row in found.rows)]})


def _task_row(row: Row) -> Iterator[str]:
    arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
    yield from (row.task, f"{row.metric}{arrow}", str(row.n))
    yield from (_figure(each, ".3f") for each in (row.base, row.edited))
    difference = row.difference
    unpaired = " *" if difference is not None and difference.stderr is not None and not difference.paired else ""
    yield _figure(difference, "+.3f") + unpaired
    yield "" if difference is None or difference.p_value is None else f"{difference.p_value:.2g}"


def _figure(figure: Figure | None, form: str) -> str:
    if figure is None or figure.value is None:
        return ""
    said = "" if figure.interval is None else " ({} to {})".format(*(format(end, form) for end in figure.interval))
    return format(figure.value, form) + said
