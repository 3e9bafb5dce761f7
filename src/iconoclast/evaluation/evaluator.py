"""(model, edits, prompts) → scores, with many edits measured in the same batches."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.contest import Contest, Prune
from iconoclast.evaluation.degenerate import may_loop
from iconoclast.evaluation.divergence import Divergences
from iconoclast.evaluation.intervals import mean_interval
from iconoclast.evaluation.judged import judged_failures, verdicts_of
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.named import apply_measures, measure_of
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.goals import JUDGED, with_estimates
from iconoclast.models.base_states import BaseStates, base_states, can_be_left_out
from iconoclast.models.batching import Sequences
from iconoclast.models.decoding import CHECK_EVERY, Callbacks, Decided, FirstToken, decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.reading import RowListener, first_token_logprobs, read_prompts
from iconoclast.models.thinking import Thoughts
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.scores import AxisScores, Bounds, Count, Scores
from iconoclast.vocabulary import COMPONENTS, Component, Label

NOISE_PROMPTS = 64
"""Benign prompts from which the noise floor is measured, at most."""
NOISE_COPIES = 3
"""Times that each of them is read for it, in batches that it has not been read in before."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Lengths of responses and widths of batches.

    Attributes:
        response_length: tokens generated for a target prompt.
        benign_response_length: tokens generated for a benign prompt, where a refusal shows early.
        batch_size: sequences per forward pass; 0 for as many as fit, up to `max_batch_size`.
        axis_weights: weights of axes of the target prompts; unnamed ones weigh 1.
        own: scores of responses by name (`evaluation.named`).
        with_intervals: scores that every edit has and that should have their intervals (the means of `goals`).
        strengthen: whether edits should make the model refuse more.
        thought_length: tokens of thoughts, at most, of a model that is let think.
        judges: those that the score judged_failures asks; none if it is not asked for.
    """

    response_length: int = 96
    benign_response_length: int = 32
    batch_size: int = 0
    max_batch_size: int = 512
    axis_weights: Mapping[str, float] = field(default_factory=dict)
    own: Sequence[str] = ()
    with_intervals: Sequence[str] = ()
    strengthen: bool = False
    judges: Sequence[Judge] = ()
    thought_length: int = 0

    def __post_init__(self) -> None:
        for name in self.own:  # one that is not there must not come out after the first responses
            measure_of(name)

    def rows(self, lm: LanguageModel, prompts: Sequences) -> Rows:
        """Return how many of the prompts, with whole responses, go through the model at once."""
        longest = max(map(len, prompts)) + self.response_length + self.thought_length * lm.thinking
        return Rows(affordable_rows(lm, longest, self.batch_size, self.max_batch_size))


class Evaluator:
    """A measurer of edits of one model on one pair of prompt sets.

    Args:
        target: prompts that show the behaviour.
        benign: prompts that must not change.
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
        components: Sequence[Component] = COMPONENTS,
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
        self._rows = self.options.rows(lm, self._target.ids + self._benign.ids)
        self._reference = reference
        self._thoughts = Thoughts(lm, self.options.thought_length) if lm.thinking else None
        longest_marker = max((len(lm.tokenizer.encode(marker)) for marker in rules.refusal_markers), default=0)
        self._window = CHECK_EVERY + 2 * longest_marker  # tokens from the end that hold every new marker

    def leave_out_lower_layers(self) -> bool:
        """Reuse the base model's states below the first layer that an edit touches from now on.

        Returns False if memory is short or the log-probabilities of a few prompts change. Else the same pass over the
        benign prompts gives `reference`, unless that is known.
        """
        first: dict[int, Tensor] = {}

        def keep(indices: list[int], logits: Tensor) -> None:
            if self._reference is None:
                first.update(zip(indices, logits.float().log_softmax(-1), strict=True))

        target = benign = None
        try:
            if can_be_left_out(self.lm, self._target.ids):
                target = base_states(self.lm, self._target.ids, self._rows.number)
                benign = target and base_states(self.lm, self._benign.ids, self._rows.number, keep)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if target is None or benign is None:
            return False
        self._target.lower, self._benign.lower = target, benign
        if self._reference is None:
            self._reference = torch.stack([first[benign.rows[tuple(ids)]] for ids in self._benign.ids])
        return True

    @property
    def rows(self) -> int:
        """Sequences per forward pass, as found so far."""
        return self._rows.number

    @property
    def reference(self) -> Tensor:
        """First-token log-probabilities of the base model on the benign prompts, float32 [benign, vocabulary]."""
        if self._reference is None:
            self._reference = self._rows.adaptively(lambda n: first_token_logprobs(self.lm, self._benign.ids, n))
        return self._reference

    def measure(self, edits: Sequence[Edit], progress: Progress | None = None) -> list[Scores]:
        """Return the scores of every edit, measured together; raise MeasurementError if not even one sequence fits."""
        return [scores for scores in self.contest(edits, lambda bounds: False, progress) if isinstance(scores, Scores)]

    def contest(self, edits: Sequence[Edit], prune: Prune, progress: Progress | None = None) -> list[Scores | Bounds]:
        """Return the scores of every edit, or its bounds where they were enough to prune it.

        Divergences, failures and overrefusals only grow as they become known, so pruning is never premature. Where it
        is possible, the benign prompts are read for the divergence and the target prompts answered first, which most
        pruned edits do not survive, then the benign ones answered. Otherwise the benign prompts take a single pass.

        Raises:
            MeasurementError: not even one sequence fits into memory.
        """
        progress = progress or Silent()
        steps = len(edits) * (len(self.benign) + len(self.target))
        progress.start(f"Measuring {len(edits)} edit{'s' * (len(edits) > 1)}", steps)
        standing = Contest(self.reference, len(edits), prune)
        failed: Sequence[Label] = ("broken",) if self.options.strengthen else ("refusal", "broken")
        hopeless = Bounds(len(self.target), len(self.benign), math.inf)
        late = self.options.benign_response_length > 1 and prune(hopeless)
        benign: dict[int, list[str | None]] = {}
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
            lambda: standing.watch(left, len(self.target), standing.failed, self._failure, failed),
            progress.advance,
        )
        if late:
            progress.advance((len(left) - len(standing.left())) * len(self.benign))
            benign = self._benign_responses(edits, standing, progress.advance)
        divergences = standing.divergences.result().tolist()
        scores: list[Scores | Bounds] = [standing.bounds(edit) for edit in range(len(edits))]
        for edit, responses in zip(left, target, strict=True):
            if not standing.pruned[edit]:
                texts = self.target, responses, self.benign, benign[edit]
                scores[edit] = score(self.rules, *texts, divergences[edit], self.options)
        return scores

    def noise_floor(self) -> float:
        """Return the base model's first-token KL from itself in other batches: smaller differences mean nothing.

        It is the mean of up to `NOISE_PROMPTS` benign prompts, each read `NOISE_COPIES` times.
        """
        places = range(0, len(self.benign), -(-len(self.benign) // NOISE_PROMPTS))
        divergence = Divergences(self.reference[list(places)], NOISE_COPIES)

        def run(rows: int) -> None:
            ids = [self._benign.ids[place] for place in places] * NOISE_COPIES
            for indices, logits, _ in read_prompts(self.lm, ids, rows, 0, RowListener()):
                divergence.add(indices, logits)

        self._rows.adaptively(run)
        return float(divergence.result().mean())

    def respond(self, edits: Sequence[Edit], prompts: PromptSet) -> list[list[str]]:
        """Return whole responses of every edit to `prompts`: [edits][prompts]."""
        found = self._responses(edits, _Encoded(self.lm.encode(prompts.prompts)), self.options.response_length)
        return [[text or "" for text in texts] for texts in found]

    def _benign_responses(
        self,
        edits: Sequence[Edit],
        standing: "Contest",
        advance: Callable[[int], None],
        first: FirstToken = lambda indices, logits: None,
    ) -> dict[int, list[str | None]]:
        """Return benign responses of the edits that have not been pruned, by edit."""
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
            shown = [self.rules.shows(p.text, r or "") for p, r in zip(self.benign, responses[edit], strict=True)]
            standing.overrefused[edit].update(i for i, shows in enumerate(shown) if shows)
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
    ) -> list[list[str | None]]:
        """Return responses without thoughts, [edits][prompts]; None where thoughts did not end."""
        ids = encoded.ids
        thoughts = self._thoughts if length > 1 else None

        def run(rows: int) -> list[list[int]]:
            live = self._live(edits, len(ids))
            decided = None if watch is None else watch()
            most = length
            if thoughts is not None:
                decided, most = thoughts.deciding(length, decided), thoughts.longest(length)
            return decode(
                self.lm, ids * len(edits), most, rows, live, Callbacks(decided, first, advance), encoded.lower
            )

        def text(tokens: list[int]) -> str | None:
            answer = tokens if thoughts is None else thoughts.split(tokens)[1]
            said = None if answer is None else self.lm.text(answer[:length])
            return said if said is None or thoughts is None else said.lstrip()

        texts = [text(tokens) for tokens in self._rows.adaptively(run)] if edits else []
        return [texts[start : start + len(ids)] for start in range(0, len(texts), len(ids))]

    def _failure(self, tokens: list[int]) -> Label | None:
        """Return the label that is certain so far; for speed, the whole is read only if its end looks suspect."""
        if may_loop(tokens) or self.rules.may_refuse(self.lm.text(tokens[-self._window :])):
            return self.rules.failure(self.lm.text(tokens))
        return None

    def _live(self, edits: Sequence[Edit], prompts: int) -> LiveEdits:
        writers = self.lm.writers(self._components) if any(edit.sites for edit in edits) else {}
        return LiveEdits(writers, edits, [e for e in range(len(edits)) for _ in range(prompts)])


def score(
    rules: ResponseRules,
    target: PromptSet,
    target_said: Sequence[str | None],
    benign: PromptSet,
    benign_said: Sequence[str | None],
    divergences: Sequence[float],
    options: MeasureOptions | None = None,
) -> Scores:
    """Return the scores of one edit from its responses and the first-token KL of every benign prompt.

    A response of None is one whose thoughts did not end: it counts as broken.
    """
    options = options or MeasureOptions()
    target_responses, benign_responses = ([text or "" for text in said] for said in (target_said, benign_said))
    prompts = [prompt.text for prompt in target]
    labels = list(map(rules.label, prompts, target_responses))
    benign_labels = list(map(rules.label, [prompt.text for prompt in benign], benign_responses))
    compliance = list(map(rules.compliance, prompts, target_responses))
    disclaimers = list(map(rules.disclaimers, target_responses))
    means: dict[str, Sequence[float]] = {
        "compliance": compliance,
        "disclaimers": disclaimers,
        "kl_divergence": divergences,
    }
    intervals = {name: mean_interval(means[name]).interval for name in options.with_intervals}

    scores = Scores(
        refusals=_counted(labels, "refusal"),
        soft_refusals=_counted(labels, "soft_refusal"),
        broken=_counted(labels, "broken"),
        overrefusals=_counted(benign_labels, "refusal"),
        benign_broken=_counted(benign_labels, "broken"),
        disclaimer_hits=sum(disclaimers),
        compliance=statistics.fmean(compliance),
        kl_divergence=statistics.fmean(divergences),
        axes=_axes(target, labels, compliance, options.axis_weights),
        intervals=intervals,
        strengthened=options.strengthen,
        kl_by_prompt=tuple(divergences),
        unfinished=Count(target_said.count(None), len(target_said)) if options.thought_length else None,
    )
    own = dict(apply_measures(options.own, prompts, target_responses))
    if options.judges:
        verdicts = verdicts_of(options.judges, prompts, target_responses)
        own[JUDGED] = judged_failures(labels, verdicts, options.strengthen)
    return with_estimates(scores, own)


def _axes(
    target: PromptSet, labels: Sequence[Label], compliance: Sequence[float], weights: Mapping[str, float]
) -> dict[str, AxisScores]:
    """Return the scores of every axis that a target prompt names."""
    found = {}
    for name in dict.fromkeys(name for prompt in target for name in prompt.axes):
        places = [i for i, prompt in enumerate(target) if name in prompt.axes]
        own = [labels[i] for i in places]
        found[name] = AxisScores(
            weights.get(name, 1.0),
            refusals=_counted(own, "refusal"),
            soft_refusals=_counted(own, "soft_refusal"),
            broken=_counted(own, "broken"),
            compliance=statistics.fmean(compliance[i] for i in places),
        )
    return found


def _counted(labels: Sequence[Label], label: Label) -> Count:
    return Count(labels.count(label), len(labels))


@dataclass
class _Encoded:
    """Prompts as token ids, with the base model's lower-layer states if they are kept."""

    ids: list[list[int]]
    lower: BaseStates | None = None


def default_rules() -> ResponseRules:
    """Return the rules of the default settings."""
    defaults = Settings()
    return ResponseRules(
        refusal_markers=defaults.refusal_markers,
        disclaimer_markers=defaults.disclaimer_markers,
        soft_refusal_markers=defaults.soft_refusal_markers,
        soft_refusal_rules=defaults.soft_refusal_rules,
    )


def measure(
    lm: LanguageModel,
    edits: Sequence[Edit],
    target: PromptSet,
    benign: PromptSet,
    rules: ResponseRules | None = None,
    options: MeasureOptions | None = None,
) -> list[Scores]:
    """Return the scores of every edit of `lm`; without `rules`, the default markers are used.

    >>> [scores.refusals.n for scores in ic.measure(lm, [ic.Edit.nothing()], target, benign)]
    [16]
    """
    if rules is None:
        rules = default_rules()
    return Evaluator(lm, target, benign, rules, options).measure(edits)
