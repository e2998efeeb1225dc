"""A table of win probabilities between items, and how uncertain it is.

All that is said of a table is a function of its pairs, so one covariance of the pairs is enough: from verdicts
clustered by prompt, from counts of independent verdicts, or zero for a table that is known exactly.

Shape letters: ``K`` items, ``E`` pairs that were compared (first item < second), ``M`` linear functions of the pairs,
``N`` verdicts, ``P`` prompts. NumPy float64.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignment.errors import UserError
from alignment.evaluation.intervals import NUM_PADDED, Array, Estimate, ends, joint_error, numbered, padded
from alignment.evaluation.transitivity import compared_pairs, incidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WinMatrix:
    """Win probabilities of K items against one another.

    Attributes:
        names: of the items.
        wins_KK: P(row beats column), diagonal 1/2, nan where nobody compared.
        counts_KK: how many verdicts a cell rests on; infinite where it is known.
        prompts_E: clusters of verdicts of each compared pair; infinite where it is known.
        variance_E: of each pair as its prompts show it, for the interval of the pair itself.
        covariance_EE: of the pairs' estimates for linear functions of them, as
            :func:`alignment.evaluation.intervals.padded` makes it.
        num_prompts: clusters of verdicts; infinite where the table is known.
    """

    names: tuple[str, ...]
    wins_KK: Array
    counts_KK: Array
    prompts_E: Array
    variance_E: Array
    covariance_EE: Array
    num_prompts: float

    @property
    def first_E(self) -> NDArray[np.int64]:
        """First items of the compared pairs."""
        return compared_pairs(self.wins_KK)[0]

    @property
    def second_E(self) -> NDArray[np.int64]:
        """Second items of the compared pairs."""
        return compared_pairs(self.wins_KK)[1]

    @property
    def wins_E(self) -> Array:
        """P(first beats second) of the compared pairs."""
        return np.asarray(self.wins_KK[self.first_E, self.second_E])

    @property
    def counts_E(self) -> Array:
        """Verdicts of the compared pairs."""
        return np.asarray(self.counts_KK[self.first_E, self.second_E])

    @property
    def padded_E(self) -> Array:
        """P(first beats second) with the prompts that :attr:`covariance_EE` adds; nan for a known table."""
        return (self.prompts_E * self.wins_E + NUM_PADDED / 2.0) / (self.prompts_E + NUM_PADDED)

    @property
    def is_complete(self) -> bool:
        """Whether every pair was compared."""
        return not np.isnan(self.wins_KK).any()

    @property
    def is_exact(self) -> bool:
        """Whether the table is known without error."""
        return bool(np.isinf(self.num_prompts))

    def fill(self, values_E: Array, default: float, turned: Array) -> Array:
        """A table [K, K] of values of pairs, with ``turned`` for the pairs the other way round."""
        table_KK = np.full(self.wins_KK.shape, default)
        table_KK[self.first_E, self.second_E] = values_E
        table_KK[self.second_E, self.first_E] = turned
        return table_KK

    @property
    def score_map_KE(self) -> Array:
        """The linear map from the pairs to mean win rates: ``score = 1/2 + map (wins - 1/2)``.

        The score of an item is its mean win rate against the others that it met, all of them weighing the same. In a
        complete table it has the order of the strengths of the best Bradley-Terry model with equal weights, whose
        likelihood equations say that the two have equal row sums.
        """
        against_KE = incidence(self.first_E, self.second_E, len(self.names)).T
        return against_KE / np.abs(against_KE).sum(1, keepdims=True).clip(min=1.0)

    @property
    def score_K(self) -> Array:
        """Mean win rate against the others."""
        return np.asarray(0.5 + self.score_map_KE @ (self.wins_E - 0.5))

    def joint_error(self, *maps_ME: Array) -> float:
        """The error of each interval of the pairs and of linear functions of them, with which all hold with 95 %."""
        stacked_ME = np.concatenate(maps_ME)
        return joint_error(stacked_ME @ self.covariance_EE @ stacked_ME.T)

    def cell_ends(self, error: float | None = None) -> tuple[Array, Array]:
        """Lower and upper ends of all cells, [K, K] each: 1/2 on the diagonal, 0 and 1 where nobody compared.

        Args:
            error: of each; ``None`` for that with which they hold all at once.
        """
        error = self.joint_error(np.eye(len(self.wins_E))) if error is None else error
        low_E, high_E = ends(self.wins_E, self.variance_E, self.prompts_E, error)
        tables = self.fill(low_E, 0.0, 1.0 - high_E), self.fill(high_E, 1.0, 1.0 - low_E)
        for table_KK in tables:
            np.fill_diagonal(table_KK, 0.5)
        return tables

    def function_ends(self, map_ME: Array, error: float) -> tuple[Array, Array]:
        """Lower and upper ends of ``map (wins - 1/2)``, [M] each, in [-1, 1]."""
        # Rounding may leave a variance of 0 below it.
        variance_M = np.einsum("me,ef,mf->m", map_ME, self.covariance_EE, map_ME).clip(min=0.0)
        return ends(map_ME @ (self.wins_E - 0.5), variance_M, self.num_prompts, error, -1.0, 1.0)


def exact_matrix(names: Sequence[str], wins_KK: ArrayLike) -> WinMatrix:
    """A table that is known: of a rule, of an oracle that says its probabilities.

    Raises:
        UserError: if it is not a table of preferences.
    """
    wins_KK = _checked(names, wins_KK)
    if (np.abs(wins_KK + wins_KK.T - 1.0) > 1e-6).any() or (wins_KK < 0.0).any() or (wins_KK > 1.0).any():
        raise UserError("win matrix: expected probabilities in [0, 1] that add up to 1 with the transpose")
    num_pairs = len(names) * (len(names) - 1) // 2
    return WinMatrix(
        names=tuple(names),
        wins_KK=0.5 + 0.5 * (wins_KK - wins_KK.T),
        counts_KK=np.full(wins_KK.shape, np.inf),
        prompts_E=np.full(num_pairs, np.inf),
        variance_E=np.zeros(num_pairs),
        covariance_EE=np.zeros((num_pairs, num_pairs)),
        num_prompts=np.inf,
    )


def counted_matrix(names: Sequence[str], wins_KK: ArrayLike) -> WinMatrix:
    """A table of counts of independent verdicts; a tie counts half for either.

    Args:
        names: of the items.
        wins_KK: how often the row beat the column; the diagonal is not read.

    Raises:
        UserError: for a negative count, and where nothing was compared.
    """
    wins_KK = _checked(names, wins_KK)
    if not (wins_KK >= 0.0).all():
        raise UserError("win matrix: expected counts of wins of at least 0")
    games_KK = np.where(np.eye(len(names), dtype=bool), 0.0, wins_KK + wins_KK.T)
    table_KK = np.where(games_KK > 0.0, wins_KK / np.where(games_KK > 0.0, games_KK, 1.0), np.nan)
    np.fill_diagonal(table_KK, 0.5)
    first_E, second_E = compared_pairs(table_KK)
    _check_compared(first_E)
    rate_E, games_E = table_KK[first_E, second_E], games_KK[first_E, second_E]
    variance_E = rate_E * (1.0 - rate_E) / games_E
    return WinMatrix(
        names=tuple(names),
        wins_KK=table_KK,
        counts_KK=games_KK,
        prompts_E=games_E,
        variance_E=variance_E,
        covariance_EE=padded(np.diag(variance_E), rate_E, games_E),
        num_prompts=float(games_KK.sum() / 2.0),
    )


def judged_matrix(
    names: Sequence[str],
    first_N: Sequence[int],
    second_N: Sequence[int],
    wins_N: ArrayLike,
    prompts_N: Sequence[Hashable],
) -> WinMatrix:
    """A table from verdicts; those on one prompt are a cluster, of whichever pairs they are.

    Args:
        names: of the items.
        first_N: an item.
        second_N: another.
        wins_N: of the first against the second: 1, 1/2, 0, or a probability.
        prompts_N: the prompt of each verdict.

    Raises:
        UserError: for an item that has no name or is compared with itself, and for a verdict outside [0, 1].
    """
    left_N, right_N = np.asarray(first_N, dtype=np.int64), np.asarray(second_N, dtype=np.int64)
    wins_N = np.asarray(wins_N, dtype=np.float64)
    _check_compared(left_N)
    both = np.concatenate([left_N, right_N])
    if both.min() < 0 or both.max() >= len(names):
        raise UserError(
            f"win matrix: expected items from 0 to {len(names) - 1}, the named ones, found {both.min()} to {both.max()}"
        )
    if (left_N == right_N).any():
        raise UserError(f"win matrix: expected two items in a verdict, found {names[left_N[left_N == right_N][0]]!r}")
    if not ((wins_N >= 0.0) & (wins_N <= 1.0)).all():
        raise UserError("win matrix: expected verdicts in [0, 1]")
    turned_N = left_N > right_N
    low_N, high_N = np.minimum(left_N, right_N), np.maximum(left_N, right_N)
    wins_N = np.where(turned_N, 1.0 - wins_N, wins_N)
    size = len(names)
    cell_N = low_N * size + high_N
    cells_E, place_N = np.unique(cell_N, return_inverse=True)
    counts_E = np.bincount(place_N).astype(np.float64)
    rate_E = np.bincount(place_N, weights=wins_N) / counts_E
    prompt_N = numbered(prompts_N)
    num_prompts = int(prompt_N.max()) + 1
    errors_PE = np.zeros((num_prompts, len(cells_E)))
    np.add.at(errors_PE, (prompt_N, place_N), (wins_N - rate_E[place_N]) / counts_E[place_N])
    seen_EE = errors_PE.T @ errors_PE
    is_judged_PE = np.zeros(errors_PE.shape, dtype=bool)
    is_judged_PE[prompt_N, place_N] = True
    prompts_E = is_judged_PE.sum(0).astype(np.float64)
    first_E, second_E = cells_E // size, cells_E % size
    table_KK, counts_KK = np.full((size, size), np.nan), np.zeros((size, size))
    table_KK[first_E, second_E], table_KK[second_E, first_E] = rate_E, 1.0 - rate_E
    counts_KK[first_E, second_E] = counts_KK[second_E, first_E] = counts_E
    np.fill_diagonal(table_KK, 0.5)
    return WinMatrix(
        names=tuple(names),
        wins_KK=table_KK,
        counts_KK=counts_KK,
        prompts_E=prompts_E,
        variance_E=np.diagonal(seen_EE),
        covariance_EE=padded(seen_EE, rate_E, prompts_E),
        num_prompts=float(num_prompts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """An item's place by mean win rate.

    Attributes:
        name: of the item.
        score: mean win rate against the others, simultaneous over items.
        rank: by the point estimate, from 1; equal scores share the better one.
        best: the best rank that cannot be ruled out.
        worst: the worst one; ``[best, worst]`` holds for all items at once with 95 %.
    """

    name: str
    score: Estimate
    rank: int
    best: int
    worst: int


def rank_intervals(matrix: WinMatrix) -> tuple[Ranked, ...]:
    """Ranks of the items by mean win rate, with intervals that hold for all of them at once.

    An item is surely below those whose simultaneous interval of the difference is above 0 (Mogstad, Romano, Shaikh &
    Wilhelm, Review of Economic Studies 91, 2024).
    """
    score_K, scores_KE = matrix.score_K, matrix.score_map_KE
    low_K, high_K = matrix.function_ends(scores_KE, matrix.joint_error(scores_KE))
    first_D, second_D = np.triu_indices(len(matrix.names), 1)
    differences_DE = scores_KE[first_D] - scores_KE[second_D]
    low_D, high_D = matrix.function_ends(differences_DE, matrix.joint_error(differences_DE))
    surely_above_KK = np.zeros(matrix.wins_KK.shape, dtype=bool)
    surely_above_KK[first_D, second_D], surely_above_KK[second_D, first_D] = low_D > 0.0, high_D < 0.0
    num_items = len(matrix.names)
    return tuple(
        Ranked(
            name=name,
            score=Estimate(
                mean=float(score_K[k]),
                low=float(np.clip(0.5 + low_K[k], 0.0, 1.0)),
                high=float(np.clip(0.5 + high_K[k], 0.0, 1.0)),
                num_prompts=_count(matrix.num_prompts),
            ),
            rank=1 + int((score_K > score_K[k] + 1e-12).sum()),
            best=1 + int(surely_above_KK[:, k].sum()),
            worst=num_items - int(surely_above_KK[k].sum()),
        )
        for k, name in enumerate(matrix.names)
    )


def _count(num_prompts: float) -> int:
    return 0 if np.isinf(num_prompts) else int(num_prompts)


def _checked(names: Sequence[str], table: ArrayLike) -> Array:
    table_KK: Array = np.asarray(table, dtype=np.float64)
    if table_KK.shape != (len(names), len(names)) or len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"win matrix: expected a square table of two different items at least, got {len(set(names))} names and "
            f"shape {list(table_KK.shape)}"
        )
    return table_KK


def _check_compared(first: Sequence[int] | NDArray[np.int64]) -> None:
    if len(first) == 0:
        raise UserError("win matrix: expected one comparison at least, found none")
