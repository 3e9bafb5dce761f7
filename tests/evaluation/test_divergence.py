"""KL divergence against closed forms, and what information theory promises of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iconoclast.evaluation.divergence import kl_divergence

INFINITY = float("inf")


@st.composite
def two_distributions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two sets of log-probabilities [rows, vocabulary]."""
    shape = draw(st.integers(1, 3)), draw(st.integers(2, 40))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.floats(0.1, 6))
    base, edited = (torch.randn(shape, generator=random) * sharpness for _ in range(2))
    return base.log_softmax(-1), edited.log_softmax(-1)


def coin(p: float) -> Tensor:
    """Log-probabilities of a coin."""
    return torch.tensor([p, 1 - p]).log()


@given(pair=two_distributions())
def test_it_is_the_sum_in_double_precision(pair: tuple[Tensor, Tensor]) -> None:
    log_p, log_q = (logs.double().numpy() for logs in pair)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(kl_divergence(*pair), expected, rtol=1e-3, atol=1e-5)


@given(p=st.floats(0.01, 0.99), q=st.floats(0.01, 0.99))
def test_coins_have_a_closed_form(p: float, q: float) -> None:
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert kl_divergence(coin(p), coin(q)).item() == pytest.approx(expected, abs=1e-5)


@given(pair=two_distributions())
def test_from_the_uniform_distribution_it_is_what_entropy_lacks(pair: tuple[Tensor, Tensor]) -> None:
    p, _ = pair
    uniform = torch.full_like(p, -math.log(p.shape[-1]))
    entropy = -(p.exp() * p).sum(-1)
    torch.testing.assert_close(kl_divergence(p, uniform), math.log(p.shape[-1]) - entropy, atol=1e-5, rtol=1e-4)


@given(pair=two_distributions())
def test_it_is_never_negative_and_nothing_only_of_equals(pair: tuple[Tensor, Tensor]) -> None:
    base, edited = pair
    assert (kl_divergence(base, edited) >= 0).all()
    assert (kl_divergence(base, base) == 0).all()


@given(pair=two_distributions())
def test_it_is_at_least_what_pinsker_allows(pair: tuple[Tensor, Tensor]) -> None:
    base, edited = pair
    apart = (base.exp() - edited.exp()).abs().sum(-1)
    assert (kl_divergence(base, edited) >= apart.square() / 2 - 1e-6).all()


@given(first=two_distributions(), second=two_distributions())
def test_independent_choices_add_up(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    joint_base, joint_edited = ((a[0][:, None] + b[0][None]).flatten() for a, b in zip(first, second, strict=True))
    alone = kl_divergence(first[0][0], first[1][0]) + kl_divergence(second[0][0], second[1][0])
    torch.testing.assert_close(kl_divergence(joint_base, joint_edited), alone, atol=1e-4, rtol=1e-3)


def test_it_is_not_symmetric_and_weighs_by_the_base() -> None:
    sure, unsure = coin(0.99), coin(0.5)
    assert kl_divergence(sure, unsure) < math.log(2) < kl_divergence(unsure, sure)


def test_one_number_for_every_row() -> None:
    logs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert kl_divergence(logs, logs.flip(0)).shape == (2, 3)


def test_a_token_that_the_base_model_rules_out_counts_nothing() -> None:
    base = torch.tensor([0.5, 0.5, 0.0]).log()
    edited = torch.tensor([0.25, 0.25, 0.5]).log()
    assert kl_divergence(base, edited).item() == pytest.approx(math.log(2))


def test_a_token_that_both_rule_out_counts_nothing() -> None:
    base, edited = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.1, 0.9, 0.0]).log()
    assert kl_divergence(base, edited).item() == pytest.approx(kl_divergence(base[:2], edited[:2]).item())


def test_a_token_that_only_the_edit_rules_out_is_far() -> None:
    assert kl_divergence(coin(0.5), torch.tensor([0.0, -INFINITY])).item() == INFINITY


def test_a_token_too_unlikely_for_float32_counts_nothing() -> None:
    base, edited = torch.tensor([0.0, -150.0]), torch.tensor([0.0, -INFINITY])
    assert kl_divergence(base, edited).item() == 0
