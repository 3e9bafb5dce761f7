"""What an edit did to behaviour: all that `evaluate` measures, its character, its stances."""

from collections.abc import Callable, Sequence
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
from iconoclast.documents import Plain
from iconoclast.evaluation.examination import Answer, Examination, Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.served import served_labels
from iconoclast.progress import Progress
from iconoclast.prompts import PromptSet
from iconoclast.runs.comparison import Comparison, compare
from iconoclast.runs.documents import SETS
from iconoclast.runs.splits import Prompts
from iconoclast.runs.subjects import Openable, ServerSubject, Subject
from iconoclast.runs.workbench import Workbench
from iconoclast.vocabulary import Label


@dataclass
class _Asked:
    """A subject that is asked more while it is measured; `preferences` are those of base and subject in either/or questions.

    A server is asked no such questions: what it tells of probabilities can leave the answers out.
    """

    subject: Openable | ServerSubject
    sets: Sequence[tuple[NamedKind, PromptSet]] = ()
    preferences: list[list[float]] = field(default_factory=list)
    found: list[NamedSet] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.subject.name

    def examined(self, examiner: Examiner, bench: Workbench, progress: Progress) -> Examination:
        bench.require_room(*(prompts for _, prompts in self.sets))
        base = Variant("base model", bench.lm)
        if isinstance(self.subject, ServerSubject):
            server = self.subject.server
            self._count(
                examiner,
                base,
                bench.settings,
                lambda each, n: served_labels(examiner, server, each, n, progress),
                progress,
            )
            return self.subject.examined(examiner, bench, progress)
        with self.subject.opened(bench.lm, bench.settings) as variant, bench.beside(variant.lm):
            progress.start("Asking either/or questions", 0)
            edited = examiner.like_base(variant)
            self.preferences = [preferences(each) for each in (base, edited)]
            self._count(
                examiner, base, bench.settings, lambda each, n: examiner.labels(edited, each, n, progress), progress
            )
            return examiner.examine(variant, progress)

    def _count(
        self,
        examiner: Examiner,
        base: Variant,
        settings: Settings,
        labels: Callable[[PromptSet, int], list[Label]],
        progress: Progress,
    ) -> None:
        """Count what both answer to the named sets; `labels` are those of the edited model's responses of such a length."""
        for kind, prompts in self.sets:
            length = settings.max_response_length if kind == "refusals" else settings.max_benign_response_length
            before = examiner.labels(base, prompts, length, progress)
            self.found.append(named_set(kind, prompts.source, prompts.fingerprint, before, labels(prompts, length)))

    def seen(self, prompts: Prompts) -> Sequence[PromptSet] | None:
        return self.subject.seen(prompts)

    def document(self, base: str) -> Plain:
        return self.subject.document(base)


def audit_behavior(
    subject: Subject,
    settings: Settings,
    base: str,
    progress: Progress | None = None,
    sets: Sequence[tuple[NamedKind, PromptSet]] = (),
) -> tuple[Comparison, Character]:
    """Measure a model beside its base, and how the character of its responses differs; raise UserError as `compare`.

    A model that is loaded here, or served, is asked the prompts of `sets`, too.
    """
    asked = _Asked(subject, sets) if isinstance(subject, Openable | ServerSubject) else None
    comparison = compare([asked or subject], settings, base, progress)
    rows = [row for name in SETS for row in _rows(name, comparison.base, comparison.examinations[0])]
    opinions = stances(*asked.preferences) if asked and asked.preferences else (None, None)
    return comparison, Character(
        traits=traits(rows),
        kinds=kinds(rows, [prompt.axes for prompt in comparison.sample.target]),
        moved=moved(rows),
        stances=opinions[0],
        first_named=opinions[1],
        sets=asked.found if asked else [],
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
