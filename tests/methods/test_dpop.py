"""DPOP: values with and without the penalty, whom it pushes, DPO without weight."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.dpo import DPO
from alignment.methods.dpop import DPOP
from tests.methods.problem import Array, Problem, pair_inputs

# A heavier penalty would keep the optimum of the shared problem at the reference, or on its kink.
OPTIONS = {"beta": 1.0, "weight": 0.2}

LOGPS, ABOVE, BELOW = [-4.0, -5.0], [-4.5, -4.2], [-3.5, -3.2]  # h = 1.3 against both references


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(ell_w - ell_l - .2 max(0, -ell_w))], ell = log pi/ref; beta 1, weight .2."""
    logratios_A = log_pi_A - np.log(problem.ref_A)
    penalty_A = 0.2 * np.maximum(0.0, -logratios_A)
    margin_AA = np.subtract.outer(logratios_A, logratios_A) - penalty_A[:, None]
    return problem.expect_pairs(np.logaddexp(0, -margin_AA))


def test_value_above_the_reference() -> None:
    """ell_w = -4 + 4.5 = .5 > 0: no penalty, DPO's log(1 + e^-1.3)."""
    loss = DPOP(beta=1.0, weight=2.0).loss(pair_inputs(logps=LOGPS, ref=ABOVE)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.3)), abs=1e-12)


def test_value_below_the_reference() -> None:
    """ell_w = -4 + 3.5 = -.5: penalty 2 * .5 = 1, margin 1.3 - 1 = .3; beta .5 multiplies both: log(1 + e^-.15)."""
    loss = DPOP(beta=0.5, weight=2.0).loss(pair_inputs(logps=LOGPS, ref=BELOW)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.15)), abs=1e-12)


def test_log_2_at_the_reference() -> None:
    """Invariant 67."""
    x = pair_inputs(logps=ABOVE, ref=ABOVE, preference=0.8)
    assert DPOP(**OPTIONS).loss(x).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_the_penalty_pulls_the_winner_up() -> None:
    """Below the reference the winner's force is 1 + w times the loser's: sigmoid(-.3) * (3, 1)."""
    x = pair_inputs(logps=LOGPS, ref=BELOW)
    (gradient,) = torch.autograd.grad(DPOP(beta=1.0, weight=2.0).loss(x).loss_B.sum(), x.logps_BG)
    push = 1 / (1 + math.exp(0.3))
    assert gradient[0].tolist() == pytest.approx([-3 * push, push], abs=1e-12)


def test_without_weight_it_is_dpo() -> None:
    """Weight 0, on the side where the penalty would act."""
    x = pair_inputs(logps=LOGPS, ref=BELOW, preference=0.7)
    free = DPOP(beta=0.3, weight=0.0).loss(x).loss_B.item()
    assert free == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=BELOW, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=BELOW[::-1], preference=0.3)
    card = DPOP(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
