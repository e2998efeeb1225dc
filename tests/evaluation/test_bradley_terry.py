"""Bradley-Terry fits: closed forms, the likelihood equations, and strengths that are infinite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from alignment.evaluation.bradley_terry import fit_bradley_terry


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20), st.integers(1, 60)), min_size=1, max_size=6))
def test_against_one_baseline_it_is_the_win_rate(records: list[tuple[int, int, int]]) -> None:
    """If everybody meets the baseline only, the fit is saturated: P = (wins + ties/2) / battles for each."""
    size = len(records) + 1
    wins_KK = np.zeros((size, size))
    for k, (wins, ties, losses) in enumerate(records, start=1):
        wins_KK[k, 0], wins_KK[0, k] = wins + ties / 2, losses + ties / 2
    found = fit_bradley_terry(wins_KK).probability_KK[1:, 0]
    assert found == pytest.approx([(w + t / 2) / (w + t + n) for w, t, n in records], abs=1e-10)


def test_the_likelihood_equations_hold() -> None:
    """Every item's expected number of wins is the number that it has, in an unbalanced design of 12 items."""
    rng = np.random.default_rng(0)
    wins_KK = rng.integers(1, 30, (12, 12)).astype(float) * (rng.random((12, 12)) < 0.6)
    np.fill_diagonal(wins_KK, 0.0)
    wins_KK[np.arange(12), (np.arange(12) + 1) % 12] += 1.0
    fit = fit_bradley_terry(wins_KK)
    games_KK = wins_KK + wins_KK.T
    assert (games_KK * fit.probability_KK).sum(1) == pytest.approx(wins_KK.sum(1), abs=1e-8)
    assert fit.is_finite and fit.strength_K.sum() == pytest.approx(0.0, abs=1e-9)


def test_planted_strengths_are_found() -> None:
    """Expected wins of a Bradley-Terry table are fitted by the strengths that made it, to machine precision."""
    strength_K = np.array([2.0, 0.5, 0.0, -1.0, -1.5])
    fit = fit_bradley_terry(40.0 * expit(strength_K[:, None] - strength_K))
    assert fit.strength_K == pytest.approx(strength_K - strength_K.mean(), abs=1e-10)


def test_the_diagonal_is_not_read() -> None:
    wins_KK = np.array([[0.0, 5.0, 3.0], [4.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    plain, filled = fit_bradley_terry(wins_KK), fit_bradley_terry(wins_KK + np.diag([7.0, 0.0, 1.0]))
    assert filled.strength_K == pytest.approx(plain.strength_K) and filled.level_K.tolist() == [0, 0, 0]
    assert filled.log_likelihood == pytest.approx(plain.log_likelihood)


def test_no_loss_is_an_infinite_strength() -> None:
    """The first item wins always: P = 1 and a level of its own; what lies below is fitted as if it were not there."""
    fit = fit_bradley_terry(np.array([[0.0, 5.0, 3.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
    assert not fit.is_finite and fit.level_K.tolist() == [0, 1, 1]
    assert fit.probability_KK[0].tolist() == [0.5, 1.0, 1.0] and fit.probability_KK[:, 0].tolist() == [0.5, 0.0, 0.0]
    assert fit.probability_KK[1, 2] == pytest.approx(2 / 3)
    assert fit.log_likelihood == pytest.approx(2 * np.log(2 / 3) + np.log(1 / 3))


def test_items_without_a_chain_of_comparisons_are_not_ranked() -> None:
    """Two pairs that never met: each is fitted, and nothing is said across."""
    wins_KK = np.zeros((4, 4))
    wins_KK[0, 1], wins_KK[1, 0], wins_KK[2, 3] = 3.0, 1.0, 2.0
    fit = fit_bradley_terry(wins_KK)
    assert np.isnan(fit.probability_KK[:2, 2:]).all() and not fit.is_finite
    assert fit.probability_KK[0, 1] == pytest.approx(0.75) and fit.probability_KK[2, 3] == 1.0
