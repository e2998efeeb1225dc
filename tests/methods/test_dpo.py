"""DPO: value, gradient, the RLHF optimum, and what leaves the loss unchanged. Log-probs of invariant 73 throughout."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.methods.dpo import DPO, dpo_loss
from alignment.types import Feedback, LossInputs
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 1.0}

LOGPS, REF = [-4.0, -5.0], [-4.5, -4.2]


def test_value() -> None:
    """Invariant 73: h = (-4 + 4.5) - (-5 + 4.2) = 0.5 + 0.8 = 1.3; loss log(1 + e^-0.13) = 0.6302582."""
    loss = DPO(beta=0.1).loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B
    assert loss.item() == pytest.approx(0.6302582, abs=1e-7)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.13)), abs=1e-12)


def test_log_2_at_the_reference() -> None:
    """Invariant 67."""
    x = pair_inputs(logps=REF, ref=REF, preference=0.8)
    assert DPO(**OPTIONS).loss(x).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_gradient() -> None:
    """d loss / d log pi(yw) = -beta sigmoid(-beta h) = -d loss / d log pi(yl), with beta h = 0.13."""
    x = pair_inputs(logps=LOGPS, ref=REF)
    (gradient,) = torch.autograd.grad(DPO(beta=0.1).loss(x).loss_B.sum(), x.logps_BG)
    push = 0.1 / (1 + math.exp(0.13))
    assert gradient[0].tolist() == pytest.approx([-push, push], abs=1e-12)


@pytest.mark.parametrize("sampler", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
def test_the_rlhf_optimum_is_stationary(sampler: list[float]) -> None:
    """With P = sigmoid(r_i - r_j), log pi = log ref + r / beta has beta h_ij = r_i - r_j: gradient 0."""
    rewards = torch.tensor([[0.7, -0.2, 1.1, 0.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.0, -2.0, -1.5, -0.9]], dtype=torch.float64)
    logps = (ref + rewards / 0.5).requires_grad_()
    x = LossInputs(
        logps_BG=logps,
        lengths_BG=torch.ones(1, 4, dtype=torch.int64),
        valid_BG=torch.ones(1, 4, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])[None]),
        weights_BG=torch.tensor([sampler], dtype=torch.float64),
        anchors={"ref": ref},
    )
    (gradient,) = torch.autograd.grad(DPO(beta=0.5).loss(x).loss_B.sum(), logps)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-14)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], preference=0.3)
    original = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    card = DPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)


def test_a_constant_per_prompt_changes_nothing() -> None:
    """Invariant 17: on the policy and on the reference."""
    card = DPO(**OPTIONS)
    original = card.loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B.item()
    shifted = pair_inputs(logps=[lp + 3.0 for lp in LOGPS], ref=[lp - 2.0 for lp in REF])
    assert card.loss(shifted).loss_B.item() == pytest.approx(original, abs=1e-12)


def test_repeated_tokens_double_the_margin() -> None:
    """Invariant 19, summed mode: h 1.3 -> 2.6."""
    doubled = pair_inputs(logps=[-8.0, -10.0], ref=[-9.0, -8.4], lengths=[2, 2])
    expected = dpo_loss(torch.tensor(2.6, dtype=torch.float64), beta=1.0)
    assert DPO(beta=1.0).loss(doubled).loss_B.item() == pytest.approx(expected.item(), abs=1e-12)


def test_padding_and_unasked_pairs_do_not_count() -> None:
    """A third, padded response and a comparison that nobody made leave the labelled pair alone."""
    x = pair_inputs(logps=LOGPS, ref=REF)
    prefs = torch.full((1, 1, 4, 4), math.nan, dtype=torch.float64)
    prefs[..., :2, :2] = torch.tensor([[0.5, 1.0], [0.0, 0.5]])
    logps = torch.tensor([[*LOGPS, -3.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    wide = replace(
        x,
        logps_BG=logps,
        lengths_BG=torch.tensor([[1, 1, 1, 0]]),
        valid_BG=torch.tensor([[True, True, True, False]]),
        feedback=Feedback(prefs_KBGG=prefs),
        anchors={"ref": torch.tensor([[*REF, -1.0, math.nan]], dtype=torch.float64)},
    )
    card = DPO(**OPTIONS)
    assert card.loss(wide).loss_B.item() == pytest.approx(card.loss(x).loss_B.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(card.loss(wide).loss_B.sum(), logps)
    assert gradient[0, 2:].tolist() == [0.0, 0.0]
