"""Figures over seeds against values worked out by hand.

With two degrees of freedom Student's distribution is elementary: P(|T| > t) = 1 - t / sqrt(2 + t^2).
"""

import math

import pytest

from alignment.evaluation.seeds import compare_over_seeds, seed_mean

VALUES = {
    "a": {0: 1.0, 1: 2.0, 2: 3.0},
    "b": {0: 2.0, 1: 4.0, 2: 6.0},
    "c": {0: 10.0, 1: 10.0, 2: 10.0},
}


def test_the_interval_is_students() -> None:
    """1, 2, 3: mean 2, standard error 1/sqrt 3, and t with P(|T| > t) = .05 is sqrt(2 * .95^2 / (1 - .95^2))."""
    reach = math.sqrt(2 * 0.95**2 / (1 - 0.95**2)) / math.sqrt(3)
    found = seed_mean([3.0, 1.0, 2.0])
    assert found is not None and (found.mean, found.num_seeds) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2.0 - reach, 2.0 + reach))


def test_what_no_interval_can_be_said_of() -> None:
    one, alike = seed_mean([5.0]), seed_mean([5.0, 5.0])
    assert seed_mean([]) is None
    assert one is not None and (one.mean, one.low, one.high) == (5.0, None, None) and one.describe() == "5"
    assert alike is not None and (alike.low, alike.high) == (5.0, 5.0)


@pytest.mark.parametrize(("better", "winner"), [("lower", "a"), ("higher", "c")])
def test_pairs_are_corrected_for_their_number(better: str, winner: str) -> None:
    """a - b: -2, t = 2 sqrt 3; a - c: -8, t = 8 sqrt 3; b - c: -6, t = 3 sqrt 3.

    By themselves the p-values are .0742, .0052 and .0351; Holm takes 3 times the smallest, twice the next, and never
    less than the one before. So b - c is real by itself and not among three.
    """
    p_ab, p_ac, p_bc = (1 - t / math.sqrt(2 + t * t) for t in (2 * 3**0.5, 8 * 3**0.5, 3 * 3**0.5))
    ab, ac, bc = compare_over_seeds(VALUES, better)  # type: ignore[arg-type]
    assert [(pair.first, pair.second) for pair in (ab, ac, bc)] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.difference.mean for pair in (ab, ac, bc) if pair.difference] == [-2.0, -8.0, -6.0]
    assert (ab.p_value, ac.p_value, bc.p_value) == pytest.approx((p_ab, p_ac, p_bc)) and p_bc < 0.05
    assert (ac.adjusted, bc.adjusted, ab.adjusted) == pytest.approx((3 * p_ac, 2 * p_bc, max(2 * p_bc, p_ab)))
    assert (ab.better, ac.better, bc.better) == (None, winner, None)
    assert (ab.verdict, ac.verdict) == ("not told apart", f"{winner} is better")


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    """Seeds 100 apart, variants 1 apart: each interval is hopeless, and the difference is known exactly."""
    values = {"a": {s: 100.0 * s for s in range(4)}, "b": {s: 100.0 * s + 1.0 for s in range(4)}}
    (pair,) = compare_over_seeds(values, "lower")
    assert (pair.p_value, pair.better) == (0.0, "a")


@pytest.mark.parametrize("others", [{}, {5: 1.0}, {0: 9.0, 5: 1.0}])
def test_fewer_than_two_shared_seeds_tell_nothing_apart(others: dict[int, float]) -> None:
    (pair,) = compare_over_seeds({"a": VALUES["a"], "b": others}, "lower")
    assert (pair.p_value, pair.adjusted, pair.better) == (1.0, 1.0, None)
