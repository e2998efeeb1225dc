"""What a trainer feeds on: each row as often as it should be, at its weight, and known by what it says."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.arguments import AlignmentArguments
from alignment.batches import EncodedRows, StagedSampler, counted_once, encode_for, rows_to_encode
from alignment.data import Comparison, EncodedRow, OracleScores, Row, Turn, collate, encode_rows
from alignment.ranks import Ranks
from alignment.types import Needs
from tests.text.symbols import question_rows, symbol_tokenizer

SAMPLED = Needs(feedback="wins", sampler="policy", opponent="group", schedule="online")


def pair(**changes: Any) -> EncodedRow:
    """Two answers, of one token and of two, to a prompt of three."""
    row = Row(prompt=(Turn("text", "q"),), responses=("a", "b"), source="f:1", **changes)
    return EncodedRow(prompt_ids=(1, 2, 3), completion_ids=((4,), (5, 6)), row=row)


@pytest.mark.parametrize(
    ("num_rows", "rank", "is_last", "weights"),
    [
        # Two processes take two rows each: of five the last batch has one, which the first process holds.
        (5, 0, True, [1.0, 0.0]),
        (5, 1, True, [0.0, 0.0]),
        (6, 0, True, [1.0, 1.0]),
        (6, 1, True, [0.0, 0.0]),
        (7, 0, True, [1.0, 1.0]),
        (7, 1, True, [1.0, 0.0]),
        (8, 1, True, [1.0, 1.0]),
        (5, 1, False, [1.0, 1.0]),
    ],
)
def test_the_rows_of_a_torn_epoch_count_once(num_rows: int, rank: int, is_last: bool, weights: list[float]) -> None:
    """Over the processes as many weigh something as are left; before the last batch all do."""
    encoded = encode_rows(question_rows(2), symbol_tokenizer(), max_prompt_length=9, max_completion_length=1).rows
    state: Any = SimpleNamespace(end_of_dataloader=is_last)
    ranks = Ranks(index=rank, count=2)
    batch = counted_once(collate(encoded, pad_token_id=0), state, num_rows=num_rows, ranks=ranks)
    assert batch.row_weight_B.tolist() == weights


def test_an_epoch_takes_every_chunk_for_each_step_and_the_next_one_another_order() -> None:
    """Seven rows in chunks of two for two steps: three chunks, each twice; the seventh waits for the next shuffle."""

    def order_of(epoch: int) -> tuple[int, ...]:
        sampler = StagedSampler([pair()] * 7, chunk=2, repeats=2, seed=3, epoch=lambda: epoch)
        order = tuple(sampler)
        chunks = [order[start : start + 2] for start in range(0, len(order), 2)]
        assert len(order) == len(sampler) == 12 and len(set(order)) == 6 and chunks[::2] == chunks[1::2]
        return order

    orders = [order_of(epoch) for epoch in range(4)]
    assert order_of(2) == orders[2] and len(set(orders)) == 4
    assert {row for order in orders for row in order} == set(range(7))


def test_a_prompt_that_is_sampled_keeps_its_weight_and_loses_its_answers() -> None:
    args = AlignmentArguments(output_dir="unused")
    row = pair(comparisons=(Comparison(0, 1),), weight=2.5).row
    (found,) = rows_to_encode([row], SAMPLED, args)
    assert found == Row(prompt=row.prompt, weight=2.5, source=row.source)
    assert rows_to_encode([row], Needs(feedback="pairs"), args) == (row,)


@pytest.mark.parametrize(("needs", "length"), [(SAMPLED, 2), (Needs(feedback="pairs"), 3)], ids=["listed", "given"])
def test_answers_have_the_limit_of_who_gives_them(needs: Needs, length: int) -> None:
    """Listed ones that of the policy's, as it would say no more; those of a file that of the file."""
    args = AlignmentArguments(
        output_dir="unused",
        engine="enumerate",
        responses=["red red red red"],
        max_new_tokens=2,
        max_completion_length=3,
    )
    rows = [Row(prompt=(Turn("user", "question"),), responses=("red red red red",), source="f:1")]
    (found,) = encode_for(needs, rows, symbol_tokenizer(), args)
    assert [len(ids) for ids in found.completion_ids] == [length]


def test_a_digest_is_of_all_that_decides() -> None:
    """Tokens, feedback of whatever kind, and weights; where a row stood in its file is nothing."""
    plain = pair(comparisons=(Comparison(0, 1),))
    others = [
        replace(plain, prompt_ids=(1, 2)),
        replace(plain, completion_ids=((4,), (5, 7))),
        replace(plain, completion_ids=((4, 5), (6,))),
        pair(comparisons=(Comparison(1, 0),)),
        pair(comparisons=(Comparison(0, 1, 0.9),)),
        pair(comparisons=(Comparison(0, 1),), weight=2.0),
        pair(scores=(1.0, 0.0)),
        pair(panel=(OracleScores("kind", (1.0, 0.0)),)),
        pair(panel=(OracleScores("kind", (0.0, 1.0)),)),
    ]
    digests = [EncodedRows([item]).digest() for item in (plain, *others)]
    assert len(set(digests)) == len(digests)
    assert EncodedRows([replace(plain, row=replace(plain.row, source="g:9"))]).digest() == digests[0]


def test_tokens_with_the_prompt_once_and_for_each_answer() -> None:
    """3 + 1 + 2, and 2 x 3 + 1 + 2, of each of two rows."""
    assert EncodedRows([pair(), pair()]).count_tokens() == (12, 18)
