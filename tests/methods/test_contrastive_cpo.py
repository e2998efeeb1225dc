"""Contrastive CPO: value, the two terms apart, DPO with a uniform reference."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.contrastive_cpo import ContrastiveCPO
from alignment.methods.dpo import DPO
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "nll_weight": 0.5}

LOGPS, LENGTHS = [-4.0, -5.0], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(log pi(yw) - log pi(yl)) - .5 log pi(yw) / |yw|]; beta 1, weight .5."""
    nll_A = -log_pi_A / problem.lengths_A
    return problem.expect_pairs(np.logaddexp(0, -np.subtract.outer(log_pi_A, log_pi_A)) + 0.5 * nll_A[:, None])


def test_value() -> None:
    """delta = 1: log(1 + e^-1); cross-entropy per token 4/2 = 2, weight .5: + 1."""
    loss = ContrastiveCPO(beta=1.0, nll_weight=0.5).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)) + 1.0, abs=1e-12)


def test_cross_entropy_is_that_of_the_winner() -> None:
    """The other label: delta = -1, cross-entropy per token 5/4, weight .5."""
    card = ContrastiveCPO(beta=1.0, nll_weight=0.5)
    loss = card.loss(pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.0)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.0)) + 0.625, abs=1e-12)


def test_without_cross_entropy_it_is_dpo_with_a_uniform_reference() -> None:
    """A reference that is equal for both responses drops out of h."""
    x = pair_inputs(logps=LOGPS, ref=[-7.0, -7.0], lengths=LENGTHS, preference=0.7)
    free = ContrastiveCPO(beta=0.3, nll_weight=0.0).loss(x).loss_B.item()
    assert free == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_gradient() -> None:
    """delta = 1, beta 1: -sigmoid(-1) - .5/2 on the winner, sigmoid(-1) on the loser."""
    x = pair_inputs(logps=LOGPS, lengths=LENGTHS)
    (gradient,) = torch.autograd.grad(ContrastiveCPO(**OPTIONS).loss(x).loss_B.sum(), x.logps_BG)
    push = 1 / (1 + math.e)
    assert gradient[0].tolist() == pytest.approx([-push - 0.25, push], abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = ContrastiveCPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
