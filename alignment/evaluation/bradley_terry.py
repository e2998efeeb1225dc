"""Bradley-Terry from a table of wins, also where the strengths are infinite.

``P(i beats j) = sigmoid(s_i - s_j)``. The maximum of the likelihood exists if and only if every item can be reached
from every other one along wins (Zermelo 1929; Ford, American Mathematical Monthly 64, 1957). Where it does not, items
fall into components, and every strength of one is infinitely far above every strength of the next: the fit is made
inside each component, and what lies between them is 0 or 1.

Shape letters: ``K`` items. NumPy float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from alignment.evaluation.intervals import Array

_MAX_STEPS = 200
_SHORTEST = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BradleyTerryFit:
    """The best Bradley-Terry model of a table of wins.

    Attributes:
        strength_K: in logits, mean 0 inside each component.
        level_K: number of components that are infinitely stronger; 0 for all where the fit is finite.
        probability_KK: of winning; nan between items that no chain of comparisons ranks.
        log_likelihood: of the table, in nats.
    """

    strength_K: Array
    level_K: NDArray[np.int64]
    probability_KK: Array
    log_likelihood: float

    @property
    def is_finite(self) -> bool:
        """Whether one component holds all items."""
        return not self.level_K.any() and not np.isnan(self.probability_KK).any()


def fit_bradley_terry(wins_KK: Array) -> BradleyTerryFit:
    """Maximum likelihood, by Newton's method to machine precision.

    Bradley & Terry, Biometrika 39 (1952). A tie counts half a win for either.

    Args:
        wins_KK: how often, or with which weight, the row beat the column; the diagonal is not read.

    Example:
        >>> fit = fit_bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]))
        >>> fit.probability_KK[0, 1].round(6), (fit.strength_K[0] - fit.strength_K[1]).round(6)
        (np.float64(0.75), np.float64(1.098612))
    """
    wins_KK = np.where(np.eye(len(wins_KK), dtype=bool), 0.0, wins_KK)
    _, component_K = connected_components(wins_KK > 0.0, directed=True, connection="strong")
    reaches_KK = _reachability(wins_KK > 0.0)
    strength_K = np.zeros(len(wins_KK))
    for component in np.flatnonzero(np.bincount(component_K) > 1):
        inside = np.flatnonzero(component_K == component)
        strength_K[inside] = _strengths(wins_KK[np.ix_(inside, inside)])
    is_same_KK = component_K[:, None] == component_K
    probability_KK = np.where(reaches_KK, 1.0, np.where(reaches_KK.T, 0.0, np.nan))
    probability_KK[is_same_KK] = expit(strength_K[:, None] - strength_K)[is_same_KK]
    above_KK = reaches_KK & ~is_same_KK
    level_K = np.array([len(set(component_K[above_KK[:, k]])) for k in range(len(wins_KK))])
    # Wins between components were certain: they cost nothing.
    terms_KK = np.where(is_same_KK, wins_KK * log_expit(strength_K[:, None] - strength_K), 0.0)
    return BradleyTerryFit(
        strength_K=strength_K, level_K=level_K, probability_KK=probability_KK, log_likelihood=float(terms_KK.sum())
    )


def _strengths(wins_KK: Array) -> Array:
    """Of a table in which every item reaches every other one."""
    strength_K = np.zeros(len(wins_KK))
    games_KK = wins_KK + wins_KK.T
    value = -np.inf
    for _ in range(_MAX_STEPS):
        probability_KK = expit(strength_K[:, None] - strength_K)
        gradient_K = (wins_KK - games_KK * probability_KK).sum(1)
        information_KK = games_KK * probability_KK * (1.0 - probability_KK)
        laplacian_KK = np.diag(information_KK.sum(1)) - information_KK
        # Strengths have no zero point: the constant direction is pinned, which leaves the step as it is.
        step_K = np.linalg.solve(laplacian_KK + information_KK.mean(), gradient_K)
        length = 1.0
        while True:
            new_K = strength_K + length * step_K
            new_value = float((wins_KK * log_expit(new_K[:, None] - new_K)).sum())
            if new_value >= value or length < _SHORTEST:
                break
            length *= 0.5
        # A step that no longer gains anything is one within rounding: its full length is taken, and the last one.
        is_last = length < _SHORTEST or np.abs(step_K).max() < 1e-12
        strength_K, value = strength_K + (step_K if is_last else length * step_K), new_value
        strength_K = strength_K - strength_K.mean()
        if is_last:
            break
    return strength_K


def _reachability(edges_KK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    reaches_KK = edges_KK.copy()
    for middle in range(len(edges_KK)):
        reaches_KK |= np.outer(reaches_KK[:, middle], reaches_KK[middle])
    return reaches_KK
