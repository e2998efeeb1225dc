"""MT-Bench: grades of single answers, and comparisons of two models in both orders.

Differs from FastChat: a grade outside 1 to 10 is dropped like one that could not be read (-1), and so is a comparison
whose winner is no known word; intervals are added, clustered by question.

Sources: 2306.05685 and the code of FastChat.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignment.errors import UserError
from alignment.evaluation.intervals import mean_interval
from alignment.evaluation.published import Record, check_distinct

_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_LOWEST, _HIGHEST = 1.0, 10.0
_WINNERS = ("model_1", "model_2", "tie")


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleScore:
    """A model's grades by one judge, from 1 to 10.

    Attributes:
        model: its name.
        judge: who graded.
        turn_1: mean grade of first turns; ``None`` without one.
        turn_2: of second turns.
        average: of all grades. It is not the mean of the two as soon as a turn lost some.
        low: lower end of the 95 % interval of the average.
        high: its upper end.
        n_rated: grades.
        n_questions: that they are on.
        n_dropped: answers without a grade.
    """

    model: str
    judge: str
    turn_1: float | None
    turn_2: float | None
    average: float
    low: float
    high: float
    n_rated: int
    n_questions: int
    n_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseScore:
    """A model's comparisons with others by one judge. Rates are in points.

    Attributes:
        model: its name.
        judge: who compared.
        n_wins: won in both orders.
        n_losses: lost in both.
        n_ties: all others.
        win_rate: wins of all.
        loss_rate: losses of all.
        win_rate_adjusted: wins and half the ties of all.
        low: lower end of the 95 % interval of the adjusted rate.
        high: its upper end.
        n_questions: that the comparisons are on.
        n_dropped: comparisons with an order that has no verdict.
    """

    model: str
    judge: str
    n_wins: int
    n_losses: int
    n_ties: int
    win_rate: float
    loss_rate: float
    win_rate_adjusted: float
    low: float
    high: float
    n_questions: int
    n_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A policy's grades, and those of each category."""

    score: SingleScore
    categories: Mapping[str, SingleScore]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        categories = [{"category": name, **_without_names(score)} for name, score in self.categories.items()]
        return {**asdict(self.score), "categories": categories}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A policy's comparisons with an opponent, those of each turn, and of each category."""

    opponent: str
    score: PairwiseScore
    turns: Mapping[str, PairwiseScore]
    categories: Mapping[str, PairwiseScore]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; rates are in points."""
        return {
            "opponent": self.opponent,
            **asdict(self.score),
            "turns": [{"turn": int(turn), **_without_names(score)} for turn, score in self.turns.items()],
            "categories": [{"category": name, **_without_names(score)} for name, score in self.categories.items()],
        }


def _without_names(score: SingleScore | PairwiseScore) -> dict[str, Any]:
    return {key: value for key, value in asdict(score).items() if key not in ("model", "judge")}


def single_scores(records: Sequence[Record]) -> tuple[SingleScore, ...]:
    """Grades of each model, best first.

    Args:
        records: FastChat's: ``question_id``, ``model``, ``turn``, ``judge``, and ``score`` or else the ``judgment``.

    Raises:
        UserError: if an answer is graded twice by one judge, a turn is neither 1 nor 2, or a model has no grade.
    """
    keys = [(_judge(record), record.name("model"), record.name("question_id"), _turn(record)) for record in records]
    check_distinct(keys, records, "an answer")
    grades: dict[tuple[str, str], list[tuple[str, int, float]]] = {}
    dropped: dict[tuple[str, str], int] = {}
    for record, (judge, model, question, turn) in zip(records, keys, strict=True):
        grade = _grade(record)
        found = grades.setdefault((judge, model), [])
        if grade is None:
            dropped[judge, model] = dropped.get((judge, model), 0) + 1
        else:
            found.append((question, turn, grade))
    scores = []
    for (judge, model), found in grades.items():
        if not found:
            raise UserError(f"expected one grade at least of {model} by {judge}, found none in its answers")
        overall = mean_interval(
            [grade for _, _, grade in found],
            [question for question, _, _ in found],
            lowest=_LOWEST,
            highest=_HIGHEST,
        )
        turns = {turn: [grade for _, at, grade in found if at == turn] for turn in (1, 2)}
        means = {turn: sum(values) / len(values) if values else None for turn, values in turns.items()}
        scores.append(
            SingleScore(
                model=model,
                judge=judge,
                turn_1=means[1],
                turn_2=means[2],
                average=overall.mean,
                low=overall.low,
                high=overall.high,
                n_rated=len(found),
                n_questions=overall.num_prompts,
                n_dropped=dropped.get((judge, model), 0),
            )
        )
    return tuple(sorted(scores, key=lambda score: -score.average))


def pairwise_scores(records: Sequence[Record], *, baseline: str | None = None) -> tuple[PairwiseScore, ...]:
    """Wins, losses and ties of each model, best first; a win counts only where both orders say so.

    Args:
        records: FastChat's: ``question_id``, ``model_1``, ``model_2``, ``g1_winner``, ``g2_winner``, ``judge``.
        baseline: take comparisons with this model only, and leave it out of the table; ``None`` for all.

    Raises:
        UserError: if a pair is compared twice by one judge, a model meets itself, or nothing is left.
    """
    keys = []
    for record in records:
        pair = record.name("model_1"), record.name("model_2")
        if pair[0] == pair[1]:
            raise UserError(f"{record.source}: expected two models, found {pair[0]} twice; remove the row")
        turn = _turn(record) if "turn" in record.values else 1
        keys.append((_judge(record), min(pair), max(pair), record.name("question_id"), turn))
    check_distinct(keys, records, "a comparison")
    shares: dict[tuple[str, str], list[tuple[str, float]]] = {}
    dropped: dict[tuple[str, str], int] = {}
    for record, (judge, _, _, question, _) in zip(records, keys, strict=True):
        pair = record.name("model_1"), record.name("model_2")
        if baseline is not None and baseline not in pair:
            continue
        winners = [record.text(name) for name in ("g1_winner", "g2_winner")]
        for place, model in enumerate(pair):
            found = shares.setdefault((judge, model), [])
            if not is_judged(record):
                dropped[judge, model] = dropped.get((judge, model), 0) + 1
            elif winners[0] != winners[1] or winners[0] == "tie":
                found.append((question, 0.5))
            else:
                found.append((question, float(winners[0] == _WINNERS[place])))
    if not shares:
        raise UserError(f"expected comparisons with the baseline {baseline}, found none; name one of the models")
    scores = []
    for (judge, model), found in shares.items():
        if model == baseline:
            continue
        if not found:
            raise UserError(f"expected one verdict at least on {model} by {judge}, found none in its comparisons")
        overall = mean_interval([share for _, share in found], [question for question, _ in found])
        wins, losses = (sum(share == value for _, share in found) for value in (1.0, 0.0))
        scores.append(
            PairwiseScore(
                model=model,
                judge=judge,
                n_wins=wins,
                n_losses=losses,
                n_ties=len(found) - wins - losses,
                win_rate=100.0 * wins / len(found),
                loss_rate=100.0 * losses / len(found),
                win_rate_adjusted=100.0 * overall.mean,
                low=100.0 * overall.low,
                high=100.0 * overall.high,
                n_questions=overall.num_prompts,
                n_dropped=dropped.get((judge, model), 0),
            )
        )
    return tuple(sorted(scores, key=lambda score: -score.win_rate_adjusted))


def is_judged(record: Record) -> bool:
    """Whether there is a grade, or a winner in both orders: whether it counts."""
    if "g1_winner" not in record.values:
        return _grade(record) is not None
    return {record.text("g1_winner"), record.text("g2_winner")} <= set(_WINNERS)


def parse_rating(judgment: str) -> float | None:
    """The first number in double brackets, or else in single ones; ``None`` without any.

    Example:
        >>> parse_rating("Rating: [[7.5]]"), parse_rating("Rating: [7]"), parse_rating("seven")
        (7.5, 7.0, None)
    """
    for pattern in _RATINGS:
        if match := pattern.search(judgment):
            return float(match[1])
    return None


def _grade(record: Record) -> float | None:
    grade = record.number_or_none("score") if "score" in record.values else parse_rating(record.text("judgment"))
    return grade if grade is not None and _LOWEST <= grade <= _HIGHEST else None


def _turn(record: Record) -> int:
    turn = record.integer("turn")
    if turn not in (1, 2):
        raise UserError(f"{record.source}: expected turn 1 or 2, found {turn}; repair the row")
    return turn


def _judge(record: Record) -> str:
    """FastChat names a judge together with its template, which differs between kinds of questions and turns."""
    judge = record.value("judge")
    return str(judge[0]) if isinstance(judge, list) and judge else record.name("judge")
