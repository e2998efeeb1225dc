"""The maximal lottery of a win matrix (von Neumann winner, Nash average): unique, and blind to clones.

It is the mixture that no item beats: the equilibrium of the game in which both sides name an item. Where there are
several, the one of the largest entropy is taken (Nash averaging, 1806.02643).

Differs from the paper: entropy alone is not blind to clones where equilibria are many. Of two items that tie with one
another, one is cloned: the largest entropy gives thirds, so that the pair of clones has two thirds, and the skill of a
third item that plays differently against the two moves. Here items with equal rows are one item in the game, and share
its weight afterwards.

Shape letters: ``K`` items, ``T`` items with weight in some equilibrium, ``Z`` directions along which equilibria move.
NumPy float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from alignment.errors import UserError
from alignment.evaluation.intervals import Array, numbered
from alignment.games import solve_unregularized

# Rows closer than this are those of clones; an equilibrium that is beaten by more was not found.
_SAME = 1e-9
_LAST_BARRIER = 1e-14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lottery:
    """The maximal lottery.

    Attributes:
        weights_K: probabilities, sum 1.
        skill_K: ``P(item beats the lottery) - 1/2``: 0 for items in it, below for the others.
        exploitability: the largest skill; what is left of it is the solver's rounding.
    """

    weights_K: Array
    skill_K: Array
    exploitability: float


def maximal_lottery(wins_KK: Array) -> Lottery:
    """The mixture of items that no item beats.

    Fishburn, Review of Economic Studies 51 (1984); 1806.02643 for the choice among several.

    Args:
        wins_KK: probabilities that the row beats the column; with its transpose it adds up to 1.

    Raises:
        UserError: if the table is not one of preferences.

    Example:
        >>> wins_KK = np.array([[0.5, 1.0, 0.0, 0.9], [0.0, 0.5, 1.0, 0.9], [1.0, 0.0, 0.5, 0.9], [0.1, 0.1, 0.1, 0.5]])
        >>> maximal_lottery(wins_KK).weights_K.round(4).tolist()
        [0.3333, 0.3333, 0.3333, 0.0]
    """
    if wins_KK.ndim != 2 or not (np.abs(wins_KK + wins_KK.T - 1.0) <= _SAME).all():
        raise UserError(
            "maximal lottery: expected a complete table of preferences that adds up to 1 with its transpose"
        )
    class_K = _clone_classes(wins_KK)
    first_C = np.unique(class_K, return_index=True)[1]
    sizes_C = np.bincount(class_K)
    weights_C = _widest_equilibrium(wins_KK[np.ix_(first_C, first_C)])
    weights_K = (weights_C / sizes_C)[class_K]
    skill_K = (wins_KK - 0.5) @ weights_K
    if not skill_K.max() <= _SAME:
        raise RuntimeError(
            f"maximal lottery: expected a mixture that nobody beats, found one beaten by {skill_K.max()}"
        )
    return Lottery(weights_K=weights_K, skill_K=skill_K, exploitability=float(skill_K.max()))


def _widest_equilibrium(wins_KK: Array) -> Array:
    """The equilibrium of the largest entropy, [K].

    The interior point of the set of equilibria says which items have weight in some equilibrium (T) and which
    constraints ``(S p)_i <= 0`` are slack in some: each item is in one of the two classes (Goldman & Tucker 1956). The
    set is then an affine one within T, cut by the constraints of the others.
    """
    skew_KK = wins_KK - 0.5
    point_K = np.exp(solve_unregularized(wins_KK, tolerance=1e-12).log_policy_A)
    inside_K = point_K > -(skew_KK @ point_K)
    point_T = point_K[inside_K] / point_K[inside_K].sum()
    equal = np.concatenate([skew_KK[np.ix_(inside_K, inside_K)], np.ones((1, int(inside_K.sum())))])
    directions_TZ = null_space(equal, rcond=1e-10)
    weights_K = np.zeros(len(wins_KK))
    weights_K[inside_K] = _widen(point_T, directions_TZ, skew_KK[np.ix_(~inside_K, inside_K)])
    return weights_K


def _widen(point_T: Array, directions_TZ: Array, against_OT: Array) -> Array:
    """Maximise the entropy over ``point + directions z`` with ``against p <= 0``, from a point inside.

    Newton's method with a logarithmic barrier for the constraints, which ends within ``K`` times the last barrier.
    """
    if directions_TZ.shape[1] == 0:
        return point_T
    barrier = 1.0
    while barrier > _LAST_BARRIER:
        barrier *= 0.1
        for _ in range(50):
            slack_O = -(against_OT @ point_T)
            gradient_T = np.log(point_T) + barrier * (against_OT / slack_O[:, None]).sum(0)
            curvature_TT = np.diag(1.0 / point_T) + barrier * (against_OT / slack_O[:, None] ** 2).T @ against_OT
            reduced_Z = directions_TZ.T @ gradient_T
            step_T = -directions_TZ @ np.linalg.solve(directions_TZ.T @ curvature_TT @ directions_TZ, reduced_Z)
            decrease = float(-(gradient_T @ step_T))
            if decrease < 1e-24:
                break
            # Never out of the set.
            outward = max(float((-step_T / point_T).max()), float(((against_OT @ step_T) / slack_O).max(initial=0.0)))
            length = min(1.0, 0.95 / max(outward, 1e-300))
            point_T = point_T + length * step_T
    return point_T


def _clone_classes(wins_KK: Array) -> NDArray[np.int64]:
    """Items with equal rows have one number, [K]."""
    same_KK = np.abs(wins_KK[:, None] - wins_KK[None]).max(-1) <= _SAME
    return numbered(same_KK.argmax(1).tolist())
