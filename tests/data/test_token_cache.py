"""The token cache: the same as fresh, hit by the same content only, and never trusted blindly."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignment.data import Comparison, Row, Turn, encode_rows, encode_rows_cached
from alignment.errors import UserError
from alignment.tiny import CHAT_TEMPLATE, tiny_tokenizer

LIMITS = {"max_prompt_length": 12, "max_completion_length": 5}
ROWS = tuple(
    Row(
        prompt=(Turn("user", f"Question {i}" + " and so on" * (6 if i == 3 else 0)),),
        responses=("a reply", "another one that is rather long" if i % 2 else "b")[: 1 + i % 3],
        comparisons=(Comparison(0, 1),) if i % 3 else (),
        source=f"a:{i}",
    )
    for i in range(8)
)


def tokenizer():
    return tiny_tokenizer(["Question and so on a reply another one that is rather long"], vocab_size=300)


def test_what_is_read_equals_what_was_encoded(tmp_path: Path) -> None:
    fresh = encode_rows(ROWS, tokenizer(), **LIMITS)
    assert fresh.skipped and fresh.truncated, "all kinds of outcomes are in the test"
    first, was_cached = encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    second, is_cached = encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    assert (was_cached, is_cached) == (False, True)
    assert first == second == fresh


def test_a_token_id_is_one_object(tmp_path: Path) -> None:
    """Encoded or read from the cache: a data set of a million tokens does not hold a million numbers."""
    fresh, _ = encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    read, _ = encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    rows = (*fresh.rows, *read.rows)
    ids = [token for item in rows for ids in (item.prompt_ids, *item.completion_ids) for token in ids]
    # Python keeps one object of each small number anyway.
    large = [token for token in ids if token > 256]
    assert len(large) > 2 * len(set(large))
    assert len(set(map(id, large))) == len(set(large))


def test_feedback_comes_from_the_rows_and_hits(tmp_path: Path) -> None:
    encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    weighted = tuple(replace(row, weight=2.0, comparisons=(), source="elsewhere:1") for row in ROWS)
    result, is_cached = encode_rows_cached(weighted, tokenizer(), **LIMITS, folder=tmp_path)
    assert is_cached
    assert {item.row.weight for item in result.rows} == {2.0}
    assert result.skipped == {reason: ("elsewhere:1",) for reason in result.skipped}


def _other_template():
    changed = tokenizer()
    changed.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    return changed


@pytest.mark.parametrize(
    ("rows", "other", "limits"),
    [
        (ROWS[1:], tokenizer, LIMITS),
        ((replace(ROWS[0], responses=("a reply!",)), *ROWS[1:]), tokenizer, LIMITS),
        (ROWS, _other_template, LIMITS),
        (ROWS, lambda: tiny_tokenizer([ROWS[1].prompt[0].content] * 2, vocab_size=300), LIMITS),
        (ROWS, tokenizer, {**LIMITS, "max_completion_length": 4}),
    ],
    ids=["rows", "a response", "template", "vocabulary", "limits"],
)
def test_other_content_misses(tmp_path: Path, rows: tuple[Row, ...], other, limits: dict) -> None:
    encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    result, is_cached = encode_rows_cached(rows, other(), **limits, folder=tmp_path)
    assert not is_cached
    assert result == encode_rows(rows, other(), **limits)


def test_a_damaged_or_exchanged_file_is_refused(tmp_path: Path) -> None:
    encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    (first,) = tmp_path.iterdir()
    encode_rows_cached(ROWS[1:], tokenizer(), **LIMITS, folder=tmp_path)
    (second,) = set(tmp_path.iterdir()) - {first}
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="expected token ids of something else than the file holds; delete it"):
        encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="expected the token ids that were stored, found others"):
        encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
    first.write_bytes(b"torn")
    with pytest.raises(UserError, match="found a damaged file"):
        encode_rows_cached(ROWS, tokenizer(), **LIMITS, folder=tmp_path)
