"""Each format gives the same kind of row; each kind of bad input gives one line that names file and row."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.readers import rank_scores, read_rows
from alignment.data.rows import Comparison, Turn
from alignment.errors import UserError

PAIR = {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}
HELLO = {"role": "user", "content": "Hello"}
GOOD = {"role": "assistant", "content": "Hi!"}
BAD = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind."}


def fails(path: object, match: str, **options: Any) -> str:
    """The message of the UserError that reading raises: one line."""
    with pytest.raises(UserError, match=match) as caught:
        read_rows(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats


def test_pairs_of_strings_stay_raw_text(write: Callable[..., Path]) -> None:
    result = read_rows(write(PAIR))
    (row,) = result.rows
    assert row.prompt == (Turn("text", "2 + 2 = "),)
    assert row.responses == ("4", "5") and row.comparisons == (Comparison(0, 1, 1.0),) and row.scores is None
    assert row.source == "data.jsonl:1"
    assert result.formats == ("pairs",)
    assert result.summary() == "1 rows (pairs); skipped 0"


def test_a_string_prompt_becomes_a_turn_where_asked(write: Callable[..., Path]) -> None:
    assert read_rows(write(PAIR), prompt_role="user").rows[0].prompt == (Turn("user", "2 + 2 = "),)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param({"prompt": [SYSTEM, HELLO], "chosen": [GOOD], "rejected": [BAD]}, id="explicit"),
        pytest.param({"prompt": [SYSTEM, HELLO], "chosen": "Hi!", "rejected": "What?"}, id="explicit, string replies"),
        pytest.param({"chosen": [SYSTEM, HELLO, GOOD], "rejected": [SYSTEM, HELLO, BAD]}, id="implicit"),
        pytest.param(
            {"prompt": [SYSTEM, HELLO], "chosen": [SYSTEM, HELLO, GOOD], "rejected": [SYSTEM, HELLO, BAD]}, id="both"
        ),
        pytest.param(
            {"prompt": "Hello", "chosen": [SYSTEM, HELLO, GOOD], "rejected": [SYSTEM, HELLO, BAD]}, id="both, string"
        ),
    ],
)
def test_explicit_and_implicit_prompts_are_the_same_row(write: Callable[..., Path], pair: dict[str, Any]) -> None:
    (row,) = read_rows(write(pair)).rows
    assert row.prompt == (Turn("system", "Be kind."), Turn("user", "Hello"))
    assert row.responses == ("Hi!", "What?")


def test_shared_turns_of_the_replies_belong_to_the_prompt(write: Callable[..., Path]) -> None:
    more = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Well?"}]
    (row,) = read_rows(write({"prompt": [HELLO], "chosen": [*more, GOOD], "rejected": [*more, BAD]})).rows
    assert [turn.content for turn in row.prompt] == ["Hello", "Yes?", "Well?"] and row.responses == ("Hi!", "What?")


def test_hh_transcripts_share_all_but_the_last_assistant_turn(write: Callable[..., Path]) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A pun,\n\nplease.\n\nAssistant:"
    result = read_rows(write({"chosen": f"{start} No.", "rejected": f"{start} Why? "}))
    (row,) = result.rows
    assert result.formats == ("hh",)
    assert row.prompt == (Turn("user", "Hi"), Turn("assistant", "Yes?"), Turn("user", "A pun,\n\nplease."))
    assert row.responses == ("No.", "Why?")


@pytest.mark.parametrize("key", [None, "response", "text"])
def test_ranked_lists_get_all_comparisons_and_rank_scores(write: Callable[..., Path], key: str | None) -> None:
    responses = [text if key is None else {key: text, "model": "m"} for text in ("best", "middle", "worst")]
    result = read_rows(write({"prompt": "q", "responses": responses}))
    (row,) = result.rows
    assert result.formats == ("ranked",)
    assert row.responses == ("best", "middle", "worst")
    assert row.comparisons == (Comparison(0, 1), Comparison(0, 2), Comparison(1, 2))
    assert row.scores == pytest.approx((5 / 6, 1 / 2, 1 / 6))


def test_rank_scores_are_mean_win_probabilities() -> None:
    """By definition: psi_i = mean over j of [i < j] + [i = j] / 2, summed here without the closed form."""
    for size in (1, 2, 5, 8):
        means = [sum(1.0 if i < j else 0.5 if i == j else 0.0 for j in range(size)) / size for i in range(size)]
        assert rank_scores(size) == pytest.approx(means)


@pytest.mark.parametrize("inside", [False, True])
def test_scored_lists_compare_by_score_and_ties_are_even(write: Callable[..., Path], inside: bool) -> None:
    texts, scores = ["a", "b", "c"], [1, 3.5, 1]
    objects = [{"text": text, "stars": score} for text, score in zip(texts, scores, strict=True)]
    row = {"prompt": "q", "responses": objects} if inside else {"prompt": "q", "responses": texts, "stars": scores}
    result = read_rows(write(row), columns={"scores": "stars"})
    assert result.formats == ("scored",)
    assert result.rows[0].scores == (1.0, 3.5, 1.0)
    assert result.rows[0].comparisons == (Comparison(1, 0), Comparison(0, 2, 0.5), Comparison(1, 2))


def test_a_single_scored_response_has_no_comparison(write: Callable[..., Path]) -> None:
    (row,) = read_rows(write({"prompt": "q", "responses": ["a"], "scores": [1]})).rows
    assert row.comparisons == () and row.scores == (1.0,)


@pytest.mark.parametrize(
    ("values", "prompt"),
    [
        ({"prompt": "q"}, (Turn("text", "q"),)),
        ({"instruction": "q", "input": ""}, (Turn("text", "q"),)),
        ({"messages": [SYSTEM, HELLO]}, (Turn("system", "Be kind."), Turn("user", "Hello"))),
        ({"turns": [{"content": "q"}]}, (Turn("user", "q"),)),
        ({"turns": ["q", "and then?"]}, (Turn("user", "q"), Turn("user", "and then?"))),
    ],
)
def test_prompts(write: Callable[..., Path], values: dict[str, Any], prompt: tuple[Turn, ...]) -> None:
    result = read_rows(write(values))
    assert result.formats == ("prompts",)
    assert result.rows[0].prompt == prompt and result.rows[0].responses == ()


def test_optional_columns_are_read(write: Callable[..., Path]) -> None:
    extra = {"p": 0.25, "weight": 2, "annotator": 17, "group": "experts"}
    (row,) = read_rows(write(PAIR | extra), columns={"preference": "p"}).rows
    assert row.comparisons == (Comparison(0, 1, 0.25),)
    assert (row.weight, row.annotator, row.group) == (2.0, "17", "experts")


def test_columns_map_our_names_to_the_names_in_the_file(write: Callable[..., Path]) -> None:
    path = write({"question": "q", "win": "a", "lose": "b"})
    (row,) = read_rows(path, columns={"prompt": "question", "chosen": "win", "rejected": "lose"}).rows
    assert row.prompt[0].content == "q" and row.responses == ("a", "b")


# Files


def test_json_lines_and_lists_plain_and_packed_hold_the_same_rows(tmp_path: Path, write: Callable[..., Path]) -> None:
    rows = [PAIR, PAIR | {"chosen": "vier"}]
    texts = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "b.json": json.dumps(rows),
        "c.json": json.dumps({"version": 1, "data": rows}),
        "d.jsonl": "\ufeff" + "\n\n".join(json.dumps(row) for row in rows),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for name in [*texts, *(f"{name}.gz" for name in texts)]:
        assert [row.responses for row in read_rows(tmp_path / name).rows] == [("4", "5"), ("vier", "5")], name
    # A blank line is no row, and the lines keep their numbers.
    assert read_rows(tmp_path / "d.jsonl").rows[1].source == "d.jsonl:3"


def test_several_files_are_read_in_order(write: Callable[..., Path]) -> None:
    result = read_rows([write(PAIR, name="a.jsonl"), write({"chosen": [HELLO, GOOD], "rejected": [HELLO, BAD]})])
    assert [row.source for row in result.rows] == ["a.jsonl:1", "data.jsonl:1"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text(json.dumps(PAIR))
    result = read_rows([tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl"])
    assert len({row.source for row in result.rows}) == 2


def test_bad_files_are_refused(tmp_path: Path) -> None:
    def put(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    packed = gzip.compress(json.dumps(PAIR).encode() * 200)
    assert str(tmp_path / "none.jsonl") in fails(tmp_path / "none.jsonl", "found nothing")
    fails(tmp_path, "found a directory")
    fails([], "at least one data file")
    fails(put("rows.txt", b"prompt\n"), "ending in .jsonl, .json, .csv, .jsonl.gz, .json.gz, .csv.gz, .parquet, found")
    for name in ("empty.jsonl", "empty.json"):
        fails(put(name, b""), rf"{name}: .*file is empty")
    fails(put("blank.jsonl", b"\n \n"), "blank.jsonl: .*file is empty")
    fails(put("no_rows.json", b"[]"), "no_rows.json: .*file is empty")
    fails(put("empty.jsonl.gz", gzip.compress(b"")), "empty.jsonl.gz: .*file is empty")
    fails(put("not.jsonl.gz", b"plain text"), "not.jsonl.gz: expected a whole gzip file")
    fails(put("cut.jsonl.gz", packed[: len(packed) // 2]), "cut.jsonl.gz: expected a whole gzip file")
    fails(put("flipped.jsonl.gz", packed[:40] + b"\xff\xff\xff" + packed[43:]), "expected a whole gzip file")
    fails(put("latin.jsonl", '{"prompt": "\u00e9"}'.encode("latin-1")), "latin.jsonl: expected UTF-8")
    fails(put("broken.jsonl", json.dumps(PAIR).encode() + b'\n{"prompt": '), "broken.jsonl:2: expected one JSON object")
    fails(put("broken.json", b'{"prompt": '), "broken.json: expected one JSON value")
    fails(put("lines.json", b"{}\n{}\n"), "call it .jsonl")
    fails(put("number.jsonl", b"3\n"), "number.jsonl:1: expected an object with named columns, found 3")
    fails(put("number.json", b"3"), "number.json: expected a list of rows, or an object with one list, found 3")
    fails(put("lists.json", b'{"a": [], "b": []}'), "found an object with 2 lists")


# Rows that are errors


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": "q", "rejected": "b"}, "expected a column 'chosen' .* found 'prompt', 'rejected'"),
        ({"prompt": "q", "chosen": "a"}, "expected a column 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "expected a column 'prompt'"),
        (PAIR | {"chosen": None}, "found null"),
        (PAIR | {"chosen": [GOOD]}, "conversation"),
        (
            {"prompt": "q", "chosen": [{"speaker": "gpt", "says": "a"}], "rejected": [BAD]},
            "pairs of strings first at data.jsonl:1 and pairs of conversations first at data.jsonl:2",
        ),
        (PAIR | {"preference": 0.5}, "'preference' in every row or in none"),
        (PAIR | {"weight": 1}, "'weight' in every row or in none"),
        (PAIR | {"group": 1.5}, "expected a string or an integer"),
    ],
)
def test_a_bad_pair_is_named_by_row(write: Callable[..., Path], second: dict[str, Any], message: str) -> None:
    assert fails(write(PAIR, second), message).startswith("data.jsonl:2: ")


@pytest.mark.parametrize("preference", [float("nan"), float("inf"), -0.01, 1.01, "1", True, None])
def test_a_preference_must_be_a_probability(write: Callable[..., Path], preference: object) -> None:
    rows = (PAIR | {"preference": 1.0}, PAIR | {"preference": preference})
    message = fails(write(*rows), "expected a (finite number in 'preference'|preference in)")
    assert message.startswith("data.jsonl:2: ")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"a": 1}, {}, "columns of a known format .* found 'a'"),
        ({}, {}, "found no columns"),
        ({"chosen": "a", "rejected": "b"}, {}, "expected a column 'prompt'"),
        (PAIR, {"format": "pair"}, "did you mean 'pairs'"),
        (PAIR, {"format": "hh"}, r"transcript that starts with '\\n\\nHuman:'"),
        (PAIR, {"columns": {"chosen_one": "chosen"}}, "found 'chosen_one'; did you mean 'chosen'"),
        (PAIR, {"columns": {"preference": "p"}}, "expected a column 'p', which columns maps to 'preference'"),
        (PAIR, {"prompt_role": "system"}, "prompt_role 'text' or 'user'"),
        ({"prompt": "q", "responses": "a"}, {}, "expected a list in the column 'responses'"),
        ({"prompt": "q", "responses": [1, 2]}, {}, "expected strings, or objects"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, {}, "each of the 2 responses, found 1 scores"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, {}, "finite number in 'scores', found null"),
        ({"prompt": "q", "responses": ["a", "b"]}, {"columns": {"scores": "stars"}}, "inside every response object"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, {"format": "ranked"}, "name format='scored'"),
        ({"instruction": "q", "input": "x"}, {}, "found 'instruction' and 'input'"),
        ({"prompt": []}, {}, "conversation of at least one turn"),
        ({"prompt": [{"role": "text", "content": "q"}]}, {}, "'role' and 'content'"),
        (
            {"chosen": [{"speaker": "gpt", "says": "a"}], "rejected": [BAD]},
            {},
            "'role' and 'content', or 'from' and 'value'.*'speaker', 'says'",
        ),
    ],
)
def test_wrong_options_and_first_rows_are_refused(
    write: Callable[..., Path], row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    fails(write(row), message, **options)


# Rows that are skipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR | {"chosen": " \n"}, "empty reply"),
        (PAIR | {"rejected": ""}, "empty reply"),
        (PAIR | {"rejected": "4 "}, "chosen equals rejected"),
        (PAIR | {"prompt": " "}, "empty prompt"),
        ({"chosen": [HELLO, GOOD], "rejected": [SYSTEM, HELLO, BAD]}, "prompts differ"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "empty prompt"),
        ({"chosen": [HELLO], "rejected": [HELLO]}, "no final assistant reply"),
        (
            {"prompt": "Bye", "chosen": [HELLO, GOOD], "rejected": [HELLO, BAD]},
            "prompt column differs from the conversation",
        ),
    ],
)
def test_a_pair_without_a_preference_is_skipped_and_counted(
    write: Callable[..., Path], row: dict[str, Any], reason: str
) -> None:
    conversation = {"chosen": [HELLO, GOOD], "rejected": [HELLO, BAD]}
    result = read_rows(write(row if "prompt" in row else conversation, conversation | PAIR, row), format="pairs")
    assert result.skipped[reason][-1] == "data.jsonl:3"
    assert f"{len(result.skipped[reason])} {reason} (data.jsonl:" in result.summary()


def test_the_preference_is_checked_before_a_row_is_skipped(write: Callable[..., Path]) -> None:
    rows = (PAIR | {"preference": 1}, PAIR | {"chosen": "", "preference": 7})
    fails(write(*rows), r"data.jsonl:2: expected a preference in \[0, 1\], found 7.0")


def test_lists_without_a_preference_are_skipped_and_counted(write: Callable[..., Path]) -> None:
    lists = [["a", "b"], ["a", ""], ["a", " a"], ["a"], []]
    result = read_rows(write(*({"prompt": "q", "responses": texts} for texts in lists)))
    assert len(result.rows) == 1
    assert result.skipped == {
        "empty reply": ("data.jsonl:2",),
        "all responses equal": ("data.jsonl:3",),
        "fewer than 2 responses": ("data.jsonl:4", "data.jsonl:5"),
    }


def test_a_prompt_that_is_already_answered_is_skipped(write: Callable[..., Path]) -> None:
    result = read_rows(write({"messages": [HELLO]}, {"messages": [HELLO, GOOD]}))
    assert result.skipped == {"prompt ends with an assistant turn": ("data.jsonl:2",)}


def test_a_file_of_skipped_rows_only_is_refused(write: Callable[..., Path]) -> None:
    message = fails(write(PAIR | {"chosen": ""}, PAIR | {"rejected": "4"}), "at least one usable row")
    assert "skipped 2: 1 empty reply (data.jsonl:1), 1 chosen equals rejected (data.jsonl:2)" in message
