"""Examination of models on one set of prompts: whole responses, divergences over tokens, judges."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from iconoclast.errors import ModelError
from iconoclast.evaluation.base_responses import BaseResponses
from iconoclast.evaluation.divergence import Divergences
from iconoclast.evaluation.evaluator import MeasureOptions, score
from iconoclast.evaluation.examination import Answer, Examination, ExaminedPrompts, Thought, Variant
from iconoclast.evaluation.judged import verdicts_of
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.rounding import ROUNDING_PROMPTS, barely_edited
from iconoclast.models.decoding import Callbacks, FirstToken, decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import first_token_logprobs
from iconoclast.models.thinking import Thoughts
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.scores import Count
from iconoclast.vocabulary import Label

SHORTEST_LENGTH = 16
"""Tokens of the shortest beginning in which refusals are counted; each further one is twice as long."""


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
        sets = (sample.target, sample.benign, sample.borderline)
        self._target, self._benign, self._borderline = (
            base.lm.encode(prompts.prompts) if prompts else [] for prompts in sets
        )
        self._rows = self.options.rows(base.lm, self._target + self._benign + self._borderline)
        self._along = BaseResponses(base, self._benign, self.options.benign_response_length, self._rows)

    def examined_base(self, progress: Progress | None = None) -> Examination:
        """Examine the base model once, and what rounding makes of a change that is none."""
        if self._examined_base is None:
            found = self.examine(self._base, progress)
            self._examined_base = replace(found, rounding=self._rounding(progress or Silent()))
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
        along = self._along.read([variant], progress)[0]
        kl = divergences.result()[0].tolist(), along.divergences
        if self._base.lm.thinking:
            read = [self._read(*some) for some in ((target, whole), (benign, short), (borderline, short))]
            texts, thoughts = (
                [[text for _, text, _ in some] for some in read],
                [[t for _, _, t in some] for some in read],
            )
            found = self.examination(variant.name, texts, [ids for ids, _, _ in read[0]], kl, progress, thoughts)
        else:
            texts = [[self._base.lm.text(ids) for ids in responses] for responses in (target, benign, borderline)]
            found = self.examination(variant.name, texts, target, kl, progress)
        return replace(found, likelihoods=along.likelihoods)

    def _rounding(self, progress: Progress) -> tuple[float, ...]:
        """Return the KL over tokens that rounding alone makes, by benign prompt; nothing in float32, which makes next to none."""
        lm = self.base_lm
        if lm.dtype == "float32" or self._base.applied is not nullcontext:
            return ()
        some = range(0, len(self._benign), -(-len(self._benign) // ROUNDING_PROMPTS))
        progress.start("Reading with other rounding", len(some))
        return self._along.read([barely_edited(lm)], progress, some)[0].divergences

    def _read(self, responses: list[list[int]], length: int) -> list[tuple[list[int], str, Thought]]:
        """Return tokens and text of every answer, both empty where there is none, and the thoughts before it."""
        thoughts, text = Thoughts(self._base.lm, self.options.thought_length), self._base.lm.text
        found = []
        for ids in responses:
            own, answer = thoughts.split(ids)
            said = [] if answer is None else answer[:length]
            found.append((said, text(said).lstrip(), Thought(thoughts.text(own), len(own), answer is not None)))
        return found

    def labels(
        self, variant: Variant, prompts: PromptSet, length: int, progress: Progress | None = None
    ) -> list[Label]:
        """Return what a variant's responses of at most `length` tokens to other prompts are, by markers and rules."""
        progress, variant = progress or Silent(), self.like_base(variant)
        ids = variant.lm.encode(prompts.prompts)
        progress.start(f"Asking {variant.name}: {prompts.source}", len(ids))
        with variant.applied():
            responses = self._decode(variant.lm, ids, length, progress)
        return self.labelled(prompts, [self._base.lm.text(ids) for ids in responses])

    def labelled(self, prompts: PromptSet, texts: Sequence[str]) -> list[Label]:
        """Return what responses to prompts are, by markers and rules."""
        return [self._rules.label(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]

    def examination(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        target: list[list[int]],
        divergences: tuple[Sequence[float], Sequence[float]],
        progress: Progress,
        thoughts: Sequence[Sequence[Thought]] = (),
    ) -> Examination:
        """Score and label what a model has answered.

        Args:
            texts: responses to target, benign and borderline prompts.
            target: tokens of the responses to target prompts.
            divergences: by benign prompt, first-token KL, and KL over tokens.
            thoughts: before those responses, if the model thinks first.
        """
        sets = (self.sample.target, self.sample.benign, self.sample.borderline)
        answers = [self._answers(p, t, progress) if p else () for p, t in zip(sets, texts, strict=True)]
        unknown = {name for some in answers for a in some for name, verdict in a.judged.items() if verdict == "unknown"}
        problems = {judge.name: judge.problem for judge in self._judges if judge.problem and judge.name in unknown}
        if thoughts:
            answers = [self._with_thoughts(*each) for each in zip(answers, thoughts, strict=True)]
        finished = [[t.finished for t in some] for some in thoughts] or [[True] * len(some) for some in texts]
        said_by = [[t if f else None for t, f in zip(*each, strict=True)] for each in zip(texts, finished, strict=True)]
        sides = self.sample.target, said_by[0], self.sample.benign, said_by[1]
        scores = score(self._rules, *sides, divergences[0], self.options)
        lengths, said = self._refusals_by_length(target), (answers[0], answers[1], answers[2])
        short = self.options.benign_response_length
        return Examination(name, scores, *said, lengths, tuple(divergences[1]), short, (), problems)

    @cached_property
    def _reference(self) -> Tensor:
        """First-token log-probabilities of the base model, float32 [benign, vocabulary]."""
        with self._base.applied():
            return self._rows.adaptively(lambda rows: first_token_logprobs(self._base.lm, self._benign, rows))

    def like_base(self, variant: Variant) -> Variant:
        """Return the variant with what turns prompts into tokens from the base; raise ModelError as `examine` does."""
        own, base = (lm.model.get_output_embeddings().weight.shape[0] for lm in (variant.lm, self._base.lm))  # type: ignore[no-untyped-call]
        if own != base:
            raise ModelError(
                f"{variant.name} has a vocabulary of {own} tokens and its base {self._base.lm.name} one of {base}: "
                "it is not an edit of that model. Name its base with --against."
            )
        lm = self._base.lm
        alike = replace(variant.lm, tokenizer=lm.tokenizer).begun_as(lm)
        return replace(variant, lm=alike)

    def _decode(
        self,
        lm: LanguageModel,
        prompts: list[list[int]],
        length: int,
        progress: Progress,
        first: FirstToken = lambda indices, logits: None,
    ) -> list[list[int]]:
        thoughts = Thoughts(self._base.lm, self.options.thought_length) if self._base.lm.thinking else None
        most, decided = (length, None) if thoughts is None else (thoughts.longest(length), thoughts.deciding(length))

        def run(rows: int) -> list[list[int]]:
            return decode(lm, prompts, most, rows, callbacks=Callbacks(decided, first, progress.advance))

        return self._rows.adaptively(run) if prompts else []

    def _refusals_by_length(self, responses: list[list[int]]) -> dict[int, Count]:
        whole = self.options.response_length
        lengths = {whole // 2, whole}
        length = SHORTEST_LENGTH
        while length < whole:
            lengths.add(length)
            length *= 2

        def refusals(length: int) -> int:
            texts = (self._base.lm.text(ids[:length]) for ids in responses)
            return sum(self._rules.shows(p.text, text) for p, text in zip(self.sample.target, texts, strict=True))

        return {length: Count(refusals(length), len(responses)) for length in sorted(lengths)}

    def _answers(self, prompts: PromptSet, texts: Sequence[str], progress: Progress) -> tuple[Answer, ...]:
        asked = [prompt.text for prompt in prompts]
        verdicts = verdicts_of(self._judges, asked, texts, progress)
        return tuple(
            Answer(prompt, text, self._rules.label(prompt, text), {name: v[i] for name, v in verdicts.items()})
            for i, (prompt, text) in enumerate(zip(asked, texts, strict=True))
        )

    def _with_thoughts(self, answers: Sequence[Answer], thoughts: Sequence[Thought]) -> tuple[Answer, ...]:
        """Keep thoughts beside their answers, with labels of their own."""
        return tuple(
            replace(a, thought=replace(t, label=self._rules.label(a.prompt, t.text)))
            for a, t in zip(answers, thoughts, strict=True)
        )
