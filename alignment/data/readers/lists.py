"""Rows of a list of responses: ranked, or scored by one or several oracles."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.data.readers.records import ColumnSpec, Dropped, Outcome, Record, spec_columns
from alignment.data.readers.turns import is_blank, read_prompt
from alignment.data.rows import Comparison, OracleScores
from alignment.errors import UserError
from alignment.values import JsonValue, kind, read_list, read_number

RESPONSE_KEYS = ("response", "text", "completion", "content")


def rank_scores(num_responses: int) -> tuple[float, ...]:
    """Scores of a list that is only ranked, best first.

    LiPO (arXiv 2402.01878, section 3): psi_i is the mean over j of P(y_i beats y_j), j = i included with 1/2. For the
    k-th best of G that is (G - k + 1/2) / G.

    Returns:
        G numbers in (0, 1), falling, with the mean 1/2.

    Example:
        >>> rank_scores(2)
        (0.75, 0.25)
    """
    return tuple((num_responses - k + 0.5) / num_responses for k in range(1, num_responses + 1))


@dataclass(frozen=True, slots=True)
class _List:
    """A list on its way: its responses, and one number of each judge for each response, larger is better."""

    responses: tuple[str, ...]
    judges: tuple[OracleScores, ...]

    def without_blank(self) -> "_List":
        kept = [g for g, response in enumerate(self.responses) if response.strip()]
        judges = tuple(OracleScores(judge.oracle, tuple(judge.scores[g] for g in kept)) for judge in self.judges)
        return _List(tuple(self.responses[g] for g in kept), judges)


def parse_ranked(record: Record) -> tuple[Outcome, ...]:
    if record.given("scores"):
        raise UserError(
            f"{record.source}: expected responses without scores (format 'ranked'), found a column "
            f"{record.column('scores')!r}; name format='scored' to use it"
        )
    responses = read_responses(record)
    # A rank counts from the best, so its negative is larger for the better.
    merits = tuple(-rank for rank in _ranks(record, len(responses)))
    return _finish(record, _List(responses, (OracleScores("rank", merits),)), min_responses=2)


def parse_scored(record: Record) -> tuple[Outcome, ...]:
    responses = read_responses(record)
    return _finish(record, _List(responses, _judges(record, len(responses))), min_responses=1)


def response_values(record: Record) -> list[JsonValue]:
    """What stands for each response: in one column of lists, or in a column for each response."""
    spec = record.spec("responses")
    if not isinstance(spec, str):
        for column in spec:
            if column not in record.values:
                raise record.missing("responses", column)
        return [record.values[column] for column in spec]
    value = read_list(record.require("responses"))
    if not isinstance(value, list):
        raise record.wrong("responses", "a list", value)
    return value


def read_responses(record: Record) -> tuple[str, ...]:
    return tuple(response_text(record, item) for item in response_values(record))


def response_text(record: Record, item: JsonValue) -> str:
    """A response that is text, or an object that holds it."""
    if isinstance(item, str):
        return str(item)
    keys = (record.column("response"),) if "response" in record.layout.columns else RESPONSE_KEYS
    text = next((item[key] for key in keys if key in item), None) if isinstance(item, dict) else None
    if not isinstance(text, str):
        raise record.wrong("responses", f"strings, or objects with a string under {' or '.join(keys)}", item)
    return text


def _finish(record: Record, whole: _List, *, min_responses: int) -> tuple[Outcome, ...]:
    prompt = read_prompt(record)
    if is_blank(prompt):
        return record.skip("empty prompt")
    if len(whole.responses) < min_responses:
        return record.skip(f"fewer than {min_responses} responses")
    kept = whole.without_blank()
    num_dropped = len(whole.responses) - len(kept.responses)
    if num_dropped and len(kept.responses) < 2:
        return record.skip("empty reply")
    if len(kept.responses) > 1 and len({response.strip() for response in kept.responses}) == 1:
        return record.skip("all responses equal")
    dropped = (Dropped("empty response of a list", record.source),) * num_dropped
    counts_wins = record.layout.format == "ranked" or record.layout.scores_as == "win_rates"
    if len(kept.judges) > 1:
        panel = tuple(
            OracleScores(judge.oracle, _mean_wins(judge.scores) if counts_wins else judge.scores)
            for judge in kept.judges
        )
        return (record.row(prompt, kept.responses, panel=panel), *dropped)
    merits = kept.judges[0].scores
    comparisons = tuple(_by_merit(i, j, merits) for i, j in itertools.combinations(range(len(merits)), 2))
    scores = _mean_wins(merits) if counts_wins else merits
    return (record.row(prompt, kept.responses, comparisons, scores), *dropped)


def _by_merit(i: int, j: int, merits: Sequence[float]) -> Comparison:
    winner, loser = (i, j) if merits[i] >= merits[j] else (j, i)
    return Comparison(winner, loser, 0.5 if merits[i] == merits[j] else 1.0)


def _mean_wins(merits: Sequence[float]) -> tuple[float, ...]:
    """:func:`rank_scores` for any order and with ties."""
    return tuple(
        sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in merits) / len(merits) for own in merits
    )


# Numbers for each response


def _ranks(record: Record, num_responses: int) -> tuple[float, ...]:
    if "ranks" not in record.layout.columns:
        return tuple(float(place) for place in range(num_responses))
    return _read_vector(record, "ranks", record.spec("ranks"), num_responses)


def _judges(record: Record, num_responses: int) -> tuple[OracleScores, ...]:
    spec = record.spec("scores")
    if isinstance(spec, Mapping):
        return tuple(
            OracleScores(oracle, _read_vector(record, "scores", part, num_responses)) for oracle, part in spec.items()
        )
    value = _find(record, "scores", spec)
    if isinstance(value, dict):
        return tuple(
            OracleScores(oracle, _vector(record, "scores", part, num_responses)) for oracle, part in value.items()
        )
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return tuple(
            OracleScores(str(k), _vector(record, "scores", part, num_responses)) for k, part in enumerate(value)
        )
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return _judges_inside(record, value, num_responses)
    return (OracleScores("scores", _vector(record, "scores", value, num_responses)),)


def _judges_inside(record: Record, items: list[JsonValue], num_responses: int) -> tuple[OracleScores, ...]:
    """Every response has an object: oracle -> score."""
    objects = [item for item in items if isinstance(item, dict)]
    for item in objects:
        if item.keys() != objects[0].keys():
            raise record.wrong(
                "scores", f"scores of the same oracles for every response ({', '.join(objects[0])})", item
            )
    return tuple(
        OracleScores(oracle, _vector(record, "scores", [item[oracle] for item in objects], num_responses))
        for oracle in objects[0]
    )


def _read_vector(record: Record, name: str, spec: ColumnSpec, num_responses: int) -> tuple[float, ...]:
    return _vector(record, name, _find(record, name, spec), num_responses)


def _find(record: Record, name: str, spec: ColumnSpec) -> JsonValue:
    """The value of a column, of a column for each response, or of a key inside the response objects."""
    if not isinstance(spec, str):
        for column in spec_columns(spec):
            if column not in record.values:
                raise record.missing(name, column)
        return [record.values[column] for column in spec_columns(spec)]
    if spec in record.values:
        return read_list(record.values[spec])
    responses = response_values(record)
    if not responses or not all(isinstance(item, dict) and spec in item for item in responses):
        raise UserError(
            f"{record.source}: expected {name} in a column {spec!r} or inside every response object, found neither; "
            f"add them, or name the column with columns={{{name!r}: ...}}"
        )
    return [item[spec] for item in responses if isinstance(item, dict)]


def _vector(record: Record, name: str, value: JsonValue, num_responses: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != num_responses:
        found = f"{len(value)} {name}" if isinstance(value, list) else kind(value)
        raise UserError(
            f"{record.source}: expected one score for each of the {num_responses} responses, found {found}; "
            "score all responses of the row"
        )
    return tuple(read_number(item, name, record.source) for item in value)
