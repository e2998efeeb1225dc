"""Measures of order and circles on tables whose answer is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from alignment.evaluation.transitivity import (
    complete_triples,
    consistence,
    cyclic_triples,
    disc_shares,
    hodge_shares,
    stochastic_transitivity,
)

RPS = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])


def tournament(rng: np.random.Generator, size: int) -> np.ndarray:
    upper = np.triu(rng.integers(0, 2, (size, size)), 1).astype(float)
    table = upper + np.tril(1.0 - upper.T, -1)
    np.fill_diagonal(table, 0.5)
    return table


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 8))
def test_circles_are_counted_by_kendalls_formula(seed: int, size: int) -> None:
    """C(n,3) - sum_i C(s_i, 2) with s_i the wins of i."""
    table = tournament(np.random.default_rng(seed), size)
    wins = (table - 0.5 * np.eye(size)).sum(1)
    expected = size * (size - 1) * (size - 2) / 6 - (wins * (wins - 1) / 2).sum()
    found = cyclic_triples(table)
    assert len(found) == expected
    assert all(table[i, j] == table[j, k] == table[k, i] == 1.0 for i, j, k in found)


def test_a_random_tournament_has_a_quarter_of_its_triples_in_circles() -> None:
    rng = np.random.default_rng(0)
    counts = [len(cyclic_triples(tournament(rng, 7))) for _ in range(400)]
    assert np.mean(counts) == pytest.approx(35 / 4, abs=3 * np.std(counts) / 20)


def test_consistence_has_its_ends() -> None:
    """The regular tournaments have the most circles: (n^3 - n)/24 for odd n, (n^3 - 4n)/24 for even n."""
    assert consistence((5**3 - 5) // 24, 5) == consistence((6**3 - 24) // 24, 6) == 0.0
    assert consistence(0, 9) == 1.0
    ahead = (np.arange(5)[None] - np.arange(5)[:, None]) % 5
    regular = np.where(ahead == 0, 0.5, (ahead <= 2).astype(float))
    assert len(cyclic_triples(regular)) == 5


def test_pairs_that_nobody_compared_make_no_triple() -> None:
    table = np.full((5, 5), 0.5)
    table[0, 1] = table[1, 0] = np.nan
    assert complete_triples(table) == 7 and complete_triples(np.full((5, 5), 0.5)) == 10
    circle = RPS.copy()
    circle[0, 1] = circle[1, 0] = np.nan
    assert cyclic_triples(circle) == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=7))
def test_bradley_terry_breaks_no_bound_and_has_no_circulation(strengths: list[float]) -> None:
    """Its logits are a gradient, one disc, and satisfy even strong stochastic transitivity."""
    strength = np.array(strengths)
    table = expit(strength[:, None] - strength)
    found = stochastic_transitivity(table)
    assert (found.weak, found.moderate, found.strong) == (0.0, 0.0, 0.0)
    if np.ptp(strength) > 1e-3:
        assert hodge_shares(logit(table)).cyclic == pytest.approx(0.0, abs=1e-10)
        assert disc_shares(logit(table)) == pytest.approx((1.0,))


def test_violations_by_hand() -> None:
    """.6, .9 and .7 the long way: moderate holds, strong does not. With .4 the long way it is a circle, and then all
    three ways around break all bounds: 3 chains, each of whose long way is below 1/2."""

    def table(long: float) -> np.ndarray:
        return np.array([[0.5, 0.6, long], [0.4, 0.5, 0.9], [1 - long, 0.1, 0.5]])

    found = stochastic_transitivity(table(0.7))
    assert (found.num_chains, found.weak, found.moderate, found.strong) == (1, 0.0, 0.0, 1.0)
    circle = stochastic_transitivity(table(0.4))
    assert (circle.num_chains, circle.weak, circle.moderate, circle.strong) == (3, 1.0, 1.0, 1.0)


def test_a_chain_whose_ends_never_met_is_none() -> None:
    """a is ahead of b and b of c: nothing is known of a and c, so nothing is kept and nothing broken."""
    table = np.array([[0.5, 0.9, np.nan], [0.1, 0.5, 0.9], [np.nan, 0.1, 0.5]])
    assert stochastic_transitivity(table).num_chains == 0


@pytest.mark.parametrize("seed", range(5))
def test_hodge_parts_add_up_and_are_apart(seed: int) -> None:
    """A gradient plus a circulation: the shares are those of the two squared norms; all pairs: nothing harmonic.

    The gradient of a complete table is the difference of its row means.
    """
    rng = np.random.default_rng(seed)
    flow = rng.normal(size=(6, 6))
    flow -= flow.T
    found = hodge_shares(flow)
    score = flow.mean(1)
    gradient = score[:, None] - score
    assert found.gradient == pytest.approx((gradient**2).sum() / (flow**2).sum())
    assert found.harmonic == 0.0 and found.gradient + found.curl == pytest.approx(1.0)


def test_a_ring_is_harmonic() -> None:
    """Six items, each compared with its neighbours only: a flow around the ring is no gradient and has no triangle."""
    flow = np.full((6, 6), np.nan)
    np.fill_diagonal(flow, 0.0)
    for i, j in itertools.pairwise([*range(6), 0]):
        flow[i, j], flow[j, i] = 1.0, -1.0
    assert hodge_shares(flow).harmonic == pytest.approx(1.0)


def test_discs_are_the_rotations() -> None:
    """Two planes turned by 3 and by 1, seen from a random basis: shares .9 and .1."""
    rotation = np.zeros((5, 5))
    rotation[0, 1], rotation[2, 3] = 3.0, 1.0
    rotation -= rotation.T
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert disc_shares(basis @ rotation @ basis.T) == pytest.approx((0.9, 0.1))
    assert hodge_shares(RPS - 0.5).curl == pytest.approx(1.0) and disc_shares(RPS - 0.5) == pytest.approx((1.0,))
