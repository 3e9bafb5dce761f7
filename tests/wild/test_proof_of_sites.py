"""Architectures that were edited wrongly, or refused without a reason, because the proof of sites did not look far enough.

Public reports of other tools tell of "abliterated" checkpoints that still refuse: a norm behind the attention output, which
nobody had listed, brings the removed direction back. A plain Llama whose padding row is zero, as torch leaves it, was refused.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.models.anatomy import decoder_layers, find_writers, site_directions
from iconoclast.models.probe import require_complete
from iconoclast.vocabulary import Component
from tests.support.families import FAMILIES

COMPONENTS_ALONE: list[Component] = ["attn.o_proj", "mlp.down_proj"]


def added_along(model: Any, writers: Any, edit: Edit, other: Component, direction: Tensor) -> float:
    """The most that a layer adds along a direction, with the writers of the other component silenced."""
    kept: list[Tensor] = []

    def leave(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        kept.append((output if isinstance(output, Tensor) else output[0]) - states)

    with ExitStack() as stack, torch.inference_mode(), LiveEdits(writers, [edit]).applied():
        for writer in find_writers(model, [other]).values():
            stack.enter_context(writer.module.register_forward_hook(lambda m, args, output: torch.zeros_like(output)))
        for layer in decoder_layers(model):
            stack.enter_context(layer.register_forward_hook(leave, with_kwargs=True))
        model(input_ids=torch.arange(5, 17)[None])
    return max(float((states @ direction).abs().max()) for states in kept)


@pytest.mark.parametrize("component", COMPONENTS_ALONE)
@pytest.mark.parametrize("family", ["llama", "gemma2", "afmoe", "hyperclovax", "lfm3"])
def test_one_component_alone_leaves_nothing_of_the_direction(family: str, component: Component) -> None:
    model = FAMILIES[family].model()
    writers = find_writers(model, [component])
    require_complete(model, writers)
    direction = normalize(torch.randn(32, generator=torch.Generator().manual_seed(7)), dim=0)
    edit = Edit.build(site_directions(writers, direction.expand(3, -1)), {component: Profile.constant(1.0)}, "none")
    other = next(each for each in COMPONENTS_ALONE if each != component)
    along = partial(added_along, model, writers, other=other, direction=direction)
    assert along(edit=edit) < 1e-4 * along(edit=Edit.nothing())


@pytest.mark.parametrize("row", [0, 2])
def test_a_padding_row_of_zeros_is_accepted(row: int) -> None:
    model = FAMILIES["llama"].model()
    model.get_parameter("model.embed_tokens.weight").data[row] = 0
    require_complete(model, find_writers(model, COMPONENTS_ALONE))
