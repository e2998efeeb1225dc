"""ORPO: values from plain odds, and finiteness where a response is all but certain."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.methods.orpo import ORPO
from alignment.types import Feedback
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"weight": 1.0}

# Mean token probabilities 1/2 and 1/5, odds 1 and 1/4.
LOGPS, LENGTHS = [2 * math.log(0.5), 3 * math.log(0.2)], [2, 3]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-a_w - log sigmoid(log odds_w - log odds_l)], a = lp / |y|, odds = e^a / (1 - e^a); weight 1."""
    mean_A = log_pi_A / problem.lengths_A
    log_odds_A = mean_A - np.log(-np.expm1(mean_A))
    return problem.expect_pairs(np.logaddexp(0, -np.subtract.outer(log_odds_A, log_odds_A)) - mean_A[:, None])


def test_value() -> None:
    """Odds ratio 4: cross-entropy log 2, odds-ratio loss -log sigmoid(log 4) = log(1 + 1/4)."""
    loss = ORPO(weight=0.1).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(1.25), abs=1e-12)


def test_value_of_the_opposite_label() -> None:
    """Odds ratio 1/4: cross-entropy log 5, odds-ratio loss log(1 + 4)."""
    loss = ORPO(weight=0.1).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.0)).loss_B
    assert loss.item() == pytest.approx(1.1 * math.log(5), abs=1e-12)


def test_without_weight_it_is_fine_tuning() -> None:
    """The gradient is -1/|yw| on the winner and nothing on the loser."""
    x = pair_inputs(logps=LOGPS, lengths=LENGTHS)
    (gradient,) = torch.autograd.grad(ORPO(weight=0.0).loss(x).loss_B.sum(), x.logps_BG)
    assert gradient[0].tolist() == pytest.approx([-0.5, 0.0], abs=1e-12)


@pytest.mark.parametrize("certain", [0.0, -1e-300, -1e-20, -1e-9])
@pytest.mark.parametrize("preference", [1.0, 0.0])
def test_finite_where_a_response_is_certain(certain: float, preference: float) -> None:
    """Invariant 72: as a -> 0- neither the loss nor the gradient overflows."""
    x = pair_inputs(logps=[certain, -3.0], preference=preference)
    loss = ORPO(weight=1.0).loss(x).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), x.logps_BG)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_repeated_tokens_change_nothing() -> None:
    """Invariant 19, normalised mode."""
    card = ORPO(weight=0.7)
    once = card.loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B.item()
    twice = card.loss(pair_inputs(logps=[2 * lp for lp in LOGPS], lengths=[4, 6])).loss_B.item()
    assert twice == pytest.approx(once, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    card = ORPO(weight=0.7)
    original = card.loss(pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.7)).loss_B.item()
    swapped = card.loss(pair_inputs(logps=LOGPS[::-1], lengths=LENGTHS[::-1], preference=0.3)).loss_B.item()
    assert swapped == pytest.approx(original, abs=1e-12)


def test_padding_without_tokens_gives_no_nan() -> None:
    """A padded response looks certain (log-prob 0, length 0); it changes neither the loss nor the gradient."""
    x = pair_inputs(logps=LOGPS, lengths=LENGTHS)
    prefs = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    prefs[..., :2, :2] = torch.tensor([[0.5, 1.0], [0.0, 0.5]])
    logps = torch.tensor([[*LOGPS, 0.0]], dtype=torch.float64, requires_grad=True)
    padded = replace(
        x,
        logps_BG=logps,
        lengths_BG=torch.tensor([[*LENGTHS, 0]]),
        valid_BG=torch.tensor([[True, True, False]]),
        feedback=Feedback(prefs_KBGG=prefs),
    )
    loss = ORPO(weight=0.1).loss(padded).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(1.25), abs=1e-12)
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0.0
