"""Online IPO: stationary at the equilibrium, and the known multiple of self-play policy gradient."""

import pytest
import torch

from alignment.games import PreferenceGame
from alignment.methods.online_ipo import online_ipo_loss
from alignment.methods.spo import SPO
from alignment.types import LossOutput
from tests.methods.regression import enumerated, gradient, random_policy, random_preferences

OPTIONS = {"tau": 0.1}


@pytest.mark.parametrize("form", ["regress", "hard", "soft"])
def test_the_gradient_vanishes_at_the_equilibrium_only(form: str) -> None:
    """Invariant 27: with pairs from SG[pi], zero at pi* in all three forms of the loss (1e-12), not at ref.

    (FP) log pi* = log ref + P(. > pi*)/tau is the minimiser of the regression with s = pi*; the forms differ by
    constants. Hard: E[(h(yw, yl) - c)^2], winner by the oracle; soft: E[P (h - c)^2 + (1 - P)(h + c)^2]; c = 1/(2 tau).
    """
    prefs_AA, ref_A, tau = random_preferences(5, 0), random_policy(5, 0), 0.2
    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=tau)
    star_A = game.solve(1e-14).policy_XA[0].log()
    c = 0.5 / tau

    def grad(theta_A: torch.Tensor) -> torch.Tensor:
        sampler_A = theta_A.softmax(-1)
        pairs_AA = sampler_A[:, None] * sampler_A

        def loss(logps_A: torch.Tensor) -> LossOutput:
            if form == "regress":
                return online_ipo_loss(
                    enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA), ref_A[None], tau=tau
                )
            ell_A = logps_A - ref_A
            h_AA = ell_A[:, None] - ell_A
            wins_AA = prefs_AA * (h_AA - c).square()
            terms_AA = 2 * wins_AA if form == "hard" else wins_AA + (1 - prefs_AA) * (h_AA + c).square()
            return LossOutput(loss_B=(pairs_AA * terms_AA).sum()[None], weight_B=torch.ones(1))

        return gradient(loss, theta_A)

    assert float(grad(star_A).abs().max()) < 1e-12
    assert float(grad(ref_A).abs().max()) > 1e-3


def test_it_is_minus_four_over_tau_times_self_play() -> None:
    """Invariants 14 and 24: grad L_R = -8c g = -(4/tau) g, g the regularised self-play gradient (SPO, kappa = tau)."""
    prefs_AA, ref_A, theta_A, tau = random_preferences(5, 1), random_policy(5, 1), random_policy(5, 2), 0.3
    sampler_A = theta_A.exp()

    def regression(logps_A: torch.Tensor) -> object:
        return online_ipo_loss(enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA), ref_A[None], tau=tau)

    def self_play(logps_A: torch.Tensor) -> object:
        x = enumerated(logps_A, sampler_A=sampler_A, wins_A=prefs_AA @ sampler_A, ref=ref_A)
        return SPO(kappa_ref=tau).loss(x)

    # SPO minimises, so its gradient is -g.
    torch.testing.assert_close(gradient(regression, theta_A), 4 / tau * gradient(self_play, theta_A), rtol=0, atol=1e-9)
