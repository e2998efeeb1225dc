"""SPPO: the Hedge step as a pointwise regression, and the released code's self-comparison."""

import pytest
import torch

from alignment.functional import group_wins
from alignment.methods.sppo import SPPO, sppo_loss
from tests.methods.regression import enumerated, random_policy, random_preferences

OPTIONS = {"eta": 0.1}


def test_zero_at_the_hedge_step() -> None:
    """Invariant 63: with P - 1/2 replaced by P - log Z / eta the loss is 0 at prev exp(eta P(. > prev)) / Z."""
    prefs_AA, prev_A, eta = random_preferences(4, 0), random_policy(4, 0), 0.7
    wins_A = prefs_AA @ prev_A.exp()
    log_z = (prev_A + eta * wins_A).logsumexp(-1)
    hedge_A = prev_A + eta * wins_A - log_z
    x = enumerated(hedge_A, sampler_A=prev_A.exp(), wins_A=wins_A)
    exact = sppo_loss(x, prev_A[None], (wins_A - log_z / eta + 0.5)[None], eta=eta)
    assert exact.loss_B.item() == pytest.approx(0.0, abs=1e-12)
    # With 1/2 the minimiser over unnormalised log-ratios is eta (P - 1/2).
    half = sppo_loss(
        enumerated(prev_A + eta * (wins_A - 0.5), sampler_A=prev_A.exp(), wins_A=wins_A),
        prev_A[None],
        wins_A[None],
        eta=eta,
    )
    assert half.loss_B.item() == pytest.approx(0.0, abs=1e-12)


def test_including_self_shrinks_the_centred_win_rate() -> None:
    """Invariants 64: for G = 5 samples the centred value is multiplied by 4/5, as an eta of 4/5 would do."""
    prefs_BGG = random_preferences(5, 3)[None]
    valid_BG = torch.ones(1, 5, dtype=torch.bool)
    without = group_wins(prefs_BGG, valid_BG, None)
    including = group_wins(prefs_BGG, valid_BG, None, include_self=True)
    torch.testing.assert_close(including - 0.5, 0.8 * (without - 0.5), rtol=0, atol=1e-15)
    prev_A, theta_A = random_policy(5, 1), random_policy(5, 2)
    x = enumerated(theta_A, sampler_A=None, wins_A=without[0], prev=prev_A)
    released = SPPO(eta=1000.0, include_self=True).loss(x).loss_B.item()
    assert released == pytest.approx(SPPO(eta=800.0).loss(x).loss_B.item(), rel=1e-12)


def test_gradient_at_the_start_is_self_play() -> None:
    """At theta = prev the gradient of each term is -2 eta (r_i - 1/2) grad lp_i, SPO's direction."""
    prev_A = random_policy(4, 5)
    wins_A = random_preferences(4, 5) @ prev_A.exp()
    logps_A = prev_A.clone().requires_grad_()
    x = enumerated(logps_A, sampler_A=prev_A.exp(), wins_A=wins_A, prev=prev_A)
    (grad_A,) = torch.autograd.grad(SPPO(eta=0.3).loss(x).loss_B.sum(), logps_A)
    torch.testing.assert_close(grad_A, -2 * 0.3 * prev_A.exp() * (wins_A - 0.5), rtol=0, atol=1e-12)
