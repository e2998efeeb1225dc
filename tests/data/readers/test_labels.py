"""Labels say which response wins: each word, tie and annotator gives the probability that its definition names."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.collate import split_rows
from alignment.data.readers import read_rows
from alignment.data.readers.labels import _compare
from alignment.data.rows import Comparison, Turn

Write = Callable[..., Path]
Fails = Callable[..., str]

TWO = {"prompt": "q", "a": "yes", "b": "no"}
COLUMNS: dict[str, Any] = {"responses": ["a", "b"], "label": "label"}
LEFT, RIGHT, TIE = Comparison(0, 1, 1.0), Comparison(1, 0, 1.0), Comparison(0, 1, 0.5)


@pytest.mark.parametrize(
    ("label", "comparison"),
    [
        (1, LEFT),
        ("2", RIGHT),
        (2.0, RIGHT),
        ("2.0", RIGHT),
        ("A", LEFT),
        ("b", RIGHT),
        ("model_a", LEFT),
        ("model_b", RIGHT),
        ("tie (bothbad)", TIE),
        (" Tie ", TIE),
        ("left", LEFT),
    ],
)
def test_words_that_can_mean_one_thing_need_no_labels(write: Write, label: object, comparison: Comparison) -> None:
    result = read_rows(write(TWO | {"label": label}), columns=COLUMNS)
    assert result.formats == ("labelled",)
    (row,) = result.rows
    # The responses keep their order; the comparison names the winner.
    assert row.responses == ("yes", "no") and row.comparisons == (comparison,) and row.scores is None


def test_a_label_may_name_the_winning_column(write: Write) -> None:
    rows = ({"prompt": "q", "output_1": "x", "output_2": "y", "label": f"output_{n}"} for n in (1, 2))
    result = read_rows(write(*rows), columns={"responses": ["output_1", "output_2"]})
    assert [row.comparisons for row in result.rows] == [(LEFT,), (RIGHT,)]


def test_declared_labels_replace_the_words(write: Write, reading_fails: Fails) -> None:
    """Here 1 means the right one, as in files that count from 0; the common words no longer hold."""
    labels = {"0": "left", "1": "right", "null": "skip", "None of them": "tie"}
    rows = [TWO | {"label": label} for label in (0, 1, None, "none of them")]
    result = read_rows(write(*rows), columns=COLUMNS, labels=labels)
    assert [row.comparisons for row in result.rows] == [(LEFT,), (RIGHT,), (TIE,)]
    assert result.skipped == {"no verdict": ("data.jsonl:3",)} and result.num_tied == 1
    message = reading_fails(write(rows[0], TWO | {"label": 2}), "found '2'", columns=COLUMNS, labels=labels)
    assert message.startswith(
        "data.jsonl:2: expected a label of '0', '1', 'null', 'none of them' in the column 'label'"
    )


def test_a_zero_must_be_declared(write: Write, reading_fails: Fails) -> None:
    """It is a tie in one file and the first response in another."""
    reading_fails(
        write(TWO | {"label": 0}), "found '0'; say what every label means, such as labels: {1: left", columns=COLUMNS
    )


VOTES = {"ann": 1, "bob": 2, "cy": 0}
THREE: dict[str, Any] = {
    "columns": {"responses": ["a", "b"], "label": ["ann", "bob", "cy"]},
    "labels": {"1": "left", "2": "right", "0": "tie"},
}


def test_each_annotator_gets_a_row(write: Write) -> None:
    result = read_rows(write(TWO | VOTES), **THREE)
    assert [(row.annotator, row.comparisons) for row in result.rows] == [
        ("ann", (LEFT,)),
        ("bob", (RIGHT,)),
        ("cy", (TIE,)),
    ]
    assert {row.source for row in result.rows} == {"data.jsonl:1"}
    assert (result.num_read, result.num_tied) == (1, 1)
    assert result.summary() == "3 rows from 1 (labelled), 1 tied; skipped 0"


def test_a_limit_counts_rows_and_not_lines(write: Write) -> None:
    assert [row.annotator for row in read_rows(write(TWO | VOTES, TWO | VOTES), **THREE, limit=4).rows] == [
        *VOTES,
        "ann",
    ]


@given(votes=st.lists(st.sampled_from([0, 1, 2]), min_size=3, max_size=3))
def test_the_mean_vote_is_the_mean_probability_of_the_separate_rows(
    tmp_path_factory: pytest.TempPathFactory, votes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("votes") / "data.csv"
    path.write_text("prompt,a,b,ann,bob,cy\nq,yes,no," + ",".join(map(str, votes)) + "\n")
    separate, mean = (read_rows(path, **THREE, annotators=mode) for mode in ("separate", "mean"))  # type: ignore[arg-type]

    def left_wins(comparison: Comparison) -> float:
        return comparison.probability if comparison.winner == 0 else 1.0 - comparison.probability

    probabilities = [left_wins(row.comparisons[0]) for row in separate.rows]
    (row,) = mean.rows
    assert left_wins(row.comparisons[0]) == pytest.approx(sum(probabilities) / 3)
    assert row.annotator is None and row.comparisons[0].probability >= 0.5


def test_votes_that_are_left_out_do_not_count_in_the_mean(write: Write) -> None:
    labels = THREE["labels"] | {"-": "skip"}
    rows = [TWO | {"ann": 1, "bob": "-", "cy": 0}, TWO | dict.fromkeys(VOTES, "-")]
    result = read_rows(write(*rows), columns=THREE["columns"], labels=labels, annotators="mean")
    assert [row.comparisons for row in result.rows] == [(Comparison(0, 1, 0.75),)]
    assert result.skipped == {"no verdict": ("data.jsonl:2",)}
    separate = read_rows(write(*rows), columns=THREE["columns"], labels=labels)
    assert [row.annotator for row in separate.rows] == ["ann", "cy"] and len(separate.skipped["no verdict"]) == 4


def test_a_column_may_name_the_annotator_of_each_row(write: Write) -> None:
    rows = [TWO | {"label": 1, "annotator": name, "group": "g"} for name in ("ann", "bob")]
    assert [row.annotator for row in read_rows(write(*rows), columns=COLUMNS).rows] == ["ann", "bob"]


@given(probability=st.floats(0.0, 1.0))
def test_the_winner_stands_first(probability: float) -> None:
    comparison = _compare(probability)
    assert comparison.probability >= 0.5
    assert (comparison.winner == 0) == (probability >= 0.5)
    assert {comparison.probability} <= {probability, 1.0 - probability}


def test_rows_of_one_prompt_stay_on_one_side(write: Write) -> None:
    """Other replies, another annotator, another line: still the same question."""
    rows = [TWO | VOTES | {"prompt": f"q{n % 10}", "a": f"yes {n}"} for n in range(30)]
    result = read_rows(write(*rows), **THREE)
    train, held_out = split_rows(result.rows, 0.2, seed=0)
    assert len(result.rows) == len(train) + len(held_out) == 90 and len(held_out) == 18
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}


def test_arenas_give_two_conversations(write: Write) -> None:
    ask = {"role": "user", "content": "q"}
    a, b = ([ask, {"role": "assistant", "content": text}] for text in ("yes", "no"))
    columns = {"responses": ["conversation_a", "conversation_b"], "label": "winner"}
    rows = [{"conversation_a": a, "conversation_b": b, "winner": winner} for winner in ("model_b", "tie")]
    other = {"conversation_a": a, "conversation_b": [{"role": "user", "content": "other"}, b[1]], "winner": "tie"}
    result = read_rows(write(*rows, other), columns=columns)
    assert [row.comparisons for row in result.rows] == [(RIGHT,), (TIE,)]
    assert result.rows[0].prompt == (Turn("user", "q"),) and result.rows[0].responses == ("yes", "no")
    assert result.skipped == {"prompts differ": ("data.jsonl:3",)}


def test_two_responses_in_one_column_with_a_label(write: Write) -> None:
    result = read_rows(write({"prompt": "q", "responses": ["x", {"text": "y"}], "label": "second"}))
    assert result.formats == ("labelled",) and result.rows[0].comparisons == (RIGHT,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"a": " "}, "empty reply"),
        ({"a": "no "}, "all responses equal"),
        ({"a": True}, "reply is not text"),
        ({"prompt": ""}, "empty prompt"),
    ],
)
def test_a_labelled_row_that_compares_nothing_is_counted_once(
    write: Write, change: dict[str, Any], reason: str
) -> None:
    """Spreadsheets turn the reply TRUE into a truth value: PandaLM's has six of them."""
    result = read_rows(write(TWO | VOTES, TWO | VOTES | change), **THREE)
    assert result.skipped == {reason: ("data.jsonl:2",)} and len(result.rows) == 3


def test_labels_are_checked_before_a_row_is_skipped(write: Write, reading_fails: Fails) -> None:
    rows = (TWO | VOTES, TWO | VOTES | {"a": "", "cy": "?"})
    assert reading_fails(write(*rows), "found '?'".replace("?", r"\?"), **THREE).startswith("data.jsonl:2: ")


def test_two_columns_that_are_no_text_are_the_wrong_columns(write: Write, reading_fails: Fails) -> None:
    reading_fails(write(TWO | {"a": 1, "b": 2, "label": 1}), "expected strings, or objects .* found 1", columns=COLUMNS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": COLUMNS | {"label": ["ann", "zoe"]}}, r"expected a column 'zoe'.*'label'.*'ann', 'bob', 'cy'"),
        ({"columns": COLUMNS | {"label": "an"}}, r"did you mean columns: \{label: ann\}\?"),
        ({"columns": COLUMNS | {"label": ["ann", "bo"]}}, r"did you mean columns: \{label: \[ann, bob\]\}\?"),
        ({"columns": {"responses": ["a", "b", "ann"], "label": "bob"}}, "expected two responses .* found 3"),
        ({**THREE, "labels": {"1": "good"}}, "'labelled' to mean left, right, tie, skip, found 'good'"),
        ({**THREE, "labels": {"1": "lefft"}}, "did you mean 'left'"),
        ({**THREE, "labels": {"A": "left", "a": "right"}}, "expected different labels"),
        ({"columns": COLUMNS | {"label": "ann"}, "annotators": "mean"}, "several columns of labels with annotators"),
        ({"columns": COLUMNS | {"label": "ann", "preference": "bob"}}, "'labelled' reads .*, found 'preference'"),
        ({**THREE, "annotators": "majority"}, "annotators 'separate' or 'mean'"),
        ({"columns": {"prompt": "prompt"}, "format": "prompts", "labels": {"1": "left"}}, "labels only for"),
    ],
)
def test_wrong_options_are_refused(write: Write, reading_fails: Fails, options: dict[str, Any], message: str) -> None:
    reading_fails(write(TWO | VOTES), message, **options)


# One response, good or bad


@pytest.mark.parametrize(("label", "score"), [(True, 1.0), (False, 0.0), (1, 1.0), ("undesirable", 0.0)])
def test_unpaired_rows_are_scored_one_or_zero(write: Write, label: object, score: float) -> None:
    result = read_rows(write({"prompt": "q", "completion": "a", "label": label}))
    assert result.formats == ("unpaired",)
    (row,) = result.rows
    assert row.responses == ("a",) and row.scores == (score,) and row.comparisons == ()


def test_unpaired_conversations_are_as_unpaired_strings(write: Write) -> None:
    ask, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    plain = read_rows(write({"prompt": "q", "completion": "a", "label": True}), prompt_role="user").rows[0]
    for prompt, completion in itertools.product(([ask], "q"), ([answer], [ask, answer], answer)):
        assert read_rows(write({"prompt": prompt, "completion": completion, "label": True})).rows[0] == plain


def test_unpaired_labels_can_be_declared(write: Write) -> None:
    rows = [{"prompt": "q", "completion": "a", "thumb": thumb} for thumb in ("up", "down", "none")]
    labels = {"up": "good", "down": "bad", "none": "skip"}
    result = read_rows(write(*rows), columns={"label": "thumb"}, labels=labels)
    assert [row.scores for row in result.rows] == [(1.0,), (0.0,)]
    assert result.skipped == {"no verdict": ("data.jsonl:3",)}


def test_completions_without_a_label_hold_no_feedback(write: Write) -> None:
    """For supervised fine-tuning: a prompt and its answer, or one conversation, ShareGPT's too."""
    spoken = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    unanswered = {"conversations": [{"from": "human", "value": "q"}]}
    for rows, role in (([{"prompt": "q", "completion": "a"}], "text"), ([spoken, unanswered], "user")):
        result = read_rows(write(*rows))
        assert result.formats == ("completions",)
        (row,) = result.rows
        assert row.prompt == (Turn(role, "q"),) and row.responses == ("a",)
        assert row.scores is None and row.comparisons == ()
    assert result.skipped == {"no final assistant reply": ("data.jsonl:2",)}
