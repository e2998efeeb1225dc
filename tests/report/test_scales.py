"""Ticks and scales: properties that any axis needs."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.report.scales import Scale, around, log_ticks, number, ticks

SIZES = st.floats(1e-9, 1e9)


@given(st.floats(-1e6, 1e6), SIZES, st.integers(2, 8))
def test_ticks_are_few_even_and_inside(low: float, size: float, most: int) -> None:
    high = low + max(size, abs(low) * 1e-6)
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    slack = (high - low) * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1e-6 * max(abs(tick) for tick in found) + slack


@given(SIZES, st.floats(1.5, 1e12), st.integers(2, 8))
def test_ticks_of_a_logarithmic_axis_are_few_and_inside(low: float, factor: float, most: int) -> None:
    found = log_ticks(low, low * factor, most)
    assert 1 <= len(found) <= most
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in found)
    assert found == sorted(found)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.booleans())
def test_a_scale_around_values_shows_them_all(values: list[float], log: bool) -> None:
    values = [abs(value) + 1e-6 for value in values] if log else values
    low, high = around(values, log=log)
    assert low < min(values) <= max(values) < high


def test_equal_ratios_are_equal_distances_on_a_logarithmic_scale() -> None:
    """0.1, 0.01 and 0.001 divide [1e-4, 1] into quarters: 200 px from 1e-4 up to 1 are 50 px a decade."""
    scale = Scale(1e-4, 1.0, 200.0, 0.0, log=True)
    assert [scale(value) for value in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)] == pytest.approx([200.0, 150.0, 100.0, 50.0, 0.0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.0, 1e-300, 123456.789])
def test_any_number_can_be_written(value: float) -> None:
    assert number(value)
