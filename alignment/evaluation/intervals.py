"""Intervals of means over prompts: one, the difference of two, many at once; and p-values of many comparisons.

The unit is the prompt: verdicts on one prompt are not independent, so their errors are added up inside the prompt
before they are squared (the cluster-robust standard error, 2411.00640). All values are bounded, and all intervals are
of Wilson's form. With values scaled to [0, 1], mean m and variance v of the mean, the interval is every p with

    |m - p| <= t sqrt(d p (1 - p) / P),      d = v P / (m (1 - m)):

d is 1 for one verdict of 0 or 1 a prompt, less for graded ones, more for prompts with several verdicts that agree. It
is taken for 1/P at least, as if one prompt had a verdict of 0 or 1: P prompts that all say the same do not show that
the next one does. Of a difference, which is close to 0 on most prompts, it is taken for d + 1/P.

Shape letters: ``P`` prompts, ``N`` verdicts, ``M`` means, ``S`` simulated draws. NumPy float64.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtr, stdtrit

from alignment.errors import UserError

Array = NDArray[np.float64]

LEVEL = 0.05
NUM_PADDED = 4.0
"""Prompts that :func:`padded` adds."""

# Of the joint level: its error is then about 3 % of it, and no interval moves visibly.
_NUM_DRAWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: the point estimate.
        low: lower end.
        high: upper end.
        num_prompts: how many prompts it rests on.
    """

    mean: float
    low: float
    high: float
    num_prompts: int

    def describe(self, scale: float = 1.0, digits: int = 3) -> str:
        """``mean [low, high]``.

        Example:
            >>> Estimate(mean=0.5, low=0.4, high=0.6, num_prompts=9).describe()
            '0.500 [0.400, 0.600]'
        """
        mean, low, high = (scale * value for value in (self.mean, self.low, self.high))
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Estimate):
    """A paired difference.

    Attributes:
        p_value: of "no difference", two-sided; below .05 exactly where the interval leaves out 0.
    """

    p_value: float


def mean_interval(
    values_N: ArrayLike,
    prompts_N: Sequence[Hashable] | None = None,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    error: float = LEVEL,
) -> Estimate:
    """The mean over verdicts with its interval, of 95 % where no other error is given, verdicts clustered by prompt.

    Where every prompt has as many verdicts, it is the interval of the prompts' means. Source: 2411.00640, with the
    range of the values as in :func:`alignment.evaluation.interval`.

    Args:
        values_N: in [lowest, highest].
        prompts_N: the prompt of each; ``None`` for one verdict a prompt.
        lowest: smallest possible value.
        highest: largest possible value.
        error: how often the interval may miss, two-sided.

    Raises:
        UserError: for no values, and for one outside its range.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0, 0.0])
        Estimate(mean=0.75, low=0.162..., high=0.978..., num_prompts=4)
        >>> mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"]).num_prompts
        2
    """
    values_N = _checked(values_N, lowest, highest)
    errors_P = cluster_sums(values_N - values_N.mean(), prompts_N)
    errors_P = errors_P / len(values_N)
    return _estimate(float(values_N.mean()), float(errors_P @ errors_P), len(errors_P), error, lowest, highest)


def paired_difference(
    ours_N: ArrayLike,
    theirs_N: ArrayLike,
    prompts_N: Sequence[Hashable] | None = None,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> Difference:
    """The mean difference of two policies that met the same opponent on the same prompts.

    What a prompt does to both cancels, so the interval is narrower than that of two separate means wherever the two
    agree on what is hard. Few prompts then tell the two apart, and none may among those that were seen, so the variance
    is that of the prompts and of one more, on which one of the two wins and the other loses (as in Agresti & Min,
    Statistics in Medicine 24, 2005). The p-value is that of the interval's own pivot: Student's t at the variance that
    a mean of 0 would have.

    Args:
        ours_N: of the one policy, in [lowest, highest].
        theirs_N: of the other, row by row on the same prompts.
        prompts_N: the prompt of each row; ``None`` for one row a prompt.
        lowest: smallest possible value.
        highest: largest possible value.

    Raises:
        UserError: as :func:`mean_interval`, and where the two are of different length.

    Example:
        >>> found = paired_difference([1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1])
        >>> round(found.mean, 3), found.low < 0.0 < found.high, round(found.p_value, 3)
        (0.5, True, 0.144)
    """
    ours_N, theirs_N = _checked(ours_N, lowest, highest), _checked(theirs_N, lowest, highest)
    if ours_N.shape != theirs_N.shape:
        raise UserError(
            f"paired difference: expected as many values of both policies, got {len(ours_N)} and {len(theirs_N)}; "
            "keep the prompts that both have"
        )
    width = highest - lowest
    differences_N = ours_N - theirs_N
    mean = float(differences_N.mean())
    errors_P = cluster_sums(differences_N - mean, prompts_N) / len(differences_N)
    num_prompts = len(errors_P)
    variance = float(errors_P @ errors_P) + (width**2 - mean**2) / num_prompts**2
    found = _estimate(mean, variance, num_prompts, LEVEL, -width, width)
    return Difference(
        mean=found.mean,
        low=found.low,
        high=found.high,
        num_prompts=found.num_prompts,
        p_value=p_value(mean / width, variance / width**2, num_prompts),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simultaneous:
    """Intervals that hold all at once with 95 %.

    Attributes:
        estimates: one of each column.
        error: of each single interval; .05 for one column, .05 / M at least for M.
    """

    estimates: tuple[Estimate, ...]
    error: float

    @property
    def lowest(self) -> Estimate:
        """The smallest of the true means: between the smallest lower and the smallest upper end, with 95 %.

        The point estimate is the smallest mean that was seen, which is below the smallest true one on average.
        """
        worst = min(self.estimates, key=lambda estimate: estimate.mean)
        return Estimate(
            mean=worst.mean,
            low=min(estimate.low for estimate in self.estimates),
            high=min(estimate.high for estimate in self.estimates),
            num_prompts=worst.num_prompts,
        )


def simultaneous_intervals(values_PM: ArrayLike, *, lowest: float = 0.0, highest: float = 1.0) -> Simultaneous:
    """Intervals of several means, groups or cells, that all hold at once with 95 %.

    The error of the single interval is the 5 % point of the smallest of M p-values that are normal with the
    correlations that the prompts show (max-t; Westfall & Young 1993, Hothorn, Bretz & Westfall 2008). Columns that say
    the same cost nothing; independent ones cost what Šidák's correction does. A column whose verdicts all agree shows
    no correlation and counts as independent of the others.

    Args:
        values_PM: in [lowest, highest]; nan where a prompt has no value in a column.
        lowest: smallest possible value.
        highest: largest possible value.

    Raises:
        UserError: for a column without a value, and for a value outside its range.

    Example:
        >>> found = simultaneous_intervals([[1.0, 0.5], [1.0, 1.0], [0.0, 0.5], [1.0, float("nan")]])
        >>> [round(estimate.mean, 3) for estimate in found.estimates], found.error < 0.05
        ([0.75, 0.667], True)
    """
    values_PM = np.asarray(values_PM, dtype=np.float64)
    counts_M = (~np.isnan(values_PM)).sum(0)
    if values_PM.ndim != 2 or values_PM.size == 0 or not counts_M.all():
        raise UserError(
            f"simultaneous intervals: expected values [prompts, means] with one at least in every column, got shape "
            f"{list(values_PM.shape)} with {int((counts_M == 0).sum())} empty columns"
        )
    for values_P in values_PM.T:
        _checked(values_P[~np.isnan(values_P)], lowest, highest)
    mean_M = np.nanmean(values_PM, axis=0)
    agrees_M = np.nanmin(values_PM, axis=0) == np.nanmax(values_PM, axis=0)
    # Means round: what agrees has no error at all.
    errors_PM = np.where(np.isnan(values_PM) | agrees_M, 0.0, values_PM - mean_M) / counts_M
    error = joint_error(errors_PM.T @ errors_PM + np.diag(agrees_M))
    variance_M = (errors_PM**2).sum(0)
    low_M, high_M = ends(mean_M, variance_M, counts_M, error, lowest, highest)
    return Simultaneous(
        estimates=tuple(
            Estimate(mean=float(mean), low=float(low), high=float(high), num_prompts=int(count))
            for mean, low, high, count in zip(mean_M, low_M, high_M, counts_M, strict=True)
        ),
        error=error,
    )


def group_intervals(values_P: ArrayLike, groups_P: Sequence[str]) -> tuple[tuple[str, ...], Simultaneous]:
    """Win rates of groups of prompts, at once; ``.lowest`` of them is the worst group's.

    Args:
        values_P: one value in [0, 1] for each prompt.
        groups_P: the group of each.

    Returns:
        The groups in order of appearance, and their intervals.

    Raises:
        UserError: as :func:`mean_interval`, and where there are not as many groups as values.

    Example:
        >>> names, found = group_intervals([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"])
        >>> names, found.lowest.mean
        (('a', 'b'), 0.0)
    """
    values_P = _checked(values_P, 0.0, 1.0)
    if len(groups_P) != len(values_P):
        raise UserError(f"group intervals: expected a group for each of {len(values_P)} values, got {len(groups_P)}")
    names = tuple(dict.fromkeys(groups_P))
    is_of_PM = np.array([[group == name for name in names] for group in groups_P])
    return names, simultaneous_intervals(np.where(is_of_PM, values_P[:, None], np.nan))


def holm(p_values_M: ArrayLike) -> Array:
    """Holm's adjusted p-values [M]: those below .05 are wrong at all with 5 % at most, however they depend.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p_values_M = np.asarray(p_values_M, dtype=np.float64)
    order_M = np.argsort(p_values_M, kind="stable")
    stepped_M = np.maximum.accumulate(p_values_M[order_M] * np.arange(len(p_values_M), 0, -1))
    adjusted_M = np.empty_like(p_values_M)
    adjusted_M[order_M] = np.minimum(stepped_M, 1.0)
    return adjusted_M


def joint_error(covariance_MM: Array, level: float = LEVEL, *, seed: int = 0) -> float:
    """The error of each of M normal two-sided intervals with which one or more miss with probability ``level``.

    Args:
        covariance_MM: of the estimates; columns without variance count for nothing.
        level: of all together.
        seed: of the simulated draws.
    """
    # Rounding may leave a variance of 0 below it.
    deviation_M = np.sqrt(np.diagonal(covariance_MM).clip(min=0.0))
    moves_M = deviation_M > 0.0
    if moves_M.sum() < 2:
        return level
    correlation_MM = (covariance_MM / np.outer(deviation_M, deviation_M).clip(min=1e-300))[np.ix_(moves_M, moves_M)]
    largest_S = np.abs(normal_draws(correlation_MM, _NUM_DRAWS, seed)).max(1)
    # Between one column and Bonferroni, whatever the draws say.
    return float(np.clip(2.0 * ndtr(-np.quantile(largest_S, 1.0 - level)), level / moves_M.sum(), level))


def normal_draws(covariance_MM: Array, num_draws: int, seed: int) -> Array:
    """Centred normal vectors [S, M] with this covariance, which may be singular."""
    values_M, vectors_MM = np.linalg.eigh(covariance_MM)
    root_MM = vectors_MM * np.sqrt(values_M.clip(min=0.0))
    return np.asarray(np.random.default_rng(seed).standard_normal((num_draws, len(values_M))) @ root_MM.T)


def ends(
    mean_M: Array, variance_M: Array, counts_M: ArrayLike, error: float, lowest: float = 0.0, highest: float = 1.0
) -> tuple[Array, Array]:
    """Lower and upper ends of the intervals of the module's head.

    Args:
        mean_M: in [lowest, highest].
        variance_M: of the means.
        counts_M: prompts of each; infinite where the mean is known. Of one prompt the interval is the whole range.
        error: two-sided, of each.
        lowest: smallest possible value.
        highest: largest possible value.
    """
    counts_M = np.asarray(counts_M, dtype=np.float64)
    width = highest - lowest
    mean_M = np.clip((mean_M - lowest) / width, 0.0, 1.0)
    largest_M = mean_M * (1.0 - mean_M)
    # Verdicts that are all 0 or all 1 have shown no variance: theirs is taken for that of one verdict a prompt.
    share_M = np.where(largest_M > 0.0, variance_M / width**2 / np.where(largest_M > 0.0, largest_M, 1.0), 1 / counts_M)
    share_M = np.maximum(share_M, counts_M**-2.0)
    quantile_M = stdtrit(np.where(np.isfinite(counts_M), counts_M - 1.0, 1e9).clip(min=1.0), 1.0 - error / 2.0)
    k_M = quantile_M**2 * share_M
    half_M = np.sqrt(k_M * largest_M + k_M**2 / 4.0)
    centre_M = mean_M + k_M / 2.0
    low_M = np.where(counts_M > 1.0, ((centre_M - half_M) / (1.0 + k_M)).clip(min=0.0), 0.0)
    high_M = np.where(counts_M > 1.0, ((centre_M + half_M) / (1.0 + k_M)).clip(max=1.0), 1.0)
    return lowest + width * low_M, lowest + width * high_M


def padded(covariance_EE: Array, mean_E: Array, prompts_E: Array) -> Array:
    """The covariance [E, E] of means in [0, 1] for sums of many of them, also where prompts are few.

    A mean of one prompt, or of verdicts that all agree, has shown no variance. Wilson's form mends that for the mean
    itself, but not for a sum. So each mean is read with the variance that it would have with four prompts more of its
    own, two of 0 and two of 1 (Agresti & Coull, American Statistician 52, 1998): of one verdict of 0 or 1 a prompt it
    is p (1 - p) / n with p = (wins + 2) / (n + 4). Correlations shrink by n / (n + 4).

    Args:
        covariance_EE: as the prompts show it.
        mean_E: in [0, 1].
        prompts_E: n, of each.
    """
    share_E = prompts_E / (prompts_E + NUM_PADDED)
    added_E = (NUM_PADDED / 4.0 + NUM_PADDED * share_E * (mean_E - 0.5) ** 2) / ((prompts_E + NUM_PADDED) * prompts_E)
    return np.asarray(covariance_EE * np.sqrt(np.outer(share_E, share_E)) + np.diag(added_E))


def cluster_sums(errors_N: Array, clusters_N: Sequence[Hashable] | None) -> Array:
    """Sums of errors inside each cluster, [P], in order of appearance."""
    if clusters_N is None:
        return errors_N
    if len(clusters_N) != len(errors_N):
        raise UserError(f"intervals: expected a prompt for each of {len(errors_N)} values, got {len(clusters_N)}")
    return np.bincount(numbered(clusters_N), weights=errors_N).astype(np.float64)


def numbered(names_N: Sequence[Hashable]) -> NDArray[np.int64]:
    """Names as numbers from 0 in order of appearance, [N].

    Example:
        >>> numbered(["b", "a", "b"]).tolist()
        [0, 1, 0]
    """
    place = {name: number for number, name in enumerate(dict.fromkeys(names_N))}
    return np.array([place[name] for name in names_N], dtype=np.int64)


def _checked(values: ArrayLike, lowest: float, highest: float) -> Array:
    values_N: Array = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise UserError(f"intervals: expected a list of values, got shape {list(values_N.shape)}")
    # Written so that nan fails as well.
    wrong_N = ~((values_N >= lowest) & (values_N <= highest))
    if wrong_N.any():
        raise UserError(
            f"intervals: expected values in [{lowest:g}, {highest:g}], found {values_N[wrong_N][0]} in row "
            f"{int(wrong_N.argmax())}"
        )
    return values_N


def _estimate(mean: float, variance: float, num_prompts: int, error: float, lowest: float, highest: float) -> Estimate:
    low_1, high_1 = ends(np.array([mean]), np.array([variance]), [num_prompts], error, lowest, highest)
    return Estimate(mean=mean, low=float(low_1[0]), high=float(high_1[0]), num_prompts=num_prompts)


def p_value(mean: float, variance: float, num_prompts: float) -> float:
    """Of a mean in [-1, 1] that is 0 by hypothesis: with m = (1 + mean)/2 it is |m - 1/2| against sqrt(d/4P)."""
    if mean == 0.0 or num_prompts < 2:
        return 1.0
    if np.isinf(num_prompts):
        return 0.0
    largest = 1.0 - mean * mean
    share = max(variance * num_prompts / largest, 1.0 / num_prompts) if largest > 0.0 else 1.0
    return float(2.0 * stdtr(num_prompts - 1, -abs(mean) / np.sqrt(share / num_prompts)))
