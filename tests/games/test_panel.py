"""Maxmin values against hand calculation, weak duality, and other solvers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from alignment.errors import UserError
from alignment.games import PanelGame, condorcet_panel, conflicting_panel, kl_divergence, random_games

UNIFORM_XA = torch.full((1, 2), 0.5, dtype=torch.float64)
ARMS_KXA = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)


def random_panel(num_oracles: int, num_contexts: int, num_actions: int, tau: float, seed: int) -> PanelGame:
    generator = np.random.default_rng(seed)
    return PanelGame(
        scores_KXA=torch.from_numpy(generator.normal(size=(num_oracles, num_contexts, num_actions))),
        ref_XA=torch.from_numpy(generator.normal(size=(num_contexts, num_actions))).softmax(-1),
        tau=tau,
    )


@pytest.mark.parametrize("tau", [0.0, 1e-4, 0.05, 1.0])
def test_two_arm_conflict(tau: float) -> None:
    """[103] Utilities (1, 0) and (0, 1), ref uniform: by symmetry pi = (1/2, 1/2), w = (1/2, 1/2), KL 0, value 1/2."""
    solution = PanelGame(scores_KXA=ARMS_KXA, ref_XA=UNIFORM_XA, tau=tau).maxmin()
    torch.testing.assert_close(solution.policy_XA, UNIFORM_XA, atol=1e-6, rtol=0)
    torch.testing.assert_close(solution.weights_K, UNIFORM_XA[0], atol=1e-6, rtol=0)
    assert solution.value == pytest.approx(0.5, abs=1e-8)
    assert -1e-12 <= solution.gap <= 1e-8


def test_subgradient_ascent_on_the_worst_group_finds_the_same() -> None:
    """[103] Softmax policy, step .05 on the arm whose mean is lower: the tail of 5000 steps averages to 1/2 (.4997)."""
    panel = PanelGame(scores_KXA=ARMS_KXA, ref_XA=UNIFORM_XA, tau=0.0)
    theta, shares = np.array([1.0, 0.0]), []
    utilities_KA = panel.utilities_KXA[:, 0].numpy()
    for _ in range(5000):
        pi = np.exp(theta) / np.exp(theta).sum()
        values = utilities_KA @ pi
        worst = int(values.argmin())
        theta = theta + 0.05 * pi * (utilities_KA[worst] - values[worst])
        shares.append(pi[0])
    assert np.mean(shares[-1000:]) == pytest.approx(float(panel.maxmin().policy_XA[0, 0]), abs=0.01)


def test_the_mean_follows_the_majority_and_maxmin_does_not() -> None:
    """[103] 10 : 1 annotators: the average oracle prefers the majority's arm with 1/2 + (10 - 1)/22; maxmin is 1/2
    - 1/2.
    """
    panel = conflicting_panel(tau=0.0)
    majority = panel.majority()
    assert float(majority.prefs_XAA[0, 0, 1]) == pytest.approx(0.5 + 9 / 22)
    assert float(majority.solve().policy_XA[0, 0]) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(panel.maxmin().policy_XA, UNIFORM_XA, atol=1e-8, rtol=0)


def test_one_oracle_is_plain_regularised_maximisation() -> None:
    """K = 1: pi ~ ref exp(u / tau), the value is tau log sum ref exp(u / tau)."""
    panel = random_panel(1, 3, 4, 0.2, 0)
    solution = panel.maxmin()
    logits_XA = panel.ref_XA.log() + panel.utilities_KXA[0] / 0.2
    torch.testing.assert_close(solution.policy_XA, logits_XA.softmax(-1), atol=1e-12, rtol=0)
    assert solution.value == pytest.approx(float(0.2 * logits_XA.logsumexp(-1).mean()), abs=1e-12)


@given(
    seed=st.integers(0, 10**6),
    num_oracles=st.integers(1, 6),
    num_actions=st.integers(1, 6),
    tau=st.sampled_from([0.0, 1e-4, 0.01, 0.3, 10.0]),
)
def test_the_certificate_bounds_every_policy(seed: int, num_oracles: int, num_actions: int, tau: float) -> None:
    """Weak duality: no policy has an objective above value + gap, and the gap is at most 1e-8."""
    panel = random_panel(num_oracles, 3, num_actions, tau, seed)
    solution = panel.maxmin()
    assert solution.gap <= 1e-8
    assert float(solution.weights_K.sum()) == pytest.approx(1.0)
    assert float(panel.objective(solution.policy_XA)) == solution.value
    other_XA = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, num_actions))).softmax(-1)
    for share in (1.0, 0.1, 0.001):
        mixed_XA = (1.0 - share) * solution.policy_XA + share * other_XA
        assert float(panel.objective(mixed_XA)) <= solution.value + solution.gap + 1e-12


def test_a_general_optimiser_agrees() -> None:
    """SLSQP on the epigraph form, max t with E u_k - tau KL >= t, for two contexts of three actions (1e-6: its
    accuracy).
    """
    panel = random_panel(3, 2, 3, 0.3, 4)
    utilities_KXA, log_ref_XA = panel.utilities_KXA.numpy(), panel.ref_XA.log().numpy()

    def slack(point: np.ndarray) -> np.ndarray:
        pi_XA = point[:-1].reshape(2, 3)
        penalty = 0.3 * (pi_XA * (np.log(np.maximum(pi_XA, 1e-300)) - log_ref_XA)).sum(1).mean()
        return (utilities_KXA * pi_XA).sum(2).mean(1) - penalty - point[-1]

    found = minimize(
        lambda point: -point[-1],
        np.append(np.full(6, 1 / 3), 0.0),
        constraints=[
            {"type": "ineq", "fun": slack},
            {"type": "eq", "fun": lambda point: point[:-1].reshape(2, 3).sum(1) - 1.0},
        ],
        bounds=[(1e-9, 1.0)] * 6 + [(None, None)],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert panel.maxmin().value == pytest.approx(-found.fun, abs=1e-6)


def test_contexts_are_weighed_jointly() -> None:
    """Two contexts, each with its own favourite group: oracle 1 gets 1 in the first, oracle 2 in the second.

    Jointly both means are 1/2 with pure policies; one context at a time would have to split, for a value of 1/4.
    """
    scores_KXA = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    panel = PanelGame(scores_KXA=scores_KXA, ref_XA=UNIFORM_XA.repeat(2, 1), tau=0.0)
    solution = panel.maxmin()
    torch.testing.assert_close(panel.group_values(solution.policy_XA), UNIFORM_XA[0], atol=1e-9, rtol=0)


def test_utilities_of_preferences_are_wins_against_the_reference() -> None:
    """u_k(y) = sum_y' P_k(y > y') ref(y'); its mean under ref is 1/2 by antisymmetry; the objective subtracts the
    KL.
    """
    panel = condorcet_panel(num_actions=4, num_contexts=2, tau=0.1)
    ref_XA = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    panel = PanelGame(prefs_KXAA=panel.prefs_KXAA, ref_XA=ref_XA, tau=0.1)
    for k in range(4):
        torch.testing.assert_close(panel.utilities_KXA[k], panel.player(k).win_probability(ref_XA))
    torch.testing.assert_close(panel.group_values(ref_XA), torch.full((4,), 0.5, dtype=torch.float64))
    pi_XA = ref_XA.flip(-1)
    expected = panel.group_values(pi_XA).min() - 0.1 * kl_divergence(pi_XA, ref_XA).mean()
    torch.testing.assert_close(panel.objective(pi_XA), expected)


def test_majority_of_weighted_oracles() -> None:
    """Weights are normalised; a one-hot weight is that player's game; scores have no game."""
    games = [random_games(2, num_actions=3, tau=0.1, seed=seed) for seed in (0, 1)]
    prefs_KXAA = torch.stack([game.prefs_XAA for game in games])
    panel = PanelGame(prefs_KXAA=prefs_KXAA, ref_XA=games[0].ref_XA, tau=0.1)
    mixed_XAA = panel.majority(torch.tensor([3.0, 1.0])).prefs_XAA
    torch.testing.assert_close(mixed_XAA, 0.75 * prefs_KXAA[0] + 0.25 * prefs_KXAA[1])
    torch.testing.assert_close(panel.majority(torch.tensor([0.0, 2.0])).prefs_XAA, panel.player(1).prefs_XAA)
    with pytest.raises(UserError, match="scores do not define a game"):
        PanelGame(scores_KXA=ARMS_KXA, ref_XA=UNIFORM_XA, tau=0.1).majority()
    with pytest.raises(UserError, match="weights_K"):
        panel.majority(torch.tensor([-1.0, 2.0]))
    with pytest.raises(UserError, match="from 0 to 1"):
        panel.player(2)


def test_a_panel_refuses_what_it_cannot_mean() -> None:
    """Exactly one source of utilities; finite; of the shapes that the names say."""
    with pytest.raises(UserError, match="got neither"):
        PanelGame(ref_XA=UNIFORM_XA, tau=0.1)
    with pytest.raises(UserError, match="got both"):
        PanelGame(prefs_KXAA=torch.full((1, 1, 2, 2), 0.5), scores_KXA=ARMS_KXA, ref_XA=UNIFORM_XA, tau=0.1)
    with pytest.raises(UserError, match="finite"):
        PanelGame(scores_KXA=ARMS_KXA * torch.nan, ref_XA=UNIFORM_XA, tau=0.1)
    with pytest.raises(UserError, match="shape"):
        PanelGame(scores_KXA=ARMS_KXA[0], ref_XA=UNIFORM_XA, tau=0.1)
    with pytest.raises(UserError, match="tau"):
        PanelGame(scores_KXA=ARMS_KXA, ref_XA=UNIFORM_XA, tau=-0.1)


def test_a_missed_certificate_is_an_error() -> None:
    """The gap of a mixed solution is hardly ever exactly zero in float64."""
    with pytest.raises(RuntimeError, match="maxmin gap of at most"):
        random_panel(3, 4, 5, 0.1, 1).maxmin(1e-300)
