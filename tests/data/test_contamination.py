"""Evaluation prompts in training data: exact, embedded, partial, and in scripts without spaces."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.data import Row, Turn, drop_contaminated, read_rows
from alignment.errors import UserError

EVALUATION = "Write a short poem about the sea that does not mention water, salt or ships at all."


def prompt(*turns: str, source: str = "train:1", role: str = "user") -> Row:
    return Row(prompt=tuple(Turn(role, text) for text in turns), source=source)


def removed(train: Row, evaluation: str, **options: float) -> bool:
    return not drop_contaminated([train], [prompt(evaluation, source="eval:7")], **options).rows


def test_a_prompt_that_holds_it_is_named_with_its_share() -> None:
    row = prompt(f"Please help me. {EVALUATION.upper()} Thank you!")
    result = drop_contaminated([row, prompt("Something else?")], [prompt(EVALUATION, source="eval:7")])
    assert [kept.prompt[0].content for kept in result.rows] == ["Something else?"]
    assert result.removed == {"prompt holds an evaluation prompt": ("train:1 ~ eval:7 (100%)",)}


def test_the_share_counts_words_inside_common_ngrams() -> None:
    """The first 10 of 17 words: three 8-grams that cover 10 words, 58.8 %."""
    half = prompt(" ".join(EVALUATION.split()[:10]) + " and nothing more")
    assert len(EVALUATION.split()) == 17
    assert removed(half, EVALUATION, overlap=0.58)
    assert not removed(half, EVALUATION, overlap=0.59)
    assert not removed(prompt(" ".join(EVALUATION.split()[:7])), EVALUATION, overlap=0.0), "no 8-gram in common"


def test_words_in_another_order_share_nothing() -> None:
    assert not removed(prompt(" ".join(reversed(EVALUATION.split()))), EVALUATION, overlap=0.0)


def test_short_prompts_count_only_as_a_whole_turn() -> None:
    assert removed(prompt("who  are YOU"), "Who are you?")
    assert removed(prompt("Hello!", "Who are you?"), "Who are you?")
    assert not removed(prompt("Who are you and what do you want?"), "Who are you?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2+2?", "What is 2*2?"),
        ("Is C++ hard?", "Is C# hard?"),
        ("Is C++ hard?", "Is C hard?"),
        ("Round 3.5.", "Round 35."),
        ("Round 3.5", "Round 3,5"),
        ("Is 5!=3?", "Is 5=3?"),
        ("f(x)", "f[x]"),
        ("(2+3)*4", "2+3*4"),
        ("!!!", "???"),
        ("!!!", "😀"),
    ],
)
def test_symbols_of_a_short_prompt_count(one: str, other: str) -> None:
    """The words of the two are the same, and they are different questions."""
    assert not removed(prompt(one), other) and not removed(prompt(other), one)
    assert removed(prompt(one), one) and removed(prompt(other), other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2+2?", "what is 2 + 2"),
        ("Hello, world!", "Hello world."),
        ("Why don't you?", "Why don’t you"),
        ("你好，世界。", "你好世界"),
        ("Say 'yes'.", "say yes"),
    ],
)
def test_marks_of_a_sentence_do_not_count(one: str, other: str) -> None:
    assert removed(prompt(one), other) and removed(prompt(other), one)


def test_a_prompt_without_words_holds_only_its_like() -> None:
    """One such prompt in a benchmark once removed every row with any turn that has no word."""
    rows = [prompt("Tell me more.", "...", source="a"), prompt("?!", source="b"), prompt("* * *", source="c")]
    assert [row.source for row in drop_contaminated(rows, [prompt("!!!"), prompt("***")]).rows] == ["a", "b", "c"]
    assert [row.source for row in drop_contaminated(rows, [prompt("...")]).rows] == ["b", "c"]


def test_scripts_without_spaces_are_split_by_character() -> None:
    assert removed(prompt("请帮我写一首关于大海的短诗好吗"), "写一首关于大海的短诗")
    assert not removed(prompt("请帮我写一首关于高山的长诗好吗"), "写一首关于大海的短诗")


def test_system_prompts_and_replies_do_not_count() -> None:
    row = Row(
        prompt=(Turn("system", EVALUATION), Turn("user", "Hi"), Turn("assistant", EVALUATION), Turn("user", "Bye")),
        source="train:1",
    )
    assert not removed(row, EVALUATION)


@pytest.mark.parametrize(("ngram", "overlap"), [(0, 0.5), (8, 1.0), (8, -0.1)])
def test_numbers_out_of_range_are_refused(ngram: int, overlap: float) -> None:
    with pytest.raises(UserError, match="expected ngram >= 1 and overlap in"):
        drop_contaminated([prompt("a")], [prompt("b")], ngram=ngram, overlap=overlap)


def test_a_set_holds_itself_and_another_set_does_not(real_data: Callable[[str], Path]) -> None:
    alpaca = read_rows(real_data("prompts/prompts_alpaca_eval_805.jsonl.gz")).rows
    arena = read_rows(real_data("prompts/prompts_arena_hard_v0.1_500.jsonl.gz")).rows
    assert drop_contaminated(alpaca, alpaca).rows == ()
    assert len(drop_contaminated(arena, alpaca).rows) >= 498
