"""The workbench: one owner of an opened model, its prompts, and everything that measures edits of it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest
from typing import Literal

from torch import Tensor

from iconoclast.config.schema import Settings
from iconoclast.constraints import constrained
from iconoclast.directions.estimators import Directions, estimate_directions
from iconoclast.directions.subspace import winsorize
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.examination import ExaminedPrompts, Variant
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.model_scores import ModelScores
from iconoclast.evaluation.named import measure_of, of_responses
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.rules import find_rule
from iconoclast.goals import ALIASES, JUDGED, MEANS, Objectives
from iconoclast.models.chat_template import opening_tokens, tokenizer_hash
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.memory import affordable_rows
from iconoclast.models.packed import packed
from iconoclast.models.residuals import last_token_residuals
from iconoclast.models.thinking import find_response_prefix, find_thinking_start, open_block, thinking_block
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.runs.cache import Cache, cache_folder
from iconoclast.runs.documents import Rendering
from iconoclast.runs.judging import judges_of
from iconoclast.runs.kept import Kept
from iconoclast.runs.splits import Prompts
from iconoclast.search.space import AnyParameters

LONGEST_TOKEN = 128
"""Rough bound on the bytes in one token of any tokenizer; a longer text is too long without being tokenised."""
PREFIX_PROMPTS = 8
"""Prompts of each set whose responses are searched for a common start."""
ASKS_FOR_THE_DATE = "strftime_now"
"""The function by which chat templates get the date."""


@dataclass
class Workbench:
    """A model and prompts, opened under one set of settings. Every command that measures works at one.

    Attributes:
        directions: the material of trials' edits; None until they are estimated or read.
    """

    settings: Settings
    lm: LanguageModel
    directions: Directions | None = None
    _prompts: Prompts | None = None
    _judges: Sequence[Judge] | None = None

    @classmethod
    def load(
        cls,
        settings: Settings,
        model: str | None = None,
        quantization: str | None = None,
        directions: Directions | None = None,
        progress: Progress | None = None,
    ) -> "Workbench":
        """Load a model.

        Args:
            model: used in place of the settings' model.
            quantization: used in place of the settings' quantisation.
            directions: those of a run.

        Raises:
            UserError: no model is named, or it cannot be loaded.
        """
        progress = progress or Silent()
        require_functions(settings)
        name = settings.model if model is None else model
        if name is None:
            raise SettingsError("No base model is named. Give it with --against, or set model in the settings file.")
        progress.start(f"Loading {name}", 0)
        lm = load_model(
            name,
            dtypes=settings.dtypes,
            quantization=settings.quantization if quantization is None else quantization,
            device_map=settings.device_map,
            max_memory=settings.memory_limits,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.chat_template,
            response_prefix=settings.response_prefix or "",
            note=progress.note,
        )
        told = settings.template_date
        date = None if told is None else datetime.fromisoformat(told)
        return cls(settings, replace(lm, template_date=date, thinking=settings.thinking == "on"), directions)

    @classmethod
    def open(
        cls,
        settings: Settings,
        model: str | None = None,
        directions: Directions | None = None,
        progress: Progress | None = None,
    ) -> AbstractContextManager["Workbench"]:
        """Load a model and lay out its weights for as long as the context lasts; arguments as in `load`."""
        return cls.load(settings, model, None, directions, progress).laid_out()

    def use(self, prompts: Prompts, response_prefix: str | None = None, judges: Sequence[Judge] | None = None) -> None:
        """Use prompts and judges that are loaded already, and let responses start with a known prefix."""
        self._prompts, self._judges = prompts, judges
        if response_prefix is not None:
            self.start_responses_with(response_prefix)

    @contextmanager
    def laid_out(self) -> Iterator["Workbench"]:
        """Keep a copy of the weights as the processor multiplies them fastest; they must not change meanwhile."""
        with packed(self.lm.model):
            yield self

    def beside(self, lm: LanguageModel) -> AbstractContextManager["Workbench"]:
        """Give a workbench that measures another model in the same way, with the same prompts."""
        return Workbench(self.settings, lm, self.directions, self.prompts, self._judges).laid_out()

    @property
    def prompts(self) -> Prompts:
        """The prompt sets of the settings, loaded when they are first needed.

        Raises:
            UserError: a set cannot be read, or sets of different purposes share prompts.
        """
        if self._prompts is None:
            self._prompts = Prompts.load(self.settings)
        return self._prompts

    @property
    def judges(self) -> Sequence[Judge]:
        """The judges of the settings, loaded when they are first needed; raise UserError if one cannot be used."""
        if self._judges is None:
            self._judges = judges_of(self.settings)
        return self._judges

    @property
    def sample(self) -> ExaminedPrompts:
        """The prompts that are reported on."""
        return self.prompts.reported

    @property
    def rules(self) -> ResponseRules:
        """The settings' rules for reading responses."""
        s = self.settings
        return ResponseRules(
            refusal_markers=s.refusal_markers,
            disclaimer_markers=s.disclaimer_markers,
            soft_refusal_markers=s.soft_refusal_markers,
            patterns=s.refusal_patterns,
            rules=s.refusal_rules,
            soft_refusal_rules=s.soft_refusal_rules,
        )

    @property
    def options(self) -> MeasureOptions:
        """Lengths and batch widths, and what is measured beside what every edit has."""
        s = self.settings
        objectives = [] if (wanted := Objectives(s.objectives)).default else [each.name for each in wanted.all]
        asked = {ALIASES.get(name, name) for name in (*objectives, *constrained(s.constraints))}
        return MeasureOptions(
            response_length=s.max_response_length,
            benign_response_length=s.max_benign_response_length,
            batch_size=s.batch_size,
            max_batch_size=s.max_batch_size,
            axis_weights=s.weights_of_axes,
            own=tuple(name for name in s.named_scores if of_responses(name)),
            with_intervals=tuple(name for name in MEANS if name in asked),
            strengthen=s.strengthen,
            judges=self.judges if JUDGED in s.named_scores else (),
            thought_length=s.max_thought_length if self.lm.thinking else 0,
        )

    def model_scores(self) -> ModelScores | None:
        """Return a measurer of the scores of the model itself that the settings name; None if they name none."""
        s, benign = self.settings, self.prompts.selected.benign
        names = [name for name in s.named_scores if name != JUDGED and not of_responses(name)]
        if not names:
            return None
        limits = s.batch_size, s.max_batch_size
        ids = self.lm.encode(benign.prompts)
        return ModelScores(self.lm, ids, names, s.max_benign_response_length, limits, s.components)

    def evaluator(self, split: Literal["select", "report"], reference: Tensor | None = None) -> Evaluator:
        """Return the evaluator of edits on a split; without report prompts, "report" means the select prompts.

        Args:
            reference: first-token log-probabilities [benign, vocabulary] of another model, which is then the base.
        """
        prompts = self.prompts.selected if split == "select" else self.sample
        s = self.settings
        return Evaluator(self.lm, prompts.target, prompts.benign, self.rules, self.options, s.components, reference)

    def examiner(self) -> Examiner:
        """Return an examiner of whole models beside this one, on the prompts that are reported on."""
        return Examiner(Variant("base model", self.lm), self.sample, self.rules, self.options, self.judges)

    def edit(self, parameters: AnyParameters, directions: Directions | None = None) -> Edit:
        """Make the edit of a trial, from its own directions or from others (random ones, as a control)."""
        writers = self.lm.writers(self.settings.components)
        if directions is not None:
            return parameters.along(directions, writers, self.settings.row_normalization)
        assert self.directions is not None
        return parameters.edit(self.directions, writers, self.settings.row_normalization)

    def live(self, name: str, edit: Edit) -> Variant:
        """Return the model with an edit that is applied while it is examined."""
        return Variant(name, self.lm, LiveEdits(self.lm.writers(self.settings.components), [edit]).applied)

    def kept(self, progress: Progress) -> Kept:
        """Return what is kept of this model for several runs; only the base model itself may ask."""
        return Kept(Cache(cache_folder(), int(self.settings.cache_gib * 2**30)), self.lm, progress)

    def residuals(self, progress: Progress | None = None, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Return the fit prompts' residuals, benign [n, L, d] and target [m, L, d], winsorised as the settings say."""
        progress = progress or Silent()
        s, lm = self.settings, self.lm
        ids = lm.encode(self.prompts.benign.prompts), lm.encode(self.prompts.target.prompts)
        rows = affordable_rows(lm, max(map(len, ids[0] + ids[1])), s.batch_size, s.max_batch_size)
        progress.start("Collecting residuals", len(ids[0]) + len(ids[1]))

        def of(side: list[list[int]]) -> Tensor:
            def read() -> Tensor:
                return last_token_residuals(lm, side, rows, progress.advance)

            found = read() if kept is None else kept.tensor("residuals", [side, s.batch_size, s.max_batch_size], read)
            return winsorize(found, s.winsorization_quantile)

        return of(ids[0]), of(ids[1])

    def estimate_directions(self, benign: Tensor, target: Tensor) -> Directions:
        """Estimate the directions that the settings describe from residuals, as `residuals` returns them."""
        s = self.settings
        return estimate_directions(
            benign,
            target,
            methods=s.direction_methods,
            subspace_rank=s.benign_subspace_rank,
            orthogonalize=s.orthogonalize_direction,
            variance_floor=s.direction_variance_floor,
        )

    def rendering(self) -> Rendering:
        """Render and tokenise every set; raise ModelError if the chat template leaves out what a prompt says."""
        lm, told, template = self.lm, self.lm.template_date, self.lm.tokenizer.chat_template
        return Rendering(
            date="" if told is None or ASKS_FOR_THE_DATE not in str(template) else told.isoformat(),
            template=_hash(template),
            tokenizer=tokenizer_hash(lm.tokenizer),
            tokens={name: _hash(lm.encode(each.prompts)) for name, each in self.prompts.named().items()},
        )

    def start_responses_with(self, prefix: str) -> None:
        """Let every response start with `prefix`, after which measurements begin."""
        self.lm = self.lm.with_prefix(prefix)

    def find_response_prefix(self, progress: Progress | None = None, kept: Kept | None = None) -> None:
        """Take the start of responses from the settings, or else find it from the model's own responses."""
        progress = progress or Silent()
        self._say_layout(progress)
        if self.lm.thinking:
            progress.note(
                f"The model thinks first: answers are read after {thinking_block(self.lm)[1]}, which must come within "
                f"{self.settings.max_thought_length} tokens."
            )
        block, given = None if self.lm.thinking else open_block(self.lm), self.settings.response_prefix
        prefix = self._found_prefix(progress, kept) if given is None else given
        if given is None and prefix:
            progress.note(f"Responses start with {prefix!r}; measurements begin after it.")
        if block:
            opened, closing = (part.strip() for part in block)
            if given is None:
                progress.note(f"The chat template opens {opened}, which is closed with {closing} at once.")
            elif closing not in given:
                progress.note(f"The chat template opens {opened}, and response_prefix does not close it.")
        self.start_responses_with(prefix)

    def _found_prefix(self, progress: Progress, kept: Kept | None) -> str:
        """Return what the model's responses to some prompts of both kinds start with."""
        progress.start("Looking at how responses start", 0)
        pairs = zip_longest(self.prompts.benign, self.prompts.target)
        sample = [prompt for pair in pairs for prompt in pair if prompt is not None][: 2 * PREFIX_PROMPTS]

        def find() -> str:
            look = find_thinking_start if self.lm.thinking else find_response_prefix
            return look(self.lm, sample, len(sample))

        asked = [self.lm.encode(sample), _hash(self.lm.tokenizer.chat_template), tokenizer_hash(self.lm.tokenizer)]
        return find() if kept is None else str(kept.document("response prefix", asked, find))

    def thoughtful(self, progress: Progress | None = None) -> "Workbench":
        """Return a workbench that lets the same model think, and asks no judges."""
        settings = self.settings.model_copy(update={"response_prefix": None})
        lm = replace(self.lm, thinking=True, response_prefix="")
        bench = Workbench(settings, lm, self.directions, self.prompts, ())
        bench.find_response_prefix(progress)
        return bench

    def _say_layout(self, progress: Progress) -> None:
        """Say where the system prompt goes and how content is given, if that is not what one expects."""
        with_system = any(prompt.system for each in self.prompts.named().values() for prompt in each)
        layout = self.lm.chat.layout(with_system)
        if with_system and layout.system == "user":
            progress.note(
                f"The chat template of {self.lm.name} has no place for a system prompt: it opens the user's turn."
            )
        if layout.parts:
            progress.note(f"The chat template of {self.lm.name} takes content as lists of parts, and is given them.")
        opening = opening_tokens(self.lm.tokenizer)
        if self.lm.encode(self.prompts.benign.prompts[:1])[0][: len(opening)] != opening:
            mark = self.lm.text(opening, special=True)
            progress.note(
                f"The chat template of {self.lm.name} leaves out {mark}, with which its tokenizer begins every text. A model "
                "that was trained with it may not answer sensibly."
            )

    def require_room(self, *more: PromptSet) -> None:
        """Raise PromptsError if a prompt, also of `more` sets, with its response is longer than the model can read."""
        lm, s = self.lm, self.settings
        if lm.context is None:
            return
        thoughts = s.max_thought_length * (s.thinking != "off")
        room = lm.context - max(s.max_response_length, s.max_benign_response_length) - thoughts
        for each in (*self.prompts.named().values(), *more):
            for number, prompt in enumerate(each, 1):
                size = len(prompt.text.encode())
                if size <= room // 2:  # few tokenizers make more tokens than there are bytes
                    continue
                doubtful = size <= LONGEST_TOKEN * room
                if (len(lm.encode([prompt])[0]) if doubtful else size // LONGEST_TOKEN) > room:
                    raise PromptsError(
                        f"Prompt {number} of {each.source} has {size:,} bytes, too many tokens for {lm.name}, which reads "
                        f"{lm.context:,} with the response. Shorten it or leave it out."
                    )


def require_functions(settings: Settings) -> None:
    """Raise UserError if there is no such rule or function as the settings name: before a model is loaded."""
    for rule in (*settings.refusal_rules, *settings.soft_refusal_rules):
        find_rule(rule)
    for name in filter(of_responses, settings.named_scores):
        measure_of(name)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
