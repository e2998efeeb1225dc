"""APO-zero: values, direction, linearity in the sigmoid."""

import math

import pytest
import torch
from torch.autograd import grad

from alignment.methods.apo_zero import APOZero
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 1.0}
LOG3 = math.log(3.0)


def test_at_the_reference() -> None:
    """Invariant 67: 1/2 + 1/2."""
    loss_B = APOZero(beta=0.3).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(1.0, abs=1e-12)


def test_by_hand() -> None:
    """Logits log 3, -log 9: 1 - 3/4 + 1/10."""
    loss_B = APOZero(beta=0.5).loss(pair_inputs(logps=[2 * LOG3 - 4, -4 * LOG3 - 5], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(0.35, abs=1e-12)


def test_direction() -> None:
    """At the reference the gradient is -beta/4 on the chosen and +beta/4 on the rejected response."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(APOZero(beta=0.4).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, torch.tensor([[-0.1, 0.1]], dtype=torch.float64))


def test_no_stationary_log_ratio() -> None:
    """With win rate p the slope in ell is (1 - 2p) beta sig'(beta ell): one sign wherever it is looked at."""
    for ell in (-5.0, 0.0, 5.0):
        x = pair_inputs(logps=[ell, ell], ref=[0.0, 0.0], preference=0.6)
        (slope_BG,) = grad(APOZero(**OPTIONS).loss(x).loss_B.sum(), x.logps_BG)
        steepness = 1 / (2 + 2 * math.cosh(ell))
        torch.testing.assert_close(slope_BG, torch.tensor([[-0.2, 0.2]], dtype=torch.float64) * steepness)


def test_relabelling() -> None:
    """Invariant 16: swapping the responses and P -> 1 - P changes nothing."""
    card = APOZero(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)
