"""How good a judge is on pairs whose better answer is known, asked in both orders.

Verdicts name the answer, not the place: those of the swapped order are already mapped back. A missing verdict is wrong
and stays in the denominator; verdicts other than the two answers count as missing. Source: 2310.07641 (LLMBar), whose
published kappas against the gold label are no kappas and are not repeated here.

Shape letters: ``N`` pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignment.errors import UserError
from alignment.evaluation.intervals import mean_interval
from alignment.evaluation.published import Record, check_distinct

Answer = Literal[1, 2]
SET_COLUMNS = ("subset", "judge", "prompt")
# How null is spelt, in JSON and in cells of CSV.
_NOTHING = ("", "nan", "none", "null")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeQuality:
    """A judge on a set of pairs. Rates are in points.

    Attributes:
        n: pairs.
        n_correct: right in the given order.
        n_correct_swapped: right in the swapped order.
        n_both_correct: right in both.
        n_agree: the same answer in both.
        n_missing: verdicts that are missing, of 2 n.
        accuracy: mean of the accuracies in the two orders.
        low: lower end of its 95 % interval over pairs.
        high: its upper end.
        both_correct: ``n_both_correct`` of all.
        agreement: ``n_agree`` of all.
        kappa: Cohen's, between the two orders, of pairs with both verdicts; ``None`` where chance alone agrees always.
        position_bias: P(the first one shown wins) - 1/2, of verdicts that are there; ``None`` without one.
        position_bias_low: lower end of its 95 % interval over pairs.
        position_bias_high: its upper end.
    """

    n: int
    n_correct: int
    n_correct_swapped: int
    n_both_correct: int
    n_agree: int
    n_missing: int
    accuracy: float
    low: float
    high: float
    both_correct: float
    agreement: float
    kappa: float | None
    position_bias: float | None
    position_bias_low: float | None
    position_bias_high: float | None


def judge_quality(
    gold: Sequence[Answer], given: Sequence[Answer | None], swapped: Sequence[Answer | None]
) -> JudgeQuality:
    """Accuracy in both orders, agreement, kappa and position bias.

    Args:
        gold: the better answer of each pair.
        given: the judge's, with answer 1 shown first; ``None`` for no verdict.
        swapped: the judge's, with answer 2 shown first.

    Raises:
        UserError: for no pairs.

    Example:
        >>> found = judge_quality([1, 2], [1, 1], [1, 2])
        >>> found.n_correct, found.n_correct_swapped, found.n_both_correct, found.n_agree, found.position_bias
        (1, 2, 1, 1, 25.0)
    """
    if not gold:
        raise UserError("judge quality: expected pairs, found none")
    # 0 is no verdict.
    gold_N, given_N, swapped_N = (np.array([side or 0 for side in sides]) for sides in (gold, given, swapped))
    is_right_2N = np.stack([given_N == gold_N, swapped_N == gold_N])
    agrees_N = (given_N == swapped_N) & (given_N > 0)
    accuracy = mean_interval(is_right_2N.mean(0))
    first_2N, is_verdict_2N = np.stack([given_N == 1, swapped_N == 2]), np.stack([given_N > 0, swapped_N > 0])
    pair_2N = np.broadcast_to(np.arange(len(gold_N)), first_2N.shape)
    bias = (
        mean_interval(first_2N[is_verdict_2N].astype(np.float64), pair_2N[is_verdict_2N].tolist())
        if is_verdict_2N.any()
        else None
    )
    return JudgeQuality(
        n=len(gold_N),
        n_correct=int(is_right_2N[0].sum()),
        n_correct_swapped=int(is_right_2N[1].sum()),
        n_both_correct=int(is_right_2N.all(0).sum()),
        n_agree=int(agrees_N.sum()),
        n_missing=int((~is_verdict_2N).sum()),
        accuracy=100.0 * accuracy.mean,
        low=100.0 * accuracy.low,
        high=100.0 * accuracy.high,
        both_correct=100.0 * float(is_right_2N.all(0).mean()),
        agreement=100.0 * float(agrees_N.mean()),
        kappa=cohens_kappa(given_N[is_verdict_2N.all(0)], swapped_N[is_verdict_2N.all(0)]),
        position_bias=None if bias is None else 100.0 * (bias.mean - 0.5),
        position_bias_low=None if bias is None else 100.0 * (bias.low - 0.5),
        position_bias_high=None if bias is None else 100.0 * (bias.high - 0.5),
    )


def cohens_kappa(first_N: NDArray[Any], second_N: NDArray[Any]) -> float | None:
    """Agreement beyond chance: ``(agreement - chance) / (1 - chance)``; ``None`` where chance is 1.

    Cohen, Educational and Psychological Measurement 20 (1960).

    Example:
        >>> cohens_kappa(np.array([1, 1, 2, 2]), np.array([1, 1, 2, 1]))
        0.5
    """
    if len(first_N) == 0:
        return None
    chance = sum(float((first_N == label).mean() * (second_N == label).mean()) for label in np.unique(first_N))
    return None if chance == 1.0 else (float((first_N == second_N).mean()) - chance) / (1.0 - chance)


def read_verdicts(records: Sequence[Record]) -> dict[tuple[str, ...], JudgeQuality]:
    """The quality of each set of verdicts, by what names the set of :data:`SET_COLUMNS`.

    Args:
        records: ``label`` (1 or 2: the better answer), ``winner_noswap`` and ``winner_swap``, and what names the set;
            a pair is known by ``idx``.

    Raises:
        UserError: if a label is neither 1 nor 2, a pair comes twice in a set, or all that a set has in a column of
            verdicts is something else.
    """
    columns = [name for name in SET_COLUMNS if name in records[0].values]
    sets = [tuple(record.name(name) for name in columns) for record in records]
    if "idx" in records[0].values:
        check_distinct(
            [(*key, record.name("idx")) for key, record in zip(sets, records, strict=True)], records, "a pair"
        )
    by_set: dict[tuple[str, ...], list[Record]] = {}
    for key, record in zip(sets, records, strict=True):
        by_set.setdefault(key, []).append(record)
    return {
        key: judge_quality(
            [_gold(record) for record in found],
            _verdicts(found, "winner_noswap"),
            _verdicts(found, "winner_swap"),
        )
        for key, found in by_set.items()
    }


def _gold(record: Record) -> Answer:
    answer = _answer(record, "label")
    if answer is None:
        raise UserError(
            f"{record.source}: expected 1 or 2 in 'label', the better answer, found {record.values['label']!r}; "
            "repair or remove the row"
        )
    return answer


def _answer(record: Record, name: str) -> Answer | None:
    value = record.value(name)
    answers: dict[float, Answer] = {1.0: 1, 2.0: 2}
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        # What pandas writes of a column with gaps: 1.0 and 2.0.
        return answers.get(float(value))
    except ValueError:
        return None


def _verdicts(records: Sequence[Record], name: str) -> list[Answer | None]:
    """The verdicts of a set; words of another language than 1 and 2 would be a judge that is always wrong."""
    answers = [_answer(record, name) for record in records]
    said = [record for record in records if str(record.value(name)).strip().lower() not in _NOTHING]
    if said and not any(answers):
        raise UserError(
            f"{said[0].source}: expected 1 or 2 in {name!r}, found neither in {len(said)} rows that have something, "
            f"first {said[0].values[name]!r}; write 1 and 2, or null for no verdict"
        )
    return answers
