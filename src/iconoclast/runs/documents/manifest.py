"""What made a run: model, prompts, settings, versions, machine."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from iconoclast.documents import UNLESS_NONE, Document, Part
from iconoclast.vocabulary import Quantization

PromptSets = Mapping[str, Mapping[str, Any]]
"""Prompt set → source, n, SHA-256."""


class Rendering(Part):
    """Prompts as a model was really given them: the date, if the chat template asks for it, and SHA-256 of template, tokenizer and every
    set's token ids."""

    date: str
    template: str
    tokenizer: str
    tokens: Mapping[str, str]

    def differences(self, now: "Rendering", sets: Collection[str]) -> list[str]:
        """Name the sets of `sets` whose token ids differ, and why, in a line for each; empty if none does."""
        others = [name for name in sets if self.tokens.get(name) != now.tokens.get(name)]
        causes = {
            "the chat template has changed": self.template != now.template,
            "the tokenizer has changed": self.tokenizer != now.tokenizer,
            f"the chat template was told {self.date} then, {now.date} now": self.date != now.date,
        }
        why = (
            ", ".join(cause for cause, holds in causes.items() if holds)
            or "transformers renders the chat template in another way"
        )
        return [f"the token ids of {name}: {why}" for name in others]


class ModelOrigin(Part):
    """The base model, with the SHA-256 of every file of weights."""

    name: str
    revision: str | None
    architecture: str
    dtype: str
    quantization: Quantization
    response_prefix: str
    weights: Mapping[str, str]


class Program(Part):
    """This program; its commit if it runs from a checkout."""

    version: str
    commit: str | None


class Hardware(Part):
    """The machine, in words."""

    system: str
    processor: str
    cores: int | None
    threads: int
    memory_gib: float
    gpus: list[str]


class Start(Part):
    """By what, where and when a run was started or continued."""

    at: str
    command: list[str]
    iconoclast: Program
    packages: Mapping[str, str]
    python: str
    hardware: Hardware


class Manifest(Document):
    """manifest.json: what made a run, so that a stranger can make it again and see what differs."""

    what: ClassVar[str] = "manifest"

    seed: int
    model: ModelOrigin
    prompts: PromptSets
    settings: Mapping[str, Any]
    rendering: Rendering | None = UNLESS_NONE
    starts: list[Start]
