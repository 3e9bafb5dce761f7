"""`audit`: what somebody's edit changed, in weights, behaviour and capabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import (
    FiguresOption,
    IncludePathOption,
    LimitOption,
    ServerKeyOption,
    ServerModelOption,
    require_no_trial,
    require_writable,
    separated,
)
from iconoclast.cli.console import STANDARD_OUTPUT, out, say, shown_progress, write_figures
from iconoclast.errors import SettingsError, UserError

if TYPE_CHECKING:
    from iconoclast.audit.behavior import NamedKind
    from iconoclast.audit.document import AuditDocument
    from iconoclast.config.schema import PromptSource
    from iconoclast.evaluation.capabilities import Capabilities
    from iconoclast.progress import Progress
    from iconoclast.prompts import PromptSet
    from iconoclast.runs.subjects import Subject

    NamedSets = list[tuple[NamedKind, PromptSet]]

SET = "DATASET[,KEY=VALUE…]"
"""How a data set is named: its place, and fields of `config.PromptSource`."""

KEYS = "name, split, column, prefix, suffix, system_prompt"

ServedOption = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="OpenAI-compatible endpoint that serves it; its weights stay unseen, and it is sent all prompts.",
    ),
]
RefusalSetOption = Annotated[
    list[str] | None,
    Option(metavar=SET, help="Data set whose refusals are counted, too, such as some/name,split=test,column=prompt."),
]
OverrefusalSetOption = Annotated[
    list[str] | None, Option(metavar=SET, help="The same of prompts that should be answered.")
]
MeasuredOption = Annotated[
    Path | None, Option(help="Measurements to set its claims beside: the file of iconoclast evaluate --json.")
]
EditOption = Annotated[
    Path | None, Option(help="File (.safetensors) for a rank-one edit as our own, to be evaluated and compared.")
]

DIRECTIONS = ".safetensors"
"""What the file of directions, beside that of --json, ends in."""


def audit(
    base: Annotated[str, Option(help="Its base model.")],
    edited: Annotated[
        str | None,
        Argument(metavar="EDITED", help="Edited model: folder, hub id, LoRA adapter or GGUF file; not with --server."),
    ] = None,
    server: ServedOption = None,
    server_model: ServerModelOption = None,
    server_key_variable: ServerKeyOption = None,
    config: Annotated[Path | None, Option(help="Settings file (TOML) with prompts and markers.")] = None,
    weights_only: Annotated[bool, Option("--weights-only", help="Leave out what it did to behaviour.")] = False,
    measured: MeasuredOption = None,
    edit: EditOption = None,
    refusal_set: RefusalSetOption = None,
    overrefusal_set: OverrefusalSetOption = None,
    tasks: Annotated[list[str] | None, Option(help="Tasks of lm-eval for both, separated by commas.")] = None,
    limit: LimitOption = None,
    include_path: IncludePathOption = None,
    apply_chat_template: Annotated[
        bool, Option("--apply-chat-template", help="Put the tasks' items to the models as a user would.")
    ] = False,
    json_file: FiguresOption = None,
) -> None:
    """Say what an edit of a model changed, how, and how strongly, whoever made it; any finding is a success."""
    _require_places(json_file, edit)
    _require_sides(edited, server, weights_only=weights_only, edit=edit, tasks=tasks)
    for model in (edited, base):
        require_no_trial(model or "")
    if weights_only and (refusal_set or overrefusal_set or tasks):
        raise SettingsError("--weights-only leaves out behaviour, which data sets and tasks measure. Leave it out.")
    from iconoclast.audit.claims import beside, measured_in
    from iconoclast.cli.comparisons import served
    from iconoclast.reports.audit import claim_line

    figures = None if measured is None else measured_in(measured)
    sets = _named_sets(refusal_set or [], overrefusal_set or [])
    capabilities = _set_up(tasks or [], include_path, limit, apply_chat_template)
    subject = None if server is None else served(server, server_model, server_key_variable)
    document = _weighed(base, str(edited), json_file, edit) if subject is None else _unseen(base, subject)
    document = document.model_copy(update={"claims": beside(document.claims, figures)})
    if weights_only or json_file != STANDARD_OUTPUT:
        write_figures(json_file, document.document())
    if not weights_only:
        if capabilities is not None:
            document = _with_capabilities(document, str(edited), capabilities)
        document = _with_behavior(document, subject, config, sets)
        write_figures(json_file, document.document())
    say(*map(claim_line, document.claims))


def _require_sides(
    edited: str | None, server: str | None, *, weights_only: bool, edit: Path | None, tasks: list[str] | None
) -> None:
    """Raise UserError unless there is one edited model, and what is asked of an endpoint can be had without its weights."""
    if (edited is None) == (server is None):
        raise SettingsError("Name an edited model or, with --server, the URL of an endpoint.")
    asked = {"--weights-only": weights_only, "--edit": edit is not None, "--tasks": bool(tasks)}
    if server is not None and (odd := [name for name, given in asked.items() if given]):
        raise SettingsError(f"{odd[0]} needs the weights, which an endpoint does not show. Leave it out.")


def _unseen(base: str, subject: "Subject") -> "AuditDocument":
    """Return the document of a model of which nothing but its answers can be seen."""
    from iconoclast.audit.document import AuditDocument

    say(f"{subject.name} is served: its weights cannot be seen, and only its behaviour is measured.")
    return AuditDocument(base=base, edited=subject.name, verdict="unseen", tensors=[], lost=[])


def _weighed(base: str, edited: str, json_file: Path | None, edit: Path | None) -> "AuditDocument":
    """Compare the weights and say what was found; write the directions and the edit."""
    from iconoclast.models.adapters import other_base
    from iconoclast.reports.audit import tensor_lines, verdict_lines
    from iconoclast.runs.weight_audit import audit_weights

    to = None if json_file is None or json_file == STANDARD_OUTPUT else json_file.with_suffix(DIRECTIONS)
    with shown_progress() as progress:
        found = audit_weights(base, edited, to, progress)
    document = found.document
    if document.directions is not None:
        say(f"Wrote {to} (directions)")
    say(*tensor_lines(document))
    if (declared := other_base(edited, base)) is not None:
        say(
            f"WARNING: its adapter_config.json names {declared} as its base model, not {base}: the strengths are those on {base}."
        )
    say(*verdict_lines(document))
    if edit is not None:
        found.write_edit(edit)
        say(f"Wrote {edit} (edit)")
    return document


def _require_places(json_file: Path | None, edit: Path | None) -> None:
    """Raise UserError before a long measurement if a file that the user names could not be written."""
    require_writable(json_file)
    require_writable(edit)
    if json_file is not None and json_file.suffix == DIRECTIONS:
        raise UserError(f"{json_file} would be taken by the directions. Give --json a name that ends in .json.")
    taken = json_file and json_file.with_suffix(DIRECTIONS)
    if edit is not None and (edit.suffix != DIRECTIONS or edit == taken):
        raise UserError(f"--edit {edit}: give a name of its own that ends in {DIRECTIONS}.")


def _named_sets(refusals: list[str], overrefusals: list[str]) -> "NamedSets":
    """Read the data sets that the user names; raise UserError if one cannot be read."""
    from iconoclast.prompts import load_prompts

    named: list[tuple[NamedKind, str]] = [("refusals", text) for text in refusals]
    named += [("overrefusals", text) for text in overrefusals]
    return [(kind, load_prompts(_source(text))) for kind, text in named]


def _source(text: str) -> "PromptSource":
    from pydantic import ValidationError

    from iconoclast.config.schema import PromptSource
    from iconoclast.documents import first_problem

    dataset, *fields = text.split(",")
    try:
        return PromptSource.model_validate({"dataset": dataset, **dict(field.split("=", 1) for field in fields)})
    except ValueError as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else "every field is KEY=VALUE"
        raise SettingsError(f"{text} names no data set as {SET} ({reason}). Keys: {KEYS}.") from None


def _set_up(
    tasks: list[str], include_path: Path | None, limit: int | None, templated: bool
) -> "Callable[[str, str, Progress], Capabilities] | None":
    """Set the tasks of lm-eval up before anything is read; return what measures with them, None without tasks."""
    if not (names := separated(tasks)):
        return None
    from iconoclast.evaluation.benchmarks import BenchmarkOptions, beside_base

    return beside_base(BenchmarkOptions(names, include_path, limit, apply_chat_template=templated))


def _with_capabilities(
    document: "AuditDocument", edited: str, measure: "Callable[[str, str, Progress], Capabilities]"
) -> "AuditDocument":
    """Benchmark both models and show it; return the document with it."""
    from iconoclast.reports.capabilities import capabilities_lines, capabilities_table

    with shown_progress() as progress:
        found = measure(edited, document.base, progress)
    out.print(capabilities_table(found))
    say(*capabilities_lines(found))
    return document.model_copy(update={"capabilities": found})


def _with_behavior(
    document: "AuditDocument", subject: "Subject | None", config: Path | None, sets: "NamedSets"
) -> "AuditDocument":
    """Measure both models and show it; return the document with it, the claims beside what was measured."""
    from iconoclast.audit.claims import beside
    from iconoclast.cli.comparisons import presented
    from iconoclast.config.layers import load_settings
    from iconoclast.reports.character import character_lines
    from iconoclast.runs.behavior_audit import audit_behavior
    from iconoclast.runs.subjects import find_subject

    settings = load_settings({}, config).settings
    with shown_progress() as progress:
        comparison, character = audit_behavior(
            subject or find_subject(document.edited), settings, document.base, progress, sets
        )
    figures = presented(comparison).document()
    say(*character_lines(character))
    claims = beside(document.claims, figures)
    return document.model_copy(update={"behavior": figures, "character": character, "claims": claims})
