"""APO-down: values, direction, and that the chosen response falls as well."""

import math

import pytest
import torch
from torch.autograd import grad

from alignment.methods.apo_down import APODown
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 0.5}
LOG3 = math.log(3.0)


def test_at_the_reference() -> None:
    """Invariant 67: 1/2 + 1/2."""
    loss_B = APODown(beta=0.3).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(1.0, abs=1e-12)


def test_by_hand() -> None:
    """Logits log 3, -log 3, hence log 9 for the comparison: 3/4 + 1 - 9/10."""
    loss_B = APODown(beta=0.5).loss(pair_inputs(logps=[2 * LOG3 - 4, -2 * LOG3 - 5], ref=[-4.0, -5.0])).loss_B
    assert loss_B.item() == pytest.approx(0.85, abs=1e-12)


def test_direction() -> None:
    """At the reference the two terms cancel on the chosen response and push the rejected one down by beta/4."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(APODown(beta=0.4).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, torch.tensor([[0.0, 0.1]], dtype=torch.float64))


def test_once_separated_both_fall() -> None:
    """Where the comparison is won, the anchor is what is left: the chosen response falls back."""
    x = pair_inputs(logps=[-4.0, -15.0], ref=[-4.0, -5.0])
    (slope_BG,) = grad(APODown(beta=1.0).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG[0, 0] > 0.2
    assert slope_BG[0, 1] > 0


def test_relabelling() -> None:
    """Invariant 16: swapping the responses and P -> 1 - P changes nothing."""
    card = APODown(**OPTIONS)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=[-1.5, -1.2], preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=[-1.2, -1.5], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)
