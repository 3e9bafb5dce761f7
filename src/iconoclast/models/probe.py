"""Proof, from the model itself, that the writers found are all there are, and what stands behind each of them."""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, decoder_layers, input_device, writers_of_layer
from iconoclast.models.hooks import hooks_act
from iconoclast.vocabulary import COMPONENTS, Site

TOLERANCE = 1e-2
"""Largest relative change of a layer's states that counts as none; a missed writer changes them more."""
QUIET = 2.0**-8
"""Size of random states, small beside what a writer adds to them, so that rounding hides nothing of it."""
States = tuple[Tensor, Tensor]
"""States before and after a layer, each [tokens, d]."""


def require_complete(model: PreTrainedModel, writers: Mapping[Site, Writer]) -> None:
    """Prove that the layers write to the residual stream only through these writers, and find the writers' scales.

    The states before every layer are random. With the writers' outputs zeroed, a layer must leave them unchanged, up to a
    factor. What a random output adds to them must be that output, times the scale behind the writer. If they are of some
    components only, the other writers and parts are silenced meanwhile: each component is proved by itself.

    Raises:
        ModelError: a layer writes by other means, or something unknown follows a writer; an edit would miss a part.
    """
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{type(model).__name__} keeps its past in a cache of its own, so what it writes cannot be measured. "
            "This architecture cannot be edited."
        )
    layers = list(decoder_layers(model))
    probe = _Probe(model, writers, layers)
    whole = {site.component for site in writers} >= set(COMPONENTS)
    silent = [] if whole else [part for layer in layers for part in _not_asked_for(model, layer, writers)]
    width = model.config.get_text_config().hidden_size
    random = torch.Generator().manual_seed(0)
    states, noise = QUIET * torch.randn(5, width, generator=random), torch.randn(width, generator=random)
    silence = probe.run(states, silent=silent)
    for index in range(len(layers)) if whole else sorted({site.layer for site in writers}):
        if not _off(*silence[index]) <= TOLERANCE:  # not a number proves nothing
            raise ModelError(_missed(model, probe, states, index))
    find_scales(model, writers, silent)
    for group in _rounds(writers):
        heard = probe.run(states, dict.fromkeys(group, noise), silent)
        for writer in group:
            index = writer.site.layer
            added = heard[index][1] - silence[index][1]
            if not _off(added, noise if writer.scale is None else writer.scale * noise) <= TOLERANCE:
                raise ModelError(
                    f"Something unknown stands between {writer.site.module} of {type(model).__name__} and the residual stream, so "
                    "an edit would remove another direction than it should. This architecture cannot be edited."
                )


def find_scales(model: PreTrainedModel, writers: Mapping[Site, Writer], silent: Collection[nn.Module] = ()) -> None:
    """Set the scale of every writer: what a layer makes of ones that it writes to states of zeros."""
    probe = _Probe(model, writers, list(decoder_layers(model)))
    width = model.config.get_text_config().hidden_size
    for group in _rounds(writers):
        heard = probe.run(torch.zeros(5, width), dict.fromkeys(group, torch.ones(width)), silent)
        for writer in group:
            scale = heard[writer.site.layer][1].mean(dim=0)
            scale = scale / scale.abs().max().clamp(min=torch.finfo(scale.dtype).tiny)
            writer.scale = None if bool((scale == scale[0]).all() and scale[0]) else scale.cpu()


class _Probe:
    """Forward passes of a short text in which states and writers' outputs are replaced."""

    def __init__(self, model: PreTrainedModel, writers: Mapping[Site, Writer], layers: Sequence[nn.Module]) -> None:
        self.model, self.writers, self.layers = model, writers, layers

    def run(
        self, states: Tensor, outputs: Mapping[Writer, Tensor] | None = None, silent: Collection[nn.Module] = ()
    ) -> list[States]:
        """Return every layer's states if it is given `states` [tokens, d], the writers write `outputs` and the others zeros."""
        before: dict[nn.Module, Tensor] = {}
        after: dict[nn.Module, Tensor] = {}

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            own: Tensor = args[0] if args else kwargs["hidden_states"]
            if own.ndim != 3:
                raise ModelError(
                    f"{type(self.model).__name__} keeps several residual streams side by side ({type(module).__name__} gets states "
                    f"{[*own.shape]}), and an edit is of one. This architecture cannot be edited."
                )
            before[module] = given = states.to(own).expand_as(own).clone()
            return ((given.clone(), *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given.clone()})

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            after[module] = (result if isinstance(result, Tensor) else result[0]).clone()

        with ExitStack() as stack:
            stack.enter_context(hooks_act())
            for writer in self.writers.values():
                change = partial(_replaced, (outputs or {}).get(writer))
                stack.enter_context(writer.module.register_forward_hook(change))
            for part in silent:
                stack.enter_context(part.register_forward_hook(lambda module, args, result: _zeros(result)))
            for layer in self.layers:
                stack.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
                stack.enter_context(layer.register_forward_hook(leave))
            stack.enter_context(torch.inference_mode())
            # Any text serves.
            self.model(input_ids=torch.arange(1, 1 + len(states), device=input_device(self.model))[None])
        return [(before[layer][0].float(), after[layer][0].float()) for layer in self.layers]


def _replaced(vector: Tensor | None, module: nn.Module, args: Any, result: Tensor) -> Tensor:
    return torch.zeros_like(result) if vector is None else vector.to(result).expand_as(result).clone()


def _zeros(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return type(result)(_zeros(each) for each in result)
    return torch.zeros_like(result) if isinstance(result, Tensor) else result


def _rounds(writers: Mapping[Site, Writer]) -> Iterator[list[Writer]]:
    """Yield writers that are probed together: of every layer one, or all experts of a list."""
    by_layer: dict[int, dict[str, list[Writer]]] = {}
    for site, writer in writers.items():
        place = re.sub(r"experts\.\d+", "experts", site.module)
        by_layer.setdefault(site.layer, {}).setdefault(place, []).append(writer)
    places = [list(groups.values()) for groups in by_layer.values()]
    for index in range(max(map(len, places), default=0)):
        yield [writer for groups in places if index < len(groups) for writer in groups[index]]


def _others(layer: nn.Module, writers: Mapping[Site, Writer]) -> dict[str, nn.Module]:
    """Return the parts of a layer that hold matrices but none of the writers."""
    known = {writer.module for writer in writers.values()}
    return {
        name: part
        for name, part in layer.named_children()
        if known.isdisjoint(part.modules()) and any(p.squeeze().ndim > 1 for p in part.parameters())
    }


def _not_asked_for(model: PreTrainedModel, layer: nn.Module, writers: Mapping[Site, Writer]) -> list[nn.Module]:
    """Return the other writers of a layer, and the parts of it that hold none of these."""
    known = {writer.module for writer in writers.values()}
    others = (layer.get_submodule(path) for path in writers_of_layer(model, layer))
    return [*_others(layer, writers).values(), *(module for module in others if module not in known)]


def _missed(model: PreTrainedModel, probe: _Probe, states: Tensor, index: int) -> str:
    """Say which parts of a layer write to the residual stream beside the writers."""
    others = _others(probe.layers[index], probe.writers)
    heard = []
    if others and _off(*probe.run(states, silent=others.values())[index]) <= TOLERANCE:
        for name in others:
            rest = [part for other, part in others.items() if other != name]
            heard += [name] if not _off(*probe.run(states, silent=rest)[index]) <= TOLERANCE else []
    known = " and ".join(site.module for site in probe.writers if site.layer == index)
    also = f" (also by {', '.join(heard)})" if heard else ""
    return (
        f"Layer {index} of {type(model).__name__} writes to the residual stream by more than its {known}{also}, so an edit "
        "would miss a part of it. This architecture cannot be edited."
    )


def _off(states: Tensor, expected: Tensor) -> float:
    """Return the largest sine over tokens between states and what is expected; zero and zero are the same."""
    expected = expected.to(states.device).expand_as(states)
    cosine = cosine_similarity(states, expected, dim=-1)
    both_zero = ~(states.bool().any(dim=-1) | expected.bool().any(dim=-1))
    return float(torch.where(both_zero, 0, (1 - cosine.square()).clamp(min=0).sqrt()).max())
