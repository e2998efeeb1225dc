"""AlpacaEval: judgements of one model against a baseline, and their win rates.

Codes of a preference: 1 the baseline (``output_1``) wins, 2 the model (``output_2``) wins, in between by how much; 1.5
and the older 0 are draws; null and anything else is no verdict, is dropped and counted.

Shape letters: ``N`` judged instructions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.errors import UserError
from alignment.evaluation.intervals import Array, mean_interval
from alignment.evaluation.published import Record, check_distinct, read_records


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgements:
    """What a judge said about one model's answers, in the order of the file.

    Attributes:
        preference_N: as the file codes it; nan for none.
        length_1_N: characters of the baseline's answers.
        length_2_N: of the model's.
        is_same: whether the model is the baseline: by name, because all answers are the same, or because all are as
            long and tied.
        ids_N: which instruction of the set; ``None`` where the file does not say.
        model: its name, where the file says it.
    """

    preference_N: Array
    length_1_N: Array
    length_2_N: Array
    is_same: bool = False
    ids_N: tuple[int, ...] | None = None
    model: str | None = None

    @property
    def wins_N(self) -> Array:
        """How much of each instruction the model wins, in [0, 1]; nan for no verdict."""
        return win_shares(self.preference_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaScore:
    """AlpacaEval's figures without length control, under the names of its leaderboard. Rates are in points.

    Attributes:
        win_rate: mean share of the instructions that the model wins.
        standard_error: of the win rate; ``None`` for one verdict.
        low: lower end of the 95 % interval of the win rate.
        high: its upper end.
        discrete_win_rate: wins and half the draws, of all.
        n_wins: verdicts for the model.
        n_wins_base: for the baseline.
        n_draws: exact draws.
        n_total: verdicts.
        n_dropped: instructions without one.
        avg_length: of the model's answers, characters, rounded down.
    """

    win_rate: float
    standard_error: float | None
    low: float
    high: float
    discrete_win_rate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    n_dropped: int
    avg_length: int


def win_shares(preference_N: Array) -> Array:
    """Preferences as shares that the model wins.

    Example:
        >>> win_shares(np.array([1.0, 1.75, 2.0, 1.5, 0.0, np.nan, 7.0])).tolist()
        [0.0, 0.75, 1.0, 0.5, 0.5, nan, nan]
    """
    preference_N = np.where(preference_N == 0.0, 1.5, preference_N)
    return np.where((preference_N >= 1.0) & (preference_N <= 2.0), preference_N - 1.0, np.nan)


def alpaca_score(judgements: Judgements) -> AlpacaScore:
    """Win rate, its standard error over instructions, and the discrete win rate. Source: alpaca_eval 0.6.6.

    Raises:
        UserError: if there is no verdict at all.
    """
    wins_N = judgements.wins_N
    is_verdict_N = ~np.isnan(wins_N)
    wins_V, total = wins_N[is_verdict_N], int(is_verdict_N.sum())
    if total == 0:
        raise UserError(f"expected one verdict at least, found none in {len(wins_N)} rows; nothing can be scored")
    is_draw_V = wins_V == 0.5
    # Half to even, as numpy and pandas both round; draws are set apart before.
    discrete_V = np.where(is_draw_V, 0.5, np.round(wins_V + 1.0) - 1.0)
    found = mean_interval(wins_V)
    return AlpacaScore(
        win_rate=100.0 * found.mean,
        standard_error=100.0 * float(wins_V.std(ddof=1)) / math.sqrt(total) if total > 1 else None,
        low=100.0 * found.low,
        high=100.0 * found.high,
        discrete_win_rate=100.0 * float(discrete_V.mean()),
        n_wins=int((wins_V > 0.5).sum()),
        n_wins_base=int((wins_V < 0.5).sum()),
        n_draws=int(is_draw_V.sum()),
        n_total=total,
        n_dropped=len(wins_N) - total,
        avg_length=int(judgements.length_2_N.mean()),
    )


def read_judgements(
    path: Path, *, model: str | None = None, instructions: Mapping[str, int] | None = None
) -> Judgements:
    """AlpacaEval's ``annotations.json``, or a table of preferences and lengths.

    The former has ``instruction``, ``output_1``, ``output_2`` and ``preference``; the latter ``preference``, ``len_1``
    and ``len_2``. Either may have ``instruction_id``, and ``generator_2`` where several models were judged.

    Args:
        path: JSON, JSON lines or CSV.
        model: take the rows of this ``generator_2``; not read where there is no such column.
        instructions: text -> number of the official set, for files that do not number them.

    Raises:
        UserError: if a column is missing, a row has no answer, an instruction comes twice, or there are several models.
    """
    records = read_records(path, "preference")
    has_texts = "len_2" not in records[0].values
    model, asked = None, model
    if "generator_2" in records[0].values:
        records, model = _of_one_model(records, path, asked)
    ids: list[int] | None = None
    if "instruction_id" in records[0].values:
        ids = [record.integer("instruction_id") for record in records]
    elif instructions is not None:
        ids = [_number_of(record, instructions) for record in records]
    key = next((name for name in ("instruction_id", "instruction", "row") if name in records[0].values), None)
    if key is not None:
        check_distinct([record.name(key) for record in records], records, "an instruction")
    preference_N = np.array([_nan(record.number_or_none("preference")) for record in records])
    if has_texts:
        answers = [(record.text("output_1"), record.text("output_2")) for record in records]
        lengths_N2 = np.array([(len(first), len(second)) for first, second in answers], dtype=np.float64)
        is_same = all(first == second for first, second in answers)
    else:
        lengths_N2 = np.array([(_length(record, "len_1"), _length(record, "len_2")) for record in records])
        is_same = False
    is_same = is_same or all(
        "generator_1" in record.values and record.values["generator_1"] == record.values.get("generator_2")
        for record in records
    )
    is_same = is_same or bool((lengths_N2[:, 0] == lengths_N2[:, 1]).all() and (win_shares(preference_N) == 0.5).all())
    return Judgements(
        preference_N=preference_N,
        length_1_N=lengths_N2[:, 0],
        length_2_N=lengths_N2[:, 1],
        is_same=is_same,
        ids_N=None if ids is None else tuple(ids),
        model=model,
    )


def read_instructions(path: Path) -> dict[str, int]:
    """Instruction -> its number in the official set: ``instruction_id``, or else its place from 0.

    Raises:
        UserError: if an instruction comes twice.
    """
    records = read_records(path, "instruction")
    texts = [record.text("instruction") for record in records]
    check_distinct(texts, records, "an instruction")
    return {
        text: record.integer("instruction_id") if "instruction_id" in record.values else place
        for place, (text, record) in enumerate(zip(texts, records, strict=True))
    }


def read_model_outputs(path: Path) -> dict[str, Record]:
    """AlpacaEval's ``model_outputs.json``, or any file of ``instruction`` and ``output``: instruction -> its row.

    Raises:
        UserError: if a row lacks one of them, or an instruction comes twice.
    """
    records = read_records(path, "instruction", "output")
    instructions = [record.text("instruction") for record in records]
    check_distinct(instructions, records, "an instruction")
    for record in records:
        record.text("output")
    return dict(zip(instructions, records, strict=True))


def annotations(
    instructions: Sequence[str],
    outputs_1: Sequence[str],
    outputs_2: Sequence[str],
    wins_N: Sequence[float],
    *,
    generator_1: str,
    generator_2: str,
    annotator: str,
) -> list[dict[str, Any]]:
    """AlpacaEval's ``annotations.json``, one object for each instruction.

    Args:
        instructions: what was asked.
        outputs_1: answers of the baseline.
        outputs_2: of the model.
        wins_N: probability that the model's answer wins, in [0, 1]; nan for no verdict.
        generator_1: what the leaderboard calls the baseline.
        generator_2: the model.
        annotator: the judge.

    Raises:
        UserError: if a probability lies outside [0, 1].

    Example:
        >>> annotations(["Why?"], ["No."], ["So."], [0.75], generator_1="a", generator_2="b", annotator="c")
        [{'instruction': 'Why?', 'output_1': 'No.', 'generator_1': 'a', 'output_2': 'So.', 'generator_2': 'b',
        'annotator': 'c', 'preference': 1.75}]
    """
    rows = []
    for place, (instruction, first, second, win) in enumerate(
        zip(instructions, outputs_1, outputs_2, wins_N, strict=True)
    ):
        if not (math.isnan(win) or 0.0 <= win <= 1.0):
            raise UserError(f"annotations: expected probabilities in [0, 1], found {win} in row {place}")
        rows.append(
            {
                "instruction": instruction,
                "output_1": first,
                "generator_1": generator_1,
                "output_2": second,
                "generator_2": generator_2,
                "annotator": annotator,
                "preference": None if math.isnan(win) else 1.0 + float(win),
            }
        )
    return rows


def _of_one_model(records: tuple[Record, ...], path: Path, model: str | None) -> tuple[tuple[Record, ...], str]:
    names = dict.fromkeys(record.text("generator_2") for record in records)
    if model is None and len(names) > 1:
        raise UserError(f"{path}: expected one model in 'generator_2', found {', '.join(names)}; choose one by --model")
    model = model or next(iter(names))
    if model not in names:
        raise UserError(f"{path}: expected the model '{model}' in 'generator_2', found {', '.join(names)}")
    return tuple(record for record in records if record.values["generator_2"] == model), model


def _number_of(record: Record, instructions: Mapping[str, int]) -> int:
    text = record.text("instruction")
    if text not in instructions:
        raise UserError(
            f"{record.source}: expected an instruction of the set, found {text[:60]!r}; score it with its own set"
        )
    return instructions[text]


def _length(record: Record, name: str) -> float:
    length = record.integer(name)
    if length < 0:
        raise UserError(f"{record.source}: expected a length in {name!r}, found {length}; repair the row")
    return float(length)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
