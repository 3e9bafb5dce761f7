"""Every direction stays out of the benign subspace: the mean and the principal directions, both at once."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.directions.estimators import Directions, estimate_directions
from iconoclast.directions.subspace import benign_basis, project_out, winsorize
from iconoclast.errors import DirectionError
from iconoclast.vocabulary import METHODS

seeds = st.integers(0, 2**31)


def residuals(seed: int, n: int = 20, layers: int = 2, d: int = 8, offset: float = 1.0) -> Tensor:
    """Benign residuals whose mean is not among, and not orthogonal to, their principal directions."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.3, d)[torch.randperm(d, generator=random)]
    return torch.randn(n, layers, d, generator=random) * spread + offset * torch.randn(layers, d, generator=random)


def principal_directions(states: Tensor, rank: int) -> Tensor:
    """Top eigenvectors of the covariance of [n, d], as columns [d, rank]: an original to compare with."""
    centred = (states - states.mean(0)).double()
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :rank].float()


@st.composite
def basis_and_vectors(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [L, d, c] and vectors [L, d]."""
    d = draw(st.integers(2, 10))
    rank = draw(st.integers(0, d - 1))
    random = torch.Generator().manual_seed(draw(seeds))
    return (
        torch.linalg.qr(torch.randn(3, d, rank, generator=random)).Q,
        torch.randn(3, d, generator=random),
    )


@given(drawn=basis_and_vectors())
def test_what_is_projected_out_is_gone(drawn: tuple[Tensor, Tensor]) -> None:
    basis, vectors = drawn
    inside = torch.einsum("ldc,ld->lc", basis, project_out(vectors, basis))
    torch.testing.assert_close(inside, torch.zeros_like(inside), atol=1e-5, rtol=0)


@given(drawn=basis_and_vectors())
def test_projecting_out_twice_is_projecting_out_once(drawn: tuple[Tensor, Tensor]) -> None:
    basis, vectors = drawn
    once = project_out(vectors, basis)
    torch.testing.assert_close(project_out(once, basis), once, atol=1e-5, rtol=0)


@given(drawn=basis_and_vectors())
def test_projection_is_pythagorean_and_matches_the_matrix(drawn: tuple[Tensor, Tensor]) -> None:
    basis, vectors = drawn
    left = project_out(vectors, basis)
    inside = torch.einsum("ldc,ld->lc", basis, vectors)
    torch.testing.assert_close(left.square().sum(-1) + inside.square().sum(-1), vectors.square().sum(-1))
    projector = torch.eye(vectors.shape[1]) - basis @ basis.mT
    torch.testing.assert_close(left, torch.einsum("lde,le->ld", projector, vectors), atol=1e-5, rtol=1e-4)


def test_an_empty_basis_takes_nothing_away() -> None:
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project_out(vectors, torch.zeros(3, 5, 0)), vectors, rtol=0, atol=0)


@given(seed=seeds, rank=st.integers(0, 6), include_mean=st.booleans())
def test_the_basis_is_orthonormal(seed: int, rank: int, include_mean: bool) -> None:
    basis = benign_basis(residuals(seed), rank, include_mean)
    assert basis.shape == (2, 8, rank + include_mean)
    gram = basis.mT @ basis
    torch.testing.assert_close(gram, torch.eye(rank + include_mean).expand_as(gram), atol=1e-5, rtol=0)


@given(seed=seeds, rank=st.integers(1, 5), include_mean=st.booleans())
def test_the_basis_spans_the_principal_directions_and_the_mean(seed: int, rank: int, include_mean: bool) -> None:
    benign = residuals(seed)
    basis = benign_basis(benign, rank, include_mean)
    for layer in range(2):
        states = benign[:, layer]
        gaps = torch.linalg.svdvals(states - states.mean(0)).diff().abs()
        assume(gaps[rank - 1] > 0.3)  # else which direction comes next is a matter of rounding
        inside = [principal_directions(states, rank)]
        if include_mean:
            inside.append(normalize(states.mean(0), dim=0)[:, None])
        left = project_out(torch.cat(inside, 1).T, basis[layer].expand(rank + include_mean, -1, -1))
        assert left.norm(dim=-1).max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
@given(seed=seeds, rank=st.integers(1, 5))
def test_a_filtered_direction_is_orthogonal_to_all_benign_use(method: str, seed: int, rank: int) -> None:
    benign = residuals(seed)
    target = residuals(seed + 1) + 1
    direction = estimate_directions(benign, target, methods=[method], subspace_rank=rank).per_layer(method)
    raw = estimate_directions(benign, target, methods=[method], orthogonalize=False).per_layer(method)
    for layer in range(2):
        states = benign[:, layer]
        gaps = torch.linalg.svdvals(states - states.mean(0)).diff().abs()
        assume(gaps[rank - 1] > 0.3)
        benign_use = torch.cat([principal_directions(states, rank), normalize(states.mean(0), dim=0)[:, None]], 1)
        assert (direction[layer] @ benign_use).abs().max() < 1e-3
        assert (raw[layer] @ benign_use).abs().max() > 1e-2  # there was something to remove
        assert direction[layer].norm().item() == pytest.approx(1, abs=1e-5)


def test_projecting_one_after_the_other_puts_a_part_back() -> None:
    benign, direction = residuals(4, offset=3), residuals(5)[0]
    principal = benign_basis(benign, 3, include_mean=False)
    mean = benign_basis(benign, 0, include_mean=True)

    def inside(vectors: Tensor, basis: Tensor) -> float:
        return torch.einsum("ldc,ld->lc", basis, normalize(vectors, dim=-1)).norm(dim=-1).min().item()

    mean_first = project_out(project_out(direction, mean), principal)
    mean_last = project_out(project_out(direction, principal), mean)
    assert inside(mean_first, principal) < 1e-5 and inside(mean_first, mean) > 0.05
    assert inside(mean_last, mean) < 1e-5 and inside(mean_last, principal) > 0.05
    jointly = project_out(direction, benign_basis(benign, 3, include_mean=True))
    assert inside(jointly, principal) < 1e-5 and inside(jointly, mean) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_direction_that_vanishes_under_the_filters_is_an_error(method: str) -> None:
    random = torch.Generator().manual_seed(0)
    benign = torch.randn(30, 3, 6, generator=random) * torch.tensor([9.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    target = benign + torch.randn(3, 6, generator=random)
    # At layer 1 the sets differ only along what benign prompts vary in most.
    target[:, 1] = benign[:, 1] + 4 * principal_directions(benign[:, 1], 1).T
    directions = estimate_directions(benign, target, subspace_rank=1)
    if method in ("variance", "hybrid"):  # they bend the difference out of the subspace; give them it unbent
        directions = Directions({"mean": directions.raw["mean"], "variance": directions.raw["mean"]}, directions.basis)
    with pytest.raises(DirectionError, match=rf"{method} direction of layer 1 "):
        directions.per_layer(method)


def test_a_direction_that_is_not_a_number_is_an_error() -> None:
    directions = Directions({"mean": torch.full((2, 4), float("nan"))}, torch.zeros(2, 4, 0))
    with pytest.raises(DirectionError, match="layer 0"):
        directions.per_layer("mean")


@pytest.mark.parametrize(
    ("n", "d", "include_mean", "most"), [(5, 20, False, 4), (5, 20, True, 4), (50, 6, False, 5), (50, 6, True, 4)]
)
def test_more_principal_directions_than_data_are_an_error(n: int, d: int, include_mean: bool, most: int) -> None:
    benign = residuals(0, n=n, d=d)
    benign_basis(benign, most, include_mean)
    with pytest.raises(DirectionError, match=f"at most {most}"):
        benign_basis(benign, most + 1, include_mean)


def test_repeated_prompts_do_not_count_as_principal_directions() -> None:
    benign = residuals(0, n=3, d=10).repeat(4, 1, 1)  # twelve prompts, three different ones
    benign_basis(benign, 2, include_mean=False)
    with pytest.raises(DirectionError, match="in 2 directions"):
        benign_basis(benign, 5, include_mean=False)


@given(seed=seeds, rank=st.integers(0, 4))
def test_the_filters_take_nothing_that_benign_prompts_do_not_use(seed: int, rank: int) -> None:
    benign = residuals(seed)
    benign[..., 5:] = 0
    unused = torch.eye(8)[5:]
    basis = benign_basis(benign, rank, include_mean=rank < 4)
    torch.testing.assert_close(project_out(unused, basis[[0, 0, 0]]), unused, atol=1e-5, rtol=0)


def test_a_mean_of_zero_removes_nothing() -> None:
    half = residuals(0, n=5, offset=0).round()
    benign = torch.cat([half, -half])
    assert (benign.mean(0) == 0).all()
    basis = benign_basis(benign, 0, include_mean=True)
    for direction in torch.eye(8):
        torch.testing.assert_close(project_out(direction.expand(2, 8), basis), direction.expand(2, 8))


def test_a_mean_among_the_principal_directions_adds_nothing() -> None:
    benign = residuals(0)
    benign[..., 2:] = 0
    basis = benign_basis(benign, 2, include_mean=True)
    for direction in torch.eye(8)[2:]:
        torch.testing.assert_close(project_out(direction.expand(2, 8), basis), direction.expand(2, 8))


# Winsorisation.


@given(seed=seeds, n=st.integers(1, 5), d=st.integers(2, 30), quantile=st.floats(0.51, 1.0))
def test_winsorizing_bounds_every_vector_at_its_own_quantile(seed: int, n: int, d: int, quantile: float) -> None:
    states = torch.randn(n, 2, d, generator=torch.Generator().manual_seed(seed)) * 10
    clipped = winsorize(states, quantile)
    limit = torch.quantile(states.abs(), quantile, dim=-1, keepdim=True)
    assert (clipped.abs() <= limit).all()
    inside = states.abs() <= limit
    assert (clipped[inside] == states[inside]).all()
    assert (clipped.sign() == states.sign()).all()
    assert inside.float().mean() >= quantile - 1 / d


def test_quantile_one_changes_nothing() -> None:
    states = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(winsorize(states, 1.0), states)


def test_winsorizing_tames_one_enormous_coordinate() -> None:
    states = torch.randn(6, 2, 100, generator=torch.Generator().manual_seed(0))
    states[..., 7] = 4000
    assert winsorize(states, 0.98).abs().max() < 10
    assert states.abs().max() == 4000


def test_winsorizing_takes_more_values_than_torch_quantile_does() -> None:
    states = torch.randn(1100, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 1000).reshape(1100, 1000, 16)
    assert states.numel() > 16_000_000
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(states.abs(), 0.9)
    assert (winsorize(states, 0.9).abs() <= states.abs()).all()
