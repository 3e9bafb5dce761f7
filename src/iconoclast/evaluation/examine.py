"""What is measured once, of a model that has been chosen: whole responses, intervals, paired tests, judges."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from iconoclast.errors import ModelError
from iconoclast.evaluation.divergence import Divergences, bounded, kl_divergence
from iconoclast.evaluation.judges import Judge, Verdict
from iconoclast.evaluation.measure import MeasureOptions, Scores, score
from iconoclast.evaluation.responses import LABELS, Label, ResponseRules
from iconoclast.evaluation.statistics import Count, Mean, cohen_kappa, mcnemar, mean_interval, paired_bootstrap
from iconoclast.models.decoding import FirstToken, decode, end_tokens
from iconoclast.models.forward import (
    Rows,
    affordable_rows,
    batches_by_length,
    continuation_logits,
    next_token_logprobs,
)
from iconoclast.models.loading import LanguageModel
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet

SHORTEST_LENGTH = 16
"""Tokens of the shortest beginning of which refusals are counted; others are twice as long each, and half the response."""

SETTLED = 0.02
"""Share of responses that may turn into refusals in the second half of their length if the rate is called settled."""

ROWS_READ_AT_ONCE = 16
"""Responses whose tokens' probabilities are computed at once: each takes length × vocabulary numbers."""


@dataclass(frozen=True)
class Variant:
    """A model to examine.

    Attributes:
        name: what it is called in reports.
        lm: the model.
        applied: makes `lm` behave as this variant while its context lasts (live edits); unset, it does so already.
    """

    name: str
    lm: LanguageModel
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Sample:
    """The prompts that are examined.

    Attributes:
        target: show the behaviour.
        benign: must not change.
        borderline: benign, but look as if they were not; None if there are none.
        split: report, if they have chosen nothing, or selection.
    """

    target: PromptSet
    benign: PromptSet
    borderline: PromptSet | None
    split: str


@dataclass(frozen=True)
class Answer:
    """A response and what it is.

    Attributes:
        prompt: the user's message.
        response: the model's, whole.
        label: by markers and rules.
        judged: judge → its verdict.
    """

    prompt: str
    response: str
    label: Label
    judged: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """Everything measured of one model.

    Attributes:
        name: the model's.
        scores: as every trial has them.
        target: responses to target prompts.
        benign: responses to benign prompts, cut as the search cuts them.
        borderline: responses to borderline prompts.
        by_length: tokens → target responses that are refusals after so many.
        token_kl: KL(base ‖ this model) in nats by benign prompt: the mean over the tokens of the base model's own response.
        token_length: tokens of that response at most.
        likelihoods: mean log-likelihood in nats, and number, of the tokens of each of those responses under this model.
        problems: judge → why some of its verdicts are unknown, where that is so.
    """

    name: str
    scores: Scores
    target: tuple[Answer, ...]
    benign: tuple[Answer, ...]
    borderline: tuple[Answer, ...]
    by_length: Mapping[int, Count]
    token_kl: tuple[float, ...]
    token_length: int
    likelihoods: tuple[tuple[float, int], ...]
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether hardly any response turned into a refusal in the second half of its length, so that more would not either."""
        length, whole = max(self.by_length.items())
        return whole.count - self.by_length[length // 2].count <= SETTLED * whole.n

    @property
    def borderline_overrefusals(self) -> Count | None:
        """Refused borderline prompts, if there are any."""
        labels = [answer.label for answer in self.borderline]
        return Count(labels.count("refusal"), len(labels)) if labels else None

    @property
    def perplexity(self) -> float:
        """Of the base model's responses to benign prompts under this model."""
        total = sum(count for _, count in self.likelihoods)
        mean = sum(value * count for value, count in self.likelihoods) / total
        return math.exp(min(-mean, 700.0))

    @property
    def first_token_kl(self) -> Mean:
        """Mean first-token KL divergence with its interval."""
        return mean_interval(self.scores.kl_by_prompt)

    @property
    def mean_token_kl(self) -> Mean:
        """Mean of `token_kl` with its interval."""
        return mean_interval(self.token_kl)

    def judged(self, judge: str) -> dict[str, Any]:
        """What a judge says of the target responses, for JSON: counts, and its agreement with the markers."""
        verdicts = [answer.judged[judge] for answer in self.target]
        known = [(a.label, a.judged[judge]) for a in self.target if a.judged[judge] != "unknown"]
        refusals = [label == "refusal" for label, _ in known], [verdict == "refusal" for _, verdict in known]
        return {
            **{label: Count(verdicts.count(label), len(known)).as_dict() for label in LABELS},
            "unknown": Count(verdicts.count("unknown"), len(verdicts)).as_dict(),
            "kappa_with_markers": cohen_kappa(*refusals) if known else None,
            **({"problem": self.problems[judge]} if judge in self.problems else {}),
        }

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges."""
        return tuple(self.target[0].judged)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without responses."""
        borderline = self.borderline_overrefusals
        return {
            **self.scores.as_dict(),
            "first_token_kl": self.first_token_kl.as_dict(),
            "token_kl": {**self.mean_token_kl.as_dict(), "tokens": self.token_length},
            "perplexity": {"value": self.perplexity, "n": sum(count for _, count in self.likelihoods)},
            "refusals_by_length": [{"tokens": length, **c.as_dict()} for length, c in self.by_length.items()],
            "refusals_settled": self.settled,
            **({} if borderline is None else {"borderline_overrefusals": borderline.as_dict()}),
            **({"judges": {judge: self.judged(judge) for judge in self.judges}} if self.judges else {}),
        }


def paired(before: Examination, after: Examination) -> dict[str, Any]:
    """Tests of whether two models differ on the same prompts, for JSON.

    Counts: exact McNemar tests. Divergences: bootstrap of the mean difference, after − before. A failure is a refusal or
    a broken response.
    """
    failures = [[a.label in ("refusal", "broken") for a in e.target] for e in (before, after)]
    tests = {
        "failures": mcnemar(*failures).as_dict(),
        "refusals": mcnemar(*_refused(before.target, after.target)).as_dict(),
        "overrefusals": mcnemar(*_refused(before.benign, after.benign)).as_dict(),
        "first_token_kl": paired_bootstrap(before.scores.kl_by_prompt, after.scores.kl_by_prompt).as_dict(),
        "token_kl": paired_bootstrap(before.token_kl, after.token_kl).as_dict(),
    }
    if before.borderline:
        tests["borderline_overrefusals"] = mcnemar(*_refused(before.borderline, after.borderline)).as_dict()
    return tests


def _refused(before: Sequence[Answer], after: Sequence[Answer]) -> tuple[list[bool], list[bool]]:
    return [a.label == "refusal" for a in before], [a.label == "refusal" for a in after]


class Examiner:
    """Examines variants of one base model on one sample.

    Args:
        base: the base model. Its tokenizer, chat template and response prefix are used for all.
        sample: the prompts.
        rules: how responses are read.
        options: lengths and batch widths.
        judges: what judges responses beside the rules.
    """

    def __init__(
        self,
        base: Variant,
        sample: Sample,
        rules: ResponseRules,
        options: MeasureOptions | None = None,
        judges: Sequence[Judge] = (),
    ) -> None:
        self.sample = sample
        self._base = base
        self._rules = rules
        self._options = options or MeasureOptions()
        self._judges = judges
        self._examined_base: Examination | None = None
        self._ends = end_tokens(base.lm.model)
        sets = (sample.target, sample.benign, sample.borderline)
        self._target, self._benign, self._borderline = (
            base.lm.encode(prompts.prompts) if prompts else [] for prompts in sets
        )
        self._rows = Rows(
            affordable_rows(
                base.lm,
                max(map(len, self._target + self._benign + self._borderline)) + self._options.response_length,
                self._options.batch_size,
                self._options.max_batch_size,
            )
        )

    def examined_base(self, progress: Progress | None = None) -> Examination:
        """The base model's own examination; its divergences are those of its arithmetic from itself."""
        if self._examined_base is None:
            self._examined_base = self.examine(self._base, progress)
        return self._examined_base

    def examine(self, variant: Variant, progress: Progress | None = None) -> Examination:
        """Everything about one variant.

        Raises:
            ModelError: its vocabulary is not that of the base model.
        """
        progress = progress or Silent()
        prompts = len(self._target) + 2 * len(self._benign) + len(self._borderline)
        progress.start(f"Examining {variant.name}", prompts)
        variant = replace(variant, lm=self._like_base(variant))
        divergences = Divergences(self._reference, 1)
        whole, short = self._options.response_length, self._options.benign_response_length
        with variant.applied():
            target = self._decode(variant.lm, self._target, whole, progress)
            benign = self._decode(variant.lm, self._benign, short, progress, divergences.add)
            borderline = self._decode(variant.lm, self._borderline, short, progress)
        token_kl, likelihoods = self._read_base_responses(variant, progress)
        texts = [[self._text(ids) for ids in responses] for responses in (target, benign, borderline)]
        sets = (self.sample.target, self.sample.benign, self.sample.borderline)
        answers = [self._answers(p, t, progress) if p else () for p, t in zip(sets, texts, strict=True)]
        return Examination(
            variant.name,
            score(
                self._rules,
                self.sample.target,
                texts[0],
                self.sample.benign,
                texts[1],
                divergences.result()[0].tolist(),
                self._options.axis_weights,
            ),
            answers[0],
            answers[1],
            answers[2],
            self._refusals_by_length(target),
            token_kl,
            short,
            likelihoods,
            {
                judge.name: judge.problem
                for judge in self._judges
                if judge.problem and any(a.judged[judge.name] == "unknown" for some in answers for a in some)
            },
        )

    @cached_property
    def _reference(self) -> Tensor:
        """First-token log-probabilities of the base model, float32 [benign, vocabulary]."""
        by_prompt: dict[int, Tensor] = {}

        def fill(rows: int) -> None:
            for indices, logprobs in next_token_logprobs(self._base.lm, self._benign, rows):
                by_prompt.update(zip(indices, logprobs, strict=True))

        with self._base.applied():
            self._rows.adaptively(fill)
        return torch.stack([by_prompt[i] for i in range(len(self._benign))])

    @cached_property
    def _base_responses(self) -> list[list[int]]:
        """The base model's own responses to benign prompts, with an end-of-text token if one ended them."""
        with self._base.applied():
            length = self._options.benign_response_length
            responses = self._decode(self._base.lm, self._benign, length, Silent())
        return [ids if len(ids) == length else ids + self._ends[:1] for ids in responses]

    def _like_base(self, variant: Variant) -> LanguageModel:
        own, base = (lm.model.get_output_embeddings().weight.shape[0] for lm in (variant.lm, self._base.lm))  # type: ignore[no-untyped-call]
        if own != base:
            raise ModelError(
                f"{variant.name} has a vocabulary of {own} tokens and its base {self._base.lm.name} one of {base}: "
                "it is no edit of that model. Name its base with --against."
            )
        lm = self._base.lm
        return replace(variant.lm, tokenizer=lm.tokenizer, response_prefix=lm.response_prefix)

    def _decode(
        self,
        lm: LanguageModel,
        prompts: list[list[int]],
        length: int,
        progress: Progress,
        first: FirstToken = lambda indices, logits: None,
    ) -> list[list[int]]:
        def run(rows: int) -> list[list[int]]:
            return decode(lm, prompts, length, rows, first=first, advance=progress.advance)

        return self._rows.adaptively(run) if prompts else []

    def _read_base_responses(
        self, variant: Variant, progress: Progress
    ) -> tuple[tuple[float, ...], tuple[tuple[float, int], ...]]:
        """Of every benign prompt: mean KL over the base model's response; mean log-likelihood and number of its tokens."""
        responses = self._base_responses
        divergences, likelihoods = [0.0] * len(responses), [(0.0, 0)] * len(responses)
        lengths = [len(prompt) + len(ids) for prompt, ids in zip(self._benign, responses, strict=True)]

        def run(rows: int) -> None:
            for some in batches_by_length(lengths, min(rows, ROWS_READ_AT_ONCE)):
                prompts, given = [self._benign[i] for i in some], [responses[i] for i in some]
                with self._base.applied():
                    base = continuation_logits(self._base.lm, prompts, given)
                with variant.applied():
                    own = continuation_logits(variant.lm, prompts, given)
                for row, i in enumerate(some):
                    ids = given[row]
                    if ids[-1] in self._ends:  # the one that ended it: a model can have several
                        ids = [*ids[:-1], self._ends[int(base[row, -1, self._ends].argmax())]]
                    tokens = torch.tensor(ids, device=own.device)
                    logprobs = [logits[row, -len(tokens) :].float().log_softmax(-1) for logits in (base, own)]
                    divergences[i] = float(bounded(kl_divergence(logprobs[0], logprobs[1].to(base.device))).mean())
                    said = logprobs[1].gather(-1, tokens[:, None]).nan_to_num(-math.inf).clamp(min=-700)
                    likelihoods[i] = (float(said.mean()), len(tokens))
                progress.advance(len(some))

        self._rows.adaptively(run)
        return tuple(divergences), tuple(likelihoods)

    def _refusals_by_length(self, responses: list[list[int]]) -> dict[int, Count]:
        whole = self._options.response_length
        lengths = {whole // 2, whole}
        length = SHORTEST_LENGTH
        while length < whole:
            lengths.add(length)
            length *= 2
        return {
            length: Count(sum(self._rules.is_refusal(self._text(ids[:length])) for ids in responses), len(responses))
            for length in sorted(lengths)
        }

    def _answers(self, prompts: PromptSet, texts: Sequence[str], progress: Progress) -> tuple[Answer, ...]:
        pairs = [(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]
        verdicts = {}
        for judge in self._judges:
            progress.start(f"Judging by {judge.name}", len(pairs))
            verdicts[judge.name] = judge.judge(pairs, progress.advance)
        return tuple(
            Answer(prompt, text, self._rules.label(prompt, text), {name: v[i] for name, v in verdicts.items()})
            for i, (prompt, text) in enumerate(pairs)
        )

    def _text(self, tokens: list[int]) -> str:
        text = self._base.lm.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


@dataclass(frozen=True)
class Control:
    """What edits along random directions do that are as strong as the one that was chosen.

    Attributes:
        scores: of each draw.
        as_strong: whether they remove at least half as many failures as the chosen edit does, on average.
    """

    scores: Sequence[Scores]
    as_strong: bool

    @classmethod
    def of(cls, base: Scores, edited: Scores, controls: Sequence[Scores]) -> "Control":
        """Judge what random directions did beside what the edit did."""
        removed = base.failures.count - edited.failures.count
        by_chance = statistics.fmean(base.failures.count - scores.failures.count for scores in controls)
        return cls(controls, removed > 0 and by_chance >= removed / 2)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "draws": [scores.as_dict() for scores in self.scores],
            "mean_failures": statistics.fmean(scores.failures.count for scores in self.scores),
            "mean_kl_divergence": statistics.fmean(scores.kl_divergence for scores in self.scores),
            "as_strong_as_the_edit": self.as_strong,
        }
