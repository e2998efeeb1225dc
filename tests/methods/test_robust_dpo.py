"""rDPO: values, unbiasedness under label noise, and the fall without bound that its docstring warns of."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.dpo import DPO, dpo_loss
from alignment.methods.robust_dpo import RobustDPO, robust_dpo_loss
from tests.methods.problem import Array, Problem, pair_inputs

# Below every preference of the shared problem: the expected loss has a minimum only where eps <= P <= 1 - eps.
OPTIONS = {"beta": 1.0, "eps": 0.05}

LOGPS, REF = [-4.0, -5.0], [-4.5, -4.2]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[(-.95 log sigmoid(h) + .05 log sigmoid(-h)) / .9], h the difference of log pi/ref; beta 1, eps .05."""
    h_AA = np.subtract.outer(log_pi_A - np.log(problem.ref_A), log_pi_A - np.log(problem.ref_A))
    return problem.expect_pairs((0.95 * np.logaddexp(0, -h_AA) - 0.05 * np.logaddexp(0, h_AA)) / 0.9)


def test_value() -> None:
    """h = 1.3, beta 1, eps .2: log(1 + e^z) = z + log(1 + e^-z), so the loss is log(1 + e^-1.3) - .2 * 1.3 / .6."""
    loss = RobustDPO(beta=1.0, eps=0.2).loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.3)) - 0.26 / 0.6, abs=1e-12)


def test_log_2_at_the_reference() -> None:
    """Invariant 67: (1 - 2 eps) log 2 / (1 - 2 eps)."""
    x = pair_inputs(logps=REF, ref=REF)
    assert RobustDPO(beta=1.0, eps=0.3).loss(x).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_no_noise_is_dpo() -> None:
    """Invariant 68."""
    x = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    clean = RobustDPO(beta=0.3, eps=0.0).loss(x).loss_B.item()
    assert clean == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_flipped_labels_average_to_dpo() -> None:
    """Invariant 68: (1 - eps) rDPO(h) + eps rDPO(-h) = DPO(h)."""
    h = torch.linspace(-5, 5, 11, dtype=torch.float64)
    noisy = 0.8 * robust_dpo_loss(h, beta=0.7, eps=0.2) + 0.2 * robust_dpo_loss(-h, beta=0.7, eps=0.2)
    np.testing.assert_allclose(noisy, dpo_loss(h, beta=0.7), atol=1e-12)


def test_noisy_preferences_have_the_clean_gradient() -> None:
    """A clean preference .9 seen through flips of .2 is .9 * .8 + .1 * .2 = .74: the same gradient as DPO on .9."""
    noisy = pair_inputs(logps=LOGPS, ref=REF, preference=0.74)
    clean = pair_inputs(logps=LOGPS, ref=REF, preference=0.9)
    (gradient,) = torch.autograd.grad(RobustDPO(beta=1.0, eps=0.2).loss(noisy).loss_B.sum(), noisy.logps_BG)
    (expected,) = torch.autograd.grad(DPO(beta=1.0).loss(clean).loss_B.sum(), clean.logps_BG)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_a_labelled_pair_has_no_minimum() -> None:
    """At beta h = 20, eps .2 the loss is log(1 + e^-20) - .2 * 20 / .6 = -6.67, and it keeps falling."""
    h = torch.tensor([20.0, 40.0], dtype=torch.float64)
    assert robust_dpo_loss(h, beta=1.0, eps=0.2).tolist() == pytest.approx([-20 / 3, -40 / 3], abs=1e-8)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], preference=0.3)
    card = RobustDPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
