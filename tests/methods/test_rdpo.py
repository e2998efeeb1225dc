"""R-DPO: value, the sign of its length term, and the optimum of the reward net of length."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.dpo import DPO
from alignment.methods.rdpo import RDPO
from alignment.types import Feedback, LossInputs
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "alpha": 0.2}

LOGPS, REF, LENGTHS = [-4.0, -5.0], [-4.5, -4.2], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(h + .2 (|yw| - |yl|))], h the difference of log pi/ref; beta 1, alpha .2."""
    score_A = log_pi_A - np.log(problem.ref_A) + 0.2 * problem.lengths_A
    return problem.expect_pairs(np.logaddexp(0, np.subtract.outer(score_A, score_A) * -1.0))


def test_value() -> None:
    """h = 1.3, lengths 2 and 4, beta 1, alpha .1: logit 1.3 + .1 * (2 - 4) = 1.1."""
    loss = RDPO(beta=1.0, alpha=0.1).loss(pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.1)), abs=1e-12)


def test_no_price_is_dpo() -> None:
    """Invariant 71."""
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    free = RDPO(beta=0.3, alpha=0.0).loss(x).loss_B.item()
    assert free == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_a_longer_winner_is_pushed_less() -> None:
    """Invariant 71: the loss and the force on the winner fall as the winner grows."""
    losses, forces = [], []
    for length in (2, 4, 8):
        x = pair_inputs(logps=LOGPS, ref=REF, lengths=[length, 4])
        loss = RDPO(**OPTIONS).loss(x).loss_B.sum()
        losses.append(loss.item())
        forces.append(-torch.autograd.grad(loss, x.logps_BG)[0][0, 0].item())
    assert losses[0] > losses[1] > losses[2]
    assert forces[0] > forces[1] > forces[2] > 0


def test_optimum_of_the_reward_net_of_length() -> None:
    """With P = sigmoid(r_i - r_j), log pi = log ref + (r - alpha |y|)/beta makes every logit r_i - r_j: gradient 0."""
    rewards = torch.tensor([[0.7, -0.2, 1.1]], dtype=torch.float64)
    ref = torch.tensor([[-1.0, -2.0, -1.5]], dtype=torch.float64)
    lengths = torch.tensor([[3.0, 1.0, 7.0]], dtype=torch.float64)
    logps = (ref + (rewards - 0.1 * lengths) / 0.5).requires_grad_()
    x = LossInputs(
        logps_BG=logps,
        lengths_BG=lengths.long(),
        valid_BG=torch.ones(1, 3, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])[None]),
        weights_BG=torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64),
        anchors={"ref": ref},
    )
    (gradient,) = torch.autograd.grad(RDPO(beta=0.5, alpha=0.1).loss(x).loss_B.sum(), logps)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-14)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = RDPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
