"""SimPO: value, what gamma means, contrastive CPO as its special case, the length guard."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.methods.contrastive_cpo import ContrastiveCPO
from alignment.methods.simpo import SimPO, simpo_loss
from alignment.types import Feedback
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 2.0, "gamma": 0.5}

LOGPS, LENGTHS = [-4.0, -5.0], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(2 (lp_w / |yw| - lp_l / |yl|) - .5)]; beta 2, gamma .5."""
    score_A = 2.0 * log_pi_A / problem.lengths_A
    return problem.expect_pairs(np.logaddexp(0, 0.5 - np.subtract.outer(score_A, score_A)))


def test_value() -> None:
    """Means -4/2 = -2 and -5/4 = -1.25: logit 2 * (-.75) - .5 = -2, loss log(1 + e^2)."""
    loss = SimPO(beta=2.0, gamma=0.5).loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.0)), abs=1e-12)


def test_gamma_is_the_ratio_of_the_released_code_times_beta() -> None:
    """The released code has sigmoid(beta (delta - ratio)); a recipe's 2.5 and ratio .55 are gamma 1.375."""
    delta = torch.tensor([-0.4, 0.0, 0.7], dtype=torch.float64)
    released = -torch.nn.functional.logsigmoid(2.5 * (delta - 0.55))
    np.testing.assert_allclose(simpo_loss(delta, beta=2.5, gamma=1.375), released, atol=1e-12)


def test_the_margin_raises_the_loss() -> None:
    """A response that leads by less than gamma / beta is still pushed: the loss grows with gamma."""
    delta = torch.tensor(0.2, dtype=torch.float64)
    assert simpo_loss(delta, beta=2.0, gamma=0.4).item() == pytest.approx(math.log(2), abs=1e-12)
    assert simpo_loss(delta, beta=2.0, gamma=1.0) > simpo_loss(delta, beta=2.0, gamma=0.4)


def test_single_tokens_without_margin_are_contrastive_cpo() -> None:
    """Invariant 71: gamma 0 and lengths 1, against w = 0."""
    x = pair_inputs(logps=LOGPS, preference=0.7)
    simpo = SimPO(beta=0.3, gamma=0.0).loss(x).loss_B.item()
    assert simpo == pytest.approx(ContrastiveCPO(beta=0.3, nll_weight=0.0).loss(x).loss_B.item(), abs=1e-12)


def test_repeated_tokens_change_nothing() -> None:
    """Invariant 19, normalised mode."""
    card = SimPO(**OPTIONS)
    once = card.loss(pair_inputs(logps=LOGPS, lengths=LENGTHS)).loss_B.item()
    twice = card.loss(pair_inputs(logps=[-8.0, -10.0], lengths=[4, 8])).loss_B.item()
    assert twice == pytest.approx(once, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = SimPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)


def test_padding_without_tokens_gives_no_nan() -> None:
    """A padded response has length 0; it changes neither the loss nor the gradient."""
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
    loss = SimPO(**OPTIONS).loss(padded).loss_B
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(SimPO(**OPTIONS).loss(x).loss_B.item(), abs=1e-12)
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0.0
