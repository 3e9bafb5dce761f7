"""The words of the field that have a fixed set of values, and `Site`."""

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Literal, get_args

from iconoclast.registry import require_known

Component = Literal["attn.o_proj", "mlp.down_proj", "attn.linear", "mlp.experts", "mlp.shared", "per_layer.proj"]
"""A kind of residual writer."""
KNOWN_COMPONENTS: tuple[Component, ...] = get_args(Component)

COMPONENTS: tuple[Component, ...] = ("attn.o_proj", "mlp.down_proj")
"""Attention output and MLP output: together, everything that a layer writes."""
PART_OF: dict[Component, Component] = {
    "attn.linear": "attn.o_proj",
    "mlp.experts": "mlp.down_proj",
    "mlp.shared": "mlp.down_proj",
    "per_layer.proj": "mlp.down_proj",
}
"""Finer component → the one that its sites belong to unless it is asked for too: linear attention, convolutions and
state-space mixers; routed experts; shared experts; what a layer makes of inputs of its own (Gemma 3n and 4)."""
SYNONYMS = {
    "benign_prompts": "good_prompts",
    "target_prompts": "bad_prompts",
    "benign_select_prompts": "good_evaluation_prompts",
    "target_select_prompts": "bad_evaluation_prompts",
    "benign_report_prompts": "good_report_prompts",
    "target_report_prompts": "bad_report_prompts",
}
"""The words of the glossary for prompt sets → the settings' own names, which are those of the first release."""
Thinking = Literal["off", "on", "both"]
"""Whether a model may think before it answers."""
DirectionMethod = Literal["mean", "median", "geometric_median", "variance", "hybrid"]
"""How a direction is estimated from residuals."""
METHODS: tuple[DirectionMethod, ...] = get_args(DirectionMethod)
"""The methods of this package; `known_methods` gives those of others too."""
DirectionScope = Literal["global", "per_layer"]
"""One direction for all layers, or each layer's own."""
SCOPES: tuple[DirectionScope, ...] = get_args(DirectionScope)

RowNormalization = Literal["none", "pre", "full"]
"""How the rows of a weight are treated while it is edited; see `edits.edit.Edit`."""
NORMALIZATIONS: tuple[RowNormalization, ...] = get_args(RowNormalization)

Quantization = Literal["none", "bnb_4bit", "bnb_8bit"]

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Split = Literal["fit", "select", "report"]
"""Prompts that directions are fitted on, that trials are chosen on, and that chose nothing."""
ExaminedSplit = Literal["report", "selection"]
"""What an examination is of, as documents spell it."""
Label = Literal["complied", "soft_refusal", "refusal", "broken"]
"""What a response is."""
LABELS: tuple[Label, ...] = get_args(Label)

Verdict = Literal[Label, "unknown"]
"""What a judge says a response is."""
Criterion = Literal["failures", "overrefusals", "kl_divergence"]
"""What edits are ordered by."""
ExportFormat = Literal["adapter", "merged", "gguf"]

PLAIN_QUANTS = ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types of GGUF files that need no llama.cpp to be written."""

GGUF_QUANTS = (
    *PLAIN_QUANTS, "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_XS", "IQ4_NL",
)  # fmt: skip
"""Types of GGUF files that need no importance matrix."""

DEMO = "demo"
"""The name of the model that comes along."""


def known_methods() -> tuple[str, ...]:
    """Name every direction method: ours, and the estimators that installed packages add."""
    return _methods_on(tuple(sys.path))


@cache
def _methods_on(path: tuple[str, ...]) -> tuple[str, ...]:
    """Look through what is installed, which takes milliseconds, only once for a path: every trial asks."""
    return tuple(dict.fromkeys([*METHODS, *entry_points(group="iconoclast.estimators").names]))


@dataclass(frozen=True, order=True)
class Site:
    """One residual writer: a linear map whose output is added to the residual stream.

    Attributes:
        layer: index of the transformer layer, from 0.
        component: attn.o_proj, mlp.down_proj, or a finer one (`PART_OF`).
        module: dotted name in the model of the linear module, or of the module that keeps many experts in one tensor.
    """

    layer: int
    component: Component
    module: str

    def __post_init__(self) -> None:
        require_known(self.component, KNOWN_COMPONENTS, "component")
