"""From values to places on a figure: linear and logarithmic scales, round ticks, numbers as people write them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Steps between ticks, in units of a power of ten.
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low`` to ``start`` and ``high`` to ``end``, straight or by the logarithm.

    Example:
        >>> Scale(0.01, 1.0, 100.0, 0.0, log=True)(0.1)
        50.0
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = map(math.log10 if self.log else float, (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside the scale, at most so many."""
        return log_ticks(self.low, self.high, most) if self.log else ticks(self.low, self.high, most)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of a round step within [low, high].

    Example:
        >>> ticks(0.0, 1.0, 5), ticks(0.0, 60.0, 4)
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 20.0, 40.0, 60.0])
    """
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (unit * factor for factor in (*_STEPS, 20.0)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f"{number * step:.10g}") for number in range(first, last + 1)]
    raise AssertionError(f"no step divides [{low}, {high}] into {most}")


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten within [low, high], thinned out; where there are fewer than two, 1, 2 and 5 times these.

    Example:
        >>> log_ticks(0.001, 1.0, 5), log_ticks(0.03, 0.3, 5)
        ([0.001, 0.01, 0.1, 1.0], [0.05, 0.1, 0.2])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1.0,), (1.0, 2.0, 5.0)):
        every = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
        inside = [value for value in every if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) >= 2:
            return inside[:: math.ceil(len(inside) / most)]
    return [low, high]


def around(values: Iterable[float], *, log: bool = False) -> tuple[float, float]:
    """Ends of a scale that shows the values, with a little air.

    Example:
        >>> around([0.0, 1.0]), around([3.0]), around([1.0, 100.0], log=True)
        ((-0.05, 1.05), (2.7, 3.3), (0.79..., 125.8...))
    """
    ends = [math.log10(value) if log else value for value in values]
    low, high = min(ends), max(ends)
    # Of a single value: a factor of two, a tenth of it, or, of zero, one.
    air = 0.05 * (high - low) or (0.3 if log else 0.1 * abs(low) or 1.0)
    return (10.0 ** (low - air), 10.0 ** (high + air)) if log else (low - air, high + air)


def number(value: float) -> str:
    """Four digits that count, and all of a whole number.

    Example:
        >>> [number(value) for value in (0.00391, 0.5, 719880, 3.2e-7, -12.3456, float("nan"))]
        ['0.00391', '0.5', '719,880', '3.2e-07', '-12.35', 'nan']
    """
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.4g}"
    return f"{value:.4g}"
