"""INPO: the paper's hand value, its limits, and the mirror step that its regression realises."""

import pytest
import torch

from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.games.updates import master_update
from alignment.methods.inpo import INPO, inpo_loss
from tests.methods.problem import pair_inputs
from tests.methods.regression import enumerated, gradient, minimiser, random_policy, random_preferences

OPTIONS = {"tau": 0.1, "eta": 0.5}


def test_hand_value() -> None:
    """Invariant 37: d lp = 1, d ref = -.3, d prev = .2; h = 1 + .4 * .3 - .6 * .2 = 1; target 1; loss 0."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], prev=[-4.4, -4.6])
    assert INPO(eta=0.5, tau=0.2).loss(x).loss_B.item() == pytest.approx(0.0, abs=1e-12)
    assert INPO(eta=0.25, tau=0.1).loss(x).loss_B.item() == pytest.approx(1.0, abs=1e-12)  # same h, target 2


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_mirror_step(seed: int) -> None:
    """Invariants 11 and 32: with pairs from prev the minimiser is U_{tau/eta}(prev; prev), where the gradient is 0."""
    prefs_AA, ref_A, prev_A = random_preferences(4, seed), random_policy(4, seed), random_policy(4, seed + 50)

    def loss(logps_A: torch.Tensor) -> object:
        x = enumerated(logps_A, sampler_A=prev_A.exp(), prefs_AA=prefs_AA)
        return inpo_loss(x, ref_A[None], prev_A[None], tau=0.2, eta=0.7)

    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=0.2)
    exact_A = master_update(game, prev_A[None], prev_A.exp()[None], a=0.2 / 0.7)[0].log_softmax(-1)
    torch.testing.assert_close(minimiser(loss, 4), exact_A, rtol=0, atol=1e-6)
    assert float(gradient(loss, exact_A).abs().max()) < 1e-8


def test_limits_of_the_anchor() -> None:
    """Invariants 33 to 35: tau = eta leaves ref only; tau = 0 leaves prev only; prev = ref forgets tau."""
    prefs_AA, ref_A, prev_A = random_preferences(4, 0), random_policy(4, 0), random_policy(4, 9)
    x = enumerated(random_policy(4, 7), sampler_A=None, prefs_AA=prefs_AA)
    ref_BG, prev_BG, other_BG = ref_A[None], prev_A[None], random_policy(4, 8)[None]

    def value(ref: torch.Tensor, prev: torch.Tensor, tau: float) -> float:
        return inpo_loss(x, ref, prev, tau=tau, eta=0.5).loss_B.item()

    assert value(ref_BG, prev_BG, 0.5) == pytest.approx(value(ref_BG, other_BG, 0.5), abs=1e-12)
    assert value(ref_BG, prev_BG, 0.0) == pytest.approx(value(other_BG, prev_BG, 0.0), abs=1e-12)
    assert value(ref_BG, ref_BG, 0.1) == pytest.approx(value(ref_BG, ref_BG, 0.4), abs=1e-12)
    assert abs(value(ref_BG, prev_BG, 0.1) - value(ref_BG, prev_BG, 0.4)) > 1e-3


def test_tau_lies_between_zero_and_eta() -> None:
    """Invariant 38: tau = 0 has another solution; above eta the weight of prev is negative."""
    with pytest.raises(UserError, match="expected tau > 0"):
        INPO(tau=0.0, eta=0.5)
    with pytest.raises(UserError, match="expected tau <= eta"):
        INPO(tau=0.6, eta=0.5)
