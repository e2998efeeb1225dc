"""BCO on pairs: values, direction, and the classifier that it would fit without normalisation."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import grad

from alignment.methods.bco_pair import BCOPair
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0}
LOG3 = math.log(3.0)


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """Both responses of a labelled pair as examples of a logistic classifier."""
    logits_A = OPTIONS["beta"] * (log_pi_A - np.log(problem.ref_A))
    return problem.expect_pairs(np.log1p(np.exp(-logits_A))[:, None] + np.log1p(np.exp(logits_A))[None, :])


def test_at_the_reference() -> None:
    """Invariant 67: two examples with probability 1/2 each, 2 log 2."""
    loss_B = BCOPair(beta=0.3).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_by_hand() -> None:
    """Logits log 3 and -log 3 classify both responses rightly with probability 3/4: 2 log(4/3)."""
    loss_B = BCOPair(beta=0.5).loss(pair_inputs(logps=[2 * LOG3 - 4, -2 * LOG3 - 5], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(2 * math.log(4 / 3), abs=1e-12)


def test_direction() -> None:
    """At the reference the gradient is -beta/2 on the chosen and +beta/2 on the rejected response."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(BCOPair(beta=0.4).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, torch.tensor([[-0.2, 0.2]], dtype=torch.float64))


def test_logit_of_the_win_rate_is_stationary() -> None:
    """With soft labels p, 1 - p the loss is the cross-entropy of p: stationary at beta ell = logit p, -logit p."""
    p, beta = 0.8, 0.5
    logit = math.log(p / (1 - p)) / beta
    x = pair_inputs(logps=[logit, -logit], ref=[0.0, 0.0], preference=p)
    (slope_BG,) = grad(BCOPair(beta=beta).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG.abs().max() < 1e-12


def test_relabelling() -> None:
    """Invariant 16: swapping the responses and P -> 1 - P changes nothing."""
    card = BCOPair(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)


def test_a_shift_counts() -> None:
    """It opts out of invariant 17: each log-ratio has an absolute meaning."""
    card = BCOPair(**OPTIONS)
    loss = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2])).loss_B.item()
    assert abs(card.loss(pair_inputs(logps=[0.0, -1.0], ref=[-1.5, -1.2])).loss_B.item() - loss) > 0.1
