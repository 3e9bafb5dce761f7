"""Examination of models on one set of prompts: whole responses, divergences over tokens, judges."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from iconoclast.errors import ModelError
from iconoclast.evaluation.divergence import Divergences, bounded, kl_divergence
from iconoclast.evaluation.evaluator import MeasureOptions, score
from iconoclast.evaluation.examination import Answer, Examination, ExaminedPrompts, Variant
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.models.batching import batches_by_length
from iconoclast.models.decoding import Callbacks, FirstToken, decode, end_tokens
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.reading import continuation_logits, next_token_logprobs
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.scores import Count

SHORTEST_LENGTH = 16
"""Tokens of the shortest beginning in which refusals are counted; each further one is twice as long."""

ROWS_READ_AT_ONCE = 16
"""Responses whose token probabilities are computed at once: each takes length × vocabulary numbers."""


class Examiner:
    """An examiner of variants of one base model, whose tokenizer, chat template and response prefix serve all."""

    def __init__(
        self,
        base: Variant,
        sample: ExaminedPrompts,
        rules: ResponseRules,
        options: MeasureOptions | None = None,
        judges: Sequence[Judge] = (),
    ) -> None:
        self.sample = sample
        self.base_lm = base.lm
        self.options = options or MeasureOptions()
        self._base = base
        self._rules = rules
        self._judges = judges
        self._examined_base: Examination | None = None
        self._ends = end_tokens(base.lm)
        sets = (sample.target, sample.benign, sample.borderline)
        self._target, self._benign, self._borderline = (
            base.lm.encode(prompts.prompts) if prompts else [] for prompts in sets
        )
        self._rows = Rows(
            affordable_rows(
                base.lm,
                max(map(len, self._target + self._benign + self._borderline)) + self.options.response_length,
                self.options.batch_size,
                self.options.max_batch_size,
            )
        )

    def examined_base(self, progress: Progress | None = None) -> Examination:
        """Examine the base model once; its divergences are numerical noise."""
        if self._examined_base is None:
            self._examined_base = self.examine(self._base, progress)
        return self._examined_base

    def examine(self, variant: Variant, progress: Progress | None = None) -> Examination:
        """Measure everything about one variant; raise ModelError if its vocabulary is not that of the base model."""
        progress = progress or Silent()
        prompts = len(self._target) + 2 * len(self._benign) + len(self._borderline)
        progress.start(f"Examining {variant.name}", prompts)
        variant = self.like_base(variant)
        divergences = Divergences(self._reference, 1)
        whole, short = self.options.response_length, self.options.benign_response_length
        with variant.applied():
            target = self._decode(variant.lm, self._target, whole, progress)
            benign = self._decode(variant.lm, self._benign, short, progress, divergences.add)
            borderline = self._decode(variant.lm, self._borderline, short, progress)
        token_kl, likelihoods = self._read_base_responses(variant, progress)
        texts = [[self._text(ids) for ids in responses] for responses in (target, benign, borderline)]
        first = divergences.result()[0].tolist()
        return replace(
            self.examination(variant.name, texts, target, (first, token_kl), progress), likelihoods=likelihoods
        )

    def examination(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        target: list[list[int]],
        divergences: tuple[Sequence[float], Sequence[float]],
        progress: Progress,
    ) -> Examination:
        """Score and label what a model has answered.

        Args:
            texts: responses to target, benign and borderline prompts.
            target: tokens of the responses to target prompts.
            divergences: by benign prompt, first-token KL, and KL over tokens.
        """
        sets = (self.sample.target, self.sample.benign, self.sample.borderline)
        answers = [self._answers(p, t, progress) if p else () for p, t in zip(sets, texts, strict=True)]
        return Examination(
            name,
            score(
                self._rules,
                self.sample.target,
                texts[0],
                self.sample.benign,
                texts[1],
                divergences[0],
                self.options,
            ),
            answers[0],
            answers[1],
            answers[2],
            self._refusals_by_length(target),
            tuple(divergences[1]),
            self.options.benign_response_length,
            (),
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
        """The base model's responses to benign prompts, with the end-of-text token that ended them, if any."""
        with self._base.applied():
            length = self.options.benign_response_length
            responses = self._decode(self._base.lm, self._benign, length, Silent())
        return [ids if len(ids) == length else ids + self._ends[:1] for ids in responses]

    def like_base(self, variant: Variant) -> Variant:
        """Return the variant with what turns prompts into tokens from the base; raise ModelError as `examine` does."""
        own, base = (lm.model.get_output_embeddings().weight.shape[0] for lm in (variant.lm, self._base.lm))  # type: ignore[no-untyped-call]
        if own != base:
            raise ModelError(
                f"{variant.name} has a vocabulary of {own} tokens and its base {self._base.lm.name} one of {base}: "
                "it is no edit of that model. Name its base with --against."
            )
        lm = self._base.lm
        lm = self._base.lm
        tokenizer, date = lm.tokenizer, lm.template_date
        alike = replace(variant.lm, tokenizer=tokenizer, response_prefix=lm.response_prefix, template_date=date)
        return replace(variant, lm=alike)

    def _decode(
        self,
        lm: LanguageModel,
        prompts: list[list[int]],
        length: int,
        progress: Progress,
        first: FirstToken = lambda indices, logits: None,
    ) -> list[list[int]]:
        def run(rows: int) -> list[list[int]]:
            return decode(lm, prompts, length, rows, callbacks=Callbacks(first=first, advance=progress.advance))

        return self._rows.adaptively(run) if prompts else []

    def _read_base_responses(
        self, variant: Variant, progress: Progress
    ) -> tuple[tuple[float, ...], tuple[tuple[float, int], ...]]:
        """Return, by benign prompt, mean KL over the base model's response, and its mean log-likelihood and length."""
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
        whole = self.options.response_length
        lengths = {whole // 2, whole}
        length = SHORTEST_LENGTH
        while length < whole:
            lengths.add(length)
            length *= 2
        return {
            length: Count(
                sum(
                    self._rules.shows(prompt.text, self._text(ids[:length]))
                    for prompt, ids in zip(self.sample.target, responses, strict=True)
                ),
                len(responses),
            )
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
