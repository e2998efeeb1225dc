"""The solvers against theorems, an independent linear programme, and matrices chosen to be hard."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from alignment.games.solver import (
    Array,
    solve_maxmin_regularized,
    solve_maxmin_unregularized,
    solve_regularized,
    solve_unregularized,
)


def antisymmetric(lower_AA: Array) -> Array:
    lower_AA = np.tril(lower_AA, -1)
    return np.asarray(0.5 + lower_AA - lower_AA.T)


def matrices(num_actions: int, seed: int) -> dict[str, Array]:
    """Preferences of every character: dense, deterministic, cyclic, transitive, degenerate, badly scaled."""
    generator = np.random.default_rng(seed)
    index = np.arange(num_actions)
    random_AA = generator.uniform(-0.5, 0.5, (num_actions, num_actions))
    coins_AA = np.where(random_AA < 0, -0.5, 0.5)
    ahead_AA = (index[None] - index[:, None]) % num_actions
    cycle_AA = 0.5 + 0.5 * (
        ((ahead_AA >= 1) & (ahead_AA <= (num_actions - 1) // 2)).astype(float)
        - (ahead_AA >= num_actions - (num_actions - 1) // 2)
    )
    skill_A = 5.0 * generator.normal(size=num_actions)
    ranked_AA = 1.0 / (1.0 + np.exp(skill_A[None] - skill_A[:, None]))
    copies = generator.integers(0, max(1, num_actions // 5), num_actions)
    order_AA = antisymmetric(np.full((num_actions, num_actions), -0.5))
    upset_AA = order_AA.copy()
    if num_actions > 2:
        upset_AA[0, -1], upset_AA[-1, 0] = 0.0, 1.0
    angle_A = generator.normal(size=num_actions)
    return {
        "random": antisymmetric(random_AA),
        "tournament": antisymmetric(coins_AA),
        "cycle": cycle_AA,
        "bradley_terry": ranked_AA,
        "bradley_terry_and_cycle": 0.999 * ranked_AA + 0.001 * cycle_AA,
        "order": order_AA,
        "order_with_upset": upset_AA,
        "rank_two": 0.5 + 0.5 * np.sin(3.0 * (angle_A[:, None] - angle_A[None])),
        "copies": antisymmetric(coins_AA)[np.ix_(copies, copies)],
        "ties": np.full((num_actions, num_actions), 0.5),
        "nearly_ties": 0.5 + 1e-6 * (antisymmetric(random_AA) - 0.5),
    }


def references(num_actions: int, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    logits = {
        "uniform": np.zeros(num_actions),
        "wide": 30.0 * generator.normal(size=num_actions),
        "one_action": np.where(np.arange(num_actions) == 0, 0.0, -690.0),
    }
    ref = {name: np.exp(np.maximum(value - value.max(), -690.0)) for name, value in logits.items()}
    return {name: value / value.sum() for name, value in ref.items()}


def log_partition_gap(prefs_AA: Array, ref_A: Array, tau: float, log_policy_A: Array) -> float:
    """The gap as written in the papers; correct to about 1e-15."""
    policy_A = np.exp(log_policy_A)
    logits_A = np.log(ref_A) + prefs_AA @ policy_A / tau
    top = logits_A.max()
    partition = tau * (top + np.log(np.exp(logits_A - top).sum()))
    return float(2.0 * (partition + tau * policy_A @ (log_policy_A - np.log(ref_A)) - 0.5))


@pytest.mark.parametrize("num_actions", [1, 2, 3, 12, 40])
@pytest.mark.parametrize("tau", [1e-4, 1e-3, 0.03, 1.0, 1e3])
def test_every_kind_of_game_is_solved_at_every_temperature(num_actions: int, tau: float) -> None:
    """The gap is recomputed here in another form, whose own rounding is an ulp of tau |log ref|, at most 1e-13 tau."""
    for name, prefs_AA in matrices(num_actions, 0).items():
        for ref_name, ref_A in references(num_actions, 1).items():
            found = solve_regularized(prefs_AA, ref_A, tau=tau, tolerance=1e-10)
            gap = log_partition_gap(prefs_AA, ref_A, tau, found.log_policy_A)
            assert found.gap <= 1e-10, (name, ref_name)
            assert abs(gap - found.gap) < 1e-14 + 1e-12 * tau, (name, ref_name)


@given(
    seed=st.integers(0, 10**9),
    num_actions=st.integers(1, 12),
    log_tau=st.floats(-4.0, 1.0),
    spread=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    levels=st.sampled_from([0, 1, 4]),
)
def test_any_game_is_solved(seed: int, num_actions: int, log_tau: float, spread: float, levels: int) -> None:
    """hypothesis: preferences that are continuous, 0/1, or multiples of 1/4 (many ties and copies); any reference."""
    generator = np.random.default_rng(seed)
    wins_AA = generator.uniform(size=(num_actions, num_actions))
    if levels:
        wins_AA = np.round(wins_AA * levels) / levels
    prefs_AA = antisymmetric(wins_AA - 0.5)
    logits_A = spread * generator.normal(size=num_actions)
    ref_A = np.exp(np.maximum(logits_A - logits_A.max(), -690.0))
    ref_A /= ref_A.sum()
    assert solve_regularized(prefs_AA, ref_A, tau=10.0**log_tau, tolerance=1e-10).gap <= 1e-10
    assert abs(solve_unregularized(prefs_AA, tolerance=1e-10).gap) <= 1e-10


@pytest.mark.parametrize("num_actions", [1, 2, 3, 12, 40])
def test_unregularized_equilibria_agree_with_a_linear_programme(num_actions: int) -> None:
    """HiGHS maximises v with S pi >= v: the value of a symmetric game is 0, and our policy attains it to 1e-10.

    S^T = -S, so max_y (S pi)_y <= 1e-10 says that no action beats pi.
    """
    for name, prefs_AA in matrices(num_actions, 2).items():
        found = solve_unregularized(prefs_AA, tolerance=1e-10)
        policy_A = np.exp(found.log_policy_A)
        assert policy_A.sum() == pytest.approx(1.0, abs=1e-12)
        assert ((prefs_AA - 0.5) @ policy_A).max() <= 0.5e-10, name
        answer = linprog(
            np.append(np.zeros(num_actions), -1.0),
            A_ub=np.hstack([-(0.5 - prefs_AA).T, np.ones((num_actions, 1))]),
            b_ub=np.zeros(num_actions),
            A_eq=np.append(np.ones(num_actions), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * num_actions + [(None, None)],
        )
        assert answer.fun == pytest.approx(0.0, abs=1e-8), name


def test_unique_unregularized_equilibrium_is_found() -> None:
    """P = [[.5,.9,.2],[.1,.5,.7],[.8,.3,.5]]: S = (0, .4, -.3; -.4, 0, .2; .3, -.2, 0), so S pi = 0 for pi ~ (2, 3, 4).

    A strict order has its best action as the only equilibrium.
    """
    prefs_AA = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
    found_A = np.exp(solve_unregularized(prefs_AA, tolerance=1e-10).log_policy_A)
    np.testing.assert_allclose(found_A, np.array([2.0, 3.0, 4.0]) / 9.0, atol=1e-9)
    order_A = np.exp(solve_unregularized(matrices(9, 0)["order"], tolerance=1e-10).log_policy_A)
    assert order_A.max() > 1.0 - 1e-9


def test_small_temperature_approaches_the_unregularized_game() -> None:
    """max S pi_tau <= tau KL(pi* || ref): the unregularised gap of the tau-equilibrium is at most 2 tau log n."""
    prefs_AA = matrices(15, 3)["tournament"]
    found = solve_regularized(prefs_AA, np.full(15, 1 / 15), tau=1e-4, tolerance=1e-10)
    gap = 2.0 * float(((prefs_AA - 0.5) @ np.exp(found.log_policy_A)).max())
    assert 0.0 <= gap <= 2e-4 * np.log(15)


def test_tolerance_that_rounding_forbids_ends_with_an_honest_gap() -> None:
    """The solvers stop when no digit can be gained, and report what they reached."""
    prefs_AA = matrices(12, 0)["random"]
    regularized = solve_regularized(prefs_AA, np.full(12, 1 / 12), tau=0.01, tolerance=1e-60)
    unregularized = solve_unregularized(prefs_AA, tolerance=1e-60)
    assert 1e-60 < regularized.gap < 1e-20
    assert abs(unregularized.gap) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.001, 0.1])
def test_a_thousand_actions(tau: float) -> None:
    """The promised size, for every kind of matrix and reference; the certificate is 1e-10."""
    for name, prefs_AA in matrices(1000, 4).items():
        if tau == 0.0:
            assert abs(solve_unregularized(prefs_AA, tolerance=1e-10).gap) <= 1e-10, name
            continue
        for ref_name, ref_A in references(1000, 5).items():
            assert solve_regularized(prefs_AA, ref_A, tau=tau, tolerance=1e-10).gap <= 1e-10, (name, ref_name)


@pytest.mark.parametrize("tau", [1e-4, 0.01, 0.3, 10.0])
def test_maxmin_weights_equalise_the_oracles_that_have_weight(tau: float) -> None:
    """KKT of the dual: where w_k > 0 the mean utility is the lowest one, so w.g - min g is the gap.

    Scores in general position and a copy of one oracle, which leaves the weights undetermined but not the policy.
    """
    generator = np.random.default_rng(0)
    utilities_KXA = generator.normal(size=(3, 4, 5))
    utilities_KXA = np.concatenate([utilities_KXA, utilities_KXA[:1]])
    ref_XA = np.exp(generator.normal(size=(4, 5)))
    ref_XA /= ref_XA.sum(1, keepdims=True)
    point = solve_maxmin_regularized(utilities_KXA, ref_XA, tau=tau, tolerance=1e-8)
    values_K = (utilities_KXA * point.policy_XA).sum(2).mean(1)
    assert point.weights_K.sum() == pytest.approx(1.0, abs=1e-12)
    assert point.weights_K.min() >= 0.0
    assert 0.0 <= point.weights_K @ values_K - values_K.min() <= 1e-8


def test_maxmin_linear_programme_has_matching_weights() -> None:
    """Weak duality is tight: mean_x max_y w.u equals the lowest mean utility."""
    utilities_KXA = np.random.default_rng(1).normal(size=(3, 4, 5))
    point = solve_maxmin_unregularized(utilities_KXA)
    values_K = (utilities_KXA * point.policy_XA).sum(2).mean(1)
    dual = np.tensordot(point.weights_K, utilities_KXA, axes=1).max(1).mean()
    assert dual == pytest.approx(values_K.min(), abs=1e-10)
