"""SPPO with hard labels: values, direction, its stationary log-ratios without normalisation."""

import numpy as np
import pytest
import torch
from torch.autograd import grad

from alignment.methods.sppo_hard import SPPOHard
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"eta": 1.0}


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """Squared distance of the log-ratios from eta/2 (winner) and -eta/2 (loser)."""
    ell_A = log_pi_A - np.log(problem.ref_A)
    half = OPTIONS["eta"] / 2
    return problem.expect_pairs((ell_A - half)[:, None] ** 2 + (ell_A + half)[None, :] ** 2)


def test_at_the_reference() -> None:
    """(eta/2)^2 for each response."""
    loss_B = SPPOHard(eta=3.0).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(4.5, abs=1e-12)


def test_by_hand() -> None:
    """Log-ratios .5 and -.8 with eta 1: (.5 - .5)^2 + (-.8 + .5)^2."""
    loss_B = SPPOHard(eta=1.0).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2])).loss_B
    assert loss_B.item() == pytest.approx(0.09, abs=1e-12)


def test_direction() -> None:
    """At the reference the gradient is -eta on the chosen and +eta on the rejected response."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(SPPOHard(eta=0.4).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, torch.tensor([[-0.4, 0.4]], dtype=torch.float64))


def test_stationary_at_the_hedge_step() -> None:
    """With soft labels p the stationary log-ratios are eta (p - 1/2) and its negative: sppo's, with log Z = eta/2."""
    p, eta = 0.8, 2.0
    x = pair_inputs(logps=[eta * (p - 0.5), -eta * (p - 0.5)], ref=[0.0, 0.0], preference=p)
    (slope_BG,) = grad(SPPOHard(eta=eta).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG.abs().max() < 1e-12


def test_relabelling() -> None:
    """Invariant 16: swapping the responses and P -> 1 - P changes nothing."""
    card = SPPOHard(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)
