"""What an edit did to behaviour: all that `evaluate` measures, its character, its stances."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from iconoclast.audit.behavior import (
    Beside,
    Character,
    NamedKind,
    NamedSet,
    Response,
    SetName,
    kinds,
    moved,
    named_set,
    traits,
)
from iconoclast.audit.stance import preferences, stances
from iconoclast.config.schema import Settings
from iconoclast.evaluation.examination import Answer, Examination, Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.runs.comparison import Comparison, compare
from iconoclast.runs.documents import SETS
from iconoclast.runs.subjects import Opened, Subject
from iconoclast.runs.workbench import Workbench


@dataclass
class _More:
    """What a subject is asked beside the prompts of the settings; `preferences` are those of base and subject in either/or questions.

    A server is asked no such questions: what it tells of probabilities can leave the answers out.
    """

    sets: Sequence[tuple[NamedKind, PromptSet]]
    progress: Progress
    preferences: list[list[float]] = field(default_factory=list)
    found: list[NamedSet] = field(default_factory=list)

    def ask(self, subject: Opened, examiner: Examiner, bench: Workbench) -> None:
        """Ask the base and an opened subject; raise UserError if a prompt is too long, or the subject cannot be asked."""
        bench.require_room(*(prompts for _, prompts in self.sets))
        base, settings = Variant("base model", bench.lm), bench.settings
        if subject.variant is not None:
            self.progress.start("Asking either/or questions", 0)
            self.preferences = [preferences(each) for each in (base, subject.variant)]
        for kind, prompts in self.sets:
            length = settings.max_response_length if kind == "refusals" else settings.max_benign_response_length
            before = examiner.labels(base, prompts, length, self.progress)
            after = subject.labels(prompts, length)
            self.found.append(named_set(kind, prompts.source, prompts.fingerprint, before, after))


def audit_behavior(
    subject: Subject,
    settings: Settings,
    base: str,
    progress: Progress | None = None,
    sets: Sequence[tuple[NamedKind, PromptSet]] = (),
) -> tuple[Comparison, Character]:
    """Measure a model beside its base, and how the character of its responses differs; raise UserError as `compare`.

    It is asked the prompts of `sets`, too.
    """
    more = _More(sets, progress or Silent())
    comparison = compare([subject], settings, base, progress, more.ask)
    rows = [row for name in SETS for row in _rows(name, comparison.base, comparison.examinations[0])]
    opinions = stances(*more.preferences) if more.preferences else (None, None)
    return comparison, Character(
        traits=traits(rows),
        kinds=kinds(rows, [prompt.axes for prompt in comparison.sample.target]),
        moved=moved(rows),
        stances=opinions[0],
        first_named=opinions[1],
        sets=more.found,
    )


def _rows(name: SetName, base: Examination, edited: Examination) -> list[Beside]:
    pairs = zip(getattr(base, name), getattr(edited, name), strict=True)
    divergences = edited.token_kl if name == "benign" else [None] * len(getattr(base, name))
    return [
        Beside(name, before.prompt, _response(before), _response(after), kl)
        for (before, after), kl in zip(pairs, divergences, strict=True)
    ]


def _response(answer: Answer) -> Response:
    return Response(answer.response, answer.label)
