"""Figures of policies whose answers have met those of an opponent.

The unit is the prompt: several answers to one are not independent, so a prompt counts once, with the mean of its
answers. A reply of the judge that could not be read stands here as what the oracle made of it, a tie unless it refuses,
and is counted beside.

Shape letters: ``P`` prompts, ``G`` answers to a prompt, ``K`` members of a panel.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.evaluation.intervals import (
    Array,
    Difference,
    Estimate,
    group_intervals,
    holm,
    mean_interval,
    paired_difference,
    simultaneous_intervals,
)

Answers = Sequence[Sequence[str]]
"""Of each prompt, G of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """A policy and its opponent, with verdicts.

    Attributes:
        policy: its name.
        opponent: the other's.
        wins_PGK: probability that the policy's answer beats the opponent's, by each member of a panel or by the oracle.
        ours: the policy's answers.
        theirs: the opponent's.
        members: names of the panel's members; empty for a single oracle.
        categories: of the prompts; empty where nothing says them.
        unparsable: replies of the judge without a verdict.
    """

    policy: str
    opponent: str
    wins_PGK: Array
    ours: Answers
    theirs: Answers
    members: Sequence[str] = ()
    categories: Sequence[str] = ()
    unparsable: int = 0

    @property
    def wins_PG(self) -> Array:
        """The mean over the panel."""
        return self.wins_PGK.mean(-1)

    @property
    def wins_P(self) -> Array:
        """The mean over a prompt's answers, too: what intervals are made of."""
        return self.wins_PG.mean(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Characters of an answer: the mean over prompts, and its standard error; ``None`` of one prompt."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a policy reached against an opponent. Rates are in [0, 1], intervals of 95 %.

    Attributes:
        policy: its name.
        opponent: the other's.
        win_rate: mean probability of a win.
        discrete_win_rate: wins and half the draws, of all.
        n_wins: answers that win.
        n_wins_base: answers that lose.
        n_draws: exact draws, identical answers among them.
        n_identical: pairs of equal answers, which nobody is asked about.
        n_unparsable: replies of the judge without a verdict.
        length: of the policy's answers.
        opponent_length: of the opponent's.
        categories: win rates; all their intervals hold at once.
        groups: the same by members of a panel.
        worst_group: the member who gains least: its name, and the interval of the lowest rate.
        length_controlled: figures of AlpacaEval's length-controlled win rate in points, where there are difficulties.
    """

    policy: str
    opponent: str
    win_rate: Estimate
    discrete_win_rate: Estimate
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_identical: int
    n_unparsable: int
    length: Length
    opponent_length: Length
    categories: Mapping[str, Estimate]
    groups: Mapping[str, Estimate]
    worst_group: tuple[str, Estimate] | None
    length_controlled: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; rates are in points, as leaderboards give them."""
        worst = None if self.worst_group is None else {"group": self.worst_group[0], **points(self.worst_group[1])}
        return {
            "policy": self.policy,
            "opponent": self.opponent,
            "num_prompts": self.win_rate.num_prompts,
            **points(self.win_rate),
            **points(self.discrete_win_rate, "discrete_win_rate", "discrete_"),
            "n_wins": self.n_wins,
            "n_wins_base": self.n_wins_base,
            "n_draws": self.n_draws,
            "n_identical": self.n_identical,
            "n_unparsable": self.n_unparsable,
            "avg_length": self.length.mean,
            "avg_length_se": self.length.standard_error,
            "opponent_avg_length": self.opponent_length.mean,
            "opponent_avg_length_se": self.opponent_length.standard_error,
            "length_controlled": None if self.length_controlled is None else dict(self.length_controlled),
            "categories": [
                {"category": name, **points(rate), "num_prompts": rate.num_prompts}
                for name, rate in self.categories.items()
            ],
            "groups": [{"group": name, **points(rate)} for name, rate in self.groups.items()],
            "worst_group": worst,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Two policies that met the same opponent on the same prompts.

    Attributes:
        first: a policy.
        second: another.
        opponent: of both.
        difference: of their win rates, first minus second, in [-1, 1].
        p_value: of no difference, corrected for all comparisons of the evaluation (Holm).
    """

    first: str
    second: str
    opponent: str
    difference: Difference
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, in points."""
        return {
            "first": self.first,
            "second": self.second,
            "opponent": self.opponent,
            **points(self.difference, "difference"),
            "p_value": self.difference.p_value,
            "p_value_holm": self.p_value,
        }


def points(estimate: Estimate, name: str = "win_rate", prefix: str = "") -> dict[str, float]:
    """An estimate times 100, under these names.

    Example:
        >>> points(Estimate(mean=0.5, low=0.25, high=0.75, num_prompts=9))
        {'win_rate': 50.0, 'low': 25.0, 'high': 75.0}
    """
    low, high = f"{prefix}low", f"{prefix}high"
    return {name: 100.0 * estimate.mean, low: 100.0 * estimate.low, high: 100.0 * estimate.high}


def cell(match: Match, length_controlled: Mapping[str, Any] | None = None) -> Cell:
    """The figures of a match.

    Args:
        match: with one prompt at least.
        length_controlled: found elsewhere, where that was possible.
    """
    wins_PG = match.wins_PG
    discrete_PG = np.where(wins_PG == 0.5, 0.5, (wins_PG > 0.5).astype(np.float64))
    groups, worst_group = _members(match)
    return Cell(
        policy=match.policy,
        opponent=match.opponent,
        win_rate=mean_interval(match.wins_P),
        discrete_win_rate=mean_interval(discrete_PG.mean(-1)),
        n_wins=int((discrete_PG == 1.0).sum()),
        n_wins_base=int((discrete_PG == 0.0).sum()),
        n_draws=int((discrete_PG == 0.5).sum()),
        n_identical=sum(a == b for ours, theirs in _groups(match) for a, b in zip(ours, theirs, strict=True)),
        n_unparsable=match.unparsable,
        length=_length(match.ours),
        opponent_length=_length(match.theirs),
        categories=_categories(match),
        groups=groups,
        worst_group=worst_group,
        length_controlled=length_controlled,
    )


def paired_comparisons(matches: Sequence[Match]) -> tuple[PairedComparison, ...]:
    """Every two policies against every opponent that both have met."""
    pairs = list(_pairs(matches))
    found = [paired_difference(first.wins_P, second.wins_P) for first, second in pairs]
    corrected = holm([difference.p_value for difference in found]).tolist()
    return tuple(
        PairedComparison(
            first=first.policy, second=second.policy, opponent=first.opponent, difference=difference, p_value=p_value
        )
        for (first, second), difference, p_value in zip(pairs, found, corrected, strict=True)
    )


def _pairs(matches: Sequence[Match]) -> Iterator[tuple[Match, Match]]:
    for place, first in enumerate(matches):
        yield from ((first, second) for second in matches[place + 1 :] if second.opponent == first.opponent)


def _groups(match: Match) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    return zip(match.ours, match.theirs, strict=True)


def _length(answers: Answers) -> Length:
    lengths_P = np.array([np.mean([len(text) for text in group]) for group in answers])
    count = len(lengths_P)
    error = float(lengths_P.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Length(mean=float(lengths_P.mean()), standard_error=error)


def _categories(match: Match) -> dict[str, Estimate]:
    # A single category is the whole.
    if len(set(match.categories)) < 2:
        return {}
    names, found = group_intervals(match.wins_P, match.categories)
    return dict(zip(names, found.estimates, strict=True))


def _members(match: Match) -> tuple[dict[str, Estimate], tuple[str, Estimate] | None]:
    if not match.members:
        return {}, None
    found = simultaneous_intervals(match.wins_PGK.mean(1))
    rates = dict(zip(match.members, found.estimates, strict=True))
    return rates, (min(rates, key=lambda name: rates[name].mean), found.lowest)
