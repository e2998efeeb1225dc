"""cDPO: values, its finite margin, and DPO as the noise-free limit."""

import math

import numpy as np
import pytest
import torch

from alignment.methods.cdpo import CDPO
from alignment.methods.dpo import DPO
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "eps": 0.1}

LOGPS, REF = [-4.0, -5.0], [-4.5, -4.2]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-.9 log sigmoid(h) - .1 log sigmoid(-h)], h the difference of log pi/ref; beta 1, eps .1."""
    h_AA = np.subtract.outer(log_pi_A - np.log(problem.ref_A), log_pi_A - np.log(problem.ref_A))
    return problem.expect_pairs(0.9 * np.logaddexp(0, -h_AA) + 0.1 * np.logaddexp(0, h_AA))


def test_value() -> None:
    """h = 1.3, beta 1, eps .2: log(1 + e^z) = z + log(1 + e^-z), so the loss is log(1 + e^-1.3) + .2 * 1.3."""
    loss = CDPO(beta=1.0, eps=0.2).loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.3)) + 0.26, abs=1e-12)


def test_log_2_at_the_reference() -> None:
    """Invariant 67."""
    assert CDPO(**OPTIONS).loss(pair_inputs(logps=REF, ref=REF)).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_no_noise_is_dpo() -> None:
    """Invariant 68."""
    x = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    clean = CDPO(beta=0.3, eps=0.0).loss(x).loss_B.item()
    assert clean == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


def test_a_labelled_pair_wants_a_finite_margin() -> None:
    """Invariant 69: the gradient of a hard label vanishes at beta h = logit(.8) = log 4 = 1.38629; beta .5."""
    x = pair_inputs(logps=[-1.0, -1.0 - math.log(4) / 0.5], ref=[-2.0, -2.0])
    (gradient,) = torch.autograd.grad(CDPO(beta=0.5, eps=0.2).loss(x).loss_B.sum(), x.logps_BG)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_smoothing_is_a_softer_label() -> None:
    """A label 1 with eps .2 is DPO's soft label .8: the loss is linear in the label."""
    hard = CDPO(beta=1.0, eps=0.2).loss(pair_inputs(logps=LOGPS, ref=REF, preference=1.0)).loss_B.item()
    soft = DPO(beta=1.0).loss(pair_inputs(logps=LOGPS, ref=REF, preference=0.8)).loss_B.item()
    assert hard == pytest.approx(soft, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], preference=0.3)
    card = CDPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
