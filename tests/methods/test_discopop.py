"""DiscoPOP: values, overflow, and the temperature below which it starts in the wrong direction."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import grad

from alignment.methods.discopop import DiscoPOP, discopop_loss
from tests.methods.problem import Array, Problem, pair_inputs

# At the paper's temp of .05 the loss has several minima, and descent from the reference ends in the wrong one.
OPTIONS = {"beta": 1.0, "temp": 1.0}


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """Logistic and exponential loss, blended by sigmoid(z / temp)."""
    scores_A = OPTIONS["beta"] * (log_pi_A - np.log(problem.ref_A))
    z_AA = scores_A[:, None] - scores_A[None, :]
    blend_AA = 1 / (1 + np.exp(-z_AA / OPTIONS["temp"]))
    return problem.expect_pairs((1 - blend_AA) * np.log1p(np.exp(-z_AA)) + blend_AA * np.exp(-z_AA))


def test_at_the_reference() -> None:
    """Half of log 2 and half of e^0."""
    loss_B = DiscoPOP(beta=0.3, temp=0.05).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx((1 + math.log(2)) / 2, abs=1e-12)


def test_by_hand() -> None:
    """z = log 3, temp 1: m = 3/4, so log(4/3)/4 + (3/4)(1/3)."""
    x = pair_inputs(logps=[2 * math.log(3.0) - 4, -5.0], ref=[-4.0, -5.0])
    loss_B = DiscoPOP(beta=0.5, temp=1.0).loss(x).loss_B
    assert loss_B.item() == pytest.approx(math.log(4 / 3) / 4 + 0.25, abs=1e-12)


def test_where_it_starts_in_the_wrong_direction() -> None:
    """The slope in z at 0 is (1 - log 2) / (4 temp) - 3/4: positive, so that h falls, below temp (1 - log 2)/3."""
    threshold = (1 - math.log(2)) / 3
    assert threshold == pytest.approx(0.1023, abs=1e-4)
    for temp in (0.05, 0.9 * threshold, 1.1 * threshold, 1.0):
        h = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = grad(discopop_loss(h, beta=0.5, temp=temp), h)
        assert slope.item() == pytest.approx(0.5 * ((1 - math.log(2)) / (4 * temp) - 0.75), abs=1e-12)
        assert (slope > 0) == (temp < threshold)


def test_the_local_minimum_of_the_papers_setting() -> None:
    """At temp .05 the loss dips near z = -.12 and is higher on both sides, also at the reference."""
    z = torch.linspace(-1, 0, 101, dtype=torch.float64)
    losses = discopop_loss(z, beta=1.0, temp=0.05)
    assert z[losses.argmin()].item() == pytest.approx(-0.12, abs=0.011)


def test_far_away() -> None:
    """No inf times 0 for badly ranked pairs: logistic there, exponential for well ranked ones."""
    h = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = discopop_loss(h, beta=1.0, temp=0.05)
    (slope,) = grad(loss.sum(), h)
    assert torch.equal(loss.detach(), torch.tensor([1e4, 0.0]))
    assert torch.equal(slope, torch.tensor([-1.0, 0.0]))


def test_relabelling_and_shift() -> None:
    """Invariants 16 and 17: swapping with P -> 1 - P, and a constant on the policy's log-probs, change nothing."""
    card = DiscoPOP(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[1.0, 2.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)
