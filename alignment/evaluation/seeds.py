"""Figures of runs over seeds: means with Student's intervals, and every two variants compared seed by seed.

The unit is the run. Figures need not be bounded (a loss, a KL), so the interval is Student's and not that of
:mod:`alignment.evaluation.intervals`; p-values of all pairs are corrected by Holm's method from there.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from alignment.evaluation.intervals import LEVEL, holm

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """A mean over seeds with its 95 % interval, which a single seed does not have.

    Attributes:
        mean: the point estimate.
        low: lower end.
        high: upper end.
        num_seeds: how many runs it rests on.
    """

    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    def describe(self) -> str:
        """``mean [low, high]`` in three digits that count.

        Example:
            >>> SeedMean(mean=0.0123456, low=0.01, high=0.0147, num_seeds=3).describe()
            '0.0123 [0.01, 0.0147]'
        """
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.mean:.3g}{interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedComparison:
    """Two variants by the seeds that both have.

    Attributes:
        first: of the difference ``first - second``.
        second: likewise.
        difference: with the interval of this pair alone.
        p_value: of no difference, two-sided, of this pair alone; 1 where fewer than two seeds are shared.
        adjusted: by Holm's method for all pairs.
        better: which one is, where the difference is real: ``adjusted`` below .05; else ``None``.
    """

    first: str
    second: str
    difference: SeedMean | None
    p_value: float
    adjusted: float
    better: str | None

    @property
    def verdict(self) -> str:
        """In words."""
        return "not told apart" if self.better is None else f"{self.better} is better"


def seed_mean(values_S: Sequence[float]) -> SeedMean | None:
    """The mean of one value a seed, with Student's 95 % interval; ``None`` of none.

    Example:
        >>> seed_mean([1.0, 2.0, 3.0])
        SeedMean(mean=2.0, low=-0.484..., high=4.484..., num_seeds=3)
    """
    if not values_S:
        return None
    mean, error = _mean_and_error(values_S)
    half = None if error is None else float(stdtrit(len(values_S) - 1, 1.0 - LEVEL / 2.0)) * error
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return SeedMean(mean=mean, low=low, high=high, num_seeds=len(values_S))


def compare_over_seeds(values: Mapping[str, Mapping[int, float]], better: Better) -> tuple[SeedComparison, ...]:
    """Every two variants, paired by seed; p-values are corrected for the number of pairs.

    Args:
        values: variant -> seed -> figure.
        better: which end of the figure is.

    Example:
        >>> (pair,) = compare_over_seeds({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 3.0, 1: 4.0, 2: 5.1}}, "lower")
        >>> pair.difference.describe(), round(pair.p_value, 5), pair.verdict
        ('-2.03 [-2.18, -1.89]', 0.00027, 'a is better')
    """
    pairs = list(itertools.combinations(values, 2))
    differences = [
        [values[first][seed] - values[second][seed] for seed in values[first] if seed in values[second]]
        for first, second in pairs
    ]
    p_values = [_p_value(differences_S) for differences_S in differences]
    found = []
    for (first, second), differences_S, p_value, adjusted in zip(
        pairs, differences, p_values, holm(p_values).tolist(), strict=True
    ):
        difference = seed_mean(differences_S)
        winner = None
        if difference is not None and adjusted < LEVEL:
            winner = first if (difference.mean < 0.0) == (better == "lower") else second
        found.append(
            SeedComparison(
                first=first, second=second, difference=difference, p_value=p_value, adjusted=adjusted, better=winner
            )
        )
    return tuple(found)


def _mean_and_error(values_S: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which one value does not show."""
    count = len(values_S)
    error = float(np.std(values_S, ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(np.mean(values_S)), error


def _p_value(differences_S: Sequence[float]) -> float:
    """Student's, of a mean of 0."""
    mean, error = _mean_and_error(differences_S) if differences_S else (0.0, None)
    if error is None or mean == 0.0:
        return 1.0
    return 0.0 if error == 0.0 else float(2.0 * stdtr(len(differences_S) - 1, -abs(mean) / error))
