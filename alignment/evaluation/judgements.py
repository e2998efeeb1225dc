"""Judgements of pairs, before they become a table: votes of annotators, tastes for a position or a length, agreement.

Shape letters: ``N`` judgements. NumPy float64.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import UserError
from alignment.evaluation.intervals import LEVEL, Array, Estimate, ends, mean_interval, numbered, padded
from alignment.evaluation.judge_quality import cohens_kappa
from alignment.evaluation.win_matrix import WinMatrix, judged_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Somebody compared two items on a prompt.

    Attributes:
        prompt: names the prompt.
        left: the item that is listed first: a system, or a response.
        right: the other one.
        win: 1 if left won, 0 if right did, 1/2 for a tie; or the probability that left wins.
        annotator: who compared, where that is known.
        lengths: of the two texts in characters, where they are known.
    """

    prompt: str
    left: str
    right: str
    win: float
    annotator: str | None = None
    lengths: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two annotators on the pairs that both judged.

    Attributes:
        annotators: their names.
        num_pairs: how many.
        share: of equal verdicts.
        kappa: Cohen's: 0 is what their own rates of verdicts give by chance, 1 is full agreement; nan where both gave
            one verdict only.
    """

    annotators: tuple[str, str]
    num_pairs: int
    share: float
    kappa: float


def majority(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """One judgement for each pair of items on each prompt: the verdict that most of its annotators gave, or a tie.

    Probabilities between 0 and 1 other than 1/2 are averaged: there is no most frequent one.

    Example:
        >>> votes = [Judgement(prompt="p", left="a", right="b", win=win, annotator=str(win)) for win in (1.0, 1.0, 0.0)]
        >>> [(vote.win, vote.annotator) for vote in majority(votes)]
        [(1.0, None)]
    """
    votes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    first: dict[tuple[str, str, str], Judgement] = {}
    for judgement in judgements:
        key = _pair(judgement)
        first.setdefault(key, judgement)
        votes[key].append(_win_of(judgement, first[key].left))
    return tuple(
        Judgement(
            prompt=one.prompt, left=one.left, right=one.right, win=_most_frequent(votes[key]), lengths=one.lengths
        )
        for key, one in first.items()
    )


def systems_matrix(judgements: Sequence[Judgement]) -> WinMatrix:
    """The table of the systems that are compared, names in alphabetical order; a prompt is a cluster.

    Args:
        judgements: one for each pair on each prompt, as :func:`majority` makes them.

    Raises:
        UserError: for a system against itself, and for fewer than two.
    """
    names = sorted({name for judgement in judgements for name in (judgement.left, judgement.right)})
    place = {name: k for k, name in enumerate(names)}
    return judged_matrix(
        names,
        [place[judgement.left] for judgement in judgements],
        [place[judgement.right] for judgement in judgements],
        [judgement.win for judgement in judgements],
        [judgement.prompt for judgement in judgements],
    )


def prompt_tables(judgements: Sequence[Judgement]) -> tuple[Array, ...]:
    """For each prompt the table [G, G] of the responses that were compared there, nan where nobody compared.

    Several verdicts on a pair are averaged.
    """
    by_prompt: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_prompt[judgement.prompt].append(judgement)
    tables = []
    for group in by_prompt.values():
        items = list(dict.fromkeys(item for one in group for item in (one.left, one.right)))
        place = {item: g for g, item in enumerate(items)}
        wins_GG, counts_GG = np.zeros((len(items), len(items))), np.zeros((len(items), len(items)))
        for one in group:
            left, right = place[one.left], place[one.right]
            wins_GG[left, right] += one.win
            wins_GG[right, left] += 1.0 - one.win
            counts_GG[[left, right], [right, left]] += 1.0
        table_GG = np.where(counts_GG > 0.0, wins_GG / counts_GG.clip(min=1.0), np.nan)
        np.fill_diagonal(table_GG, 0.5)
        tables.append(table_GG)
    return tuple(tables)


def position_rate(judgements: Sequence[Judgement], *, is_named: bool) -> Estimate | None:
    """How often the item that is listed first wins; 1/2 is no taste for a position.

    A system may stand first because it is the better one. So of named systems only the pairs that stand in both orders
    count: the mean of P(i wins, listed first) and P(j wins, listed first), all pairs weighing the same.

    Args:
        judgements: of annotators, before any majority.
        is_named: whether items are systems that come up under many prompts.

    Returns:
        ``None`` where no pair of systems stands in both orders.
    """
    if not is_named:
        return mean_interval([one.win for one in judgements], [one.prompt for one in judgements])
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in judgements:
        cells[one.left, one.right].append(one.win)
    both = {cell for cell in cells if cell[::-1] in cells}
    if not both:
        return None
    kept = [one for one in judgements if (one.left, one.right) in both]
    prompt_N, cell_N = numbered([one.prompt for one in kept]), numbered([(one.left, one.right) for one in kept])
    wins_N, counts_E = np.array([one.win for one in kept]), np.bincount(cell_N)
    rate_E = np.bincount(cell_N, weights=wins_N) / counts_E
    errors_PE = np.zeros((prompt_N.max() + 1, len(both)))
    np.add.at(errors_PE, (prompt_N, cell_N), (wins_N - rate_E[cell_N]) / counts_E[cell_N])
    is_judged_PE = np.zeros(errors_PE.shape, dtype=bool)
    is_judged_PE[prompt_N, cell_N] = True
    covariance_EE = padded(errors_PE.T @ errors_PE, rate_E, is_judged_PE.sum(0))
    mean = float(rate_E.mean())
    low, high = ends(np.array([mean]), np.array([covariance_EE.mean()]), [len(errors_PE)], LEVEL)
    return Estimate(mean=mean, low=float(low[0]), high=float(high[0]), num_prompts=len(errors_PE))


def longer_rate(judgements: Sequence[Judgement]) -> Estimate | None:
    """How often the longer text wins, where the two differ; 1/2 is no taste for length, or none that can be seen.

    Returns:
        ``None`` where no lengths are known, or all are equal.
    """
    kept = [
        (one, one.lengths[0] > one.lengths[1])
        for one in judgements
        if one.lengths is not None and one.lengths[0] != one.lengths[1]
    ]
    if not kept:
        return None
    wins = [one.win if left_is_longer else 1.0 - one.win for one, left_is_longer in kept]
    return mean_interval(wins, [one.prompt for one, _ in kept])


def agreements(judgements: Sequence[Judgement]) -> tuple[Agreement, ...]:
    """How far every two annotators agree on the pairs that both judged; those without such pairs are left out.

    The verdicts are win, tie and loss.

    Raises:
        UserError: if an annotator judged a pair twice.
    """
    verdicts: dict[str, dict[tuple[str, str, str], float]] = defaultdict(dict)
    for one in judgements:
        if one.annotator is None:
            continue
        key = _pair(one)
        if key in verdicts[one.annotator]:
            raise UserError(
                f"agreement: expected one verdict of an annotator on a pair, found two of {one.annotator!r} on "
                f"{one.left[:40]!r} and {one.right[:40]!r}"
            )
        # As seen from the first item in the order of the alphabet: annotators may have seen either order.
        verdicts[one.annotator][key] = float(np.sign(_win_of(one, key[1]) - 0.5))
    found = []
    for ours, theirs in itertools.combinations(verdicts, 2):
        shared = [key for key in verdicts[ours] if key in verdicts[theirs]]
        if shared:
            ours_N, theirs_N = (np.array([verdicts[name][key] for key in shared]) for name in (ours, theirs))
            share, kappa = float((ours_N == theirs_N).mean()), cohens_kappa(ours_N, theirs_N)
            found.append(
                Agreement(
                    annotators=(ours, theirs),
                    num_pairs=len(shared),
                    share=share,
                    kappa=math.nan if kappa is None else kappa,
                )
            )
    return tuple(found)


def _pair(judgement: Judgement) -> tuple[str, str, str]:
    first, second = sorted((judgement.left, judgement.right))
    return judgement.prompt, first, second


def _win_of(judgement: Judgement, item: str) -> float:
    return judgement.win if judgement.left == item else 1.0 - judgement.win


def _most_frequent(votes: Sequence[float]) -> float:
    if any(vote not in (0.0, 0.5, 1.0) for vote in votes):
        return float(np.mean(votes))
    counts = Counter(votes).most_common()
    return counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else 0.5
