"""AOT: sorted margins by hand, its limits, what it refuses."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from alignment.errors import UserError
from alignment.methods.aot import AOT
from alignment.methods.dpo import DPO
from alignment.types import Feedback, LossInputs
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 1.0}


def pairs(logps: list[list[float]], ref: list[list[float]], first_wins: list[float]) -> LossInputs:
    """Prompts with two responses each."""
    prefs_B = torch.tensor(first_wins, dtype=torch.float64)
    half_B = torch.full_like(prefs_B, 0.5)
    prefs_BGG = torch.stack([torch.stack([half_B, prefs_B], 1), torch.stack([1 - prefs_B, half_B], 1)], 1)
    logps_BG = torch.tensor(logps, dtype=torch.float64)
    return LossInputs(
        logps_BG=logps_BG.requires_grad_(),
        lengths_BG=torch.ones_like(logps_BG, dtype=torch.int64),
        valid_BG=torch.ones_like(logps_BG, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=prefs_BGG[None]),
        anchors={"ref": torch.tensor(ref, dtype=torch.float64)},
    )


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def test_by_hand() -> None:
    """Margins (2, 0) against the reference's (0, 1) are compared as 0 - 0 and 2 - 1, not as 2 - 0 and 0 - 1."""
    x = pairs([[-1.0, -3.0], [-2.0, -2.0]], [[-2.0, -2.0], [-1.0, -2.0]], [1, 1])
    output = AOT(beta=0.5).loss(x)
    assert output.loss_B.tolist() == pytest.approx([(math.log(2) + softplus(-0.5)) / 2] * 2, abs=1e-12)
    assert output.weight_B.tolist() == [1, 1]


def test_smoothed_labels() -> None:
    """eps mixes in the loss of the flipped label."""
    x = pairs([[-1.0, -3.0]], [[-2.0, -2.0]], [1])
    loss_B = AOT(beta=0.5, eps=0.2).loss(x).loss_B
    assert loss_B.item() == pytest.approx(0.8 * softplus(-1.0) + 0.2 * softplus(1.0), abs=1e-12)


def test_one_pair_is_dpo() -> None:
    """Sorting one number does nothing: same value and gradient as DPO."""
    slopes: list[Tensor] = []
    for card in (AOT(beta=0.3), DPO(beta=0.3)):
        x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2])
        slopes.append(grad(card.loss(x).loss_B.sum(), x.logps_BG)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-15)
    assert slopes[0][0, 0] < 0


def test_relabelling_and_order() -> None:
    """Invariant 16, and that the order of the pairs is immaterial."""
    logps, ref = [[-1.0, -3.0], [-2.0, -2.5], [-4.0, -1.0]], [[-2.0, -2.0], [-1.0, -2.0], [-1.0, -3.0]]
    loss_B = AOT(**OPTIONS).loss(pairs(logps, ref, [1, 0, 1])).loss_B
    swapped = pairs([row[::-1] for row in logps[::-1]], [row[::-1] for row in ref[::-1]], [0, 1, 0])
    torch.testing.assert_close(AOT(**OPTIONS).loss(swapped).loss_B, loss_B, rtol=0, atol=1e-12)


def test_a_shift_of_a_prompt_changes_nothing() -> None:
    """Invariant 17."""
    ref = [[-2.0, -2.0], [-1.0, -2.0]]
    loss_B = AOT(**OPTIONS).loss(pairs([[-1.0, -3.0], [-2.0, -2.5]], ref, [1, 1])).loss_B
    shifted_B = AOT(**OPTIONS).loss(pairs([[-1.0, -3.0], [-7.0, -7.5]], ref, [1, 1])).loss_B
    torch.testing.assert_close(shifted_B, loss_B, rtol=0, atol=1e-12)


def test_pairs_that_nobody_compared_are_left_out() -> None:
    """They have weight 0 and do not enter the sort; a batch of nothing else has loss 0."""
    two = AOT(**OPTIONS).loss(pairs([[-1.0, -3.0], [9.0, -9.0]], [[-2.0, -2.0], [0.0, 0.0]], [1, math.nan]))
    one = AOT(**OPTIONS).loss(pairs([[-1.0, -3.0]], [[-2.0, -2.0]], [1]))
    assert two.weight_B.tolist() == [1, 0]
    assert two.loss_B.tolist() == [one.loss_B.item(), 0]
    none = AOT(**OPTIONS).loss(pairs([[-1.0, -3.0]], [[-2.0, -2.0]], [math.nan]))
    assert (none.loss_B.item(), none.weight_B.item()) == (0, 0)


def test_what_is_refused() -> None:
    """Soft labels and larger groups have no margin to sort."""
    with pytest.raises(UserError, match="hard labels"):
        AOT(**OPTIONS).loss(pairs([[-1.0, -3.0]], [[-2.0, -2.0]], [0.7]))
    group = LossInputs(
        logps_BG=torch.zeros(1, 3),
        lengths_BG=torch.ones(1, 3, dtype=torch.int64),
        valid_BG=torch.ones(1, 3, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.full((1, 1, 3, 3), 0.5)),
    )
    with pytest.raises(UserError, match="two responses, got 3"):
        AOT(**OPTIONS).loss(group)
