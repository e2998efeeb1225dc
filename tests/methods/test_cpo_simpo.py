"""CPO-SimPO: value, SimPO and contrastive CPO as special cases, the length guard."""

import math

import numpy as np
import pytest

from alignment.methods.contrastive_cpo import ContrastiveCPO
from alignment.methods.cpo_simpo import CPOSimPO
from alignment.methods.simpo import SimPO
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 2.0, "gamma": 0.5, "nll_weight": 0.5}

LOGPS, LENGTHS = [-4.0, -5.0], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(2 (a_w - a_l) - .5) - .5 a_w], a = lp / |y|; beta 2, gamma .5, weight .5."""
    mean_A = log_pi_A / problem.lengths_A
    margin_AA = 2.0 * np.subtract.outer(mean_A, mean_A) - 0.5
    return problem.expect_pairs(np.logaddexp(0, -margin_AA) - 0.5 * mean_A[:, None])


def test_value() -> None:
    """Means -2 and -1.25: logit 2 * (-.75) - .5 = -2, log(1 + e^2); cross-entropy .5 * 2 = 1."""
    loss = CPOSimPO(**OPTIONS).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.0)) + 1.0, abs=1e-12)


def test_cross_entropy_is_that_of_the_winner() -> None:
    """The other label: logit 1.5 - .5 = 1, cross-entropy .5 * 1.25."""
    loss = CPOSimPO(**OPTIONS).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.0)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)) + 0.625, abs=1e-12)


def test_without_cross_entropy_it_is_simpo() -> None:
    """Weight 0."""
    x = pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.7)
    bare = CPOSimPO(beta=2.5, gamma=1.375, nll_weight=0.0).loss(x).loss_B.item()
    assert bare == pytest.approx(SimPO(beta=2.5, gamma=1.375).loss(x).loss_B.item(), abs=1e-12)


def test_single_tokens_without_margin_are_contrastive_cpo() -> None:
    """Invariant 71, with the cross-entropy of both."""
    x = pair_inputs(logps=LOGPS, preference=0.7)
    joint = CPOSimPO(beta=0.3, gamma=0.0, nll_weight=0.5).loss(x).loss_B.item()
    assert joint == pytest.approx(ContrastiveCPO(beta=0.3, nll_weight=0.5).loss(x).loss_B.item(), abs=1e-12)


def test_repeated_tokens_change_nothing() -> None:
    """Invariant 19, normalised mode."""
    card = CPOSimPO(**OPTIONS)
    once = card.loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B.item()
    twice = card.loss(pair_inputs(logps=[-8.0, -10.0], lengths=[4, 8])).loss_B.item()
    assert twice == pytest.approx(once, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = CPOSimPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
