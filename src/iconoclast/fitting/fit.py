"""The fit: every site's direction and strength follow the gradient of the objective through the live edit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import MeasurementError
from iconoclast.fitting.examples import Example, Examples
from iconoclast.fitting.likelihoods import compared
from iconoclast.fitting.objective import Divergence, Kind, Objective, Term, Tokens
from iconoclast.models.anatomy import Writer
from iconoclast.models.cache import common_prefix, shareable
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import Rows
from iconoclast.models.reading import SHORTEST_PREFIX, differentiable_logits
from iconoclast.models.transformers_internals import eager_attention
from iconoclast.vocabulary import Site

EAGER_TOKENS = 384
"""Longest sequences whose gradients come sooner by plain attention on the CPU; its scores grow with the square."""


Variables = tuple[Tensor, Tensor, Tensor]
"""What the gradient moves: strengths [sites], and offsets of directions and of readings [sites, d]."""


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        steps: gradient steps.
        rate: Adam's learning rate of strengths; it falls to zero over the last half of the steps.
        direction_rate: that of the offsets to unit directions and readings, as a share of `rate`.
        readings: whether what a site reads may part from the direction that it writes.
        benign: benign examples a step.
        target: target examples a step.
        loops: examples of loops a step.
        rows: examples a forward and backward pass, fewer if memory does not suffice for them.
        seed: which examples a step draws.
    """

    steps: int = 120
    rate: float = 0.03
    direction_rate: float = 0.1
    readings: bool = True
    benign: int = 12
    target: int = 8
    loops: int = 2
    rows: int = 8
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return self.rate * min(1.0, 2 * (self.steps - step) / self.steps)


@dataclass
class Fit:
    """An edit while it is fitted: of every site of the start the strength λ, direction v = normalize(v₀ + offset) and reading r.

    A start of several parts keeps them, each with its own. The reading is v, or has an offset to v₀ of its own.

    Args:
        lm: the base model; its weights are not laid out for inference, as gradients must flow through it.
        writers: its writers by site.
        start: the edit to begin with; its sites are the ones that are edited.
        examples: kind → examples.
        objective: what is minimised.
        options: how.
        push: by what the weights of terms that push the behaviour are multiplied; losses are told with whole weights.
    """

    lm: LanguageModel
    writers: Mapping[Site, Writer]
    start: Edit
    examples: Mapping[Kind, Examples]
    objective: Objective
    options: FitOptions
    push: float = 1.0
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parts = self.start.parts
        places = [(part, site) for part in self._parts for site in part.sites]
        self._first = torch.stack([part.directions[site].float().cpu() for part, site in places])
        self._started = torch.tensor([part.strengths[site] for part, site in places])
        self._strengths = self._started.clone().requires_grad_()
        offsets = [torch.zeros_like(self._first, requires_grad=True) for _ in range(1 + self.options.readings)]
        self._offsets, self._readings = offsets[0], offsets[-1]
        self._rows = Rows(self.options.rows)
        self._optimizer = torch.optim.Adam([{"params": [self._strengths]}, {"params": offsets}])

    def run(self, steps: int) -> Iterator[dict[str, float]]:
        """Take up to so many steps, as many as are left; gives the losses of each."""
        for _ in range(min(steps, self.options.steps - self.step)):
            yield self._take_step()

    def variables(self) -> Variables:
        """Return the strengths [sites], and the offsets of directions and of readings [sites, d], as they are now."""
        return self._strengths.detach().clone(), self._offsets.detach().clone(), self._readings.detach().clone()

    def edit(self, variables: Variables | None = None) -> Edit:
        """Return the edit as it is now, or as it was with other variables."""
        edit = self._edit(*(self.variables() if variables is None else variables))
        return reduce(Edit.followed_by, [_frozen(part) for part in edit.parts])

    def _edit(self, strengths: Tensor, offsets: Tensor, readings: Tensor) -> Edit:
        """The edit of some variables, through which gradients flow."""
        directions, read = (normalize(self._first + each, dim=-1) for each in (offsets, readings))
        sizes, edits = [len(part.sites) for part in self._parts], []
        for part, *values in zip(
            self._parts, *(torch.split(each, sizes) for each in (directions, strengths, read)), strict=True
        ):
            direction, strength, reading = (dict(zip(part.sites, each, strict=True)) for each in values)
            edits.append(Edit(direction, strength, part.row_normalization, reading if self.options.readings else {}))
        return reduce(Edit.followed_by, edits)

    def cosine(self) -> float:
        """Return the mean cosine of the directions to those of the start."""
        with torch.no_grad():
            return float((normalize(self._first + self._offsets, dim=-1) * self._first).sum(-1).mean())

    def state(self) -> dict[str, Any]:
        """Return everything that another process needs to go on."""
        return {
            "step": self.step,
            "curve": self.curve,
            "strengths": self._strengths.detach(),
            "offsets": self._offsets.detach(),
            "readings": self._readings.detach(),
            "optimizer": self._optimizer.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, as `state` returns it."""
        with torch.no_grad():
            self._strengths.copy_(state["strengths"])
            self._offsets.copy_(state["offsets"])
            self._readings.copy_(state["readings"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], list(state["curve"])

    def _take_step(self) -> dict[str, float]:
        rate = self.options.rate_at(self.step)
        for group, share in zip(self._optimizer.param_groups, (1.0, self.options.direction_rate), strict=True):
            group["lr"] = rate * share
        losses = self._rows.adaptively(lambda rows: self.gradient(self.step, rows))
        moved = (self._strengths, self._offsets, self._readings)
        if not all(torch.isfinite(t.grad).all() for t in moved if t.grad is not None):
            raise MeasurementError("Fitting has come to numbers that are not finite. Lower fit_rate.")
        self._optimizer.step()
        self.step += 1
        self.curve.append(losses)
        return losses

    def gradient(self, step: int, rows: int) -> dict[str, float]:
        """Leave the gradient of a step's loss at the variables; gives the loss and its terms."""
        self._optimizer.zero_grad()
        losses: dict[str, float] = {}
        options = self.options
        counts_of: dict[Kind, int] = {"benign": options.benign, "target": options.target, "loop": options.loops}
        for kind, examples in self.examples.items():
            terms = self.objective.of(kind)
            drawn = examples.draw(counts_of[kind], f"{options.seed}/{kind}/{step}")
            everything = tokens_of([examples.examples[i] for i in drawn])
            counts = {term.name: max(1, int(term.where(everything).sum())) for term in terms}
            for batch in examples.batches(drawn, rows) if terms else ():
                with self._applied():
                    tokens = self._tokens(examples, batch, terms)
                    loss = torch.zeros((), device=tokens.places.device)
                    for term in terms:
                        value = term(tokens) / counts[term.name]
                        losses[term.name] = losses.get(term.name, 0.0) + float(value.detach())
                        loss = loss + term.weight * (self.push if term.pushes else 1.0) * value
                    loss.backward()  # type: ignore[no-untyped-call]
        if self.objective.proximity:
            directions = normalize(self._first + self._offsets, dim=-1)
            distance = (self._strengths[:, None] * directions - self._started[:, None] * self._first).square().sum()
            (self.objective.proximity * distance).backward()  # type: ignore[no-untyped-call]
            losses["distance"] = float(distance.detach())
        weights = {term.name: term.weight for term in self.objective.terms} | {"distance": self.objective.proximity}
        return {"loss": sum(weights[name] * value for name, value in losses.items()), **losses}

    @contextmanager
    def _applied(self) -> Iterator[None]:
        """Apply the edit as it is now, through which gradients flow."""
        with torch.enable_grad():
            edit = self._edit(self._strengths, self._offsets, self._readings)
            with LiveEdits(self.writers, [edit]).applied():
                yield

    def _tokens(self, examples: Examples, batch: list[int], terms: Sequence[Term]) -> Tokens:
        some = [examples.examples[i] for i in batch]
        prompts, responses = [e.prompt for e in some], [e.response for e in some]
        shared = common_prefix(prompts) if len(some) > 1 and shareable(self.lm.model) else 0
        longest = max(len(e.prompt) + len(e.response) for e in some)
        with attention_for_gradients(self.lm, longest):
            logits = differentiable_logits(self.lm, prompts, responses, shared if shared >= SHORTEST_PREFIX else 0)
        diverging = any(isinstance(term, Divergence) for term in terms)
        return tokens_of(some, logits, examples.base_logits(batch).to(logits.device) if diverging else None)


def _frozen(edit: Edit) -> Edit:
    """An edit of one part with strengths that are numbers, without the sites that it leaves alone."""
    kept = [site for site in edit.sites if edit.strengths[site]]
    return Edit(
        {site: edit.directions[site] for site in kept},
        {site: float(edit.strengths[site]) for site in kept},
        edit.row_normalization,
        {site: edit.readings[site] for site in kept if site in edit.readings},
    )


def attention_for_gradients(lm: LanguageModel, tokens: int) -> AbstractContextManager[None]:
    """Choose the attention whose gradients come soonest for sequences of so many tokens (`benchmarks/attention.py`)."""
    return eager_attention(lm.model) if lm.device.type == "cpu" and tokens <= EAGER_TOKENS else nullcontext()


def tokens_of(examples: Sequence[Example], logits: Tensor | None = None, base: Tensor | None = None) -> Tokens:
    """Return the response tokens of examples, and what the models say of them from logits [tokens, vocabulary], if these are given."""
    device = None if logits is None else logits.device
    ids = torch.tensor([token for e in examples for token in e.response], device=device)
    rivals = torch.tensor([token for e in examples for token in e.rivals], device=device)
    places = [place for e in examples for place in range(len(e.response))]
    avoided = [place in e.avoided for e in examples for place in range(len(e.response))]
    divergences, likelihoods = torch.empty(0), torch.empty(0, 2)
    if logits is not None:
        divergences, likelihoods = compared(logits, base, torch.stack([ids, rivals.clamp(min=0)], dim=-1))
    return Tokens(
        torch.tensor(places, device=device),
        torch.tensor(avoided, device=device),
        rivals >= 0,
        divergences,
        *likelihoods.unbind(-1),
    )
