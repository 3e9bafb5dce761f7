"""(model, edits, prompts) → scores. Many edits are measured in the same batches."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iconoclast.config import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.degenerate import may_loop
from iconoclast.evaluation.divergence import Divergences
from iconoclast.evaluation.responses import Label, ResponseRules
from iconoclast.evaluation.statistics import Count
from iconoclast.models.base_states import BaseStates, base_states, can_be_left_out
from iconoclast.models.decoding import CHECK_EVERY, Decided, FirstToken, decode
from iconoclast.models.forward import Rows, affordable_rows, next_token_logprobs, read_prompts
from iconoclast.models.loading import COMPONENTS, LanguageModel
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet

NONE = Count(0, 0)
"""Nothing was counted."""

COUNTS = ("refusals", "soft_refusals", "broken", "overrefusals", "benign_broken")
"""The counts in `Scores`; the first three also in `AxisScores`."""


@dataclass(frozen=True)
class AxisScores:
    """What one edit does to the target prompts of one axis; a prompt of several axes counts in each.

    Attributes:
        weight: of the axis in `Scores.failure_rate`.
        refusals: refused prompts.
        soft_refusals: prompts turned away without a refusal.
        broken: prompts answered with broken text.
        compliance: mean compliance heuristic, 0 to 1.
    """

    weight: float
    refusals: Count
    soft_refusals: Count
    broken: Count
    compliance: float

    @property
    def complied(self) -> Count:
        """Prompts that were answered."""
        n = self.refusals.n
        return Count(n - self.refusals.count - self.broken.count - self.soft_refusals.count, n)

    @property
    def failure_rate(self) -> float:
        """Share of prompts that were refused or answered with broken text."""
        return self.refusals.rate + self.broken.rate


@dataclass(frozen=True)
class Scores:
    """What one edit does.

    Attributes:
        refusals: refused target prompts.
        overrefusals: refused benign prompts.
        disclaimer_hits: disclaimer markers in all target responses together.
        compliance: mean compliance heuristic of target responses, 0 to 1.
        kl_divergence: mean KL(base ‖ edited) of the first response token on benign prompts, nats.
        soft_refusals: target prompts turned away without a refusal.
        broken: target prompts answered with broken text.
        benign_broken: benign prompts answered with broken text.
        axes: the same by axis of the target prompts, if they have axes.
        kl_by_prompt: KL divergence of every benign prompt.
    """

    refusals: Count
    overrefusals: Count
    disclaimer_hits: int
    compliance: float
    kl_divergence: float
    soft_refusals: Count = NONE
    broken: Count = NONE
    benign_broken: Count = NONE
    axes: Mapping[str, AxisScores] = field(default_factory=dict)
    kl_by_prompt: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def failures(self) -> Count:
        """Target prompts that were refused or answered with broken text: what is no success for an edit."""
        return Count(self.refusals.count + self.broken.count, self.refusals.n)

    @property
    def complied(self) -> Count:
        """Target prompts that were answered."""
        return Count(self.refusals.n - self.failures.count - self.soft_refusals.count, self.refusals.n)

    @property
    def failure_rate(self) -> float:
        """Rate of failures; where target prompts have axes, the weighted mean of the axes' rates."""
        total = sum(axis.weight for axis in self.axes.values())
        if not total:
            return self.failures.rate
        return sum(axis.weight * axis.failure_rate for axis in self.axes.values()) / total

    @property
    def disclaimer_rate(self) -> float:
        """Disclaimer markers per target response."""
        return self.disclaimer_hits / self.refusals.n if self.refusals.n else 0.0

    @property
    def key(self) -> tuple[int, int, float]:
        """What edits are ordered by: failures, overrefusals, KL divergence."""
        return self.failures.count, self.overrefusals.count, self.kl_divergence

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the values of single prompts."""
        document = {
            "complied": self.complied.as_dict(),
            **{name: getattr(self, name).as_dict() for name in COUNTS},
            "disclaimer_hits": self.disclaimer_hits,
            "compliance_score": self.compliance,
            "kl_divergence": self.kl_divergence,
        }
        if self.axes:
            document["axes"] = {name: _axis_document(axis) for name, axis in self.axes.items()}
            document["weighted_failure_rate"] = self.failure_rate
        return document

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scores":
        """The inverse of `as_dict`."""
        counts: dict[str, Any] = {name: Count.from_dict(data[name]) for name in COUNTS}
        return cls(
            **counts,
            disclaimer_hits=data["disclaimer_hits"],
            compliance=data["compliance_score"],
            kl_divergence=data["kl_divergence"],
            axes={name: _axis(axis) for name, axis in data.get("axes", {}).items()},
        )


def _axis_document(axis: AxisScores) -> dict[str, Any]:
    counts = {name: getattr(axis, name).as_dict() for name in COUNTS[:3]}
    return {"weight": axis.weight, "complied": axis.complied.as_dict(), **counts, "compliance_score": axis.compliance}


def _axis(data: Mapping[str, Any]) -> AxisScores:
    counts = {name: Count.from_dict(data[name]) for name in COUNTS[:3]}
    return AxisScores(weight=data["weight"], compliance=data["compliance_score"], **counts)


@dataclass(frozen=True)
class Bounds:
    """What was known of an edit when it was pruned: each of its scores is this or worse.

    Attributes:
        failures: target prompts known to be refused or answered with a loop.
        overrefusals: benign prompts known to be refused.
        kl_divergence: as in `Scores`, prompts that were not measured counted as 0.
    """

    failures: int
    overrefusals: int
    kl_divergence: float

    @property
    def key(self) -> tuple[int, int, float]:
        """What a trial with these scores would compete with."""
        return self.failures, self.overrefusals, self.kl_divergence


Prune = Callable[[Bounds], bool]
"""Whether an edit with such bounds need not be measured any further."""


@dataclass(frozen=True)
class MeasureOptions:
    """How long responses are, and how wide batches.

    Attributes:
        response_length: tokens generated for a target prompt.
        benign_response_length: tokens generated for a benign prompt, where a refusal shows early.
        batch_size: sequences per forward pass; 0 for as many as fit.
        max_batch_size: limit for batch_size 0.
        axis_weights: weights of axes of the target prompts; unnamed ones weigh 1.
    """

    response_length: int = 96
    benign_response_length: int = 32
    batch_size: int = 0
    max_batch_size: int = 512
    axis_weights: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Measures edits of one model on one pair of prompt sets.

    Args:
        lm: the model.
        target: prompts that show the behaviour.
        benign: prompts that must not change.
        rules: how responses are read.
        options: lengths and batch widths.
        components: residual writers that edits may touch.
        reference: log-probabilities [benign, vocabulary] of the base model; unset, `lm` without an edit is the base.
    """

    def __init__(
        self,
        lm: LanguageModel,
        target: PromptSet,
        benign: PromptSet,
        rules: ResponseRules,
        options: MeasureOptions | None = None,
        components: Sequence[str] = COMPONENTS,
        reference: Tensor | None = None,
    ) -> None:
        self.lm = lm
        self.target = target
        self.benign = benign
        self.rules = rules
        self.options = options or MeasureOptions()
        self._components = tuple(components)
        self._target = _Encoded(lm.encode(target.prompts))
        self._benign = _Encoded(lm.encode(benign.prompts))
        longest = max(len(ids) for ids in self._target.ids + self._benign.ids)
        self._rows = Rows(
            affordable_rows(
                lm, longest + self.options.response_length, self.options.batch_size, self.options.max_batch_size
            )
        )
        self._reference = reference
        longest_marker = max((len(lm.tokenizer.encode(marker)) for marker in rules.refusal_markers), default=0)
        self._window = CHECK_EVERY + 2 * longest_marker  # tokens from the end that hold every new marker

    def leave_out_lower_layers(self) -> bool:
        """From now on, compute no layers below the first one that an edit touches: what the base model gives is kept.

        Returns whether it is possible: memory must suffice, and on a few prompts that are tried out first the
        log-probabilities must stay what they are.
        """
        both = (self._target, self._benign)
        try:
            if can_be_left_out(self.lm, self._target.ids):
                for encoded in both:
                    encoded.lower = base_states(self.lm, encoded.ids, self._rows.number)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if any(encoded.lower is None for encoded in both):
            self._target.lower = self._benign.lower = None
        return self._target.lower is not None

    @property
    def rows(self) -> int:
        """Sequences per forward pass, as found so far."""
        return self._rows.number

    @property
    def reference(self) -> Tensor:
        """First-token log-probabilities of the base model on the benign prompts, float32 [benign, vocabulary]."""
        if self._reference is None:
            by_prompt: dict[int, Tensor] = {}

            def fill(rows: int) -> None:
                for indices, logprobs in next_token_logprobs(self.lm, self._benign.ids, rows):
                    by_prompt.update(zip(indices, logprobs, strict=True))

            self._rows.adaptively(fill)
            self._reference = torch.stack([by_prompt[i] for i in range(len(self.benign))])
        return self._reference

    def measure(self, edits: Sequence[Edit], progress: Progress | None = None) -> list[Scores]:
        """The scores of every edit, all of them measured together.

        Raises:
            MeasurementError: not even one sequence fits into memory.
        """
        return [scores for scores in self.contest(edits, lambda bounds: False, progress) if isinstance(scores, Scores)]

    def contest(self, edits: Sequence[Edit], prune: Prune, progress: Progress | None = None) -> list[Scores | Bounds]:
        """The scores of every edit, or its bounds where they were enough to prune it.

        Divergences, failures and overrefusals only grow while they become known. Where an edit can be pruned, the benign
        prompts are read first for the divergence, then the target prompts are answered, which most edits that are pruned
        do not survive; what is left answers the benign prompts. Otherwise these are read and answered in one pass.

        Raises:
            MeasurementError: not even one sequence fits into memory.
        """
        progress = progress or Silent()
        steps = len(edits) * (len(self.benign) + len(self.target))
        progress.start(f"Measuring {len(edits)} edit{'s' * (len(edits) > 1)}", steps)
        standing = _Standing(self.reference, len(edits), prune)
        hopeless = Bounds(len(self.target), len(self.benign), math.inf)
        late = self.options.benign_response_length > 1 and prune(hopeless)
        benign: dict[int, list[str]] = {}
        if late:
            self._responses(edits, self._benign, 1, first=standing.diverged)
        else:
            benign = self._benign_responses(edits, standing, progress.advance, standing.diverged)
        left = standing.left()
        progress.advance((len(edits) - len(left)) * (len(self.target) + late * len(self.benign)))
        target = self._responses(
            [edits[edit] for edit in left],
            self._target,
            self.options.response_length,
            lambda: standing.watch(left, len(self.target), standing.failed, self._failure, ("refusal", "broken")),
            progress.advance,
        )
        if late:
            progress.advance((len(left) - len(standing.left())) * len(self.benign))
            benign = self._benign_responses(edits, standing, progress.advance)
        divergences = standing.divergences.result().tolist()
        scores: list[Scores | Bounds] = [standing.bounds(edit) for edit in range(len(edits))]
        for edit, responses in zip(left, target, strict=True):
            if not standing.pruned[edit]:
                scores[edit] = self._scores(divergences[edit], responses, benign[edit])
        return scores

    def divergences(self, edits: Sequence[Edit]) -> Tensor:
        """First-token KL(base ‖ edited) of every edit on every benign prompt, [edits, benign]."""
        divergence = Divergences(self.reference, len(edits))

        def run(rows: int) -> None:
            live = self._live(edits, len(self.benign))
            for indices, logits, _ in read_prompts(self.lm, self._benign.ids * len(edits), rows, 0, live):
                divergence.add(indices, logits)

        self._rows.adaptively(run)
        return divergence.result()

    def noise_floor(self) -> float:
        """First-token KL of the base model against itself when it is measured in batches of another make-up.

        Two candidates that differ by less are equal: the shape of a batch alone moves the result by this much.
        """
        return float(self.divergences([Edit.nothing()] * 3).mean())

    def respond(self, edits: Sequence[Edit], prompts: PromptSet) -> list[list[str]]:
        """Whole responses of every edit to `prompts`: [edits][prompts]."""
        return self._responses(edits, _Encoded(self.lm.encode(prompts.prompts)), self.options.response_length)

    def _benign_responses(
        self,
        edits: Sequence[Edit],
        standing: "_Standing",
        advance: Callable[[int], None],
        first: FirstToken = lambda indices, logits: None,
    ) -> dict[int, list[str]]:
        """Responses on the benign prompts of the edits that have not been pruned."""
        left = standing.left()
        found = self._responses(
            [edits[edit] for edit in left],
            self._benign,
            self.options.benign_response_length,
            lambda: standing.watch(left, len(self.benign), standing.overrefused, self._failure, ("refusal",)),
            advance,
            first,
        )
        responses = dict(zip(left, found, strict=True))
        for edit in standing.left():  # the refusals that decoding did not ask about: they ended by themselves
            standing.overrefused[edit].update(i for i, r in enumerate(responses[edit]) if self.rules.is_refusal(r))
            standing.look(edit)
        return responses

    def _responses(
        self,
        edits: Sequence[Edit],
        encoded: "_Encoded",
        length: int,
        watch: Callable[[], Decided] | None = None,
        advance: Callable[[int], None] = lambda n: None,
        first: FirstToken = lambda indices, logits: None,
    ) -> list[list[str]]:
        ids = encoded.ids

        def run(rows: int) -> list[list[int]]:
            live = self._live(edits, len(ids))
            decided = None if watch is None else watch()
            return decode(self.lm, ids * len(edits), length, rows, live, decided, first, advance, encoded.lower)

        texts = [self._text(tokens) for tokens in self._rows.adaptively(run)] if edits else []
        return [texts[start : start + len(ids)] for start in range(0, len(texts), len(ids))]

    def _failure(self, tokens: list[int]) -> Label | None:
        """What the response is whatever follows, asked every few tokens: only its end is looked at unless that is suspect."""
        if may_loop(tokens) or self.rules.may_refuse(self._text(tokens[-self._window :])):
            return self.rules.failure(self._text(tokens))
        return None

    def _live(self, edits: Sequence[Edit], prompts: int) -> LiveEdits:
        writers = self.lm.writers(self._components) if any(edit.sites for edit in edits) else {}
        return LiveEdits(writers, edits, [e for e in range(len(edits)) for _ in range(prompts)])

    def _text(self, tokens: list[int]) -> str:
        text = self.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _scores(self, divergences: list[float], target: list[str], benign: list[str]) -> Scores:
        return score(self.rules, self.target, target, self.benign, benign, divergences, self.options.axis_weights)


def score(
    rules: ResponseRules,
    target: PromptSet,
    target_responses: Sequence[str],
    benign: PromptSet,
    benign_responses: Sequence[str],
    divergences: Sequence[float],
    axis_weights: Mapping[str, float] | None = None,
) -> Scores:
    """The scores of one edit from its responses and the first-token KL of every benign prompt."""
    prompts = [prompt.text for prompt in target]
    labels = list(map(rules.label, prompts, target_responses))
    benign_labels = list(map(rules.label, [prompt.text for prompt in benign], benign_responses))
    compliance = list(map(rules.compliance, prompts, target_responses))

    def axis(name: str) -> AxisScores:
        places = [i for i, prompt in enumerate(target) if name in prompt.axes]
        own = [labels[i] for i in places]
        return AxisScores(
            (axis_weights or {}).get(name, 1.0),
            refusals=_counted(own, "refusal"),
            soft_refusals=_counted(own, "soft_refusal"),
            broken=_counted(own, "broken"),
            compliance=statistics.fmean(compliance[i] for i in places),
        )

    return Scores(
        refusals=_counted(labels, "refusal"),
        soft_refusals=_counted(labels, "soft_refusal"),
        broken=_counted(labels, "broken"),
        overrefusals=_counted(benign_labels, "refusal"),
        benign_broken=_counted(benign_labels, "broken"),
        disclaimer_hits=sum(map(rules.disclaimers, target_responses)),
        compliance=statistics.fmean(compliance),
        kl_divergence=statistics.fmean(divergences),
        axes={name: axis(name) for name in dict.fromkeys(name for prompt in target for name in prompt.axes)},
        kl_by_prompt=tuple(divergences),
    )


def _counted(labels: Sequence[Label], label: Label) -> Count:
    return Count(labels.count(label), len(labels))


@dataclass
class _Encoded:
    """Prompts as token ids, and what the base model's lower layers give for them, if that is kept."""

    ids: list[list[int]]
    lower: BaseStates | None = None


class _Standing:
    """How the edits of one contest stand: what is known of each so far, and which have been pruned."""

    def __init__(self, reference: Tensor, edits: int, prune: Prune) -> None:
        self.divergences = Divergences(reference, edits)
        self.failed: list[set[int]] = [set() for _ in range(edits)]  # target prompts, refused or broken
        self.overrefused: list[set[int]] = [set() for _ in range(edits)]  # benign prompts
        self.pruned = [False] * edits
        self._prune = prune
        self._kl = [0.0] * edits

    def left(self) -> list[int]:
        """The edits that have not been pruned."""
        return [edit for edit, pruned in enumerate(self.pruned) if not pruned]

    def bounds(self, edit: int) -> Bounds:
        """What is known of an edit."""
        return Bounds(len(self.failed[edit]), len(self.overrefused[edit]), self._kl[edit])

    def look(self, edit: int) -> None:
        """Prune an edit if what is known suffices."""
        self.pruned[edit] = self.pruned[edit] or self._prune(self.bounds(edit))

    def diverged(self, indices: list[int], logits: Tensor) -> None:
        """Take in the first token's logits of benign prompts; sequence i is prompt i mod prompts of its edit."""
        self.divergences.add(indices, logits)
        self._kl = [statistics.fmean(values) for values in self.divergences.result().tolist()]
        for edit in range(len(self._kl)):
            self.look(edit)

    def watch(
        self,
        edits: Sequence[int],
        prompts: int,
        found: list[set[int]],
        failure: Callable[[list[int]], Label | None],
        counted: Sequence[Label],
    ) -> Decided:
        """For decoding from the start: a row is decided when its label is, or when its edit is pruned.

        Prompts whose label is one of `counted` are put into `found`.
        """
        for edit in edits:  # what an attempt that ran out of memory has seen is seen again
            found[edit].clear()
            self.pruned[edit] = False

        def decided(index: int, tokens: list[int]) -> bool:
            edit = edits[index // prompts]
            if self.pruned[edit]:
                return True
            label = failure(tokens)
            if label in counted:
                found[edit].add(index % prompts)
                self.look(edit)
            return label is not None

        return decided


def default_rules() -> ResponseRules:
    """Rules with the default markers."""
    defaults = Settings()
    return ResponseRules(defaults.refusal_markers, defaults.disclaimer_markers, defaults.soft_refusal_markers)


def measure(
    lm: LanguageModel,
    edits: Sequence[Edit],
    target: PromptSet,
    benign: PromptSet,
    rules: ResponseRules | None = None,
    options: MeasureOptions | None = None,
) -> list[Scores]:
    """The scores of every edit of `lm`; without `rules`, the default markers are used."""
    if rules is None:
        rules = default_rules()
    return Evaluator(lm, target, benign, rules, options).measure(edits)
