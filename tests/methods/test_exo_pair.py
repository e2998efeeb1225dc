"""EXO on pairs: values, its bounded target, its mirror image to cDPO."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import grad

from alignment.errors import UserError
from alignment.methods.exo_pair import EXOPair, exo_pair_loss
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "eps": 0.1}


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """KL(q || (1 - eps, eps)) for every pair, q the policy's softmax over the pair's log-ratios."""
    odds_A = np.exp(OPTIONS["beta"] * (log_pi_A - np.log(problem.ref_A)))
    q_AA = odds_A[:, None] / (odds_A[:, None] + odds_A[None, :])
    eps = OPTIONS["eps"]
    return problem.expect_pairs(q_AA * np.log(q_AA / (1 - eps)) + (1 - q_AA) * np.log((1 - q_AA) / eps))


def test_at_the_reference() -> None:
    """Invariant 74: KL((1/2, 1/2) || (.9, .1)) = -log(2 sqrt(.9 x .1)) = .5108256 at eps .1."""
    loss_B = EXOPair(beta=0.3, eps=0.1).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(0.5108256, abs=1e-7)


def test_zero_where_the_policy_chooses_as_the_label() -> None:
    """q = 3/4 = 1 - eps at beta h = log 3; the gradient vanishes too, unlike DPO's."""
    x = pair_inputs(logps=[math.log(3.0) / 0.5 - 4, -5.0], ref=[-4.0, -5.0])
    loss_B = EXOPair(beta=0.5, eps=0.25).loss(x).loss_B
    (slope_BG,) = grad(loss_B.sum(), x.logps_BG)
    assert loss_B.item() == pytest.approx(0.0, abs=1e-12)
    assert slope_BG.abs().max() < 1e-12


def test_two_responses_with_soft_labels() -> None:
    """p KL(q || 1-eps) + (1-p) KL(q || eps) is least at logit q = (2p - 1) log((1-eps)/eps), not at logit p."""
    p, eps, beta = 0.7, 0.1, 0.5
    h = (2 * p - 1) * math.log((1 - eps) / eps) / beta
    x = pair_inputs(logps=[h, 0.0], ref=[0.0, 0.0], preference=p)
    (slope_BG,) = grad(EXOPair(beta=beta, eps=eps).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG.abs().max() < 1e-12


def test_direction() -> None:
    """Below its target the chosen response rises and the rejected one falls, by as much."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(EXOPair(**OPTIONS).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG[0, 0] < -0.1
    assert slope_BG[0, 0] == -slope_BG[0, 1]


def test_relabelling_and_shift() -> None:
    """Invariants 16 and 17: swapping with P -> 1 - P, and a constant on the policy's log-probs, change nothing."""
    card = EXOPair(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[1.0, 2.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)


def test_far_away() -> None:
    """Bounded: -log(1 - eps) and -log eps in the limits, without nan."""
    h = torch.tensor([1e4, -1e4], dtype=torch.float64, requires_grad=True)
    loss = exo_pair_loss(h, beta=1.0, eps=0.1)
    (slope,) = grad(loss.sum(), h)
    torch.testing.assert_close(loss.detach(), torch.tensor([-math.log(0.9), -math.log(0.1)], dtype=torch.float64))
    assert torch.equal(slope, torch.zeros(2, dtype=torch.float64))


def test_smoothing_is_required() -> None:
    """At eps = 0 the reverse KL is infinite."""
    with pytest.raises(UserError, match="eps > 0"):
        EXOPair(beta=0.1, eps=0.0)
