"""EGPO: the gradient of its loss is the mirror step, and the opponent's samples are unbiased."""

import pytest
import torch

from alignment.games import PreferenceGame, cyclic
from alignment.games.updates import extragradient_update, master_update
from alignment.methods.egpo import EGPO, egpo_loss
from alignment.methods.omd import OMD
from alignment.tabular import run_tabular
from tests.methods.regression import enumerated, gradient, random_policy, random_preferences

OPTIONS = {"tau": 0.1}


@pytest.mark.parametrize("includes_self", [True, False])
def test_uniform_pairs_give_the_mirror_direction(includes_self: bool) -> None:
    """Invariant 39: grad = (4/n)(v - mean v), v = theta - theta_ref - P mu / tau; 4/(n-1) where y != y' is enforced."""
    n, tau = 5, 0.3
    prefs_AA, ref_A, theta_A, mu_A = (
        random_preferences(n, 2),
        random_policy(n, 2),
        random_policy(n, 3),
        random_policy(n, 4),
    )
    sampler_A = torch.full((n,), 1.0 / n, dtype=torch.float64) if includes_self else None

    def loss(logps_A: torch.Tensor) -> object:
        x = enumerated(logps_A, sampler_A=sampler_A, wins_A=prefs_AA @ mu_A.exp())
        return egpo_loss(x, ref_A[None], tau=tau)

    v_A = theta_A - ref_A - prefs_AA @ mu_A.exp() / tau
    expected_A = 4 / (n if includes_self else n - 1) * (v_A - v_A.mean())
    torch.testing.assert_close(gradient(loss, theta_A), expected_A, rtol=0, atol=1e-9)


def test_one_opponent_sample_is_unbiased() -> None:
    """Invariant 12: the mean over y'' ~ mu of the one-sample gradient is the gradient with P(. > mu)."""
    prefs_AA, ref_A, theta_A = random_preferences(4, 5), random_policy(4, 5), random_policy(4, 6)
    mu_A, sampler_A = random_policy(4, 7).exp(), random_policy(4, 8).exp()

    def grad(wins_A: torch.Tensor) -> torch.Tensor:
        x_of = lambda logps_A: enumerated(logps_A, sampler_A=sampler_A, wins_A=wins_A)  # noqa: E731
        return gradient(lambda logps_A: egpo_loss(x_of(logps_A), ref_A[None], tau=0.2), theta_A)

    mean_A = sum(mu_A[k] * grad(prefs_AA[:, k]) for k in range(4))
    torch.testing.assert_close(mean_A, grad(prefs_AA @ mu_A), rtol=0, atol=1e-12)


def test_one_iteration_is_the_extragradient_step() -> None:
    """Invariant 40: one SGD iteration of size lr is U_a with a = 4 lr / n, from the start against the half step."""
    game = PreferenceGame(prefs_XAA=random_preferences(4, 3)[None], ref_XA=random_policy(4, 3).exp()[None], tau=0.2)
    start_XA = random_policy(4, 9)[None]
    for method, update in (
        (EGPO(tau=0.2), extragradient_update(game, start_XA, a=0.1)),
        (OMD(tau=0.2), master_update(game, start_XA, start_XA.exp(), a=0.1)),
    ):
        run = run_tabular(method, game, lr=0.1, iterations=1, init_XA=start_XA.exp())
        torch.testing.assert_close(run.policy_XA, update.softmax(-1), rtol=0, atol=1e-12)


def test_the_separation_on_rock_paper_scissors() -> None:
    """Invariant 44, from softmax(1, 0, -1) at a = .09: OMD cycles at KL .303, EGPO converges (threshold .1935)."""
    game = cyclic(3, ref_XA=torch.tensor([[0.5, 0.0, -0.2]], dtype=torch.float64).softmax(-1), tau=0.05)
    start_XA = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64).softmax(-1)
    runs = {
        name: run_tabular(method, game, lr=0.09 * 3 / 4, iterations=500, init_XA=start_XA)
        for name, method in (("egpo", EGPO(tau=0.05)), ("omd", OMD(tau=0.05)))
    }
    assert float(runs["egpo"].gap_IX[-1]) < 1e-12
    assert float(runs["omd"].gap_IX[-50:].min()) > 1e-2


def test_from_samples_it_comes_close() -> None:
    """100 sampled triples a step, as in the released simulation: the gap falls to a noise floor far below its start."""
    game = cyclic(3, ref_XA=torch.tensor([[1.0, 0.0, -0.5]], dtype=torch.float64).softmax(-1), tau=0.1)
    run = run_tabular(EGPO(tau=0.1), game, lr=0.02, iterations=300, samples=100, seed=0)
    assert float(run.gap_IX[-1]) < 0.1 * float(run.gap_IX[0])
