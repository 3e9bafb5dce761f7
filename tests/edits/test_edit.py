"""The edit of one weight: what it removes, what it keeps, and the same edit as a function of the output."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.edits.edit import NEGLIGIBLE, Edit, edited_weight, low_rank_factors, output_transform
from iconoclast.edits.profile import Profile
from iconoclast.edits.record import load_edit, save_edit
from iconoclast.errors import UserError
from iconoclast.vocabulary import NORMALIZATIONS, Component, RowNormalization, Site

every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
strengths = st.floats(-1.0, 2.0)


@st.composite
def weights_and_directions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """W [d, k] with rows of unlike norms, and a unit direction [d] that lies along no single row."""
    d, k = draw(st.integers(3, 9)), draw(st.integers(2, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(d, k, generator=random) * (0.2 + 3 * torch.rand(d, 1, generator=random))
    direction = normalize(torch.randn(d, generator=random), dim=0)
    assume(direction.abs().max() < 0.95)
    return weight, direction


drawn = given(pair=weights_and_directions(), strength=strengths)


def row_normalized(weight: Tensor) -> Tensor:
    """Ŵ."""
    return normalize(weight, dim=1)


# What an edit removes and what it keeps.


@given(pair=weights_and_directions())
def test_at_full_strength_nothing_is_written_along_the_direction(pair: tuple[Tensor, Tensor]) -> None:
    weight, v = pair
    assert (v @ weight).norm() > 1e-3
    torch.testing.assert_close(
        v @ edited_weight(weight, v, 1.0, "none"), torch.zeros(weight.shape[1]), atol=1e-5, rtol=0
    )


@given(pair=weights_and_directions())
def test_pre_removes_the_direction_from_the_normalised_rows(pair: tuple[Tensor, Tensor]) -> None:
    weight, v = pair
    left = (v / weight.norm(dim=1)) @ edited_weight(weight, v, 1.0, "pre")
    torch.testing.assert_close(left, torch.zeros(weight.shape[1]), atol=1e-5, rtol=0)


@drawn
def test_full_restores_the_norm_of_every_row(pair: tuple[Tensor, Tensor], strength: float) -> None:
    weight, v = pair
    edited = edited_weight(weight, v, strength, "full")
    torch.testing.assert_close(edited.norm(dim=1), weight.norm(dim=1))


@drawn
def test_full_is_pre_with_the_rows_rescaled(pair: tuple[Tensor, Tensor], strength: float) -> None:
    weight, v = pair
    full, pre = (edited_weight(weight, v, strength, normalization) for normalization in ("full", "pre"))
    torch.testing.assert_close(row_normalized(full), row_normalized(pre))


def test_full_puts_part_of_the_direction_back() -> None:
    random = torch.Generator().manual_seed(0)
    weight, v = torch.randn(6, 5, generator=random), normalize(torch.randn(6, generator=random), dim=0)
    left = (v @ row_normalized(edited_weight(weight, v, 1.0, "full"))).norm() / (v @ row_normalized(weight)).norm()
    assert 0.01 < left < 1


@every_normalization
@given(pair=weights_and_directions())
def test_no_strength_is_the_identity(normalization: RowNormalization, pair: tuple[Tensor, Tensor]) -> None:
    weight, v = pair
    torch.testing.assert_close(edited_weight(weight, v, 0.0, normalization), weight)


@every_normalization
@drawn
def test_the_sign_of_the_direction_does_not_matter(
    normalization: RowNormalization, pair: tuple[Tensor, Tensor], strength: float
) -> None:
    weight, v = pair
    torch.testing.assert_close(
        edited_weight(weight, -v, strength, normalization), edited_weight(weight, v, strength, normalization)
    )


@given(pair=weights_and_directions(), first=strengths, second=strengths)
def test_what_is_left_along_the_direction_multiplies(pair: tuple[Tensor, Tensor], first: float, second: float) -> None:
    weight, v = pair
    twice = edited_weight(edited_weight(weight, v, first, "none"), v, second, "none")
    once = edited_weight(weight, v, 1 - (1 - first) * (1 - second), "none")
    torch.testing.assert_close(twice, once, atol=1e-4, rtol=1e-4)


@drawn
def test_what_is_orthogonal_to_the_direction_stays(pair: tuple[Tensor, Tensor], strength: float) -> None:
    weight, v = pair
    across = torch.linalg.qr(v[:, None], mode="complete").Q[:, 1:]
    torch.testing.assert_close(
        across.T @ edited_weight(weight, v, strength, "none"), across.T @ weight, atol=1e-4, rtol=1e-4
    )


def test_rows_of_equal_norm_make_pre_the_same_as_none() -> None:
    random = torch.Generator().manual_seed(0)
    weight = 3 * row_normalized(torch.randn(6, 4, generator=random))
    v = normalize(torch.randn(6, generator=random), dim=0)
    torch.testing.assert_close(edited_weight(weight, v, 0.7, "pre"), edited_weight(weight, v, 0.7, "none"))


# The same edit of the output.


@every_normalization
@given(pair=weights_and_directions(), strength=strengths, seed=st.integers(0, 2**31), biased=st.booleans())
def test_transforming_the_output_is_editing_the_weight(
    normalization: RowNormalization, pair: tuple[Tensor, Tensor], strength: float, seed: int, biased: bool
) -> None:
    weight, v = pair
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, weight.shape[1], generator=random)
    bias = torch.randn(weight.shape[0], generator=random) if biased else None
    transform = output_transform(v, strength, normalization, weight.norm(dim=1), weight)
    output = torch.nn.functional.linear(x, weight, bias)
    expected = torch.nn.functional.linear(x, edited_weight(weight, v, strength, normalization), bias)
    torch.testing.assert_close(transform(output, bias), expected, atol=2e-3, rtol=1e-3)


@every_normalization
@pytest.mark.parametrize("biased", [False, True])
def test_rows_of_zeros_stay_zero(normalization: RowNormalization, biased: bool) -> None:
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 4, generator=random), torch.randn(5, 4, generator=random)
    weight[[1, 4]] = 0
    v = normalize(torch.randn(6, generator=random), dim=0)
    bias = torch.randn(6, generator=random) if biased else None
    edited = edited_weight(weight, v, 1.3, normalization)
    if normalization != "none":  # none writes what it removes elsewhere into every row
        assert (edited[[1, 4]] == 0).all()
    assert edited.isfinite().all()
    transform = output_transform(v, 1.3, normalization, weight.norm(dim=1), weight)
    output = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(
        transform(output, bias), torch.nn.functional.linear(x, edited, bias), atol=1e-5, rtol=1e-4
    )


@every_normalization
def test_a_weight_of_zeros_stays_what_it_is(normalization: RowNormalization) -> None:
    weight, v = torch.zeros(4, 3), torch.full((4,), 0.5)
    assert (edited_weight(weight, v, 1.0, normalization) == 0).all()
    transform = output_transform(v, 1.0, normalization, weight.norm(dim=1), weight)
    bias = torch.arange(4.0)
    torch.testing.assert_close(transform(bias.expand(2, 4), bias), bias.expand(2, 4))


@pytest.mark.parametrize("normalization", ["none", "pre"])
def test_only_full_looks_at_the_weight(normalization: RowNormalization) -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    v = torch.full((5,), 5**-0.5)
    transform = output_transform(v, 0.8, normalization, weight.norm(dim=1))
    assert (transform.scale == 1).all()


@every_normalization
@given(pair=weights_and_directions(), strength=strengths, seed=st.integers(0, 2**31))
def test_what_is_read_may_be_another_direction(
    normalization: RowNormalization, pair: tuple[Tensor, Tensor], strength: float, seed: int
) -> None:
    weight, v = pair
    random = torch.Generator().manual_seed(seed)
    r, x = torch.randn(len(v), generator=random), torch.randn(3, weight.shape[1], generator=random)
    edited = edited_weight(weight, v, strength, normalization, r)
    if normalization == "none":
        torch.testing.assert_close(edited, weight - strength * torch.outer(v, r @ weight), atol=1e-3, rtol=1e-3)
    transform = output_transform(v, strength, normalization, weight.norm(dim=1), weight, r)
    torch.testing.assert_close(transform(x @ weight.T), x @ edited.T, atol=2e-3, rtol=1e-3)
    factors = low_rank_factors(weight, v, strength, normalization, None, r)
    delta = edited - weight
    assert (weight + factors.b @ factors.a - edited).norm() <= 0.01 * delta.norm() + 1e-4
    same = edited_weight(weight, v, strength, normalization, v)
    torch.testing.assert_close(same, edited_weight(weight, v, strength, normalization))


def test_only_edited_sites_have_readings() -> None:
    one, other = Site(0, "attn.o_proj", "a"), Site(1, "attn.o_proj", "b")
    v = torch.eye(3)[0]
    with pytest.raises(UserError, match="not edited"):
        Edit({one: v}, {one: 1.0}, "none", {other: v})


def test_a_file_keeps_an_edit_with_its_readings(tmp_path: Path) -> None:
    sites = [Site(layer, "attn.o_proj", f"layers.{layer}.o_proj") for layer in range(2)]
    v, r = torch.eye(3)[0], torch.eye(3)[1]
    for readings in ({}, {sites[1]: r}):
        edit = Edit(dict.fromkeys(sites, v), {sites[0]: 0.5, sites[1]: -1.0}, "pre", readings)
        save_edit(edit, tmp_path / "edit.safetensors")
        read = load_edit(tmp_path / "edit.safetensors")
        assert (read.strengths, read.row_normalization) == (edit.strengths, "pre")
        assert read.readings.keys() == readings.keys()
        assert all(torch.equal(read.reading(site), edit.reading(site)) for site in sites)
        assert read.scaled(2).readings.keys() == readings.keys()


# The same edit as low-rank factors.


@pytest.mark.parametrize("normalization", ["none", "pre"])
@drawn
def test_none_and_pre_are_exact_at_rank_one(
    normalization: RowNormalization, pair: tuple[Tensor, Tensor], strength: float
) -> None:
    weight, v = pair
    factors = low_rank_factors(weight, v, strength, normalization, rank=1)
    a, b = factors.a, factors.b
    assert a.shape == (1, weight.shape[1]) and b.shape == (weight.shape[0], 1)
    assert (factors.error, factors.sufficient_rank) == (0, 1)
    torch.testing.assert_close(weight + b @ a, edited_weight(weight, v, strength, normalization), atol=1e-5, rtol=1e-4)


@drawn
def test_the_factors_are_those_of_the_method(pair: tuple[Tensor, Tensor], strength: float) -> None:
    weight, v = pair
    norms = weight.norm(dim=1)
    plain = low_rank_factors(weight, v, strength, "none", rank=1)
    torch.testing.assert_close(plain.a[0], v @ weight)
    torch.testing.assert_close(plain.b[:, 0], -strength * v)
    pre = low_rank_factors(weight, v, strength, "pre", rank=1)
    torch.testing.assert_close(pre.a[0], v @ row_normalized(weight), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pre.b[:, 0], -strength * norms * v)


@given(pair=weights_and_directions(), strength=st.floats(0.2, 2.0))
def test_the_error_of_full_falls_with_the_rank_to_nothing(pair: tuple[Tensor, Tensor], strength: float) -> None:
    weight, v = pair
    delta = edited_weight(weight, v, strength, "full") - weight
    errors = []
    for rank in range(1, min(weight.shape) + 1):
        factors = low_rank_factors(weight, v, strength, "full", rank)
        assert factors.a.shape[0] == factors.b.shape[1] == rank
        assert factors.error == pytest.approx(((delta - factors.b @ factors.a).norm() / delta.norm()).item(), abs=1e-4)
        errors.append(factors.error)
    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-4
    automatic = low_rank_factors(weight, v, strength, "full", None)
    assert automatic.a.shape[0] == automatic.sufficient_rank
    assert automatic.sufficient_rank == 1 + next(i for i, error in enumerate(errors) if error < NEGLIGIBLE)


def test_no_other_factors_of_that_rank_are_nearer() -> None:
    random = torch.Generator().manual_seed(0)
    weight, v = torch.randn(8, 6, generator=random), normalize(torch.randn(8, generator=random), dim=0)
    delta = edited_weight(weight, v, 1.0, "full") - weight
    factors = low_rank_factors(weight, v, 1.0, "full", rank=2)
    a, b = factors.a, factors.b
    least = (delta - b @ a).norm()
    for step in (1e-1, 1e-2):
        for _ in range(20):
            other = (b + step * torch.randn(b.shape, generator=random)) @ (
                a + step * torch.randn(a.shape, generator=random)
            )
            assert (delta - other).norm() > least


def test_full_without_strength_has_no_error() -> None:
    weight = torch.eye(3)
    factors = low_rank_factors(weight, torch.tensor([1.0, 0, 0]), 0.0, "full", rank=2)
    assert factors.error == 0 and (factors.b @ factors.a == 0).all()


# Many experts in one tensor.


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_expert_is_edited_as_if_it_were_alone(normalization: RowNormalization) -> None:
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 8, 6, generator=random)
    v = normalize(torch.randn(8, generator=random), dim=0)
    together = edited_weight(weights, v, 0.8, normalization)
    factors = low_rank_factors(weights, v, 0.8, normalization, rank=6)
    transform = output_transform(v, 0.8, normalization, weights.norm(dim=-1), weights)
    x = torch.randn(6, generator=random)
    for i, weight in enumerate(weights):
        alone = edited_weight(weight, v, 0.8, normalization)
        torch.testing.assert_close(together[i], alone)
        torch.testing.assert_close(weight + factors.b[i] @ factors.a[i], alone, atol=1e-5, rtol=1e-4)
        single = output_transform(v, 0.8, normalization, weight.norm(dim=-1), weight)
        torch.testing.assert_close(single(weight @ x), alone @ x, atol=1e-5, rtol=1e-4)
        for name in ("inward", "outward", "scale"):
            torch.testing.assert_close(getattr(transform, name)[i], getattr(single, name))


# Edit, the data.


def site(layer: int, component: Component = "attn.o_proj") -> Site:
    return Site(layer, component, f"layers.{layer}.{component}")


def test_an_edit_is_built_where_the_profile_has_strength() -> None:
    v = torch.tensor([0.6, 0.8])
    directions = {site(layer, component): v for layer in range(5) for component in ("attn.o_proj", "mlp.down_proj")}
    profiles = {"attn.o_proj": Profile.triangle(1.0, 2, 2), "mlp.down_proj": Profile.triangle(0.8, 4, 1)}
    edit = Edit.build(directions, profiles, "none")
    assert dict(edit.strengths) == {
        site(1): 0.5,
        site(2): 1.0,
        site(3): 0.5,
        site(4, "mlp.down_proj"): 0.8,
    }
    assert edit.directions.keys() == edit.strengths.keys()
    assert edit.sites == [site(1), site(2), site(3), site(4, "mlp.down_proj")]
    assert edit.row_normalization == "none"


def test_a_component_without_a_profile_is_left_alone() -> None:
    v = torch.tensor([1.0, 0.0])
    directions = {site(0): v, site(0, "mlp.down_proj"): v}
    assert Edit.build(directions, {"mlp.down_proj": Profile.constant(1.0)}).sites == [site(0, "mlp.down_proj")]


def test_a_profile_of_zeros_builds_an_edit_of_nothing() -> None:
    edit = Edit.build({site(0): torch.tensor([1.0, 0.0])}, {"attn.o_proj": Profile.constant(0.0)})
    assert edit.sites == [] == Edit.nothing().sites


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows.*none, pre, full"):
        Edit({}, {}, "rows")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("directions", "strengths"),
    [({site(0): torch.ones(1)}, {}), ({}, {site(0): 1.0}), ({site(0): torch.ones(1)}, {site(1): 1.0})],
)
def test_a_site_with_half_its_data_is_refused(directions: dict[Site, Tensor], strengths: dict[Site, float]) -> None:
    with pytest.raises(ValueError, match="one direction and one strength"):
        Edit(directions, strengths)


def test_an_edit_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Edit.nothing().row_normalization = "full"  # type: ignore[misc]


def test_a_component_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r'"mlp\.down".*Did you mean mlp\.down_proj'):
        site(0, "mlp.down")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'"attn".*attn\.o_proj, mlp\.down_proj'):
        Edit.build({site(0): torch.tensor([1.0, 0.0])}, {"attn": Profile.constant(1.0)})
