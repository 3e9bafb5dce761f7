"""`audit`: what somebody's edit changed, in weights, behaviour and capabilities."""

from collections import Counter
from collections.abc import Callable, Mapping
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
)
from iconoclast.cli.console import STANDARD_OUTPUT, say, shown_progress, write_figures
from iconoclast.errors import SettingsError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from iconoclast.audit.behavior import NamedKind
    from iconoclast.audit.document import AuditDocument, ClaimFinding
    from iconoclast.config.schema import PromptSource
    from iconoclast.evaluation.capabilities import Capabilities
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
    from iconoclast.audit.claims import beside, measured_in

    _require_places(json_file, edit)
    _require_sides(edited, server, weights_only=weights_only, edit=edit, tasks=tasks)
    for model in (edited, base):
        require_no_trial(model or "")
    if weights_only and (refusal_set or overrefusal_set or tasks):
        raise SettingsError("--weights-only leaves out behaviour, which data sets and tasks measure. Leave it out.")
    figures = None if measured is None else measured_in(measured)
    sets = _named_sets(refusal_set or [], overrefusal_set or [])
    benchmarked = _benchmarked(tasks or [], include_path, limit, apply_chat_template)
    subject = None
    if server is not None:
        from iconoclast.cli.comparisons import served

        subject = served(server, server_model, server_key_variable)
    document = _weighed(base, str(edited), json_file, edit) if subject is None else _unseen(base, subject)
    document = document.model_copy(update={"claims": beside(document.claims, figures)})
    if weights_only or json_file != STANDARD_OUTPUT:
        write_figures(json_file, document.document())
    if not weights_only:
        if benchmarked is not None:
            document = document.model_copy(update={"capabilities": benchmarked(str(edited), base)})
        document = _with_behavior(document, subject, config, sets)
        write_figures(json_file, document.document())
    say(*map(_claimed, document.claims))


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
    from iconoclast.audit.audit import audit as audited
    from iconoclast.models.adapters import other_base

    with shown_progress() as progress:
        document, directions = audited(base, edited, progress)
    document = document.model_copy(update={"directions": _kept_directions(json_file, directions)})
    _say_tensors(document)
    if (declared := other_base(edited, base)) is not None:
        say(
            f"WARNING: its adapter_config.json names {declared} as its base model, not {base}: the strengths are those on {base}."
        )
    _say_verdict(document)
    if edit is not None:
        _write_edit(document, directions, edit)
    return document


def _kept_directions(json_file: Path | None, directions: "Mapping[str, Tensor]") -> str | None:
    """Write the directions beside the file of --json, if there is one; return the name of their file."""
    from safetensors.torch import save

    from iconoclast.files import write_whole

    if json_file is None or json_file == STANDARD_OUTPUT or not directions:
        return None
    file = json_file.with_suffix(DIRECTIONS)
    write_whole(file, save(dict(directions)))
    say(f"Wrote {file} (directions)")
    return file.name


def _write_edit(document: "AuditDocument", directions: "Mapping[str, Tensor]", edit: Path) -> None:
    from iconoclast.audit.as_edit import edit_of
    from iconoclast.edits.record import save_edit

    save_edit(edit_of(document, directions), edit)
    say(f"Wrote {edit} (edit)")


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


def _benchmarked(
    tasks: list[str], include_path: Path | None, limit: int | None, templated: bool
) -> "Callable[[str, str], Capabilities] | None":
    """Set the tasks of lm-eval up, and return what measures an edited model and its base with them; None without tasks."""
    names = [name for entry in tasks for name in entry.split(",") if name]
    if not names:
        return None
    from iconoclast.cli.benchmark import print_capabilities
    from iconoclast.evaluation import benchmarks

    options = benchmarks.BenchmarkOptions(names, include_path, limit, apply_chat_template=templated)
    benchmarks.require_lm_eval()
    loaded = benchmarks.load_tasks(options)

    def measure(edited: str, base: str) -> "Capabilities":
        sides = benchmarks.loaded(edited, templated), benchmarks.loaded(base, templated)
        with shown_progress() as progress:
            result = benchmarks.benchmark(options, *sides, progress, loaded).capabilities()
        print_capabilities(result)
        return result

    return measure


def _say_tensors(document: "AuditDocument") -> None:
    from iconoclast.audit.document import shown_rows, shown_strength

    for t in document.tensors:
        if t.status not in ("unchanged", "rounded"):
            parts = [t.status, t.construction, shown_rows(t), shown_strength(t)]
            parts += [None if t.relative_norm is None else f"relative norm {t.relative_norm:.2g}"]
            say(f"{t.name}: {', '.join(str(each) for each in parts if each)}")
    rounded = Counter(" to ".join(t.retyped or ("a grid",)) for t in document.tensors if t.status == "rounded")
    say(*(f"{n} tensors: the base's, rounded ({kind})" for kind, n in rounded.items()))


def _say_verdict(document: "AuditDocument") -> None:
    from iconoclast.audit.document import SHARED, VERDICTS, shown_kind

    changed = sum(t.status != "unchanged" for t in document.tensors)
    weak = sum(t.construction == "weak" for t in document.tensors)
    say(f"Verdict: {document.verdict}. {VERDICTS[document.verdict]}")
    say(f"{changed} of {len(document.tensors)} tensors are not as in the base.")
    say(*(f"Edited: {shown_kind(kind)}." for kind in document.kinds))
    if document.shared_direction is not None:
        say(f"{SHARED}: {document.shared_direction:.0%}.")
    if weak:
        say(
            f"{weak} of them (weak) were changed by less than the type in which they are stored can show: how, is hidden."
        )
    if (hidden := max((t.hidden_norm or 0.0 for t in document.tensors), default=0.0)) > 0:
        say(f"Quantisation hides a rank-one change of a matrix up to {hidden:.2%} of its norm.")
    say(*(f"Lost: {name}" for name in document.lost))
    say(
        *(
            f"Setting differs: {s.name} is {s.edited or 'empty'}, and {s.base or 'empty'} in the base."
            for s in document.settings
        )
    )


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


def _claimed(claim: "ClaimFinding") -> str:
    value = str(claim.count) if claim.count else f"{claim.value:g}"
    said = f"{claim.name}{' of the base' if claim.of == 'base' else ''} {value} ({claim.source})"
    if claim.measured is None or claim.interval is None:
        return f"Claimed, not measured: {said}."
    low, high = claim.interval
    outcome = ", which differs by more than chance" if claim.differs else ""
    if claim.differs is None:
        outcome = f" of {claim.measured_on}, other prompts than the claim's ({claim.prompts.strip()}): another figure"
    return f"Claimed: {said}. Measured: {claim.measured:.4g} ({low:.4g} to {high:.4g}, {claim.n} prompts){outcome}."
