"""How far a table of win probabilities is from an order: cycles, stochastic transitivity, Hodge parts, discs.

Shape letters: ``K`` items, ``E`` pairs that were compared. ``wins_KK`` holds P(row beats column), with its transpose it
adds up to 1, and nan stands where nobody compared. NumPy float64; nothing here knows of noise, see
:mod:`alignment.evaluation.cycles`.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import schur

from alignment.evaluation.intervals import Array

# Probabilities closer than this are equal.
_SAME = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitivity:
    """Shares of the chains ``P_ij >= 1/2, P_jk >= 1/2`` that break a bound on ``P_ik``.

    Attributes:
        num_chains: ordered triples of three items with both.
        weak: ``P_ik < 1/2``.
        moderate: ``P_ik < min(P_ij, P_jk)``.
        strong: ``P_ik < max(P_ij, P_jk)``.
    """

    num_chains: int
    weak: float
    moderate: float
    strong: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HodgeShares:
    """Shares of the squared norm of a flow on pairs; they add up to 1.

    Attributes:
        gradient: of a score for each item.
        curl: of circulations around triples of which all pairs were compared.
        harmonic: of circulations around longer cycles only; 0 where all pairs were compared.
    """

    gradient: float
    curl: float
    harmonic: float

    @property
    def cyclic(self) -> float:
        """What no score explains."""
        return self.curl + self.harmonic


def cyclic_triples(wins_KK: Array) -> tuple[tuple[int, int, int], ...]:
    """Triples that go in a circle, each as (i, j, k) with i ahead of j, j ahead of k, k ahead of i; i is the smallest.

    Example:
        >>> cyclic_triples(np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]))
        ((0, 1, 2),)
    """
    ahead_KK = np.nan_to_num(wins_KK, nan=0.5) > 0.5 + _SAME
    found = []
    for i, j, k in itertools.combinations(range(len(wins_KK)), 3):
        if ahead_KK[i, j] and ahead_KK[j, k] and ahead_KK[k, i]:
            found.append((i, j, k))
        elif ahead_KK[i, k] and ahead_KK[k, j] and ahead_KK[j, i]:
            found.append((i, k, j))
    return tuple(found)


def complete_triples(wins_KK: Array) -> int:
    """Triples of which all pairs were compared: those that could show a circle.

    Example:
        >>> complete_triples(np.full((5, 5), 0.5))
        10
    """
    compared_KK = ~np.isnan(wins_KK) & ~np.eye(len(wins_KK), dtype=bool)
    return int(np.trace(np.linalg.matrix_power(compared_KK.astype(np.int64), 3)) // 6)


def consistence(num_cyclic: int, num_items: int) -> float:
    """Kendall's coefficient: 1 without a cyclic triple, 0 with as many as there can be.

    ``1 - 24 d / (n^3 - n)``, for even n with ``4n`` in place of ``n``. Kendall & Babington Smith, Biometrika 31 (1940).
    All pairs must have been compared.

    Example:
        >>> consistence(1, 3), consistence(0, 6)
        (0.0, 1.0)
    """
    return 1.0 - 24.0 * num_cyclic / (num_items**3 - num_items * (1 if num_items % 2 else 4))


def stochastic_transitivity(wins_KK: Array) -> Transitivity:
    """Violations of weak, moderate and strong stochastic transitivity; a Bradley-Terry table has none.

    Example:
        >>> stochastic_transitivity(np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]))
        Transitivity(num_chains=1, weak=0.0, moderate=0.0, strong=1.0)
    """
    num_items = len(wins_KK)
    distinct_KKK = ~(
        np.eye(num_items, dtype=bool)[:, :, None]
        | np.eye(num_items, dtype=bool)[None]
        | np.eye(num_items, dtype=bool)[:, None]
    )
    first_KKK, second_KKK, long_KKK = wins_KK[:, :, None], wins_KK[None], wins_KK[:, None, :]
    # Comparisons with nan are false.
    chain_KKK = distinct_KKK & (first_KKK >= 0.5) & (second_KKK >= 0.5) & ~np.isnan(long_KKK)
    num_chains = int(chain_KKK.sum())

    def share(bound_KKK: Array | float) -> float:
        return float((chain_KKK & (long_KKK < bound_KKK - _SAME)).sum() / max(num_chains, 1))

    return Transitivity(
        num_chains=num_chains,
        weak=share(0.5),
        moderate=share(np.minimum(first_KKK, second_KKK)),
        strong=share(np.maximum(first_KKK, second_KKK)),
    )


def hodge_shares(flow_KK: Array) -> HodgeShares:
    """Divide a skew-symmetric flow into gradient, curl and harmonic parts, all pairs weighing the same.

    Jiang, Lim, Yao & Ye (0811.1067). On logits of win probabilities the gradient's share is 1 if and only if the table
    is Bradley-Terry.

    Args:
        flow_KK: skew-symmetric, nan where nobody compared.

    Example:
        >>> hodge_shares(np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])).cyclic
        1.0
    """
    first_E, second_E = compared_pairs(flow_KK)
    flow_E = flow_KK[first_E, second_E]
    total = float(flow_E @ flow_E)
    if total == 0.0:
        return HodgeShares(gradient=1.0, curl=0.0, harmonic=0.0)
    gradient_E = project(flow_E, incidence(first_E, second_E, len(flow_KK)))
    place = {pair: e for e, pair in enumerate(zip(first_E.tolist(), second_E.tolist(), strict=True))}
    triangles = [
        (place[i, j], place[j, k], place[i, k])
        for i, j, k in itertools.combinations(range(len(flow_KK)), 3)
        if (i, j) in place and (j, k) in place and (i, k) in place
    ]
    around_ET = np.zeros((len(flow_E), len(triangles)))
    for column, (ij, jk, ik) in enumerate(triangles):
        around_ET[[ij, jk, ik], column] = 1.0, 1.0, -1.0
    curl_E = project(flow_E, around_ET)
    shares = [float(part_E @ part_E) / total for part_E in (gradient_E, curl_E)]
    harmonic = max(1.0 - sum(shares), 0.0)
    # Rounding leaves hairs where the parts are exactly 0.
    gradient, curl, harmonic = (0.0 if share < 1e-12 else share for share in (*shares, harmonic))
    return HodgeShares(gradient=gradient, curl=curl, harmonic=harmonic)


def disc_shares(skew_KK: Array) -> tuple[float, ...]:
    """Shares ``lambda_k^2`` of the discs of a skew-symmetric matrix, largest first, at most K/2 of them.

    ``A = sum_k lambda_k (u_k v_k^T - v_k u_k^T)`` by the real Schur form (2206.12301). Bradley-Terry logits are one
    disc; so is a circle of three.

    Args:
        skew_KK: complete.

    Example:
        >>> disc_shares(np.array([[0.0, 1.0, 3.0], [-1.0, 0.0, 2.0], [-3.0, -2.0, 0.0]]))
        (1.0,)
    """
    form_KK = schur(skew_KK, output="real")[0]
    squares = np.sort(np.diagonal(form_KK, 1) ** 2)[::-1]
    total = float(squares.sum())
    # The Schur form has zeros between its blocks, up to rounding.
    return tuple(float(square) / total for square in squares if square > 1e-12 * total) if total > 0.0 else ()


def compared_pairs(table_KK: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and second item of every pair i < j that has a value, [E] each."""
    first_E, second_E = np.triu_indices(len(table_KK), 1)
    has_E = ~np.isnan(table_KK[first_E, second_E])
    return first_E[has_E], second_E[has_E]


def incidence(first_E: NDArray[np.int64], second_E: NDArray[np.int64], num_items: int) -> Array:
    """The matrix [E, K] that makes differences of scores: +1 for the first item of a pair, -1 for the second."""
    table_EK = np.zeros((len(first_E), num_items))
    rows = np.arange(len(first_E))
    table_EK[rows, first_E], table_EK[rows, second_E] = 1.0, -1.0
    return table_EK


def project(flow_E: Array, columns_EC: Array) -> Array:
    """The part of a flow in the span of columns."""
    return np.asarray(columns_EC @ np.linalg.lstsq(columns_EC, flow_E, rcond=None)[0])
