"""Nash Prox: its inner loop ends at the proximal point, for any outer step."""

import pytest
import torch

from alignment.functional import preference_regression
from alignment.games import PreferenceGame, kl_divergence
from alignment.games.updates import proximal_step
from alignment.methods.nash_mp import nash_mp_loss
from alignment.methods.nash_prox import NashProx
from alignment.tabular import run_tabular
from alignment.types import LossOutput
from tests.methods.regression import enumerated, gradient, random_policy, random_preferences

OPTIONS = {"tau": 0.1, "eta": 1.0}


@pytest.mark.parametrize("eta", [0.5, 5.0])
def test_one_outer_step_is_the_proximal_step(eta: float) -> None:
    """Invariants 53 and 54: the equilibrium at tau (1 + eta)/eta around (ref^eta pi_k)^(1/(1+eta)); KL contracts."""
    game = PreferenceGame(prefs_XAA=random_preferences(4, 1)[None], ref_XA=random_policy(4, 1).exp()[None], tau=0.2)
    start_XA = random_policy(4, 2)[None]
    run = run_tabular(
        NashProx(tau=0.2, eta=eta, inner_steps=400),
        game,
        lr=0.4,
        iterations=1,
        init_XA=start_XA.exp(),
        optimizer="natural",
    )
    exact_XA = proximal_step(game, start_XA, eta=eta).softmax(-1)
    torch.testing.assert_close(run.policy_XA, exact_XA, rtol=0, atol=1e-7)
    star_XA = game.solve(1e-12).policy_XA
    ratio = kl_divergence(star_XA, run.policy_XA) / kl_divergence(star_XA, start_XA.exp())
    assert float(ratio) <= 1 / (1 + eta) + 1e-9


@pytest.mark.parametrize("eta", [0.5, 5.0])
def test_the_contrastive_form_rests_at_the_proximal_point(eta: float) -> None:
    """Invariant 55: s = SG[pi], A = (eta log ref + log target)/(1 + eta), c = 1/(2 tau'), tau' = tau (1 + eta)/eta.

    (R) with s = pi: log pi = A + P(. > pi)/tau', which is (FP) of the inner game. Not so at the target (1e-3).
    """
    prefs_AA, ref_A, target_A, tau = random_preferences(4, 3), random_policy(4, 3), random_policy(4, 4), 0.2
    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=ref_A.exp()[None], tau=tau)
    anchor_A = (eta * ref_A + target_A) / (1 + eta)

    def slope(theta_A: torch.Tensor) -> float:
        def loss(logps_A: torch.Tensor) -> LossOutput:
            x = enumerated(logps_A, sampler_A=theta_A.softmax(-1), prefs_AA=prefs_AA)
            return preference_regression(x, x.logps_BG - anchor_A, target=0.5 * eta / (tau * (1 + eta)))

        return float(gradient(loss, theta_A).abs().max())

    assert slope(proximal_step(game, target_A[None], eta=eta, tolerance=1e-14)[0]) < 1e-9
    assert slope(target_A) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_regression_and_policy_gradient_are_proportional(seed: int) -> None:
    """Invariants 13 and 14 with two anchors: kappa_ref = tau, kappa_target = tau/eta, kappa their sum, s = SG[pi].

    The regression with lambda_j = kappa_j/kappa and c = 1/(2 kappa) has gradient -8c g = -(4/kappa) g, where g ascends.
    """
    prefs_AA, ref_A, target_A, theta_A = (
        random_preferences(5, seed),
        *(random_policy(5, 10 * seed + k) for k in range(3)),
    )
    tau, eta = 0.3, 0.7
    kappa = tau + tau / eta
    anchor_A = (tau * ref_A + tau / eta * target_A) / kappa

    def regression(logps_A: torch.Tensor) -> LossOutput:
        x = enumerated(logps_A, sampler_A=theta_A.exp(), prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG - anchor_A, target=0.5 / kappa)

    def policy_gradient(logps_A: torch.Tensor) -> LossOutput:
        x = enumerated(logps_A, sampler_A=theta_A.exp(), wins_A=prefs_AA @ theta_A.exp())
        return nash_mp_loss(x, ref_A[None], target_A[None], tau=tau, eta=eta)

    descent_A = gradient(policy_gradient, theta_A)  # of minus the objective: -g
    torch.testing.assert_close(gradient(regression, theta_A), 4 / kappa * descent_A, rtol=0, atol=1e-9)
    assert float(descent_A.abs().max()) > 1e-3


def test_the_opponent_is_the_current_policy() -> None:
    """That, and nothing else, is what separates it from nash_mp: the loss is one."""
    needs = NashProx(tau=0.1, eta=2.0, decay=0.5, inner_steps=7).needs
    assert (needs.opponent, needs.inner_steps) == ("fresh", 7)
    x = enumerated(
        random_policy(3, 0),
        sampler_A=None,
        wins_A=random_preferences(3, 0)[:, 0],
        ref=random_policy(3, 1),
        target=random_policy(3, 2),
    )
    expected = nash_mp_loss(x, x.anchor("ref"), x.anchor("target"), tau=0.1, eta=2.0).loss_B
    assert NashProx(tau=0.1, eta=2.0).loss(x).loss_B.item() == expected.item()
