"""Intervals of means over prompts: identities, coverage in simulated tournaments, and what they must not do."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignment.errors import UserError
from alignment.evaluation import interval
from alignment.evaluation.intervals import (
    ends,
    group_intervals,
    holm,
    joint_error,
    mean_interval,
    p_value,
    paired_difference,
    simultaneous_intervals,
)

Array = NDArray[np.float64]
Cover = Callable[[np.random.Generator], bool]
TOURNAMENTS, PROMPTS = 2_000, 100


def share_covered(cover: Cover, seed: int) -> float:
    """Of simulated tournaments with a fixed seed; 2,000 of them tell 95 % to half a point (one standard error)."""
    rng = np.random.default_rng(seed)
    return sum(cover(rng) for _ in range(TOURNAMENTS)) / TOURNAMENTS


def prompt_rates(rng: np.random.Generator, rate: float, num: int = PROMPTS) -> Array:
    """Prompts differ in how hard they are: win probabilities with this mean, Beta of concentration 2."""
    return rng.beta(2.0 * rate, 2.0 * (1.0 - rate), num)


# Identities


def test_as_many_verdicts_a_prompt_are_their_means() -> None:
    """The cluster-robust error of 3 verdicts on each of 40 prompts is the plain one of the 40 means."""
    values_PV = (np.random.default_rng(0).random((40, 3)) < 0.3).astype(float)
    clustered = mean_interval(values_PV.ravel(), np.repeat(np.arange(40), 3).tolist())
    low, high = interval(torch.from_numpy(values_PV.mean(1)))
    assert (clustered.low, clustered.high) == pytest.approx((float(low), float(high)), abs=1e-12)
    assert clustered.num_prompts == 40


def test_a_copied_verdict_is_no_evidence() -> None:
    """Each verdict three times: the interval stays; taken for independent it would be narrower by sqrt(3)."""
    values_P = (np.random.default_rng(1).random(90) < 0.6).astype(float)
    once = mean_interval(values_P)
    copied = mean_interval(np.repeat(values_P, 3), np.repeat(np.arange(90), 3).tolist())
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)
    naive = mean_interval(np.repeat(values_P, 3))
    assert (once.high - once.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(3), rel=0.02)


def test_the_cluster_error_by_hand() -> None:
    """Values 1, 1, 1 on one prompt and 0 on another: mean 3/4, errors 3/4 and -3/4, variance 2 (3/16)^2 = 9/128.

    m (1 - m) = 3/16, so k = t^2 v / (m (1 - m)) = 3/8 t^2 with t of one degree of freedom, 12.706.
    """
    found = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    k = 12.706204736**2 * 3 / 8
    half, middle = math.sqrt(k * 3 / 16 + k * k / 4) / (1 + k), (0.75 + k / 2) / (1 + k)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-8)


def test_prompts_that_all_tie_leave_room() -> None:
    """Five ties: d = 1/5, so that |1/2 - p| <= t sqrt(p (1 - p)) / 5. With c = (t/5)^2 and t = 2.776445 of 4 degrees of
    freedom, p reaches sqrt(c / (1 + c)) / 2 = .24273 from the middle."""
    found = mean_interval([0.5] * 5)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.24273, 0.5 + 0.24273), abs=1e-5)
    assert mean_interval([0.7, 0.7]).low < 0.1


def test_two_policies_that_win_everything_may_still_differ() -> None:
    """Of five prompts: d + 1/P = 1/5 as above, twice as wide on [-1, 1]; and equal policies are no evidence."""
    found = paired_difference([1.0] * 5, [1.0] * 5)
    assert found.mean == 0.0 and found.p_value == 1.0
    assert (found.low, found.high) == pytest.approx((-2 * 0.24273, 2 * 0.24273), abs=2e-5)
    apart = paired_difference([0.6, 0.6], [0.5, 0.5])
    assert apart.low < 0.0 < apart.high and apart.p_value > 0.5


@pytest.mark.parametrize(("lowest", "highest"), [(-1.0, 1.0), (1.0, 10.0)])
def test_the_range_is_a_scale(lowest: float, highest: float) -> None:
    """Values moved and stretched: the interval moves and stretches with them, and never leaves the range."""
    values_P = np.random.default_rng(2).random(30)
    plain, width = mean_interval(values_P), highest - lowest
    scaled = mean_interval(lowest + width * values_P, lowest=lowest, highest=highest)
    for end in ("mean", "low", "high"):
        assert getattr(scaled, end) == pytest.approx(lowest + width * getattr(plain, end), abs=1e-12)


def test_a_paired_difference_has_no_unit() -> None:
    """Of shares, or of the same as grades from 1 to 10: everything nine times as large, and the same p-value."""
    ours_P, theirs_P = np.random.default_rng(9).random((2, 12))
    shares = paired_difference(ours_P, theirs_P)
    grades = paired_difference(1.0 + 9.0 * ours_P, 1.0 + 9.0 * theirs_P, lowest=1.0, highest=10.0)
    for end in ("mean", "low", "high"):
        assert getattr(grades, end) == pytest.approx(9.0 * getattr(shares, end), abs=1e-12)
    assert grades.p_value == pytest.approx(shares.p_value) and shares.p_value < 0.9


def test_verdicts_that_all_say_the_same_are_not_certain() -> None:
    """Five verdicts of .6, 0.2 on [-1, 1], have shown no variance: d = 1/5, so t = .2 / sqrt(1/5 / 5) = 1 exactly, and
    Student's with 4 degrees of freedom is beyond 1 on either side in .3739."""
    assert p_value(0.2, 0.0, 5) == pytest.approx(0.3739010, abs=1e-6)


def test_a_paired_difference_is_the_mean_of_differences() -> None:
    """And exchanging the two turns the sign of everything."""
    rng = np.random.default_rng(3)
    ours_P, theirs_P = rng.random(50), rng.random(50)
    found, turned = paired_difference(ours_P, theirs_P), paired_difference(theirs_P, ours_P)
    assert found.mean == pytest.approx(float((ours_P - theirs_P).mean()))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p_value == pytest.approx(found.p_value)
    halved_P = 0.5 + (ours_P - theirs_P) / 2.0
    mean = halved_P.mean()
    share = halved_P.var() / (mean * (1 - mean)) + 1 / 50
    for end in (0.5 + found.low / 2.0, 0.5 + found.high / 2.0):
        assert abs(mean - end) == pytest.approx(2.00957524 * math.sqrt(share * end * (1 - end) / 50))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=40))
def test_the_p_value_says_what_the_interval_says(pairs: list[tuple[float, float]]) -> None:
    found = paired_difference([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    assert (found.p_value < 0.05) == (found.low > 0.0 or found.high < 0.0)


def test_pairing_helps_where_prompts_differ() -> None:
    """Two policies that fail on the same prompts: the paired interval is less than half as wide as from two means."""
    rng = np.random.default_rng(4)
    hard_P = rng.random(400)
    ours_P, theirs_P = (hard_P < 0.6).astype(float), (hard_P < 0.55).astype(float)
    found = paired_difference(ours_P, theirs_P)
    separate = [mean_interval(values_P) for values_P in (ours_P, theirs_P)]
    assert found.low > 0.0 and separate[0].low < separate[1].high
    assert found.high - found.low < 0.5 * math.hypot(*(2 * (found.high - found.mean) for found in separate))


def test_holm_by_hand() -> None:
    """.001 x 4, .01 x 3, .02 x 2, .5 x 1; and never below an earlier one."""
    assert holm([0.5, 0.01, 0.001, 0.02]).tolist() == pytest.approx([0.5, 0.03, 0.004, 0.04])
    assert holm([0.02, 0.03]).tolist() == pytest.approx([0.04, 0.04])


def test_the_joint_error_of_known_correlations() -> None:
    """Equal columns cost nothing; 10 independent ones cost Šidák's 1 - .95^(1/10), to the noise of the draws."""
    assert joint_error(np.ones((6, 6))) == pytest.approx(0.05, rel=0.04)
    assert joint_error(np.eye(1)) == joint_error(np.diag([1.0, 0.0])) == 0.05
    assert joint_error(np.eye(10)) == pytest.approx(1.0 - 0.95**0.1, rel=0.06)


def test_columns_that_all_agree_count_as_independent() -> None:
    """They have shown no correlation: 9 of them and one that varies cost what 10 independent ones do."""
    values_PM = np.ones((30, 10))
    values_PM[:10, 0] = 0.0
    assert simultaneous_intervals(values_PM).error == pytest.approx(1.0 - 0.95**0.1, rel=0.06)
    assert simultaneous_intervals(np.full((3, 10), 0.7)).error == pytest.approx(1.0 - 0.95**0.1, rel=0.06)


def test_a_variance_that_rounds_below_zero_is_zero() -> None:
    assert joint_error(np.array([[1.0, 0.0], [0.0, -1e-18]])) == 0.05


def test_one_column_is_the_plain_interval() -> None:
    values_P = np.random.default_rng(5).random(30)
    (found,) = simultaneous_intervals(values_P[:, None]).estimates
    assert found == mean_interval(values_P)


def test_an_exact_mean_has_no_width() -> None:
    low_M, high_M = ends(np.array([0.0, 0.3, 1.0]), np.zeros(3), np.full(3, np.inf), 0.05)
    assert low_M.tolist() == high_M.tolist() == [0.0, 0.3, 1.0]


def test_groups_are_their_own_means() -> None:
    names, found = group_intervals([1.0, 0.0, 1.0, 1.0, 0.5], ["b", "a", "b", "b", "a"])
    assert names == ("b", "a")
    assert [estimate.mean for estimate in found.estimates] == [1.0, 0.25]
    assert [estimate.num_prompts for estimate in found.estimates] == [3, 2]
    assert found.lowest.mean == 0.25 and found.lowest.low == found.estimates[1].low


def test_the_lowest_mean_is_below_every_upper_end() -> None:
    """Three prompts at 1/3 say little, a hundred at .4 much: the smallest true mean is not above what bounds the .4."""
    _, found = group_intervals([1.0, 0.0, 0.0, *[1.0] * 40, *[0.0] * 60], ["few"] * 3 + ["many"] * 100)
    few, many = found.estimates
    assert found.lowest.mean == few.mean and found.lowest.low == few.low
    assert found.lowest.high == many.high < few.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"expected a list of values, got shape \[0\]"),
        (lambda: mean_interval([0.5, 1.5]), r"expected values in \[0, 1\], found 1.5 in row 1"),
        (lambda: mean_interval([0.5, math.nan]), r"found nan in row 1"),
        (lambda: mean_interval([0.5, 0.5], ["a"]), r"expected a prompt for each of 2 values, got 1"),
        (lambda: paired_difference([0.5], [0.5, 1.0]), r"got 1 and 2; keep the prompts that both have"),
        (lambda: group_intervals([1.0, 0.0], ["a"]), r"expected a group for each of 2 values, got 1"),
        (lambda: simultaneous_intervals([[1.0, math.nan]]), r"with 1 empty columns"),
    ],
)
def test_wrong_values_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


# Coverage


PARTING = [(10, 0.95, 0.90, 0.5), (20, 0.90, 0.85, 0.9), (30, 0.97, 0.93, 0.9), (100, 0.50, 0.47, 0.97)]


@pytest.mark.parametrize(
    ("num", "ours", "theirs", "same", "draws"),
    [
        *[(*one, 400) for one in PARTING],
        *[pytest.param(*one, 10_000, marks=pytest.mark.slow) for one in PARTING],
    ],
)
def test_paired_intervals_cover_where_few_prompts_part_the_two(
    num: int, ours: float, theirs: float, same: float, draws: int
) -> None:
    """Two policies that mostly win and lose on the same prompts: a prompt has one number for both with probability
    `same`. Where none parts them the interval must still hold the difference."""
    rng = np.random.default_rng(6)
    one_SP, other_SP, is_shared_SP = rng.random((3, draws, num))
    other_SP = np.where(is_shared_SP < same, one_SP, other_SP)
    held = 0
    for one_P, other_P in zip(one_SP < ours, other_SP < theirs, strict=True):
        found = paired_difference(one_P, other_P)
        held += found.low <= ours - theirs <= found.high
    print(f"{num} prompts, {ours} against {theirs}, {same} shared: {held / draws:.4f}")
    assert held / draws >= 0.91


@pytest.mark.parametrize("draws", [60, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_columns_that_nearly_always_win_are_covered_at_once(draws: int) -> None:
    """20 columns of rate .99 on 100 prompts, a third of which show no loss: Šidák's correction for all covers 91 %."""
    rng, held = np.random.default_rng(7), 0
    for values_PM in rng.random((draws, PROMPTS, 20)) < 0.99:
        found = simultaneous_intervals(values_PM)
        held += all(one.low <= 0.99 <= one.high for one in found.estimates)
    print(f"20 columns of rate .99: {held / draws:.4f}")
    assert held / draws >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_clustered_intervals_cover(rate: float) -> None:
    """1 to 5 verdicts on each of 100 prompts of different difficulty: 93 to 97 %; with verdicts as the unit, fewer."""

    def draw(rng: np.random.Generator) -> tuple[Array, list[int]]:
        sizes_P = rng.integers(1, 6, PROMPTS)
        prompts_N = np.repeat(np.arange(PROMPTS), sizes_P)
        rates_N = prompt_rates(rng, rate)[prompts_N]
        return (rng.random(len(rates_N)) < rates_N).astype(float), prompts_N.tolist()

    def clustered(rng: np.random.Generator) -> bool:
        found = mean_interval(*draw(rng))
        return found.low <= rate <= found.high

    def naive(rng: np.random.Generator) -> bool:
        found = mean_interval(draw(rng)[0])
        return found.low <= rate <= found.high

    covered, too_narrow = share_covered(clustered, 0), share_covered(naive, 0)
    print(f"clustered, rate {rate}: {covered:.4f}; verdicts as the unit: {too_narrow:.4f}")
    assert 0.93 <= covered <= 0.97
    assert too_narrow < 0.90


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 0.75])
def test_paired_intervals_cover(ratio: float) -> None:
    """Two policies on the same 100 prompts, each judged in both orders; a hard prompt is hard for both.

    The other one wins with `ratio` times the probability on every prompt, so that the true difference is
    .6 (1 - ratio).
    """

    def cover(rng: np.random.Generator) -> bool:
        rates_P1 = prompt_rates(rng, 0.6)[:, None]
        ours_P, theirs_P = ((rng.random((PROMPTS, 2)) < scale * rates_P1).mean(1) for scale in (1.0, ratio))
        found = paired_difference(ours_P, theirs_P)
        return found.low <= 0.6 * (1.0 - ratio) <= found.high

    covered = share_covered(cover, 1)
    print(f"paired, ratio {ratio}: {covered:.4f}")
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_wilson_intervals_of_verdicts_cover(rate: float) -> None:
    def cover(rng: np.random.Generator) -> bool:
        found = mean_interval((rng.random(PROMPTS) < rate).astype(float))
        return found.low <= rate <= found.high

    covered = share_covered(cover, 2)
    print(f"Wilson, rate {rate}: {covered:.4f}")
    assert covered >= 0.93


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["groups", "columns"])
def test_simultaneous_intervals_cover_at_once(kind: str) -> None:
    """Six means over 100 prompts: of disjoint groups, some of 10 prompts only, or of columns that share the prompts."""
    rates_M = np.array([0.3, 0.5, 0.5, 0.6, 0.75, 0.9])
    group_P = np.repeat(np.arange(6), [10, 10, 20, 20, 20, 20])

    def cover(rng: np.random.Generator) -> tuple[bool, bool]:
        shared_P1 = rng.random((PROMPTS, 1)) if kind == "columns" else 0.0
        noise_PM = rng.random((PROMPTS, 6))
        # Half of the prompts decide all columns by one number.
        noise_PM = np.where(rng.random((PROMPTS, 1)) < 0.5, shared_P1, noise_PM) if kind == "columns" else noise_PM
        values_PM = (noise_PM < rates_M).astype(float)
        if kind == "groups":
            values_PM[group_P[:, None] != np.arange(6)] = np.nan
        found = simultaneous_intervals(values_PM)
        one_by_one = [mean_interval(values_P[~np.isnan(values_P)]) for values_P in values_PM.T]
        inside = [
            all(each.low <= rate <= each.high for each, rate in zip(estimates, rates_M, strict=True))
            for estimates in (found.estimates, one_by_one)
        ]
        assert not inside[0] or found.lowest.low <= 0.3 <= found.lowest.high
        return inside[0], inside[1]

    rng = np.random.default_rng(3)
    joint, plain = np.mean([cover(rng) for _ in range(TOURNAMENTS)], axis=0)
    print(f"simultaneous, {kind}: {joint:.4f}; one by one: {plain:.4f}")
    assert joint >= 0.93
    assert plain < 0.85
