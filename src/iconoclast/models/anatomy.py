"""Where a model writes to its residual stream. The only module that knows module names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iconoclast.errors import ModelError
from iconoclast.site import Site

# Paths of the two residual writers inside one decoder layer, over the architectures that transformers knows.
WRITER_PATHS = {
    "attn.o_proj": re.compile(r"(self_)?(attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)"),
    "mlp.down_proj": re.compile(
        r"((mlp|feed_forward|ffn|block_sparse_moe)\.((experts\.\d+|shared_experts?)\.)?)?"
        r"(down_proj|dense_4h_to_h|fc2|c_proj|w2)"
    ),
}

# A norm between a writer and the residual stream, by the layer's attribute that exists only in such layers.
POST_NORMS = {
    "post_feedforward_layernorm": {
        "attn.o_proj": "post_attention_layernorm",
        "mlp.down_proj": "post_feedforward_layernorm",
    },
    "post_mlp_layernorm": {
        "attn.o_proj": "post_self_attn_layernorm",
        "mlp.down_proj": "post_mlp_layernorm",
    },
}


@dataclass(frozen=True)
class Writer:
    """The module at a site of a loaded model."""

    site: Site
    module: nn.Module
    post_norm: nn.Module | None = None

    @property
    def bias(self) -> Tensor | None:
        """Bias of the writer, float32 [d], or None."""
        bias = getattr(self.module, "bias", None)
        return bias.detach().float() if isinstance(bias, Tensor) else None

    @property
    def transposed(self) -> bool:
        """Whether the module stores its weight as [k, d] (the Conv1D of GPT-2)."""
        return isinstance(self.module, Conv1D)

    def weight(self) -> Tensor:
        """The weight as a float32 matrix [d, k], dequantised if need be, on its own device."""
        stored = self.module.weight
        assert isinstance(stored, Tensor)
        state = getattr(stored, "quant_state", None)
        if state is None:
            matrix = stored.detach().float()
        elif getattr(state, "packing_format_for_cpu", False):
            # bitsandbytes has rearranged the bits for the processor; what the module makes of the identity is W.
            identity = torch.eye(state.shape[1], device=stored.device)
            with torch.no_grad():
                matrix = (self.module.forward(identity) - (0 if self.bias is None else self.bias)).T.float()
        else:
            import bitsandbytes.functional

            matrix = bitsandbytes.functional.dequantize_4bit(stored.data, state).float()
        return matrix.T if self.transposed else matrix

    @cached_property
    def row_norms(self) -> Tensor:
        """‖W_i‖ of every row, float32 [d]; computed once."""
        norms: Tensor = self.weight().norm(dim=1)
        return norms

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.device

    def site_direction(self, direction: Tensor) -> Tensor:
        """The direction that the writer must lose so that the residual stream loses `direction` (both unit, [d]).

        Behind an RMS norm with weight w the residual stream gets w ⊙ y / rms(y), so it is norm(w ⊙ direction).
        """
        if self.post_norm is None:
            return direction
        parameter = next(self.post_norm.parameters())
        ones = torch.ones(1, direction.shape[-1], dtype=parameter.dtype, device=parameter.device)
        scale = self.post_norm(ones)[0].detach().float().to(direction.device)
        return torch.nn.functional.normalize(scale * direction, dim=-1)


def site_directions(writers: Mapping[Site, Writer], directions: Tensor) -> dict[Site, Tensor]:
    """The direction of every site, given the residual stream's unit direction at every layer [L, d]."""
    return {site: writer.site_direction(directions[site.layer]) for site, writer in writers.items()}


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of the (text) decoder, in order.

    Raises:
        ModelError: the model has no list of as many layers as its configuration says.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        m
        for m in model.get_decoder().modules()  # type: ignore[no-untyped-call]
        if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of {count} decoder layers. Only decoder language models can be edited."
        )
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def find_writers(model: PreTrainedModel, components: Sequence[str]) -> dict[Site, Writer]:
    """Every residual writer of the given components, layer by layer.

    Raises:
        ModelError: a layer has no writer of a component, or keeps its experts fused in one tensor. The message names
            the layer and shows its modules: nothing is ever silently left unedited.
    """
    names = {module: name for name, module in model.named_modules()}
    hidden_size = model.config.get_text_config().hidden_size
    writers: dict[Site, Writer] = {}
    for index, layer in enumerate(decoder_layers(model)):
        fused = [name for name, p in layer.named_parameters() if p.ndim == 3 and "conv" not in name]
        if fused and "mlp.down_proj" in components:
            raise ModelError(
                f"Layer {index} of {type(model).__name__} keeps its experts fused in one tensor ({', '.join(fused)}), which cannot be edited yet."
            )
        for component in components:
            found = [
                module
                for path, module in layer.named_modules()
                if WRITER_PATHS[component].fullmatch(path) and _output_size(module) == hidden_size
            ]
            if not found:
                raise ModelError(
                    f"Layer {index} of {type(model).__name__} has no {component} that writes to the residual stream. Its modules: {_tree(layer)}."
                )
            for module in found:
                site = Site(index, component, names[module])
                writers[site] = Writer(site, module, _post_norm(layer, component))
    return writers


def _output_size(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else None


def _post_norm(layer: nn.Module, component: str) -> nn.Module | None:
    for mark, norms in POST_NORMS.items():
        if hasattr(layer, mark):
            norm = getattr(layer, norms[component])
            assert isinstance(norm, nn.Module)
            return norm
    return None


def _tree(layer: nn.Module) -> str:
    leaves: Iterable[tuple[str, nn.Module]] = (
        (name, m) for name, m in layer.named_modules() if name and not any(True for _ in m.children())
    )
    return ", ".join(f"{name} ({type(module).__name__})" for name, module in leaves)
