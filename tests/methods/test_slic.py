"""SLiC-HF: value, the two terms apart, and that it knows no reference."""

import numpy as np
import pytest
import torch

from alignment.methods.slic import SLiC
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"margin": 1.0, "nll_weight": 0.5}

LOGPS = [-4.0, -5.0]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[max(0, 1 - (log pi(yw) - log pi(yl))) - .5 log pi(yw)]; margin 1, weight .5."""
    shortfall_AA = np.maximum(0.0, 1.0 - np.subtract.outer(log_pi_A, log_pi_A))
    return problem.expect_pairs(shortfall_AA - 0.5 * log_pi_A[:, None])


def test_value() -> None:
    """delta = 1: max(0, 1.5 - 1) = .5; cross-entropy .1 * 4 = .4, summed over tokens; together .9."""
    card = SLiC(margin=1.5, nll_weight=0.1)
    assert card.loss(pair_inputs(logps=LOGPS, lengths=[2, 4])).loss_B.item() == pytest.approx(0.9, abs=1e-12)


def test_cross_entropy_is_that_of_the_winner() -> None:
    """Margin met by the second response (delta 1 >= .5): only its cross-entropy remains, .1 * 4."""
    card = SLiC(margin=0.5, nll_weight=0.1)
    x = pair_inputs(logps=[-5.0, -4.0], preference=0.0)
    (gradient,) = torch.autograd.grad(card.loss(x).loss_B.sum(), x.logps_BG)
    assert card.loss(x).loss_B.item() == pytest.approx(0.4, abs=1e-12)
    assert gradient[0].tolist() == pytest.approx([0.0, -0.1], abs=1e-12)


def test_gradient_inside_the_margin() -> None:
    """delta = 1 < 1.5: -1 - w on the winner, +1 on the loser."""
    x = pair_inputs(logps=LOGPS)
    (gradient,) = torch.autograd.grad(SLiC(margin=1.5, nll_weight=0.1).loss(x).loss_B.sum(), x.logps_BG)
    assert gradient[0].tolist() == pytest.approx([-1.1, 1.0], abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    card = SLiC(margin=1.5, nll_weight=0.1)
    original = card.loss(pair_inputs(logps=LOGPS, preference=0.7)).loss_B.item()
    swapped = card.loss(pair_inputs(logps=LOGPS[::-1], preference=0.3)).loss_B.item()
    assert swapped == pytest.approx(original, abs=1e-12)
