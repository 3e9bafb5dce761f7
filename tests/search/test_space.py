"""The search space: the ranges of the methods, and the edit that a sample stands for."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from iconoclast.directions.estimators import DirectionSpec, estimate_directions
from iconoclast.edits.profile import Profile
from iconoclast.errors import UserError
from iconoclast.models.anatomy import site_directions
from iconoclast.models.language_model import LanguageModel
from iconoclast.search.space import EditParameters, SearchSpace
from iconoclast.vocabulary import COMPONENTS, METHODS, SCOPES


def space(layers: int = 32) -> SearchSpace:
    """The whole search space of a model of that many layers."""
    return SearchSpace(layers, COMPONENTS, METHODS, SCOPES)


def value(distribution: BaseDistribution, share: float) -> object:
    """The value at a share of the range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(share * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, FloatDistribution)
    return distribution.low + share * (distribution.high - distribution.low)


@st.composite
def spaces_and_samples(draw: st.DrawFn) -> tuple[SearchSpace, dict[str, object]]:
    """A space of any depth and a point of it, corners included."""
    drawn = space(draw(st.integers(1, 80)))
    return drawn, {name: value(d, draw(st.floats(0, 1))) for name, d in drawn.distributions().items()}


@pytest.mark.parametrize("layers", [4, 12, 32, 80])
def test_the_ranges_are_those_of_the_methods(layers: int) -> None:
    n = layers - 1
    ranges = {
        name: (pytest.approx(d.low), pytest.approx(d.high))
        for name, d in space(layers).distributions().items()
        if isinstance(d, FloatDistribution)
    }
    assert ranges.pop("direction_index") == (0.4 * n, 0.9 * n)
    assert ranges.pop("direction_blend") == (0, 1)
    for component in COMPONENTS:
        assert ranges.pop(f"{component}.max_weight") == (0.5, 2)
        assert ranges.pop(f"{component}.max_weight_position") == (0.4 * n, n)
        assert ranges.pop(f"{component}.min_weight_fraction") == (0, 1)
        assert ranges.pop(f"{component}.min_weight_distance") == (1, 0.6 * n)
    assert not ranges


def test_only_what_is_offered_is_sampled() -> None:
    narrow = SearchSpace(8, ["mlp.down_proj"], ["median"], ["global"]).distributions()
    assert narrow["direction_method"].single() and narrow["direction_scope"].single()
    assert not [name for name in narrow if name.startswith("attn")]


def test_categories_are_those_offered() -> None:
    distributions = space().distributions()
    assert distributions["direction_method"] == CategoricalDistribution(list(METHODS))
    assert distributions["direction_scope"] == CategoricalDistribution(list(SCOPES))


def test_a_sample_stands_for_its_edit_parameters() -> None:
    sample = {
        "direction_method": "hybrid",
        "direction_scope": "global",
        "direction_index": 14.5,
        "direction_blend": 0.25,
        "attn.o_proj.max_weight": 1.2,
        "attn.o_proj.max_weight_position": 20.0,
        "attn.o_proj.min_weight_fraction": 0.5,
        "attn.o_proj.min_weight_distance": 8.0,
        "mlp.down_proj.max_weight": 0.9,
        "mlp.down_proj.max_weight_position": 18.0,
        "mlp.down_proj.min_weight_fraction": 0.0,
        "mlp.down_proj.min_weight_distance": 4.0,
    }
    assert sample.keys() == space().distributions().keys()
    parameters = space().parameters(sample)
    direction = parameters.direction
    assert (direction.method, direction.blend, direction.scope, direction.index) == ("hybrid", 0.25, "global", 14.5)
    assert parameters.profiles == {
        "attn.o_proj": Profile(1.2, 20.0, 0.6, 8.0),  # the least weight is a fraction of the largest
        "mlp.down_proj": Profile(0.9, 18.0, 0.0, 4.0),
    }


@given(drawn=spaces_and_samples())
def test_every_sample_is_an_edit_that_can_be_made(drawn: tuple[SearchSpace, dict[str, object]]) -> None:
    drawn_space, sample = drawn
    parameters = drawn_space.parameters(sample)
    assert 0 <= parameters.direction.index <= drawn_space.layers - 1
    for profile in parameters.profiles.values():
        assert 0 <= profile.min_weight <= profile.max_weight <= 2
        strengths = [profile.strength(layer) for layer in range(drawn_space.layers)]
        assert all(0 <= strength <= profile.max_weight + 1e-9 for strength in strengths)
        if drawn_space.layers > 1:
            assert max(strengths) > 0


def test_parameters_become_the_edit_of_a_model(tiny_lm: LanguageModel) -> None:
    random = torch.Generator().manual_seed(0)
    directions = estimate_directions(torch.randn(6, 4, 32, generator=random), torch.randn(6, 4, 32, generator=random))
    tiny = space(layers=4)
    sample = {name: value(distribution, 0.6) for name, distribution in tiny.distributions().items()}
    parameters, writers = tiny.parameters(sample), tiny_lm.writers()
    edit = parameters.edit(directions, writers, "full")
    assert edit.row_normalization == "full"
    expected = site_directions(writers, directions.resolve(parameters.direction))
    for site, writer in writers.items():
        strength = parameters.profiles[site.component].strength(site.layer)
        assert edit.strengths.get(site, 0.0) == strength
        if strength:
            torch.testing.assert_close(edit.directions[site], expected[site])
            assert edit.directions[site].shape == (writer.weight().shape[0],)
    assert edit.sites


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": ["mlp"]}, 'There is no component "mlp".'),
        ({"methods": ["average"]}, 'There is no direction method "average".'),
        ({"scopes": ["per-layer"]}, 'no direction scope "per-layer". Did you mean per_layer?'),
    ],
)
def test_a_space_of_unknown_words_is_refused(changes: dict[str, list[str]], message: str) -> None:
    words = {"components": COMPONENTS, "methods": METHODS, "scopes": SCOPES} | changes
    with pytest.raises(UserError, match=re.escape(message)):
        SearchSpace(8, **words)  # type: ignore[arg-type]


def test_a_front_at_the_end_of_a_range_is_named() -> None:
    def points(*strengths: float) -> list[EditParameters]:
        return [
            EditParameters(DirectionSpec("mean"), dict.fromkeys(COMPONENTS, Profile(s, 20.0, 0.1, 9.0)))
            for s in strengths
        ]

    assert space().edges(points(1.95, 1.99, 1.97, 1.1, 0.6)) == [
        f"{component}: strengths of 3 of 5 trials are about 2" for component in COMPONENTS
    ]
    assert not space().edges(points(1.95, 1.99))
    assert not space().edges(points(1.95, 1.99, 1.97, 1.1, 0.6, 1.2, 1.3))
    assert "about 0.5" in space().edges(points(0.5, 0.51, 0.52))[0]
