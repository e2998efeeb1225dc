"""Maximal lotteries: they are beaten by nobody, unique, and blind to clones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize

from alignment.evaluation.bradley_terry import fit_bradley_terry
from alignment.evaluation.lottery import maximal_lottery

Array = NDArray[np.float64]
RPS = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])


def random_table(rng: np.random.Generator, size: int, *, coarse: bool) -> Array:
    """Coarse tables have many ties, and so many equilibria."""
    upper_KK = np.triu(rng.integers(0, 5, (size, size)) / 4 if coarse else rng.random((size, size)), 1)
    table_KK = upper_KK + np.tril(1.0 - upper_KK.T, -1)
    np.fill_diagonal(table_KK, 0.5)
    return table_KK


def cloned(wins_KK: Array, item: int, copies: int) -> Array:
    order = [*range(len(wins_KK)), *[item] * copies]
    return wins_KK[np.ix_(order, order)]


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_nobody_beats_it_and_no_equilibrium_is_more_mixed(seed: int, coarse: bool) -> None:
    """Against scipy: a linear programme for the value, and the largest entropy on the set of equilibria."""
    rng = np.random.default_rng(seed)
    wins_KK = random_table(rng, int(rng.integers(2, 7)), coarse=coarse)
    found = maximal_lottery(wins_KK)
    assert found.weights_K.sum() == pytest.approx(1.0) and found.weights_K.min() >= 0.0
    assert found.exploitability < 1e-9
    size, skew_KK = len(wins_KK), wins_KK - 0.5
    value = linprog(
        np.append(np.zeros(size), 1.0),
        A_ub=np.column_stack([skew_KK, -np.ones(size)]),
        b_ub=np.zeros(size),
        A_eq=[[1.0] * size + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * size + [(None, None)],
    ).fun
    assert value == pytest.approx(0.0, abs=1e-9)
    if np.unique(wins_KK, axis=0).shape[0] < size:
        return  # clones share one weight there, which is another choice among equilibria
    widest = minimize(
        lambda p: (p * np.log(p.clip(1e-15))).sum(),
        np.full(size, 1.0 / size),
        bounds=[(0.0, 1.0)] * size,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1.0},
            {"type": "ineq", "fun": lambda p: -(skew_KK @ p)},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x
    # The solver of scipy stops at about 1e-5 where many constraints meet.
    assert found.weights_K == pytest.approx(widest, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 3), st.booleans())
def test_clones_change_nothing(seed: int, size: int, copies: int, coarse: bool) -> None:
    """A cloned item shares its weight with its clones; every skill stays, also where equilibria are many."""
    rng = np.random.default_rng(seed)
    wins_KK = random_table(rng, size, coarse=coarse)
    item = int(rng.integers(size))
    alone, together = maximal_lottery(wins_KK), maximal_lottery(cloned(wins_KK, item, copies))
    # In a coarse table the item may have had clones before.
    was_clone_K = np.abs(wins_KK - wins_KK[item]).max(1) < 1e-12
    family_K = np.append(was_clone_K, [True] * copies)
    assert together.weights_K[family_K].sum() == pytest.approx(alone.weights_K[was_clone_K].sum(), abs=1e-9)
    assert together.weights_K[:size][~was_clone_K] == pytest.approx(alone.weights_K[~was_clone_K], abs=1e-9)
    assert together.skill_K[:size] == pytest.approx(alone.skill_K, abs=1e-9)
    assert together.skill_K[size:] == pytest.approx([alone.skill_K[item]] * copies, abs=1e-9)


def test_other_scores_move_when_a_clone_comes() -> None:
    """Rock cloned: paper, which beats it, rises in mean win rate and in Bradley-Terry; the lottery stays in thirds."""
    wins_KK = cloned(RPS, 0, 1)
    rock, paper, scissors = 0, 2, 1
    mean_K = (wins_KK.sum(1) - 0.5) / 3
    assert mean_K[paper] == pytest.approx(2 / 3) and mean_K[scissors] == pytest.approx(1 / 3)
    strength_K = fit_bradley_terry(wins_KK).strength_K
    assert strength_K[paper] > strength_K[rock] > strength_K[scissors]
    weights_K = maximal_lottery(wins_KK).weights_K
    assert weights_K == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6])


def test_entropy_alone_is_not_blind_to_clones() -> None:
    """A and B tie; C loses to A always and to B by .4: with A cloned, equal thirds would move the skill of C."""
    wins_KK = np.array([[0.5, 0.5, 1.0], [0.5, 0.5, 0.6], [0.0, 0.4, 0.5]])
    alone, together = maximal_lottery(wins_KK), maximal_lottery(cloned(wins_KK, 0, 1))
    assert alone.skill_K[2] == pytest.approx(0.5 * -0.5 + 0.5 * -0.1) == together.skill_K[2]
    thirds = np.array([1 / 3, 1 / 3, 0.0, 1 / 3])
    assert ((cloned(wins_KK, 0, 1) - 0.5) @ thirds)[2] == pytest.approx(-1.1 / 3)


def test_a_condorcet_winner_is_played_alone() -> None:
    wins_KK = random_table(np.random.default_rng(0), 5, coarse=False)
    wins_KK[2], wins_KK[:, 2] = 0.51, 0.49
    wins_KK[2, 2] = 0.5
    found = maximal_lottery(wins_KK)
    assert found.weights_K == pytest.approx([0, 0, 1, 0, 0], abs=1e-9)
    assert found.skill_K == pytest.approx(wins_KK[:, 2] - 0.5, abs=1e-9)
