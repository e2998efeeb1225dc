"""WPO: weights by hand, their effect, and that they leave DPO's optimum where it is."""

import dataclasses
import math

import pytest
import torch
from torch.autograd import grad

from alignment.errors import MissingFeedbackError
from alignment.methods.dpo import DPO
from alignment.methods.wpo import WPO, confidence
from alignment.types import Feedback, LossInputs
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 1.0}


def weighted_inputs(excess: list[list[float]], mask: list[list[int]], preference: float = 1.0) -> LossInputs:
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], preference=preference)
    return dataclasses.replace(
        x,
        token_excess_BGT=torch.tensor([excess], dtype=torch.float64),
        token_mask_BGT=torch.tensor([mask], dtype=torch.bool),
    )


def test_weights_by_hand() -> None:
    """Tokens with pi(y_t) / sum pi^2 of 2 and 8 weigh 4, their geometric mean; what is masked is not read."""
    x = weighted_inputs([[math.log(2), math.log(8), math.nan], [math.log(0.5), 99.0, 99.0]], [[1, 1, 0], [1, 0, 0]])
    assert confidence(x)[0].tolist() == pytest.approx([4.0, 0.5], abs=1e-12)


def test_a_sampled_token_weighs_one_on_average() -> None:
    """E over v ~ pi of pi(v) / sum pi^2 is 1."""
    pi_A = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    excess_A = pi_A.log() - pi_A.square().sum().log()
    assert (pi_A * excess_A.exp()).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_weight_times_dpo() -> None:
    """Value and gradient are those of DPO times w(yw) w(yl) = 4 x 1/2; the weight itself has no gradient."""
    x = weighted_inputs([[math.log(4)], [math.log(0.5)]], [[1], [1]])
    plain = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2])
    output, dpo = WPO(beta=0.1).loss(x), DPO(beta=0.1).loss(plain)
    assert output.loss_B.item() == pytest.approx(2 * 0.6302582, abs=1e-7)
    torch.testing.assert_close(grad(output.loss_B.sum(), x.logps_BG)[0], 2 * grad(dpo.loss_B.sum(), plain.logps_BG)[0])
    assert output.metrics["pair_weight"].item() == pytest.approx(2.0, abs=1e-12)
    assert output.weight_B.tolist() == [1]


def test_the_bradley_terry_optimum_is_stationary_for_any_weights() -> None:
    """Weights are symmetric in the pair, so where every pair's gradient vanishes they change nothing."""
    rewards_G = torch.tensor([0.3, -1.0, 0.6], dtype=torch.float64)
    ref_BG = torch.log(torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64))
    beta = 0.5
    x = LossInputs(
        logps_BG=(ref_BG + rewards_G / beta).log_softmax(1).requires_grad_(),
        lengths_BG=torch.ones(1, 3, dtype=torch.int64),
        valid_BG=torch.ones(1, 3, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.sigmoid(rewards_G[:, None] - rewards_G)[None, None]),
        weights_BG=torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64),
        anchors={"ref": ref_BG},
        token_excess_BGT=torch.tensor([[[1.0], [-2.0], [0.4]]], dtype=torch.float64),
        token_mask_BGT=torch.ones(1, 3, 1, dtype=torch.bool),
    )
    (slope_BG,) = grad(WPO(beta=beta).loss(x).loss_B.sum(), x.logps_BG)
    assert slope_BG.abs().max() < 1e-12


def test_relabelling() -> None:
    """Invariant 16: the weights move with their responses."""
    x = weighted_inputs([[0.3], [-0.7]], [[1], [1]], preference=0.7)
    swapped = dataclasses.replace(
        pair_inputs(logps=[-5.0, -4.0], ref=[-4.2, -4.5], preference=0.3),
        token_excess_BGT=torch.tensor([[[-0.7], [0.3]]], dtype=torch.float64),
        token_mask_BGT=x.token_mask_BGT,
    )
    card = WPO(**OPTIONS)
    torch.testing.assert_close(card.loss(x).loss_B, card.loss(swapped).loss_B, rtol=0, atol=1e-12)


def test_confidences_are_required() -> None:
    with pytest.raises(MissingFeedbackError, match="confidence"):
        WPO(**OPTIONS).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2]))
