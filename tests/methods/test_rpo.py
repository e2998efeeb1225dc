"""DPO+NLL: value, the two terms apart, DPO without weight."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.dpo import DPO
from alignment.methods.rpo import RPO
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "nll_weight": 0.5}

LOGPS, REF, LENGTHS = [-4.0, -5.0], [-4.5, -4.2], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(h) - .5 log pi(yw) / |yw|], h the difference of log pi/ref; beta 1, weight .5."""
    logratios_A = log_pi_A - np.log(problem.ref_A)
    nll_A = -log_pi_A / problem.lengths_A
    return problem.expect_pairs(np.logaddexp(0, -np.subtract.outer(logratios_A, logratios_A)) + 0.5 * nll_A[:, None])


def test_value() -> None:
    """h = 1.3: log(1 + e^-1.3); cross-entropy per token 4/2 = 2, weight .5: + 1."""
    loss = RPO(beta=1.0, nll_weight=0.5).loss(pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.3)) + 1.0, abs=1e-12)


def test_cross_entropy_is_that_of_the_winner() -> None:
    """The other label: h = -1.3, cross-entropy per token 5/4, weight .5."""
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.0)
    loss = RPO(beta=1.0, nll_weight=0.5).loss(x).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.3)) + 0.625, abs=1e-12)


def test_gradient() -> None:
    """h = 1.3: -sigmoid(-1.3) - .5/2 on the winner, sigmoid(-1.3) on the loser."""
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)
    (gradient,) = torch.autograd.grad(RPO(**OPTIONS).loss(x).loss_B.sum(), x.logps_BG)
    push = 1 / (1 + math.exp(1.3))
    assert gradient[0].tolist() == pytest.approx([-push - 0.25, push], abs=1e-12)


def test_without_weight_it_is_dpo() -> None:
    """Weight 0."""
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    free = RPO(beta=0.3, nll_weight=0.0).loss(x).loss_B.item()
    assert free == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = RPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
