"""SPO: identities of the group gradient, and why its opponent is frozen."""

import pytest
import torch

from alignment.functional import group_wins
from alignment.games import PreferenceGame, cyclic
from alignment.methods.spo import SPO
from alignment.tabular import run_tabular
from tests.methods.regression import enumerated, gradient, random_policy, random_preferences

OPTIONS: dict[str, float] = {}


def test_the_mean_win_rate_of_a_group_is_one_half() -> None:
    """Invariants 94, 96: mean r = 1/2; swapped labels turn A into -A; equal preferences give 0; G = 2: A_1 = -A_2."""
    prefs_BGG = random_preferences(5, 0)[None]
    valid_BG = torch.ones(1, 5, dtype=torch.bool)
    wins_BG = group_wins(prefs_BGG, valid_BG, None)
    assert wins_BG.mean().item() == pytest.approx(0.5, abs=1e-15)
    torch.testing.assert_close(group_wins(1 - prefs_BGG, valid_BG, None) - 0.5, 0.5 - wins_BG, rtol=0, atol=1e-15)
    assert float((group_wins(torch.full_like(prefs_BGG, 0.5), valid_BG, None) - 0.5).abs().max()) == 0.0
    pair_BG = group_wins(prefs_BGG[:, :2, :2], valid_BG[:, :2], None)
    assert (pair_BG[0, 0] + pair_BG[0, 1]).item() == pytest.approx(1.0, abs=1e-15)


def test_pair_form() -> None:
    """Invariant 94: sum_i A_i grad lp_i = (1/(G-1)) sum_{i<j} (p_ij - 1/2)(grad lp_i - grad lp_j)."""
    prefs_GG = random_preferences(4, 1)
    logps_G = random_policy(4, 1).requires_grad_()
    wins_G = group_wins(prefs_GG[None], torch.ones(1, 4, dtype=torch.bool), None)[0]
    (grad_G,) = torch.autograd.grad(
        SPO().loss(enumerated(logps_G, sampler_A=None, wins_A=wins_G)).loss_B.sum(), logps_G
    )
    pairs_G = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in range(i + 1, 4):
            pairs_G[i] += (prefs_GG[i, j] - 0.5) / 3
            pairs_G[j] -= (prefs_GG[i, j] - 0.5) / 3
    torch.testing.assert_close(-4 * grad_G, pairs_G, rtol=0, atol=1e-12)


def test_the_advantage_against_a_leave_one_out_baseline() -> None:
    """Invariants 94, 96: r_i less the mean of the others' is G/(G-1) A_i, as sum_j r_j = G/2; duplicates tie."""
    chosen_G = torch.tensor([0, 1, 2, 2, 3])  # the response 2 was drawn twice
    prefs_GG = random_preferences(4, 6)[chosen_G][:, chosen_G]
    wins_G = group_wins(prefs_GG[None], torch.ones(1, 5, dtype=torch.bool), None)[0]
    others_G = (wins_G.sum() - wins_G) / 4
    torch.testing.assert_close(wins_G - others_G, 5 / 4 * (wins_G - 0.5), rtol=0, atol=1e-12)
    assert wins_G[2].item() == pytest.approx(wins_G[3].item(), abs=1e-15)


def test_an_unfrozen_opponent_gives_no_gradient() -> None:
    """Invariants 15 and 95: E_{y,y'~pi} P = 1/2 whatever pi; differentiated on both sides its gradient is 0."""
    prefs_AA = random_preferences(4, 2)
    theta_A = random_policy(4, 2).requires_grad_()
    policy_A = theta_A.softmax(-1)
    value = policy_A @ prefs_AA @ policy_A
    (both_A,) = torch.autograd.grad(value, theta_A)
    assert value.item() == pytest.approx(0.5, abs=1e-15)
    assert float(both_A.abs().max()) < 1e-15
    wins_A = prefs_AA @ policy_A.detach()

    def loss(logps_A: torch.Tensor) -> object:
        return SPO().loss(enumerated(logps_A, sampler_A=policy_A.detach(), wins_A=wins_A))

    frozen_A = gradient(loss, theta_A)
    torch.testing.assert_close(frozen_A, -policy_A.detach() * (wins_A - 0.5), rtol=0, atol=1e-12)
    assert float(frozen_A.abs().max()) > 1e-3


def test_natural_steps_are_hedge() -> None:
    """Invariant 97: on the 0/1 cycle, eta .05, T 4000, the average is (.3388, .3194, .3418), the last still cycles."""
    game = cyclic(3, tau=0.0)
    start_XA = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    run = run_tabular(SPO(), game, lr=0.05, iterations=4000, init_XA=start_XA, optimizer="natural")
    expected_XA = torch.tensor([[0.3388, 0.3194, 0.3418]], dtype=torch.float64)
    torch.testing.assert_close(run.average_XA, expected_XA, rtol=0, atol=1e-3)
    assert float(run.average_gap_IX[-1]) / 2 == pytest.approx(0.0097, abs=1e-3)
    assert float(run.gap_IX[-1]) > 0.1


def test_a_penalty_aims_at_the_regularised_equilibrium() -> None:
    """Corollary G with mu = SG[pi], kappa_ref = tau: natural steps end at pi* of the game at tau, and say so."""
    game = PreferenceGame(prefs_XAA=random_preferences(4, 8)[None], ref_XA=random_policy(4, 8).exp()[None], tau=0.2)
    method = SPO(kappa_ref=0.2)
    run = run_tabular(method, game, lr=0.5, iterations=300, optimizer="natural")
    torch.testing.assert_close(run.policy_XA, game.solve(1e-14).policy_XA, rtol=0, atol=1e-10)
    assert (method.solution, method.iterate) == ("kl_nash", "last")
    assert (SPO().solution, SPO().iterate) == ("nash", "average")


def test_the_sampled_gradient_is_unbiased() -> None:
    """Invariant 99: the mean over 4,000 groups of four samples is within 4 standard errors of the exact gradient."""
    prefs_AA = random_preferences(3, 3)
    theta_A = random_policy(3, 3)
    generator = torch.Generator().manual_seed(0)
    actions_BG = torch.multinomial(theta_A.exp(), 4 * 4000, replacement=True, generator=generator).reshape(-1, 4)
    prefs_BGG = prefs_AA[actions_BG[:, :, None], actions_BG[:, None, :]]
    advantages_BG = group_wins(prefs_BGG, torch.ones_like(actions_BG, dtype=torch.bool), None) - 0.5
    scores_BGA = torch.eye(3, dtype=torch.float64)[actions_BG] - theta_A.exp()
    per_group_BA = -(advantages_BG[..., None] * scores_BGA).mean(1)
    exact_A = -theta_A.exp() * (prefs_AA @ theta_A.exp() - 0.5)
    error_A = per_group_BA.std(0) / 4000**0.5
    assert ((per_group_BA.mean(0) - exact_A).abs() < 4 * error_A).all()


def test_the_clip_stops_the_gradient_outside_the_interval() -> None:
    """At ratio 1 the clipped form has the plain gradient; beyond 1 + clip a good response is pushed no further."""
    logps_G, wins_G = random_policy(3, 4), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    behind_G = logps_G - torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def grad(method: SPO, behaviour_G: torch.Tensor) -> torch.Tensor:
        leaf_G = logps_G.clone().requires_grad_()
        x = enumerated(leaf_G, sampler_A=None, wins_A=wins_G, behaviour=behaviour_G)
        return torch.autograd.grad(method.loss(x).loss_B.sum(), leaf_G)[0]

    torch.testing.assert_close(grad(SPO(clip=0.2), logps_G), grad(SPO(), logps_G), rtol=0, atol=1e-12)
    stopped_G = grad(SPO(clip=0.2), behind_G)
    assert stopped_G[0] == 0 and stopped_G[2] != 0
    x = enumerated(logps_G, sampler_A=None, wins_A=wins_G, behaviour=behind_G)
    assert SPO(clip=0.2).loss(x).metrics["clipped"].item() == pytest.approx(1 / 3)
