"""Length-normalised DPO: value, DPO where all lengths are 1, the length guard."""

import math

import numpy as np
import pytest

from alignment.methods.dpo import DPO
from alignment.methods.sigmoid_norm import SigmoidNorm
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 2.0}

LOGPS, REF, LENGTHS = [-4.0, -5.0], [-4.5, -4.2], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(2 (ell_w / |yw| - ell_l / |yl|))], ell = log pi/ref; beta 2."""
    score_A = 2.0 * (log_pi_A - np.log(problem.ref_A)) / problem.lengths_A
    return problem.expect_pairs(np.logaddexp(0, -np.subtract.outer(score_A, score_A)))


def test_value() -> None:
    """Log-ratios .5 over 2 tokens and -.8 over 4: .25 + .2 = .45; with beta 2, log(1 + e^-.9)."""
    loss = SigmoidNorm(beta=2.0).loss(pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.9)), abs=1e-12)


def test_log_2_at_the_reference() -> None:
    """Invariant 67."""
    x = pair_inputs(logps=REF, ref=REF, lengths=LENGTHS, preference=0.8)
    assert SigmoidNorm(**OPTIONS).loss(x).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_single_tokens_are_dpo() -> None:
    """Invariant 71."""
    x = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    normalised = SigmoidNorm(beta=0.3).loss(x).loss_B.item()
    assert normalised == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_repeated_tokens_change_nothing() -> None:
    """Invariant 19, normalised mode."""
    card = SigmoidNorm(**OPTIONS)
    once = card.loss(pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)).loss_B.item()
    twice = card.loss(pair_inputs(logps=[-8.0, -10.0], ref=[-9.0, -8.4], lengths=[4, 8])).loss_B.item()
    assert twice == pytest.approx(once, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = SigmoidNorm(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
