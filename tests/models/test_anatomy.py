"""Anatomy: where models write to their residual stream, and the refusal where they do not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import find_writers
from iconoclast.models.probe import require_complete
from iconoclast.vocabulary import COMPONENTS, Component
from tests.support.families import FAMILIES
from tests.support.tiny import tiny_config


@pytest.mark.parametrize(
    "family", [name for name, family in FAMILIES.items() if family.kind == "dense" and name != "gemma4_per_layer"]
)
def test_every_layer_has_one_writer_per_component(family: str) -> None:
    model = FAMILIES[family].model()
    writers = find_writers(model, COMPONENTS)
    assert sorted((s.layer, s.component) for s in writers) == [
        (layer, component) for layer in range(3) for component in COMPONENTS
    ]
    for site, writer in writers.items():
        assert model.get_submodule(site.module) is writer.module
        assert model.get_parameter(writer.parameter) is writer.stored
        weight = writer.weight()
        assert weight.shape[0] == 32 and writer.rows == (32,) and weight.dtype == torch.float32
        x = torch.randn(weight.shape[1])
        bias = 0 if writer.bias is None else writer.bias
        with torch.no_grad():
            torch.testing.assert_close(writer.module(x), weight @ x + bias)


def test_a_norm_behind_a_writer_scales_its_direction() -> None:
    model = FAMILIES["gemma2"].model()
    writers = find_writers(model, ["mlp.down_proj"])
    writer = next(iter(writers.values()))
    with torch.no_grad():
        model.get_parameter("model.layers.0.post_feedforward_layernorm.weight").copy_(torch.linspace(-0.5, 2, 32))
    require_complete(model, writers)
    v = torch.nn.functional.normalize(torch.randn(32), dim=0)
    expected = torch.nn.functional.normalize((1 + torch.linspace(-0.5, 2, 32)) * v, dim=0)
    torch.testing.assert_close(writer.site_direction(v), expected, atol=1e-4, rtol=1e-4)


def test_a_layer_without_a_site_is_refused_with_its_modules() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config())
    model.model.layers[2].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ModelError) as caught:
        find_writers(model, ["mlp.down_proj"])
    message = str(caught.value)
    assert "Layer 2" in message and "mlp.down_proj (Identity)" in message and "mlp.up_proj (Linear)" in message


def test_fused_experts_are_one_site_and_a_shared_one_another() -> None:
    model = FAMILIES["deepseek_v3"].model()
    writers = find_writers(model, ["mlp.down_proj"])
    first_experts = [(s.module, w.rows, w.fused) for s, w in writers.items() if s.layer == 1]
    assert first_experts == [
        ("model.layers.1.mlp.experts", (4, 32), True),
        ("model.layers.1.mlp.shared_experts.down_proj", (32,), False),
    ]


def test_fused_experts_of_another_kind_are_refused() -> None:
    model = FAMILIES["mixtral"].model()
    del model.model.layers[1].mlp.experts.has_post_expert_norm
    with pytest.raises(ModelError, match=r"Layer 1 .* does not show what each of them writes. Leave mlp.down_proj out"):
        find_writers(model, ["attn.o_proj", "mlp.down_proj"])
    assert len(find_writers(model, ["attn.o_proj"])) == 3


class Loud(torch.nn.Module):
    """A module with a way into the residual stream of its own."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.side_door = torch.nn.Linear(32, 32)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.inner(hidden_states, *args, **kwargs) + self.side_door(hidden_states)


def test_a_missed_writer_is_found_by_what_the_layer_does() -> None:
    model = FAMILIES["llama"].model()
    writers = find_writers(model, COMPONENTS)
    require_complete(model, writers)
    del writers[next(site for site in writers if site.layer == 1)]
    with pytest.raises(ModelError, match=r"Layer 1 .* more than its model.layers.1.mlp.down_proj"):
        require_complete(model, writers)
    model.model.layers[2].mlp = Loud(model.model.layers[2].mlp)
    with pytest.raises(ModelError, match=r"Layer 2|no mlp.down_proj"):
        require_complete(model, find_writers(model, COMPONENTS))


def test_a_norm_behind_a_writer_is_found_whatever_it_is_called() -> None:
    model = FAMILIES["llama"].model()
    norm = torch.nn.RMSNorm(32)
    torch.nn.init.normal_(norm.weight)
    attention = model.model.layers[1].self_attn
    attention.register_forward_hook(lambda module, args, output: (norm(output[0]), *output[1:]))
    writers = find_writers(model, ["attn.o_proj"])
    require_complete(model, writers)
    scales = [writer.scale for writer in writers.values()]
    assert scales[0] is None and scales[2] is None and scales[1] is not None
    torch.testing.assert_close(scales[1], norm.weight / norm.weight.abs().max())


@pytest.mark.parametrize("components", [["attn.o_proj"], COMPONENTS])
def test_what_mixes_a_writers_output_is_refused(components: list[Component]) -> None:
    model = FAMILIES["llama"].model()
    mixing = torch.nn.Linear(32, 32)
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, out: (mixing(out[0]), *out[1:]))
    with pytest.raises(ModelError, match=r"stands between model.layers.1.self_attn.o_proj|Layer 1 .* by more than"):
        require_complete(model, find_writers(model, components))


def test_a_gate_that_depends_on_the_states_is_refused() -> None:
    model = FAMILIES["llama"].model()
    model.model.layers[1].mlp.register_forward_hook(lambda m, args, out: out * (3 * args[0]).sigmoid())
    with pytest.raises(ModelError, match=r"stands between model.layers.1.mlp.down_proj"):
        require_complete(model, find_writers(model, COMPONENTS))


@pytest.mark.parametrize("components", [["mlp.down_proj"], COMPONENTS])
def test_rows_of_zeros_are_no_reason_to_refuse(components: list[Component]) -> None:
    model = FAMILIES["llama"].model()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[:8] = 0
    require_complete(model, find_writers(model, components))


def test_a_component_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ModelError, match=r'no component "mlp"\.'):
        find_writers(FAMILIES["llama"].model(), ["mlp"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("family", "finer", "whole", "sites"),
    [
        ("qwen3_next", "attn.linear", "attn.o_proj", 2),
        ("deepseek_v3", "mlp.experts", "mlp.down_proj", 2),
        ("deepseek_v3", "mlp.shared", "mlp.down_proj", 2),
        ("gemma4_per_layer", "per_layer.proj", "mlp.down_proj", 3),
        ("nemotron_h", "attn.linear", "attn.o_proj", 1),
    ],
)
def test_a_finer_component_takes_its_sites_from_the_one_it_is_part_of(
    family: str, finer: Component, whole: Component, sites: int
) -> None:
    model = FAMILIES[family].model()
    coarse, split = find_writers(model, COMPONENTS), find_writers(model, [*COMPONENTS, finer])
    assert {site.module for site in coarse} == {site.module for site in split}
    own = [site.module for site in split if site.component == finer]
    assert len(own) == sites
    assert all(site.component == whole for site in coarse if site.module in own)
    require_complete(model, split)
    alone = find_writers(model, [finer])
    assert [site.module for site in alone] == own
    require_complete(model, alone)


def test_a_finer_component_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has no mlp\.experts"):
        find_writers(FAMILIES["llama"].model(), [*COMPONENTS, "mlp.experts"])
