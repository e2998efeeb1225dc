"""Mixtures: the shares, what running out means, and that a seed fixes the order."""

from collections import Counter

import pytest

from alignment.data import Row, Turn, mix_rows
from alignment.errors import UserError


def source(name: str, size: int) -> list[Row]:
    return [Row(prompt=(Turn("user", f"{name} {i}"),), source=f"{name}:{i}") for i in range(size)]


def counts(rows: tuple[Row, ...]) -> Counter[str]:
    return Counter(row.source.partition(":")[0] for row in rows)


def test_shares_follow_the_weights() -> None:
    """4,000 draws: the share of a fair 3:1 mixture has a standard error of 0.7 %; five of them are allowed."""
    mixed = mix_rows([source("a", 3000), source("b", 1000)], [3.0, 1.0], stop="all_exhausted", seed=0)
    assert counts(mixed)["a"] / len(mixed) == pytest.approx(0.75, abs=0.035)


def test_the_first_to_run_out_ends_the_mixture_and_nothing_is_repeated() -> None:
    mixed = mix_rows([source("a", 1000), source("b", 20)], [1.0, 1.0], stop="first_exhausted", seed=1)
    assert max(Counter(row.source for row in mixed).values()) == 1
    assert 18 <= counts(mixed)["b"] <= 20 and counts(mixed)["a"] < 60


def test_all_exhausted_takes_every_row_and_repeats_the_short_source() -> None:
    mixed = mix_rows([source("a", 200), source("b", 20)], [1.0, 1.0], stop="all_exhausted", seed=1)
    drawn = Counter(row.source for row in mixed)
    assert len(drawn) == 220
    assert max(count for name, count in drawn.items() if name.startswith("b")) > 5
    assert max(count for name, count in drawn.items() if name.startswith("a")) == 1


def test_the_seed_fixes_the_order_and_sources_are_shuffled() -> None:
    groups = [source("a", 50), source("b", 50)]
    first = mix_rows(groups, [1.0, 1.0], stop="first_exhausted", seed=3)
    assert first == mix_rows(groups, [2.0, 2.0], stop="first_exhausted", seed=3), "only ratios count"
    assert first != mix_rows(groups, [1.0, 1.0], stop="first_exhausted", seed=4)
    own = [row for row in first if row.source.startswith("a")]
    assert own != groups[0][: len(own)]


def test_the_seed_draws_the_sources_too() -> None:
    """One row repeated tells the draws of sources from the order inside them."""
    groups = [source("a", 1) * 50, source("b", 1) * 50]
    first, other = (mix_rows(groups, [1.0, 1.0], stop="first_exhausted", seed=seed) for seed in (3, 4))
    assert first != other


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(UserError, match="one positive weight for each of 2 sources"):
        mix_rows([source("a", 2), source("b", 2)], [1.0], stop="first_exhausted", seed=0)
    with pytest.raises(UserError, match="found an empty one"):
        mix_rows([source("a", 2), []], [1.0, 1.0], stop="first_exhausted", seed=0)
