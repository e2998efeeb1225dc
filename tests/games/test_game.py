"""The value, the best response, the gap, and what a game refuses. Numbers in brackets: rows of
docs/invariants.md.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment.errors import UserError
from alignment.games import PreferenceGame, cyclic, kl_divergence, random_games, rock_paper_scissors


def policies(game: PreferenceGame, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits_XA = 2.0 * torch.randn(game.ref_XA.shape, generator=generator, dtype=torch.float64)
    return logits_XA.softmax(-1)


@given(seed=st.integers(0, 10**6), tau=st.sampled_from([0.0, 0.02, 0.1, 1.0]))
def test_value_is_one_half_against_itself_and_the_gap_is_not_negative(seed: int, tau: float) -> None:
    """[1] P + P^T = 1 makes the game symmetric: J(pi, mu) + J(mu, pi) = 1, hence J(pi, pi) = 1/2."""
    game = random_games(4, num_actions=6, tau=tau, seed=seed)
    pi_XA, mu_XA = policies(game, seed), policies(game, seed + 1)
    torch.testing.assert_close(game.value(pi_XA, mu_XA) + game.value(mu_XA, pi_XA), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(game.value(pi_XA, pi_XA), torch.full((4,), 0.5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (game.duality_gap(pi_XA) >= 0.0).all()


@given(seed=st.integers(0, 10**6), tau=st.sampled_from([0.0, 0.02, 0.1, 1.0]))
def test_gap_is_twice_what_a_best_response_gains(seed: int, tau: float) -> None:
    """[2] gap = J(BR, pi) - J(pi, BR) = 2 (J(BR, pi) - 1/2), and no other policy gains more."""
    game = random_games(4, num_actions=6, tau=tau, seed=seed)
    pi_XA = policies(game, seed)
    best_XA = game.best_response(pi_XA)
    gap_X = game.duality_gap(pi_XA)
    torch.testing.assert_close(gap_X, game.value(best_XA, pi_XA) - game.value(pi_XA, best_XA), atol=1e-12, rtol=0)
    torch.testing.assert_close(gap_X, 2.0 * (game.value(best_XA, pi_XA) - 0.5), atol=1e-12, rtol=0)
    assert (game.value(policies(game, seed + 7), pi_XA) <= game.value(best_XA, pi_XA) + 1e-12).all()


@given(seed=st.integers(0, 10**6), tau=st.sampled_from([0.02, 0.1, 1.0]))
def test_gap_matches_the_log_partition_form(seed: int, tau: float) -> None:
    """[2] With E_pi P(y > pi) = 1/2: gap = 2 (tau log sum ref exp(P(y > pi) / tau) + tau KL(pi || ref) - 1/2)."""
    game = random_games(4, num_actions=6, tau=tau, seed=seed)
    pi_XA = policies(game, seed)
    partition_X = tau * (game.ref_XA.log() + game.win_probability(pi_XA) / tau).logsumexp(-1)
    penalty_X = tau * (pi_XA * (pi_XA / game.ref_XA).log()).sum(-1)
    torch.testing.assert_close(game.duality_gap(pi_XA), 2.0 * (partition_X + penalty_X - 0.5), atol=1e-12, rtol=0)


def test_gap_keeps_its_digits_far_below_rounding() -> None:
    """Near pi* the gap is 2 tau KL(pi || BR) ~ tau Var_pi(log BR - log pi): quadratic in the distance.

    A distance 1e-6 times smaller must give a gap 1e-12 times smaller, down to 1e-26; subtracting 1/2 would stop at
    1e-16.
    """
    game = rock_paper_scissors()
    log_star_XA = game.solve().policy_XA.log()
    direction_XA = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    gaps = [float(game.duality_gap((log_star_XA + step * direction_XA).softmax(-1))) for step in (1e-4, 1e-10)]
    assert 1e-24 < gaps[1] < 1e-17
    assert gaps[1] / gaps[0] == pytest.approx(1e-12, rel=1e-2)


def test_gap_of_a_pure_policy_is_finite() -> None:
    """0/1 cycle, uniform ref, tau 1/10, pi = first action: P(. > pi) = (1/2, 0, 1), so by hand

    gap = 2 (tau log((e^5 + 1 + e^10) / 3) + tau log 3 - 1/2) = 2 (tau log(1 + e^5 + e^10) - 1/2) = 1.00135...
    """
    pure_XA = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    by_hand = 2.0 * (0.1 * float(torch.tensor([0.0, 5.0, 10.0], dtype=torch.float64).logsumexp(0)) - 0.5)
    assert float(cyclic(3, tau=0.1).duality_gap(pure_XA)) == pytest.approx(by_hand, abs=1e-14)
    assert float(cyclic(3, tau=0.0).duality_gap(pure_XA)) == 1.0


def test_best_response_without_a_penalty_shares_ties() -> None:
    """Against (1, 0, 0) in the 0/1 cycle only the third action wins; against uniform all three win half."""
    game = cyclic(3, tau=0.0)
    uniform_XA = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    pure_XA = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert game.best_response(pure_XA).tolist() == [[0.0, 0.0, 1.0]]
    torch.testing.assert_close(game.best_response(uniform_XA), uniform_XA)


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("wins", [0.5, 0.73, 1.0])
def test_two_actions_have_a_closed_form(tau: float, wins: float) -> None:
    """[4] P(1 > pi) - P(2 > pi) = p_1 / 2 + (1 - p_1) w - p_1 (1 - w) - (1 - p_1) / 2 = w - 1/2, whatever pi is.

    So the equilibrium log-odds are (w - 1/2) / tau plus those of the reference, for any two-action game.
    """
    ref_XA = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    prefs_XAA = torch.tensor([[[0.5, wins], [1.0 - wins, 0.5]]], dtype=torch.float64)
    pi_XA = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=ref_XA, tau=tau).solve().policy_XA
    log_odds = float(pi_XA[0, 0].log() - pi_XA[0, 1].log())
    expected = (wins - 0.5) / tau + float((ref_XA[0, 0] / ref_XA[0, 1]).log())
    assert log_odds == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("num_actions", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("tau", [0.0, 1e-4, 0.05, 10.0])
def test_uniform_cycle_has_a_uniform_equilibrium(num_actions: int, tau: float) -> None:
    """[5] Every row of P has the same mean, so uniform is a fixed point; at tau 0 it is one equilibrium."""
    pi_XA = cyclic(num_actions, tau=tau).solve().policy_XA
    torch.testing.assert_close(pi_XA, torch.full_like(pi_XA, 1.0 / num_actions), atol=1e-12, rtol=0)


def test_rock_paper_scissors_has_the_known_equilibrium() -> None:
    """[6] P = 0/1 cycle, ref = softmax(.5, 0, -.2), tau .05: found independently to six digits."""
    solution = rock_paper_scissors().solve()
    known_XA = torch.tensor([[0.343742, 0.309731, 0.346527]], dtype=torch.float64)
    torch.testing.assert_close(solution.policy_XA, known_XA, atol=1e-6, rtol=0)
    assert float(solution.gap_X) <= solution.tolerance


@pytest.mark.parametrize("tau", [1e-3, 0.01, 0.1, 1.0, 100.0])
def test_solution_is_a_fixed_point(tau: float) -> None:
    """[3, FP] pi = ref exp(P(. > pi) / tau) / Z. A rounding of P pi is magnified by 1 / tau, hence the tolerance."""
    game = random_games(5, num_actions=10, tau=tau, seed=1)
    solution = game.solve()
    torch.testing.assert_close(
        game.best_response(solution.policy_XA), solution.policy_XA, atol=1e-13 / min(tau, 1), rtol=0
    )
    torch.testing.assert_close(game.duality_gap(solution.policy_XA), solution.gap_X, atol=0, rtol=0)
    assert (solution.gap_X <= 1e-10).all()


def test_a_missed_certificate_is_an_error() -> None:
    """No float64 policy has a gap of 1e-60 here: solve must say how far it got instead of returning its best."""
    with pytest.raises(RuntimeError, match=r"context \d: expected a duality gap of at most 1e-60, reached"):
        random_games(2, num_actions=10, tau=0.01, seed=0).solve(1e-60)


@given(seed=st.integers(0, 10**6), tau=st.sampled_from([0.01, 0.3]))
def test_renaming_actions_renames_the_solution(seed: int, tau: float) -> None:
    """Property: the equilibrium is equivariant under permutations of the actions."""
    game = random_games(1, num_actions=5, tau=tau, seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = PreferenceGame(prefs_XAA=game.prefs_XAA[:, order][:, :, order], ref_XA=game.ref_XA[:, order], tau=tau)
    torch.testing.assert_close(shuffled.solve().policy_XA, game.solve().policy_XA[:, order], atol=1e-9, rtol=0)


def test_kl_divergence_is_exact_for_close_and_for_pure_policies() -> None:
    """KL((1+e)/2, (1-e)/2 || 1/2) = e^2/2 + O(e^4) with e = 1e-9; KL(pure || uniform of 4) = log 4; inf off the
    support.
    """
    half = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    tilted = torch.tensor([[0.5 + 0.5e-9, 0.5 - 0.5e-9]], dtype=torch.float64)
    pure = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(kl_divergence(tilted, half)) == pytest.approx(5e-19, rel=1e-6)
    assert float(kl_divergence(pure, torch.full((1, 4), 0.25))) == pytest.approx(1.3862943611198906, abs=1e-15)
    assert float(kl_divergence(torch.full((1, 4), 0.25), pure)) == float("inf")


HALF = torch.full((1, 2, 2), 0.5)
REF = torch.tensor([[0.5, 0.5]])


@pytest.mark.parametrize(
    ("prefs_XAA", "ref_XA", "tau", "message"),
    [
        (torch.tensor([[[0.5, 0.7], [0.4, 0.5]]]), REF, 0.1, r"P \+ P\^T = 1"),
        (torch.tensor([[[0.6, 0.5], [0.5, 0.4]]]), REF, 0.1, "diagonal"),
        (torch.tensor([[[0.5, 1.2], [-0.2, 0.5]]]), REF, 0.1, r"\[0, 1\]"),
        (torch.tensor([[[0.5, float("nan")], [0.5, 0.5]]]), REF, 0.1, "finite"),
        (HALF, torch.tensor([[1.0, 0.0]]), 0.1, "positive"),
        (HALF, torch.tensor([[0.5, 0.6]]), 0.1, "sum to 1"),
        (HALF, torch.tensor([[float("nan"), 0.5]]), 0.1, "positive"),
        (HALF, REF, -0.1, "tau"),
        (HALF, REF, float("nan"), "tau"),
        (HALF, torch.full((1, 3), 1 / 3), 0.1, "shape"),
        (HALF[0], REF, 0.1, "shape"),
        (torch.zeros(1, 0, 0), torch.zeros(1, 0), 0.1, "at least one"),
    ],
)
def test_a_game_refuses_what_its_names_do_not_promise(
    prefs_XAA: Tensor, ref_XA: Tensor, tau: float, message: str
) -> None:
    """Each line breaks one promise."""
    with pytest.raises(UserError, match=message):
        PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=ref_XA, tau=tau)


def test_a_policy_must_be_one() -> None:
    """Log-probabilities in place of probabilities are the likely slip."""
    game = rock_paper_scissors()
    with pytest.raises(UserError, match="pass probabilities, not logits"):
        game.duality_gap(game.ref_XA.log())
    with pytest.raises(UserError, match="expected shape"):
        game.value(game.ref_XA, game.ref_XA[0])
    with pytest.raises(UserError, match="tolerance"):
        game.solve(0.0)


def test_variants_keep_the_rest() -> None:
    """with_tau and with_ref replace one field and validate again."""
    game = rock_paper_scissors()
    uniform_XA = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert game.with_tau(0.3).tau == 0.3
    assert torch.equal(game.with_tau(0.3).prefs_XAA, game.prefs_XAA)
    assert torch.equal(game.with_ref(uniform_XA).ref_XA, uniform_XA)
    with pytest.raises(UserError, match="tau"):
        game.with_tau(-1.0)
