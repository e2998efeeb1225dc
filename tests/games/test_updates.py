"""Closed-form updates against the theorems that are stated about them. ``[n]`` is row n of docs/invariants.md."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from alignment.errors import UserError
from alignment.games import (
    OptimisticPolicies,
    PreferenceGame,
    bradley_terry,
    extragradient_is_stable,
    extragradient_threshold,
    extragradient_update,
    geometric_mixture,
    hedge_update,
    imaginary_spectrum,
    kl_divergence,
    log_ratio_span,
    master_update,
    nash_md_update,
    omd_threshold,
    optimistic_update,
    proximal_step,
    random_games,
    rock_paper_scissors,
)

START_XA = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)


def omd_update(game: PreferenceGame, log_pi_XA: Tensor, *, a: float) -> Tensor:
    return master_update(game, log_pi_XA, (log_pi_XA - log_pi_XA.logsumexp(-1, keepdim=True)).exp(), a=a)


def iterate(update: Callable[[Tensor], Tensor], log_pi_XA: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        log_pi_XA = update(log_pi_XA)
    return log_pi_XA


def random_logits(game: PreferenceGame, seed: int) -> Tensor:
    return torch.randn(game.ref_XA.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero_one_games(num_games: int, num_actions: int, tau: float, seed: int) -> PreferenceGame:
    game = random_games(num_games, num_actions=num_actions, tau=tau, seed=seed)
    return PreferenceGame(prefs_XAA=0.5 + 0.5 * (game.prefs_XAA - 0.5).sign(), ref_XA=game.ref_XA, tau=tau)


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_extragradient_reaches_the_fixed_point(tau: float) -> None:
    """[3] a = 2 tau / (1 + 2 tau) run to stagnation: residual of (FP) below 1e-10, gap below 1e-12, and the solver
    agrees.
    """
    game = random_games(3, num_actions=6, tau=tau, seed=3)
    a = 2.0 * tau / (1.0 + 2.0 * tau)
    pi_XA = iterate(lambda x: extragradient_update(game, x, a=a), game.ref_XA.log(), round(30.0 / a)).exp()
    torch.testing.assert_close(game.best_response(pi_XA), pi_XA, atol=1e-10, rtol=0)
    torch.testing.assert_close(game.solve().policy_XA, pi_XA, atol=1e-10, rtol=0)
    assert (game.duality_gap(pi_XA) < 1e-12).all()


def test_nash_md_obeys_its_one_step_inequality_and_rate() -> None:
    """[22] KL(pi*, pi_{t+1}) <= (1 - eta tau) KL(pi*, pi_t) + 2 eta^2, and 8 / (tau^2 (T + 1)) with eta = 2/(tau (t +
    2)).

    a = eta tau = 2 / (t + 2). The bound is loose; 1e-5 at the end (found: 1e-7) is what a sign error would miss.
    """
    game = random_games(5, num_actions=10, tau=0.1, seed=0)
    star_XA, log_pi_XA = game.solve().policy_XA, game.ref_XA.log()
    kl_X = kl_divergence(star_XA, log_pi_XA.exp())
    for t in range(2000):
        a = 2.0 / (t + 2)
        log_pi_XA = nash_md_update(game, log_pi_XA, a=a)
        next_X = kl_divergence(star_XA, log_pi_XA.exp())
        assert (next_X <= (1.0 - a) * kl_X + 2.0 * (a / game.tau) ** 2 + 1e-9).all()
        assert (next_X <= 8.0 / (game.tau**2 * (t + 2)) + 1e-9).all()
        kl_X = next_X
    assert (kl_X < 1e-5).all()


def test_nash_md_with_a_constant_step_is_biased_in_proportion_to_its_square() -> None:
    """[23] On non-transitive games the limit is not pi*: KL(pi*, pi_inf) / a^2 is positive and about constant (about
    .07).

    The spread over a in [.01, .05] is allowed 10 %. The start is pi*, so 15 / a steps reach the limit.
    """
    game = random_games(50, num_actions=3, tau=0.1, seed=42)
    star_XA = game.solve().policy_XA
    ratios = []
    for a in (0.01, 0.02, 0.05):
        end_XA = iterate(lambda x, a=a: nash_md_update(game, x, a=a), star_XA.log(), round(15 / a)).exp()
        ratios.append(float(kl_divergence(star_XA, end_XA).mean()) / a**2)
    assert min(ratios) > 0.02
    assert max(ratios) / min(ratios) < 1.1


def test_mirror_descent_obeys_the_inequality_of_inpo() -> None:
    """[36] KL_{t+1} <= (1 - tau/eta) KL_t + 8 C^2 / eta^2 and <= 32 C^2 / (tau^2 (T+1)) with eta = tau (t + 2) / 2.

    C = max(B tau, 1) where B bounds the log-ratios to ref. a = tau / eta = 2 / (t + 2).
    """
    game = random_games(20, num_actions=6, tau=0.1, seed=1)
    star_XA, log_pi_XA = game.solve().policy_XA, game.ref_XA.log()
    kls, bound = [kl_divergence(star_XA, log_pi_XA.exp())], 0.0
    for t in range(1000):
        log_pi_XA = omd_update(game, log_pi_XA, a=2.0 / (t + 2))
        bound = max(bound, float((log_pi_XA - game.ref_XA.log()).abs().max()))
        kls.append(kl_divergence(star_XA, log_pi_XA.exp()))
    c = max(bound * game.tau, 1.0)
    for t in range(1000):
        eta = game.tau * (t + 2) / 2.0
        assert (kls[t + 1] <= (1.0 - game.tau / eta) * kls[t] + 8.0 * c**2 / eta**2 + 1e-9).all()
        assert (kls[t + 1] <= 32.0 * c**2 / (game.tau**2 * (t + 2)) + 1e-9).all()
    assert (kls[-1] < 1e-4).all()


def test_one_gradient_step_on_uniform_pairs_is_the_master_update() -> None:
    """[40] L = mean over y, y' of (ell(y) - ell(y') - (P(y > mu) - P(y' > mu)) / tau)^2 has gradient (4/n)(v - mean v),

    v = log pi - log ref - P mu / tau, so one step of size lr is U_a with a = 4 lr / n (autograd; 1e-12).
    """
    game = random_games(2, num_actions=7, tau=0.3, seed=5)
    theta_XA = random_logits(game, 0).requires_grad_()
    mu_XA, lr = theta_XA.detach().softmax(-1), 0.2
    score_XA = theta_XA.log_softmax(-1) - game.ref_XA.log() - game.win_probability(mu_XA) / game.tau
    loss = (score_XA[:, :, None] - score_XA[:, None, :]).square().mean((1, 2)).sum()
    loss.backward()
    stepped_XA = (theta_XA - lr * theta_XA.grad).detach().log_softmax(-1)
    torch.testing.assert_close(
        stepped_XA, master_update(game, theta_XA.detach(), mu_XA, a=4.0 * lr / 7), atol=1e-12, rtol=0
    )


def test_extragradient_converges_where_mirror_descent_cycles() -> None:
    """[44] 0/1 cycle, tau .05, start softmax(1, 0, -1): a = .05 is below both thresholds, .09 between .0585 and
    .1935.
    """
    game = rock_paper_scissors()
    star_XA = game.solve().policy_XA
    kl = {
        (name, a): float(kl_divergence(star_XA, iterate(lambda x, u=u, a=a: u(game, x, a=a), START_XA, 2500).exp()))
        for name, u in (("omd", omd_update), ("eg", extragradient_update))
        for a in (0.05, 0.09)
    }
    assert kl["omd", 0.05] < 1e-12
    assert kl["eg", 0.05] < 1e-12
    assert kl["eg", 0.09] < 1e-12
    assert kl["omd", 0.09] > 0.1


@pytest.mark.slow
def test_rock_paper_scissors_after_twenty_thousand_steps() -> None:
    """[44] KL(pi*, pi): OMD .303 at a = .09 and .923 at .2; EG below 1e-12 at .09 and .058 at .2 (20 %: phase of a
    cycle).
    """
    game = rock_paper_scissors()
    star_XA = game.solve().policy_XA

    def end(update: Callable[..., Tensor], a: float) -> float:
        return float(kl_divergence(star_XA, iterate(lambda x: update(game, x, a=a), START_XA, 20_000).exp()))

    assert end(omd_update, 0.09) == pytest.approx(0.303, rel=0.2)
    assert end(omd_update, 0.2) == pytest.approx(0.923, rel=0.2)
    assert end(extragradient_update, 0.09) < 1e-12
    assert end(extragradient_update, 0.2) == pytest.approx(0.058, rel=0.2)
    assert end(nash_md_update, 0.09) == pytest.approx(0.227, rel=0.2)


@pytest.mark.parametrize(("tau", "omd", "extragradient"), [(0.05, 0.0585, 0.1935), (0.02, 0.00956, 0.0734)])
def test_stability_thresholds_of_rock_paper_scissors(tau: float, omd: float, extragradient: float) -> None:
    """[45] Eigenvalues +-i s: OMD multiplies by 1 - a + a i s / tau, of modulus 1 at a = 2 / (1 + (s/tau)^2)."""
    game = rock_paper_scissors(tau=tau)
    star_XA = game.solve().policy_XA
    threshold = float(extragradient_threshold(game, star_XA))
    assert float(omd_threshold(game, star_XA)) == pytest.approx(omd, rel=0.01)
    assert threshold == pytest.approx(extragradient, rel=0.01)
    assert bool(extragradient_is_stable(game, star_XA, a=threshold - 2e-6))
    assert not bool(extragradient_is_stable(game, star_XA, a=threshold + 2e-6))


def test_spectrum_is_that_of_the_linearised_update() -> None:
    """The moduli of the eigenvalues of P (diag(pi) - pi pi^T), computed without its structure; real parts vanish."""
    game = random_games(4, num_actions=7, tau=0.05, seed=2)
    pi_XA = random_logits(game, 1).softmax(-1)
    covariance_XAA = torch.diag_embed(pi_XA) - pi_XA[:, :, None] * pi_XA[:, None, :]
    eigenvalues_XA = torch.linalg.eigvals(game.prefs_XAA @ covariance_XAA)
    expected_XA = eigenvalues_XA.abs().sort(descending=True).values
    torch.testing.assert_close(imaginary_spectrum(game, pi_XA), expected_XA, atol=1e-10, rtol=0)
    assert eigenvalues_XA.real.abs().max() < 1e-10


def test_thresholds_are_those_of_the_iteration_itself() -> None:
    """[45] The Jacobian of the update at pi*, by autograd in the logits, has spectral radius 1 at the threshold.

    The direction that adds a constant to all logits is contracted by log_softmax and does not count.
    """
    game = random_games(1, num_actions=6, tau=0.02, seed=4)
    star_XA = game.solve().policy_XA
    for update, a in (
        (omd_update, float(omd_threshold(game, star_XA))),
        (extragradient_update, float(extragradient_threshold(game, star_XA))),
    ):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, u=update, a=a: u(game, x[None], a=a)[0], star_XA[0].log()
        )
        assert float(torch.linalg.eigvals(jacobian).abs().max()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_the_rule_names_the_games_on_which_mirror_descent_cycles() -> None:
    """[45] Ten random games, tau .01, a = .008, 100k steps: exactly those with a threshold below .008 keep a gap."""
    game = random_games(tau=0.01, seed=42)
    threshold_X = omd_threshold(game, game.solve().policy_XA)
    end_XA = iterate(lambda x: omd_update(game, x, a=0.008), game.ref_XA.log(), 100_000).exp()
    gap_X = game.duality_gap(end_XA)
    assert (threshold_X < 0.008).nonzero().flatten().tolist() == [1, 4, 7]
    assert torch.equal(gap_X > 1e-2, threshold_X < 0.008)
    assert (gap_X[threshold_X > 0.008] < 1e-12).all()


def test_extragradient_tolerates_steps_far_beyond_its_theory() -> None:
    """[46] tau .1, eta_MP = 2 tau x {1, 2, 4, 8} converge on ten random games; x 16 does not on all (KL .28 found)."""
    game = random_games(tau=0.1, seed=42)
    star_XA = game.solve().policy_XA
    for factor in (1, 2, 4, 8, 16):
        a = 0.2 * factor / (1.0 + 0.2 * factor)
        end_XA = iterate(lambda x, a=a: extragradient_update(game, x, a=a), game.ref_XA.log(), 600).exp()
        worst = float(kl_divergence(star_XA, end_XA).max())
        assert (worst < 1e-12) == (factor < 16), (factor, worst)


def test_closed_form_minimises_the_objective_with_two_penalties() -> None:
    """[47] argmin of P(q > pi) / tau + KL(pi || ref) + KL(pi || pi_k) / eta, by BFGS on the logits (1e-7: its
    accuracy).
    """
    game = random_games(1, num_actions=4, tau=0.2, seed=6)
    log_k_XA, q_XA, eta = random_logits(game, 2).log_softmax(-1), random_logits(game, 3).softmax(-1), 0.7

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        theta_XA = torch.from_numpy(theta)[None].requires_grad_()
        log_pi_XA = theta_XA.log_softmax(-1)
        pi_XA = log_pi_XA.exp()
        loses = (pi_XA * (1.0 - game.win_probability(q_XA))).sum()
        penalties = (pi_XA * (log_pi_XA - game.ref_XA.log())).sum() + (pi_XA * (log_pi_XA - log_k_XA)).sum() / eta
        value = loses / game.tau + penalties
        value.backward()
        assert theta_XA.grad is not None
        return value.item(), theta_XA.grad[0].numpy()

    found = minimize(objective, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-11})
    expected_XA = master_update(game, log_k_XA, q_XA, a=eta / (1.0 + eta)).exp()
    torch.testing.assert_close(torch.from_numpy(found.x)[None].softmax(-1), expected_XA, atol=1e-7, rtol=0)


def test_two_papers_write_one_algorithm() -> None:
    """[48] EGPO's (1 - eta' tau) theta + eta' tau (theta_ref + P mu / tau) is Nash-MP's

    (log pi_k + eta log ref + (eta / tau) P mu) / (1 + eta) when eta' tau = eta / (1 + eta); each is written out here.
    """
    game = random_games(3, num_actions=5, tau=0.15, seed=7)
    log_k_XA, eta = random_logits(game, 4), 0.6
    step = eta / (1.0 + eta) / game.tau
    egpo_XA = nash_mp_XA = log_k_XA
    for _ in range(2):
        wins_XA = torch.einsum("xab,xb->xa", game.prefs_XAA, egpo_XA.softmax(-1))
        egpo_XA = (1.0 - step * game.tau) * log_k_XA + step * game.tau * (game.ref_XA.log() + wins_XA / game.tau)
        wins_XA = torch.einsum("xab,xb->xa", game.prefs_XAA, nash_mp_XA.softmax(-1))
        nash_mp_XA = (log_k_XA + eta * game.ref_XA.log() + eta / game.tau * wins_XA) / (1.0 + eta)
    ours_XA = extragradient_update(game, log_k_XA, a=eta / (1.0 + eta))
    torch.testing.assert_close(egpo_XA.log_softmax(-1), ours_XA, atol=1e-10, rtol=0)
    torch.testing.assert_close(nash_mp_XA.log_softmax(-1), ours_XA, atol=1e-10, rtol=0)


@pytest.mark.parametrize("tau", [0.5, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("zero_one", [False, True])
def test_nash_mp_contracts_by_its_bound(tau: float, zero_one: bool) -> None:
    """[49, 50] eta = 2 tau: KL(pi*, pi_{k+1}) <= KL(pi*, pi_k) / (1 + eta) at every step, random and 0/1 games.

    Compared until KL reaches 1e-18, where rounding of the logits takes over.
    """
    game = zero_one_games(200, 5, tau, 8) if zero_one else random_games(tau=tau, seed=42)
    star_XA, log_pi_XA, eta = game.solve().policy_XA, game.ref_XA.log(), 2.0 * tau
    kl_X, worst = kl_divergence(star_XA, log_pi_XA.exp()), 0.0
    for _ in range(150):
        log_pi_XA = extragradient_update(game, log_pi_XA, a=eta / (1.0 + eta))
        next_X = kl_divergence(star_XA, log_pi_XA.exp())
        alive_X = kl_X > 1e-18
        if bool(alive_X.any()):
            worst = max(worst, float((next_X / kl_X)[alive_X].max()))
        kl_X = next_X
    assert 0.1 < worst <= 1.0 / (1.0 + eta) + 1e-9


def test_the_equilibrium_is_a_fixed_point_of_every_update() -> None:
    """[51] From pi*, U_a against pi* stays, so both half steps stay (1e-12 x 1/tau x rounding); so does a proximal
    step.
    """
    game = random_games(5, num_actions=8, tau=0.1, seed=9)
    log_star_XA = game.best_response(game.solve().policy_XA).log()
    for moved_XA in (
        omd_update(game, log_star_XA, a=0.4),
        extragradient_update(game, log_star_XA, a=0.4),
        proximal_step(game, log_star_XA, eta=0.7),
    ):
        torch.testing.assert_close(moved_XA, log_star_XA, atol=1e-12, rtol=0)


def test_nash_mp_trajectory() -> None:
    """[52] tau .05, n 10: KL about 4e-5 (50 steps), 2e-9 (100), 6e-17 (200); span and gap fall with it.

    Orders of magnitude, means over ten games; the games of the record are not known, hence a factor of 30.
    """
    game = random_games(tau=0.05, seed=42)
    star_XA, log_pi_XA = game.solve().policy_XA, game.ref_XA.log()
    for kl, span, gap in ((3.9e-5, 9.1e-2, 6.4e-6), (2.4e-9, 1.1e-3, 3.1e-10)):
        log_pi_XA = iterate(lambda x: extragradient_update(game, x, a=0.1 / 1.1), log_pi_XA, 50)
        found = (
            kl_divergence(star_XA, log_pi_XA.exp()).mean(),
            log_ratio_span(star_XA, log_pi_XA.exp()).mean(),
            game.duality_gap(log_pi_XA.exp()).mean(),
        )
        for value, order in zip(found, (kl, span, gap), strict=True):
            assert order / 30 < float(value) < order * 30, (found, (kl, span, gap))


@pytest.mark.parametrize("eta", [0.05, 0.5, 5.0, 50.0])
def test_proximal_step_contracts_for_every_step_size(eta: float) -> None:
    """[53] The outer step solves log pi+ = (log pi_k + eta log ref + (eta/tau) P(. > pi+)) / (1 + eta): implicit
    Nash-MP.

    Its KL to pi* shrinks by at least 1 / (1 + eta), however large eta is.
    """
    game = random_games(5, num_actions=8, tau=0.05, seed=10)
    star_XA, log_k_XA = game.solve().policy_XA, random_logits(game, 5).log_softmax(-1)
    log_next_XA = proximal_step(game, log_k_XA, eta=eta)
    implicit_XA = master_update(game, log_k_XA, log_next_XA.exp(), a=eta / (1.0 + eta))
    torch.testing.assert_close(implicit_XA, log_next_XA, atol=1e-9, rtol=0)
    ratio_X = kl_divergence(star_XA, log_next_XA.exp()) / kl_divergence(star_XA, log_k_XA.exp())
    assert (ratio_X <= 1.0 / (1.0 + eta) + 1e-9).all()


def test_proximal_step_in_its_limits() -> None:
    """[54] eta -> infinity leaves only the game: pi* in one step; eta -> 0 leaves only the centre: pi_k."""
    game = random_games(3, num_actions=5, tau=0.1, seed=11)
    log_k_XA = random_logits(game, 6).log_softmax(-1)
    torch.testing.assert_close(proximal_step(game, log_k_XA, eta=1e9).exp(), game.solve().policy_XA, atol=1e-6, rtol=0)
    torch.testing.assert_close(proximal_step(game, log_k_XA, eta=1e-9), log_k_XA, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("scale", "average", "advantage"),
    [(1.0, (0.3388, 0.3194, 0.3418), 0.0097), (2.0, (0.3374, 0.3340, 0.3286), 0.0027)],
)
def test_hedge_averages_to_the_minimax_winner(scale: float, average: tuple[float, ...], advantage: float) -> None:
    """[97] 0/1 cycle, eta .05 on P (scale 1) or on S = 2P - 1 (scale 2), start (.6, .3, .1), 4000 steps.

    Recorded to 1e-3: averages and max P(. > average) - 1/2 (max S = .0054 for S, half of it on P). The last iterate
    cycles. The average is over the 4000 policies that were played, the last of which is (.055, .346, .599).
    """
    game = rock_paper_scissors(tau=0.0)
    log_pi_XA = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    total_XA = torch.zeros_like(log_pi_XA)
    for _ in range(4000):
        last_XA = log_pi_XA.exp()
        total_XA += last_XA
        log_pi_XA = hedge_update(game, log_pi_XA, log_pi_XA.exp(), eta=0.05 * scale)
    mean_XA = total_XA / 4000
    torch.testing.assert_close(mean_XA, torch.tensor([average], dtype=torch.float64), atol=1e-3, rtol=0)
    assert float(game.duality_gap(mean_XA)) == pytest.approx(2.0 * advantage, abs=1e-3)
    assert float(game.duality_gap(last_XA)) > 0.1
    if scale == 1.0:
        recorded_XA = torch.tensor([[0.055, 0.346, 0.599]], dtype=torch.float64)
        torch.testing.assert_close(last_XA, recorded_XA, atol=1e-3, rtol=0)


def test_hedge_finds_a_condorcet_winner() -> None:
    """[98] An action that beats every other gains log-odds of at least eta (P - 1/2) on the rest at every step."""
    rewards_XA = torch.tensor([[0.0, 0.3, -0.5, 1.0]], dtype=torch.float64)
    game = bradley_terry(rewards_XA, torch.full((1, 4), 0.25, dtype=torch.float64), tau=0.0)
    pi_XA = iterate(lambda x: hedge_update(game, x, x.softmax(-1), eta=0.5), torch.zeros(1, 4), 400).exp()
    assert float(pi_XA[0, 3]) > 1.0 - 1e-12


def test_optimism_converges_where_hedge_cycles() -> None:
    """[65] P with Nash (2, 3, 4)/9, start softmax(1, 0, -1), eta .5: gap .04 at 1k, 3.5e-8 at 5k rounds (factor 3)."""
    prefs_XAA = torch.tensor([[[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]], dtype=torch.float64)
    game = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=torch.full((1, 3), 1 / 3, dtype=torch.float64), tau=0.0)
    start_XA = START_XA.log_softmax(-1)
    policies, gaps = OptimisticPolicies(log_pi_XA=start_XA, log_centre_XA=start_XA), []
    for _ in range(5000):
        policies = optimistic_update(game, policies, eta=0.5)
        gaps.append(float(game.duality_gap(policies.log_pi_XA.exp())))
    assert 0.04 / 3 < gaps[999] < 0.04 * 3
    assert 3.5e-8 / 3 < gaps[4999] < 3.5e-8 * 3


def test_geometric_mixture_by_hand() -> None:
    """(4/5, 1/5) and (1/5, 4/5) mix evenly to 1/2 each; the ends are the policies themselves, zeros included."""
    pi_XA = torch.tensor([[0.8, 0.2]], dtype=torch.float64)
    pure_XA = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    half_XA = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(geometric_mixture(pi_XA, pi_XA.flip(-1), mix=0.5), half_XA)
    torch.testing.assert_close(geometric_mixture(pi_XA, half_XA, mix=0.0), pi_XA)
    torch.testing.assert_close(geometric_mixture(pure_XA, pi_XA, mix=1.0), pi_XA)
    torch.testing.assert_close(geometric_mixture(pure_XA, pi_XA, mix=0.5), pure_XA)


def test_updates_refuse_what_they_cannot_mean() -> None:
    """A game without a penalty has no U_a; a step outside (0, 1] is another algorithm; -inf has no way back."""
    game = rock_paper_scissors()
    with pytest.raises(UserError, match="tau > 0"):
        extragradient_update(game.with_tau(0.0), START_XA, a=0.1)
    with pytest.raises(UserError, match=r"a: expected a mixing weight in \(0, 1\]"):
        nash_md_update(game, START_XA, a=1.5)
    with pytest.raises(UserError, match="finite"):
        hedge_update(game, torch.tensor([[0.0, -torch.inf, 0.0]]), game.ref_XA, eta=0.1)
    with pytest.raises(UserError, match="eta"):
        proximal_step(game, START_XA, eta=0.0)
    with pytest.raises(UserError, match="mix"):
        geometric_mixture(game.ref_XA, game.ref_XA, mix=1.1)
