"""(model, edits, prompts) → scores. Many edits are measured in the same batches."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from iconoclast.config import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import MeasurementError
from iconoclast.evaluation.divergence import kl_divergence
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.statistics import Count
from iconoclast.models.base_states import BaseStates, base_states, can_be_left_out
from iconoclast.models.decoding import CHECK_EVERY, Decided, FirstToken, decode
from iconoclast.models.forward import affordable_rows, next_token_logprobs, read_prompts
from iconoclast.models.loading import COMPONENTS, LanguageModel
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet

ROWS_AT_A_TIME = 16
"""Rows of logits whose divergence is computed at once: so few that they stay in the processor's cache."""

LARGEST_KL = 100.0
"""Stands for an infinite divergence, in nats: samplers cannot learn from infinity, and JSON cannot write it."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Scores:
    """What one edit does.

    Attributes:
        refusals: refused target prompts.
        overrefusals: refused benign prompts.
        disclaimer_hits: disclaimer markers in all target responses together.
        compliance: mean compliance heuristic of target responses, 0 to 1.
        kl_divergence: mean KL(base ‖ edited) of the first response token on benign prompts, nats.
        kl_by_prompt: the same for every benign prompt.
    """

    refusals: Count
    overrefusals: Count
    disclaimer_hits: int
    compliance: float
    kl_divergence: float
    kl_by_prompt: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def disclaimer_rate(self) -> float:
        """Disclaimer markers per target response."""
        return self.disclaimer_hits / self.refusals.n if self.refusals.n else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the values of single prompts."""
        return {
            "refusals": self.refusals.as_dict(),
            "overrefusals": self.overrefusals.as_dict(),
            "disclaimer_hits": self.disclaimer_hits,
            "compliance_score": self.compliance,
            "kl_divergence": self.kl_divergence,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scores":
        """The inverse of `as_dict`."""
        refusals, overrefusals = data["refusals"], data["overrefusals"]
        return cls(
            Count(refusals["count"], refusals["n"]),
            Count(overrefusals["count"], overrefusals["n"]),
            data["disclaimer_hits"],
            data["compliance_score"],
            data["kl_divergence"],
        )


@dataclass(frozen=True)
class Bounds:
    """What was known of an edit when it was pruned: each of its scores is this or worse.

    Attributes:
        refusals: target prompts known to be refused.
        overrefusals: benign prompts known to be refused.
        kl_divergence: as in `Scores`, prompts that were not measured counted as 0.
    """

    refusals: int
    overrefusals: int
    kl_divergence: float

    @property
    def key(self) -> tuple[int, int, float]:
        """What a trial with these scores would compete with."""
        return self.refusals, self.overrefusals, self.kl_divergence


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
    """

    response_length: int = 96
    benign_response_length: int = 32
    batch_size: int = 0
    max_batch_size: int = 512


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
        self._writers = lm.writers(components)
        self._target = _Encoded(lm.encode(target.prompts))
        self._benign = _Encoded(lm.encode(benign.prompts))
        longest = max(len(ids) for ids in self._target.ids + self._benign.ids)
        self._rows = affordable_rows(
            lm, longest + self.options.response_length, self.options.batch_size, self.options.max_batch_size
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
                    encoded.lower = base_states(self.lm, encoded.ids, self._rows)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if any(encoded.lower is None for encoded in both):
            self._target.lower = self._benign.lower = None
        return self._target.lower is not None

    @property
    def rows(self) -> int:
        """Sequences per forward pass, as found so far."""
        return self._rows

    @property
    def reference(self) -> Tensor:
        """First-token log-probabilities of the base model on the benign prompts, float32 [benign, vocabulary]."""
        if self._reference is None:
            by_prompt: dict[int, Tensor] = {}

            def fill(rows: int) -> None:
                for indices, logprobs in next_token_logprobs(self.lm, self._benign.ids, rows):
                    by_prompt.update(zip(indices, logprobs, strict=True))

            self._adaptively(fill)
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

        On benign prompts divergences and overrefusals become known, on target prompts refusals; all of them only grow.

        Raises:
            MeasurementError: not even one sequence fits into memory.
        """
        progress = progress or Silent()
        steps = len(edits) * (len(self.benign) + len(self.target))
        progress.start(f"Measuring {len(edits)} edit{'s' * (len(edits) > 1)}", steps)
        standing = _Standing(self.reference, len(edits), prune)
        benign = self._benign_responses(edits, standing, progress.advance)
        left = standing.left()
        progress.advance((len(edits) - len(left)) * len(self.target))
        target = self._responses(
            [edits[edit] for edit in left],
            self._target,
            self.options.response_length,
            lambda: standing.watch(left, len(self.target), standing.refused, self._has_refused),
            progress.advance,
        )
        divergences = standing.divergences.result().tolist()
        scores: list[Scores | Bounds] = [standing.bounds(edit) for edit in range(len(edits))]
        for edit, responses in zip(left, target, strict=True):
            if not standing.pruned[edit]:
                scores[edit] = self._scores(divergences[edit], responses, benign[edit])
        return scores

    def divergences(self, edits: Sequence[Edit]) -> Tensor:
        """First-token KL(base ‖ edited) of every edit on every benign prompt, [edits, benign]."""
        divergence = _Divergences(self.reference, len(edits))

        def run(rows: int) -> None:
            live = self._live(edits, len(self.benign))
            for indices, logits, _ in read_prompts(self.lm, self._benign.ids * len(edits), rows, 0, live):
                divergence.add(indices, logits)

        self._adaptively(run)
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
        self, edits: Sequence[Edit], standing: "_Standing", advance: Callable[[int], None]
    ) -> list[list[str]]:
        """Divergences and responses on the benign prompts, from the same passes."""
        responses = self._responses(
            edits,
            self._benign,
            self.options.benign_response_length,
            lambda: standing.watch(range(len(edits)), len(self.benign), standing.overrefused, self._has_refused),
            advance,
            standing.diverged,
        )
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

        texts = [self._text(tokens) for tokens in self._adaptively(run)] if edits else []
        return [texts[start : start + len(ids)] for start in range(0, len(texts), len(ids))]

    def _has_refused(self, tokens: list[int]) -> bool:
        """Whether the response holds a marker, asked every few tokens: only its end is read, unless that holds one."""
        return self.rules.has_refused(self._text(tokens[-self._window :])) and self.rules.has_refused(
            self._text(tokens)
        )

    def _live(self, edits: Sequence[Edit], prompts: int) -> LiveEdits:
        return LiveEdits(self._writers, edits, [e for e in range(len(edits)) for _ in range(prompts)])

    def _text(self, tokens: list[int]) -> str:
        text = self.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _scores(self, divergences: list[float], target: list[str], benign: list[str]) -> Scores:
        rules = self.rules
        pairs = list(zip(self.target, target, strict=True))
        return Scores(
            refusals=Count(sum(map(rules.is_refusal, target)), len(target)),
            overrefusals=Count(sum(map(rules.is_refusal, benign)), len(benign)),
            disclaimer_hits=sum(map(rules.disclaimers, target)),
            compliance=statistics.fmean(rules.compliance(prompt.text, response) for prompt, response in pairs),
            kl_divergence=statistics.fmean(divergences),
            kl_by_prompt=tuple(divergences),
        )

    def _adaptively(self, run: Callable[[int], _Result]) -> _Result:
        """`run` with the current number of rows, halved as long as memory does not suffice."""
        while True:
            try:
                return run(self._rows)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if self._rows == 1:
                    raise MeasurementError(
                        "Not even one sequence fits into the device's memory. Use quantization bnb_4bit or a smaller max_response_length."
                    ) from None
                self._rows //= 2


@dataclass
class _Encoded:
    """Prompts as token ids, and what the base model's lower layers give for them, if that is kept."""

    ids: list[list[int]]
    lower: BaseStates | None = None


class _Standing:
    """How the edits of one contest stand: what is known of each so far, and which have been pruned."""

    def __init__(self, reference: Tensor, edits: int, prune: Prune) -> None:
        self.divergences = _Divergences(reference, edits)
        self.refused: list[set[int]] = [set() for _ in range(edits)]  # target prompts
        self.overrefused: list[set[int]] = [set() for _ in range(edits)]  # benign prompts
        self.pruned = [False] * edits
        self._prune = prune
        self._kl = [0.0] * edits

    def left(self) -> list[int]:
        """The edits that have not been pruned."""
        return [edit for edit, pruned in enumerate(self.pruned) if not pruned]

    def bounds(self, edit: int) -> Bounds:
        """What is known of an edit."""
        return Bounds(len(self.refused[edit]), len(self.overrefused[edit]), self._kl[edit])

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
        self, edits: Sequence[int], prompts: int, refused: list[set[int]], has_refused: Callable[[list[int]], bool]
    ) -> Decided:
        """For decoding from the start: a row is decided when it has refused, or when its edit is pruned."""
        for edit in edits:  # what an attempt that ran out of memory has seen is seen again
            refused[edit].clear()
            self.pruned[edit] = False

        def decided(index: int, tokens: list[int]) -> bool:
            edit = edits[index // prompts]
            if self.pruned[edit]:
                return True
            if not has_refused(tokens):
                return False
            refused[edit].add(index % prompts)
            self.look(edit)
            return True

        return decided


class _Divergences:
    """Collects KL(base ‖ edited) of many edits, batch by batch; sequence i is prompt i mod prompts of its edit."""

    def __init__(self, reference: Tensor, edits: int) -> None:
        self._reference = reference
        self._values = reference.new_zeros(edits * len(reference))

    def add(self, indices: list[int], logits: Tensor) -> None:
        for start in range(0, len(indices), ROWS_AT_A_TIME):
            some = indices[start : start + ROWS_AT_A_TIME]
            base = self._reference[[i % len(self._reference) for i in some]]
            edited = logits[start : start + ROWS_AT_A_TIME].float().log_softmax(-1)
            self._values[some] = kl_divergence(base, edited)

    def result(self) -> Tensor:
        """[edits, prompts]. A model broken so far that its logits are not numbers is as far away as can be."""
        values = self._values.nan_to_num(nan=LARGEST_KL).clamp(max=LARGEST_KL)
        return values.reshape(-1, len(self._reference)).cpu()


def measure(
    lm: LanguageModel,
    edits: Sequence[Edit],
    target: PromptSet,
    benign: PromptSet,
    rules: ResponseRules | None = None,
    options: MeasureOptions | None = None,
) -> list[Scores]:
    """The scores of every edit of `lm`; without `rules`, the default refusal and disclaimer markers are used."""
    if rules is None:
        defaults = Settings()
        rules = ResponseRules(defaults.refusal_markers, defaults.disclaimer_markers)
    return Evaluator(lm, target, benign, rules, options).measure(edits)
