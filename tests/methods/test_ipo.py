"""IPO: values in both length modes, the closed-form minimiser on a cyclic game, finite targets."""

import numpy as np
import pytest
import torch

from alignment.methods.ipo import IPO
from alignment.types import Feedback, LossInputs
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"tau": 0.5}

LOGPS, REF, LENGTHS = [-4.0, -5.0], [-4.5, -4.2], [2, 4]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[(ell_w / |yw| - ell_l / |yl| - 1/(2 tau))^2], ell = log pi/ref; tau 1/2, so the target is 1."""
    per_token_A = (log_pi_A - np.log(problem.ref_A)) / problem.lengths_A
    return problem.expect_pairs((np.subtract.outer(per_token_A, per_token_A) - 1.0) ** 2)


def test_value_of_the_sum() -> None:
    """Invariant 73: h = 1.3, target 1/(2 * 0.5) = 1, loss 0.3^2 = 0.09."""
    card = IPO(tau=0.5, length_normalize=False)
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)
    assert card.loss(x).loss_B.item() == pytest.approx(0.09, abs=1e-12)


def test_value_of_the_mean() -> None:
    """h = 0.5/2 - (-0.8)/4 = 0.45, loss 0.55^2 = 0.3025; the mean is the default."""
    x = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)
    assert IPO(tau=0.5).loss(x).loss_B.item() == pytest.approx(0.3025, abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 2.0])
def test_value_at_the_reference(tau: float) -> None:
    """Invariant 67: (0 - 1/(2 tau))^2 = 1/(4 tau^2)."""
    x = pair_inputs(logps=REF, ref=REF, preference=0.8)
    assert IPO(tau=tau).loss(x).loss_B.item() == pytest.approx(1 / (4 * tau**2), rel=1e-12)


def test_a_labelled_pair_wants_a_finite_margin() -> None:
    """Invariant 69: at h = 1/(2 tau) = 2 the loss and its gradient are 0, and beyond it the loss grows."""
    card = IPO(tau=0.25)
    x = pair_inputs(logps=[-1.0, -3.0], ref=[-2.0, -2.0])
    (gradient,) = torch.autograd.grad(card.loss(x).loss_B.sum(), x.logps_BG)
    assert card.loss(x).loss_B.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert card.loss(pair_inputs(logps=[0.0, -4.0], ref=[-2.0, -2.0])).loss_B.item() == pytest.approx(4.0)


def test_closed_form_on_a_cycle() -> None:
    """Invariant 30: cycle of strength 5/9, uniform ref, s = (.6, .3, .1), tau .1: pi ~ exp(P(. > s) / tau).

    P(. > s) is 1/2 + (s_next - s_previous)/18 where each action beats the next: (.5111, .4722, .5167); divided by .1
    and normalised: (.3656, .2478, .3865). The gradient of the loss there is 0.
    """
    prefs = torch.tensor([[0.5, 5 / 9, 4 / 9], [4 / 9, 0.5, 5 / 9], [5 / 9, 4 / 9, 0.5]], dtype=torch.float64)
    sampler = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logps = torch.log_softmax(prefs @ sampler / 0.1, 0)[None].requires_grad_()
    x = LossInputs(
        logps_BG=logps,
        lengths_BG=torch.ones(1, 3, dtype=torch.int64),
        valid_BG=torch.ones(1, 3, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=prefs[None, None]),
        weights_BG=sampler[None],
        anchors={"ref": torch.full((1, 3), 1 / 3, dtype=torch.float64).log()},
    )
    (gradient,) = torch.autograd.grad(IPO(tau=0.1, length_normalize=False).loss(x).loss_B.sum(), logps)
    assert logps.exp()[0].tolist() == pytest.approx([0.3656, 0.2478, 0.3865], abs=1e-4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-13)


def test_length_guard() -> None:
    """Invariant 19: repeating every token doubles h in summed mode (2.6 - 1)^2 and changes nothing in the other."""
    once = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS)
    twice = pair_inputs(logps=[-8.0, -10.0], ref=[-9.0, -8.4], lengths=[4, 8])
    assert IPO(tau=0.5).loss(twice).loss_B.item() == pytest.approx(IPO(tau=0.5).loss(once).loss_B.item(), abs=1e-12)
    summed = IPO(tau=0.5, length_normalize=False)
    assert summed.loss(twice).loss_B.item() == pytest.approx(1.6**2, abs=1e-12)


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, lengths=LENGTHS, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], lengths=LENGTHS[::-1], preference=0.3)
    card = IPO(tau=0.5)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)


def test_target_attainment_of_a_hard_label() -> None:
    """Invariant 20: mean(h)/c = 1.3/1 in summed mode."""
    output = IPO(tau=0.5, length_normalize=False).loss(pair_inputs(logps=LOGPS, ref=REF))
    assert output.metrics["target_attainment"].item() == pytest.approx(1.3, abs=1e-12)
