"""The places where a model writes to its residual stream. The only module that knows module names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iconoclast.errors import ModelError
from iconoclast.models.experts import DOWN, fused, interceptable
from iconoclast.models.transformers_internals import execution_device, fuses_experts
from iconoclast.registry import require_known
from iconoclast.vocabulary import COMPONENTS, KNOWN_COMPONENTS, PART_OF, Component, Site

# Paths of the residual writers inside one decoder layer, over the architectures that transformers knows. What takes the
# place of attention in hybrid models (linear attention, short convolutions, state-space mixers) writes in its stead.
LINEAR = "linear_attn|conv|mamba|temporal_block|mlstm_layer"
FEED_FORWARDS = r"mlp|mlps\.\d+|mlp_block|feed_forward|ffn|block_sparse_moe|moe|mixer"
WRITER_PATHS: dict[Component, re.Pattern[str]] = {
    "attn.o_proj": re.compile(
        rf"((self_)?(attn|attention)(\.\d+)?|{LINEAR}|mixer)\.(attention\.)?(o_proj|o_b_proj|out_proj|dense|c_proj|wo|linear_out)"
    ),
    "mlp.down_proj": re.compile(
        rf"((({FEED_FORWARDS})\.)?((experts\.\d+|shared_experts?|shared_mlp)\.)?)?"
        r"(down_proj|dense_4h_to_h|fc2|fc_out|c_proj|w2|output_linear|proj_down)|per_layer_projection"
    ),
}
FUSED_PATH = re.compile(rf"(({FEED_FORWARDS})\.)?experts")
FINER_PATHS: dict[Component, re.Pattern[str]] = {
    "attn.linear": re.compile(rf"({LINEAR})\..*|mixer\.out_proj"),
    "mlp.experts": re.compile(r"(.*\.)?experts(\.\d+\..*)?"),
    "mlp.shared": re.compile(r".*\bshared_(experts?|mlp)\..*"),
    "per_layer.proj": re.compile("per_layer_projection"),
}


@dataclass(eq=False)
class Writer:
    """The module at a site of a loaded model: one linear map, or one for every expert in a single tensor.

    Attributes:
        beside_experts: whether models of this type have experts that are fused while loading.
        scale: what a norm or scale behind the module multiplies its output by, up to a factor, float32 [d]; None if nothing
            does. The proof of sites sets it (`probe.require_complete`).
    """

    site: Site
    module: nn.Module
    beside_experts: bool = False
    scale: Tensor | None = None

    @property
    def fused(self) -> bool:
        """True if experts are kept in one tensor."""
        return fused(self.module)

    @property
    def parameter(self) -> str:
        """Name of the weight in the model."""
        return f"{self.site.module}.{DOWN if self.fused else 'weight'}"

    @property
    def stored(self) -> Tensor:
        """The weight as stored; on the device "meta" where it is offloaded, see `present`."""
        weight = getattr(self.module, DOWN if self.fused else "weight")
        assert isinstance(weight, Tensor)
        return weight

    @property
    def present(self) -> AbstractContextManager[None]:
        """A context in which tensors that accelerate has offloaded are present."""
        return align_module_device(self.module)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """Bias of the writer, float32 [d] or [experts, d], or None."""
        with self.present:
            bias = getattr(self.module, f"{DOWN}_bias" if self.fused else "bias", None)
            return bias.detach().float() if isinstance(bias, Tensor) else None

    @property
    def transposed(self) -> bool:
        """True if a matrix is stored as [k, d] (the Conv1D of GPT-2, the experts of gpt-oss)."""
        return bool(self.module.is_transposed) if self.fused else isinstance(self.module, Conv1D)

    def weight(self) -> Tensor:
        """Return the weight as float32 [d, k] or [experts, d, k], dequantised if need be, on its own device."""
        with self.present:
            matrix = self._dequantized()
        return matrix.mT if self.transposed else matrix

    def _dequantized(self) -> Tensor:
        stored = self.stored
        state = getattr(stored, "quant_state", None)
        if stored.dtype == torch.int8:  # bitsandbytes: a scale for every row, kept in one of two places
            held: tuple[Any, ...] = (stored, self.module.state)
            scale = next(each.SCB for each in held if getattr(each, "SCB", None) is not None)
            restored: Tensor = stored.detach().float() * scale.float()[:, None] / 127
            return restored
        if state is None:
            return stored.detach().float()
        import bitsandbytes.functional

        return bitsandbytes.functional.dequantize_4bit(stored.data, state).float()

    @cached_property
    def row_norms(self) -> Tensor:
        """‖W_i‖ of every row, float32 [d] or [experts, d]; computed once."""
        norms: Tensor = self.weight().norm(dim=-1)
        return norms

    @property
    def rows(self) -> tuple[int, ...]:
        """Shape of the row norms: (d,), or (experts, d)."""
        if (width := _output_size(self.module)) is not None:
            return (width,)
        experts, first, second = self.stored.shape
        return (experts, second if self.transposed else first)

    @property
    def device(self) -> torch.device:
        """Device of the weight, or the one it is moved to for use."""
        return execution_device(self.module) or self.stored.device

    def site_direction(self, direction: Tensor) -> Tensor:
        """Return the direction the writer must lose so that the residual stream loses `direction` (both unit, [d]).

        Behind a scale w that is norm(w ⊙ direction), as v · (w ⊙ y) = (w ⊙ v) · y.
        """
        return direction if self.scale is None else normalize(self.scale.to(direction) * direction, dim=-1)


def site_directions(writers: Mapping[Site, Writer], directions: Tensor) -> dict[Site, Tensor]:
    """Return the direction of every site, given the residual stream's unit direction at every layer [L, d]."""
    return {site: writer.site_direction(directions[site.layer]) for site, writer in writers.items()}


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device of the input embeddings."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.device


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the (text) decoder's layers in order; raise ModelError if no module list has the configured length."""
    count = model.config.get_text_config().num_hidden_layers
    modules: Iterable[nn.Module] = model.get_decoder().modules()  # type: ignore[no-untyped-call]
    lists = [module for module in modules if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of {count} decoder layers. Only decoder language models can be edited."
        )
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def find_writers(model: PreTrainedModel, components: Sequence[Component]) -> dict[Site, Writer]:
    """Return every residual writer of the given components, layer by layer.

    Raises:
        ModelError: a component is unknown, or the model or a layer (which the message names) has no editable writer of it.
    """
    for component in components:
        require_known(component, KNOWN_COMPONENTS, "component", ModelError)
    kind, beside_experts = type(model).__name__, fuses_experts(model)
    writers: dict[Site, Writer] = {}
    for index, layer in enumerate(decoder_layers(model)):
        found = writers_of_layer(model, layer)
        _require_each(f"Layer {index} of {kind}", layer, found, components)
        for path, (name, whole) in found.items():
            finer = (c for c, pattern in FINER_PATHS.items() if c in components and pattern.fullmatch(path))
            if (own := next(finer, whole if whole in components else None)) is not None:
                module = layer.get_submodule(path)
                _require_editable(f"Layer {index} of {kind}", name, module, own)
                site = Site(index, own, name)
                writers[site] = Writer(site, module, beside_experts)
    missing = [c for c in components if all(site.component != c for site in writers)]
    if missing and (len(missing) == len(components) or any(component in PART_OF for component in missing)):
        raise ModelError(f"{kind} has no {missing[0]}. Leave it out of components.")
    return writers


def writers_of_layer(model: PreTrainedModel, layer: nn.Module) -> dict[str, tuple[str, Component]]:
    """Return all writers of a layer, whether they can be edited or not: path in it → (name in the model, component)."""
    names = {module: name for name, module in model.named_modules()}
    width = model.config.get_text_config().hidden_size
    return {
        path: (names[module], component)
        for component in COMPONENTS
        for path, module in layer.named_modules()
        if _writes(path, module, component, width)
    }


def _require_each(
    place: str, layer: nn.Module, found: Mapping[str, tuple[str, Component]], components: Sequence[Component]
) -> None:
    """Raise ModelError if a layer lacks a component, unless every part of it with matrices is known to write another."""
    missing = {*components} & {*COMPONENTS} - {component for _, component in found.values()}
    parts = {name for name, part in layer.named_children() if any(p.squeeze().ndim > 1 for p in part.parameters())}
    if missing and (not found or parts - {path.split(".")[0] for path in found}):
        leaves = [(name, m) for name, m in layer.named_modules() if name and not list(m.children())]
        tree = ", ".join(f"{name} ({type(module).__name__})" for name, module in leaves)
        first = next(component for component in components if component in missing)
        raise ModelError(f"{place} has no {first} that writes to the residual stream. Its modules: {tree}.")


def _require_editable(place: str, name: str, module: nn.Module, component: Component) -> None:
    known = fused(module) or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    if not known and module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ModelError(
            f"{name} of {place.split()[-1]} holds its weights as {module.weight.dtype}, which cannot be edited. "
            "Use the model in another format."
        )
    if fused(module) and not interceptable(module):
        raise ModelError(
            f"{place} keeps its experts fused in {name} ({type(module).__name__}), "
            f"which does not show what each of them writes. Leave {component} out of components."
        )


def _writes(path: str, module: nn.Module, component: Component, hidden_size: int) -> bool:
    if fused(module):
        return component == "mlp.down_proj" and FUSED_PATH.fullmatch(path) is not None
    return WRITER_PATHS[component].fullmatch(path) is not None and _output_size(module) == hidden_size


def _output_size(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else None
