"""Hinge-norm: values on both sides of the margin, and what leaves the loss unchanged."""

import numpy as np
import pytest
import torch

from alignment.methods.hinge import Hinge, hinge_loss
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0}

LOGPS, REF = [-4.0, -5.0], [-4.5, -4.2]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[max(0, 1 - h)], h the difference of log pi/ref; beta 1."""
    logratios_A = log_pi_A - np.log(problem.ref_A)
    return problem.expect_pairs(np.maximum(0.0, 1.0 - np.subtract.outer(logratios_A, logratios_A)))


def test_value() -> None:
    """h = 1.3, beta .5: 1 - .65 = .35; the same pair labelled the other way: 1 + .65 = 1.65."""
    card = Hinge(beta=0.5)
    assert card.loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B.item() == pytest.approx(0.35, abs=1e-12)
    reverse = pair_inputs(logps=LOGPS, ref=REF, preference=0.0)
    assert card.loss(reverse).loss_B.item() == pytest.approx(1.65, abs=1e-12)


def test_one_at_the_reference() -> None:
    """Invariant 67."""
    assert Hinge(beta=0.3).loss(pair_inputs(logps=REF, ref=REF)).loss_B.item() == pytest.approx(1.0, abs=1e-12)


def test_pairs_beyond_the_margin_are_left_alone() -> None:
    """beta h = 1.3 > 1: loss and gradient are 0."""
    x = pair_inputs(logps=LOGPS, ref=REF)
    loss = Hinge(beta=1.0).loss(x).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), x.logps_BG)
    assert loss.item() == 0.0
    assert gradient.tolist() == [[0.0, 0.0]]


def test_constant_force_inside_the_margin() -> None:
    """d loss / d h = -beta for every h < 1/beta."""
    h = torch.tensor([-7.0, 0.0, 1.9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(hinge_loss(h, beta=0.5).sum(), h)
    assert gradient.tolist() == [-0.5, -0.5, -0.5]


def test_relabelling_and_shifts_change_nothing() -> None:
    """Invariants 16 and 17."""
    card = Hinge(beta=0.5)
    original = card.loss(pair_inputs(logps=LOGPS, ref=REF, preference=0.7)).loss_B.item()
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], preference=0.3)
    shifted = pair_inputs(logps=[lp + 3.0 for lp in LOGPS], ref=REF, preference=0.7)
    assert card.loss(swapped).loss_B.item() == pytest.approx(original, abs=1e-12)
    assert card.loss(shifted).loss_B.item() == pytest.approx(original, abs=1e-12)
