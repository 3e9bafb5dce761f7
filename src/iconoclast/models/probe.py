"""Proof, from the model itself, that the writers found are all there are."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer, decoder_layers, input_device
from iconoclast.models.hooks import hooks_act
from iconoclast.vocabulary import Component, Site

TOLERANCE = 1e-2
"""Largest relative change of a layer's states that counts as none; a missed writer changes them more."""


def require_complete(model: PreTrainedModel, writers: Mapping[Site, Writer]) -> None:
    """Prove on a short text that the layers write to the residual stream only through these writers.

    With the writers' outputs zeroed, a layer must leave its states unchanged, up to a factor. With states of zeros and
    every output replaced by one random vector, it must return that vector, or what the writer's known norm makes of it.

    Raises:
        ModelError: a layer writes by other means, or something unknown follows a writer; an edit would miss a part.
    """
    name, layers = type(model).__name__, decoder_layers(model)
    for index, (before, after) in enumerate(_states(model, layers, writers, lambda writer: None, keep=True)):
        if not _off(after, before) <= TOLERANCE:  # not a number proves nothing
            known = " and ".join(site.module for site in writers if site.layer == index)
            raise ModelError(
                f"Layer {index} of {name} writes to the residual stream by more than its {known}, so an edit "
                "would miss a part of it. This architecture cannot be edited."
            )
    width = model.config.get_text_config().hidden_size
    noise = torch.randn(width, generator=torch.Generator().manual_seed(0))
    for component in {site.component for site in writers}:

        def output(writer: Writer, component: Component = component) -> Tensor | None:
            return noise if writer.site.component == component else None

        for index, (_, after) in enumerate(_states(model, layers, writers, output, keep=False)):
            first = next(w for site, w in writers.items() if (site.layer, site.component) == (index, component))
            if not _off(after, first.residual_share(noise)) <= TOLERANCE:
                raise ModelError(
                    f"Something unknown stands between {first.site.module} of {name} and the residual stream, so an edit would "
                    "remove another direction than it should. This architecture cannot be edited."
                )


def _states(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    writers: Mapping[Site, Writer],
    output: Callable[[Writer], Tensor | None],
    keep: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Return states before and after every layer [tokens, d], with writers' outputs replaced (None: by zeros).

    Unless `keep`, the states before every layer are replaced by zeros.
    """
    before: list[Tensor] = []
    after: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        states = states if keep else torch.zeros_like(states)
        before.append(states.clone())
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        after.append(result if isinstance(result, Tensor) else result[0])

    def replaced(writer: Writer) -> Callable[[nn.Module, Any, Any], Tensor]:
        def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor:
            vector = output(writer)
            return torch.zeros_like(result) if vector is None else vector.to(result).expand_as(result).clone()

        return hook

    with ExitStack() as stack:
        stack.enter_context(hooks_act())
        for writer in writers.values():
            stack.enter_context(writer.module.register_forward_hook(replaced(writer)))
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
            stack.enter_context(layer.register_forward_hook(leave))
        stack.enter_context(torch.inference_mode())
        model(input_ids=torch.arange(1, 6, device=input_device(model))[None])  # any text serves
    return [(b[0].float(), a[0].float()) for b, a in zip(before, after, strict=True)]


def _off(states: Tensor, expected: Tensor) -> float:
    """Return the largest sine over tokens between states and what is expected."""
    cosine = cosine_similarity(states, expected.to(states.device), dim=-1)
    return float((1 - cosine.square()).clamp(min=0).sqrt().max())
