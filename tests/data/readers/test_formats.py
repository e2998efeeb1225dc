"""Prompts of several columns, ShareGPT's turns, prompts inside the replies, and formats that do not mix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt

from alignment.data.readers import read_rows
from alignment.data.readers.pairs import _common_start
from alignment.data.readers.proposals import propose_columns
from alignment.data.rows import Turn

Write = Callable[..., Path]
Fails = Callable[..., str]

PAIR = {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}
HELLO = {"role": "user", "content": "Hello"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Hi!", "What?"))
CONVERSATION = {"chosen": [HELLO, GOOD], "rejected": [HELLO, BAD]}
LIST = {"prompt": "q", "responses": ["a", "b"]}


# Prompts


def test_columns_of_a_prompt_are_joined_by_a_blank_line(write: Write) -> None:
    rows = [{"instruction": "Add.", "input": text, "chosen": "a", "rejected": "b"} for text in ("1 2", "", None)]
    del rows[2]["input"]
    result = read_rows(write(*rows), columns={"prompt": ["instruction", "input"]})
    assert [row.prompt[0].content for row in result.rows] == ["Add.\n\n1 2", "Add.", "Add."]


def test_a_prompt_of_two_columns_is_not_cut_silently(write: Write, reading_fails: Fails) -> None:
    row = {"instruction": "Add.", "input": "1 2", "chosen": "a", "rejected": "b"}
    assert "columns: {prompt: [instruction, input]}" in reading_fails(write(row), "'instruction' and 'input'")
    assert read_rows(write(row), columns={"prompt": "instruction"}).rows[0].prompt[0].content == "Add."
    assert read_rows(write(row | {"input": ""})).rows[0].prompt[0].content == "Add."


def test_sharegpt_turns_are_as_any_turns(write: Write) -> None:
    """LLaMA-Factory writes preferences so: the prompt as conversations, each reply as one turn."""
    spoken = {
        "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hello"}],
        "chosen": {"from": "gpt", "value": "Hi!"},
        "rejected": {"from": "gpt", "value": "What?"},
    }
    usual = {"prompt": [{"role": "system", "content": "Be kind."}, HELLO], "chosen": [GOOD], "rejected": [BAD]}
    assert read_rows(write(spoken)).rows == read_rows(write(usual)).rows


def test_a_turn_of_parts_is_not_read(write: Write, reading_fails: Fails) -> None:
    parts = [{"type": "text", "text": "Hello."}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Hi."}]
    row = {"chosen": turns, "rejected": turns}
    reading_fails(write(row), "expected a string as the 'content' of a turn .* found a list of parts")


def test_an_unknown_speaker_is_named(write: Write, reading_fails: Fails) -> None:
    rows = [{"conversations": [{"from": name, "value": "q"}]} for name in ("human", "narrator")]
    message = reading_fails(write(*rows), "found 'narrator'; rename the speaker")
    assert message.startswith("data.jsonl:2: ") and "'human'" in message


# A prompt inside the replies


def test_an_implicit_prompt_gives_the_row_of_the_explicit_one(write: Write) -> None:
    """TRL's own example of the two forms."""
    explicit = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    implicit = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    result = read_rows(write(implicit))
    assert result.formats == ("implicit",) and result.rows == read_rows(write(explicit)).rows


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Sky:\nblue", "Sky:\nblack", "Sky:"),
        ("The sky", "The sky is blue.", "The sky"),
        ("The sky  is", "The sky  was", "The sky"),
    ],
)
def test_an_implicit_prompt_never_ends_inside_a_word(chosen: str, rejected: str, prompt: str) -> None:
    """TRL would end the first one in "The sky is bl"."""
    assert _common_start(chosen, rejected) == _common_start(rejected, chosen) == prompt


words = st.lists(st.sampled_from(["sky", "blue", "bluer"]), min_size=1, max_size=6).map(" ".join)


@given(prompt=words, chosen=words, rejected=words)
def test_an_implicit_prompt_ends_between_words_where_trl_ends_it(prompt: str, chosen: str, rejected: str) -> None:
    left, right = f"{prompt} {chosen}", f"{prompt} {rejected}"
    start = _common_start(left, right)
    for text in (left, right):
        assert text.startswith(start) and text[len(start) :][:1] in ("", " ")
    theirs = extract_prompt({"chosen": left, "rejected": right})["prompt"]
    is_between_words = all(text[len(theirs) :][:1] in ("", " ") for text in (left, right))
    assert start.startswith(prompt) and (
        start == theirs or not is_between_words or left == right or theirs in (left, right)
    )


def test_replies_without_a_common_start_need_a_prompt(write: Write, reading_fails: Fails) -> None:
    rows = [{"chosen": "Hi you", "rejected": "Hi there"}, {"chosen": "Yes", "rejected": "No"}]
    reading_fails(write(*rows), r"data.jsonl:2: expected a column 'prompt', or 'chosen' and 'rejected' that begin")
    # Another column that is probably the prompt must be named or ruled out.
    row = {"question": "Well?", "chosen": "Hi you", "rejected": "Hi there"}
    reading_fails(write(row), r"map it: columns: \{prompt: question\}, or name format: implicit")
    assert read_rows(write(row), format="implicit").rows[0].prompt == (Turn("text", "Hi"),)


# Formats that do not mix


KINDS = {
    "pairs of strings": PAIR,
    "pairs of conversations": CONVERSATION,
    "implicit": {"chosen": "I am", "rejected": "I was"},
    "hh": {name: f"\n\nHuman: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")},
    "ranked": LIST,
    "scored": LIST | {"scores": [1, 2]},
    "labelled": LIST | {"label": 1},
    "unpaired": {"prompt": "q", "completion": "a", "label": True},
    "completions": {"prompt": "q", "completion": "a"},
    "prompts": {"prompt": "q"},
}


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_formats_in_one_file_are_an_error_that_names_the_first_row_of_each(
    write: Write, reading_fails: Fails, first: str, second: str
) -> None:
    path = write(KINDS[first], KINDS[first], KINDS[second], KINDS[first], KINDS[second])
    if first == second:
        assert read_rows(path).rows
        return
    if (first, second) == ("pairs of strings", "implicit"):
        # A forgotten prompt is likelier than another format.
        assert reading_fails(path, "expected a column 'prompt'").startswith("data.jsonl:3: ")
        return
    message = reading_fails(path, "expected one format in a file")
    assert f"found {first} first at data.jsonl:1 and {second} first at data.jsonl:3" in message


def test_files_of_different_formats_may_be_read_together(write: Write) -> None:
    result = read_rows([write(PAIR, name="a.jsonl"), write(LIST, name="b.jsonl")])
    assert result.formats == ("pairs", "ranked") and result.num_read == 2


# Proposals


@pytest.mark.parametrize(
    ("found", "proposal"),
    [
        (
            ["idx", "instruction", "input", "response1", "response2", "annotator1", "annotator2"],
            {
                "prompt": ["instruction", "input"],
                "responses": ["response1", "response2"],
                "label": ["annotator1", "annotator2"],
            },
        ),
        (
            ["input", "output_1", "output_2", "label"],
            {"prompt": "input", "responses": ["output_1", "output_2"], "label": "label"},
        ),
        (
            ["question", "preferred", "dispreferred"],
            {"prompt": "question", "chosen": "preferred", "rejected": "dispreferred"},
        ),
        (["query", "candidates"], {"prompt": "query", "responses": "candidates"}),
        (["promt", "choosen", "rejcted"], {"prompt": "promt", "chosen": "choosen", "rejected": "rejcted"}),
        (["x", "y"], {}),
    ],
)
def test_the_likely_mapping_is_proposed(
    write: Write, reading_fails: Fails, found: list[str], proposal: dict[str, Any]
) -> None:
    assert propose_columns(found) == proposal
    message = reading_fails(write(dict.fromkeys(found, "text")), "columns: {".replace("{", r"\{"))
    assert all(repr(name) in message for name in found)


def test_a_proposal_is_only_proposed_and_reads_the_file_once_it_is_taken(write: Write, reading_fails: Fails) -> None:
    row = {"question": "q", "answer_a": "x", "answer_b": "y", "winner": "b"}
    proposal = propose_columns(row)
    reading_fails(
        write(row), r"such as columns: \{prompt: question, responses: \[answer_a, answer_b\], label: winner\}"
    )
    assert read_rows(write(row), columns=proposal).rows[0].comparisons[0].winner == 1
