"""Nash-MP: the policy gradient vanishes at the mirror step around its target."""

import pytest
import torch

from alignment.functional import preference_regression
from alignment.games import PreferenceGame
from alignment.games.updates import master_update
from alignment.methods.nash_mp import NashMP, nash_mp_loss
from alignment.types import LossOutput
from tests.methods.regression import enumerated, gradient, minimiser, random_policy, random_preferences

OPTIONS = {"tau": 0.1, "eta": 0.5}


def test_the_gradient_vanishes_at_the_mirror_step() -> None:
    """Invariants 13 and 47, corollary G: zero at U_a(target; target), a = eta/(1 + eta), and nowhere near it else."""
    prefs_AA, ref_A, target_A, tau, eta = random_preferences(4, 0), random_policy(4, 0), random_policy(4, 1), 0.2, 0.6
    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=tau)
    step_A = master_update(game, target_A[None], target_A.exp()[None], a=eta / (1 + eta))[0].log_softmax(-1)

    def grad(theta_A: torch.Tensor) -> torch.Tensor:
        def loss(logps_A: torch.Tensor) -> object:
            x = enumerated(logps_A, sampler_A=theta_A.softmax(-1), wins_A=prefs_AA @ target_A.exp())
            return nash_mp_loss(x, ref_A[None], target_A[None], tau=tau, eta=eta)

        return gradient(loss, theta_A)

    assert float(grad(step_A).abs().max()) < 1e-12
    assert float(grad(target_A).abs().max()) > 1e-3


def test_the_contrastive_form_has_the_same_solution() -> None:
    """Invariants 10, 55: s = target, A = (eta log ref + log target)/(1 + eta), c = eta/(2 tau (1 + eta))."""
    prefs_AA, ref_A, target_A, tau, eta = random_preferences(4, 2), random_policy(4, 2), random_policy(4, 3), 0.2, 0.6
    anchor_A = (eta * ref_A + target_A) / (1 + eta)

    def loss(logps_A: torch.Tensor) -> object:
        x = enumerated(logps_A, sampler_A=target_A.exp(), prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG - anchor_A, target=eta / (2 * tau * (1 + eta)))

    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=tau)
    step_A = master_update(game, target_A[None], target_A.exp()[None], a=eta / (1 + eta))[0].log_softmax(-1)
    torch.testing.assert_close(minimiser(loss, 4), step_A, rtol=0, atol=1e-6)


def test_the_contrastive_gradient_vanishes_there_too() -> None:
    """Invariant 55, to 1e-9 rather than to an optimiser's accuracy."""
    prefs_AA, ref_A, target_A, tau, eta = random_preferences(4, 4), random_policy(4, 4), random_policy(4, 5), 0.2, 0.6
    anchor_A = (eta * ref_A + target_A) / (1 + eta)
    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=tau)
    step_A = master_update(game, target_A[None], target_A.exp()[None], a=eta / (1 + eta))[0]

    def loss(logps_A: torch.Tensor) -> LossOutput:
        x = enumerated(logps_A, sampler_A=target_A.exp(), prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG - anchor_A, target=eta / (2 * tau * (1 + eta)))

    assert float(gradient(loss, step_A).abs().max()) < 1e-9
    assert float(gradient(loss, target_A).abs().max()) > 1e-3


def test_the_value_by_hand() -> None:
    """Two responses, A_i = P - 1/2 - tau ell_ref - (tau/eta) ell_target, loss -(1/2) sum A_i lp_i.

    tau .1, eta .5: A = .4 - .1 * .5 - .2 * .4 = .27 and -.1 - .1 * (-.8) - .2 * (-.4) = .06; lp -4, -5: loss
    -(1/2)(.27 * -4 + .06 * -5) = .69.
    """
    x = enumerated(
        torch.tensor([-4.0, -5.0], dtype=torch.float64),
        sampler_A=None,
        wins_A=torch.tensor([0.9, 0.4], dtype=torch.float64),
        ref=torch.tensor([-4.5, -4.2], dtype=torch.float64),
        target=torch.tensor([-4.4, -4.6], dtype=torch.float64),
    )
    assert NashMP(tau=0.1, eta=0.5).loss(x).loss_B.item() == pytest.approx(0.69, abs=1e-12)


def test_the_card_follows_its_options() -> None:
    """Decay and inner steps reach the loop; the opponent is the target."""
    needs = NashMP(tau=0.1, eta=0.2, decay=0.9, inner_steps=5).needs
    assert needs.inner_steps == 5 and needs.anchors[1].decay == 0.9  # type: ignore[attr-defined]
    assert needs.opponent == "target"
