"""NCA on pairs: values, direction, the stationary log-ratios without normalisation."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import grad

from alignment.methods.nca_pair import NCAPair
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0}
LOG3 = math.log(3.0)


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """The winner as data, winner and loser as noise with half a weight each."""
    logits_A = OPTIONS["beta"] * (log_pi_A - np.log(problem.ref_A))
    data_A, noise_A = np.log1p(np.exp(-logits_A)), np.log1p(np.exp(logits_A))
    return problem.expect_pairs((data_A + noise_A / 2)[:, None] + noise_A[None, :] / 2)


def test_at_the_reference() -> None:
    """Invariant 67: log 2 (1 + 1/2 + 1/2)."""
    loss_B = NCAPair(beta=0.3).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_by_hand() -> None:
    """Logits log 3, -log 3: log(4/3) for the data, log(4)/2 for the winner as noise, log(4/3)/2 for the loser."""
    loss_B = NCAPair(beta=0.5).loss(pair_inputs(logps=[2 * LOG3 - 4, -2 * LOG3 - 5], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(1.5 * math.log(4 / 3) + 0.5 * math.log(4), abs=1e-12)


def test_direction() -> None:
    """At the reference: -beta (1/2 - 1/4) on the chosen, +beta/4 on the rejected response."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(NCAPair(beta=0.4).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, torch.tensor([[-0.1, 0.1]], dtype=torch.float64))


def test_stationary_point() -> None:
    """A response that wins with probability p is data with weight p and noise with weight 1/2: beta ell = log 2p."""
    p, beta = 0.8, 0.5
    x = pair_inputs(logps=[math.log(2 * p) / beta, math.log(2 - 2 * p) / beta], ref=[0.0, 0.0], preference=p)
    (slope_BG,) = grad(NCAPair(beta=beta).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG.abs().max() < 1e-12


def test_relabelling() -> None:
    """Invariant 16: swapping the responses and P -> 1 - P changes nothing."""
    card = NCAPair(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)
