"""The split between prompt and completion: one BOS, one end, and the text itself unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template

from alignment.data.readers import read_rows
from alignment.data.rows import Comparison, Row, Skipped, Turn
from alignment.data.tokens import EncodedRow, encode_row, encode_rows, stop_token_ids
from alignment.errors import UserError

Build = Callable[..., PreTrainedTokenizerFast]
LIMITS = {"max_prompt_length": 200, "max_completion_length": 200}
ADDS = ["", "<s> $A", "<s> $A </s>"]


def chat_row(*responses: str, prompt: tuple[str, ...] = ("hello",), source: str = "f:1") -> Row:
    turns = tuple(Turn("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(prompt))
    return Row(prompt=turns, responses=responses, source=source)


def text_row(prompt: str, *responses: str) -> Row:
    return Row(prompt=(Turn("text", prompt),), responses=responses, source="f:1")


def encoded(row: Row, tokenizer: PreTrainedTokenizerFast, **limits: int) -> EncodedRow:
    result = encode_row(row, tokenizer, **(LIMITS | limits))
    assert isinstance(result, EncodedRow), result
    return result


def texts(row: EncodedRow, tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Prompt and completions, decoded with all special tokens."""
    return tuple(tokenizer.decode(list(ids)) for ids in (row.prompt_ids, *row.completion_ids))


@pytest.mark.parametrize("adds", ADDS)
@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("eos", "</s>"),
        ("bos_eos", "</s>"),
        ("no_eos", "</s>"),
        ("alternating", "</s>"),
        ("end_of_turn", "<|im_end|>"),
        ("end_of_turn_and_eos", "<|im_end|>\n</s>"),
    ],
)
def test_one_bos_and_the_reply_and_one_end(build_tokenizer: Build, template: str, end: str, adds: str) -> None:
    """Whoever writes BOS, template or tokenizer or both, it stands there once; a tokenizer that adds EOS adds none."""
    tokenizer = build_tokenizer(template, adds=adds)
    row = encoded(chat_row("hi there", "\n\nbye ", ""), tokenizer)
    prompt, *completions = texts(row, tokenizer)
    has_bos = bool(adds) or template == "bos_eos"
    assert prompt.startswith("<s><|im_start|>user\nhello" if has_bos else "<|im_start|>user\nhello")
    assert prompt.endswith("<|im_start|>assistant\n") and prompt.count("<s>") == has_bos
    assert completions == [f"hi there{end}", f"\n\nbye {end}", end]
    for ids in row.completion_ids:
        assert ids[-1] in stop_token_ids(tokenizer)
        assert ids.count(tokenizer.eos_token_id) == ("</s>" in end)


def test_a_template_without_generation_prompt_text_is_fit_if_the_reply_follows(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("inst", adds="<s> $A")
    row = encoded(chat_row("hi", prompt=("hello", "yes?", "well?")), tokenizer)
    assert texts(row, tokenizer) == ("<s>[INST] hello [/INST] yes? </s>[INST] well? [/INST]", " hi </s>")


@pytest.mark.parametrize("adds", ADDS)
def test_raw_text_keeps_the_tokenizers_own_bos_rule(build_tokenizer: Build, adds: str) -> None:
    tokenizer = build_tokenizer(None, adds=adds)
    bos = "<s>" if adds else ""
    assert texts(encoded(text_row("2 + 2 =", " 4", "5"), tokenizer), tokenizer) == (f"{bos}2 + 2 =", " 4</s>", "5</s>")
    # Text that brings its own special tokens gets no second ones.
    assert texts(encoded(text_row("<s>2 =", "2</s>"), tokenizer), tokenizer) == ("<s>2 =", "2</s>")


def test_raw_text_passes_through_no_template(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("bos_eos")
    assert texts(encoded(text_row("hello", "hi"), tokenizer), tokenizer) == ("hello", "hi</s>")


def test_conversations_and_raw_text_may_be_mixed(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("eos")
    result = encode_rows([text_row("hello", "hi"), chat_row("hi")], tokenizer, **LIMITS)
    assert [texts(row, tokenizer)[0] for row in result.rows] == [
        "hello",
        "<|im_start|>user\nhello</s>\n<|im_start|>assistant\n",
    ]


@pytest.mark.parametrize("make", [chat_row, lambda *responses: text_row("hello\n", *responses)])
def test_all_responses_share_the_prompt_even_where_one_would_merge_with_it(
    build_tokenizer: Build, make: Callable[..., Row]
) -> None:
    r"""The prompt ends in "\n" and the tokenizer knows "\n\n": tokenised as one text, the second row has other ids."""
    tokenizer = build_tokenizer("eos")
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    both = encoded(make("hi", "\nhi"), tokenizer)
    assert both.prompt_ids == encoded(make(), tokenizer).prompt_ids
    assert texts(both, tokenizer)[1:] == ("hi</s>", "\nhi</s>")


def test_a_reply_that_starts_inside_a_token_of_the_prompt_is_skipped(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Here "h" + "e" is one token; "e" by itself would be tokenised with a blank before it, another text."""
    row = encoded(text_row("h", "lll"), merging_tokenizer)
    assert texts(row, merging_tokenizer) == ("h", "lll</s>")
    assert len(row.completion_ids[0]) == 4
    outcome = encode_row(text_row("h", "lll", "e"), merging_tokenizer, **LIMITS)
    assert outcome == Skipped("no token boundary between prompt and reply", "f:1")


def test_explicit_and_implicit_prompts_give_the_same_tokens(build_tokenizer: Build, tmp_path: Path) -> None:
    hello = {"role": "user", "content": "hello"}
    good, bad = ({"role": "assistant", "content": text} for text in ("hi", "what?"))
    explicit = tmp_path / "explicit.jsonl"
    explicit.write_text(json.dumps({"prompt": [hello], "chosen": [good], "rejected": [bad]}))
    implicit = tmp_path / "implicit.jsonl"
    implicit.write_text(json.dumps({"chosen": [hello, good], "rejected": [hello, bad]}))
    tokenizer = build_tokenizer("bos_eos", adds="<s> $A")
    one, other = encode_rows(read_rows([explicit, implicit]).rows, tokenizer, **LIMITS).rows
    assert one.prompt_ids == other.prompt_ids and one.completion_ids == other.completion_ids


def test_the_split_is_that_of_trl(build_tokenizer: Build) -> None:
    """On a template without traps. TRL also trains on what the template writes after EOS; we stop at EOS."""
    tokenizer = build_tokenizer("bos_eos")
    ours = encoded(chat_row("hi there", "he fell", prompt=("hello", "yes?", "well?")), tokenizer)
    theirs = apply_chat_template(
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in ours.row.prompt],
            "chosen": [{"role": "assistant", "content": "hi there"}],
            "rejected": [{"role": "assistant", "content": "he fell"}],
        },
        tokenizer,
    )
    ids = {name: tuple(tokenizer(theirs[name], add_special_tokens=False)["input_ids"]) for name in theirs}
    after_eos = tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
    assert ours.prompt_ids == ids["prompt"]
    assert [completion + after_eos for completion in ours.completion_ids] == [ids["chosen"], ids["rejected"]]


def test_one_row_and_many_rows_give_the_same_tokens(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("bos_eos")
    rows = [chat_row(*("hello " * n for n in range(1, size + 1)), source=f"f:{size}") for size in range(5)]
    assert list(encode_rows(rows, tokenizer, **LIMITS).rows) == [encoded(row, tokenizer) for row in rows]


def test_chunks_do_not_show(build_tokenizer: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer("eos")
    rows = [chat_row("hi" * n, source=f"f:{n}") for n in range(7)]
    whole = encode_rows(rows, tokenizer, max_prompt_length=200, max_completion_length=10)
    monkeypatch.setattr("alignment.data.tokens._CHUNK_ROWS", 3)
    assert encode_rows(rows, tokenizer, max_prompt_length=200, max_completion_length=10) == whole


# Limits


def test_long_completions_are_cut_without_an_end_and_counted(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("eos")
    full = encoded(chat_row("abc", "abcdef"), tokenizer)
    result = encode_rows([chat_row("abc", "abcdef")], tokenizer, max_prompt_length=200, max_completion_length=4)
    (row,) = result.rows
    assert row.completion_ids == (full.completion_ids[0], full.completion_ids[1][:4])
    assert row.completion_ids[0][-1] == tokenizer.eos_token_id != row.completion_ids[1][-1]
    assert row.num_truncated == 1 and result.truncated == ("f:1",)
    assert result.summary() == "1 rows encoded; skipped 0; 1 completion truncated (f:1)"
    one = encoded(chat_row("abc", "abcdef"), tokenizer, max_completion_length=1)
    assert [len(ids) for ids in one.completion_ids] == [1, 1] and one.num_truncated == 2


def test_long_prompts_are_skipped_and_counted(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer("eos")
    length = len(encoded(chat_row("a"), tokenizer).prompt_ids)
    rows = [chat_row("a"), chat_row("a", prompt=("hello!",), source="f:2")]
    result = encode_rows(rows, tokenizer, max_prompt_length=length, max_completion_length=9)
    assert len(result.rows) == 1 and result.skipped == {f"prompt longer than {length} tokens": ("f:2",)}
    assert f"skipped 1: 1 prompt longer than {length} tokens (f:2)" in result.summary()


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_at_least_one(build_tokenizer: Build, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: expected at least 1 token, found 0"):
        encode_row(chat_row("a"), build_tokenizer("eos"), **(LIMITS | {name: 0}))
    with pytest.raises(UserError, match=f"{name}: expected at least 1 token, found 0"):
        encode_rows([chat_row("a")], build_tokenizer("eos"), **(LIMITS | {name: 0}))


# Rows that are skipped


@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        (chat_row("a</s>b", "c"), "eos", "reply contains the end token </s>"),
        (chat_row("a<|im_end|>b"), "end_of_turn", "reply contains the end token <|im_end|>"),
        (text_row("q", "a</s></s>"), None, "reply contains the end token </s>"),
        (text_row("", "a"), None, "prompt without tokens"),
        (
            Row(prompt=(Turn("system", "x"), Turn("user", "q")), responses=("a",), source="f:1"),
            "alternating",
            "chat template refuses the turns: roles must alternate",
        ),
        (
            Row(prompt=(Turn("user", "q"), Turn("user", "and?")), source="f:1"),
            "eos",
            "two user turns without a reply between them",
        ),
    ],
)
def test_a_row_that_cannot_be_encoded_is_skipped(
    build_tokenizer: Build, row: Row, template: str | None, reason: str
) -> None:
    tokenizer = build_tokenizer(template)
    assert encode_row(row, tokenizer, **LIMITS) == Skipped(reason, "f:1")
    with pytest.raises(UserError, match="at least one usable row, found none: skipped 1: 1 "):
        encode_rows([row], tokenizer, **LIMITS)


def test_a_reply_that_already_ends_in_the_end_token_ends_once(build_tokenizer: Build) -> None:
    for template, end in (("eos", "</s>"), ("no_eos", "</s>"), ("end_of_turn", "<|im_end|>")):
        tokenizer = build_tokenizer(template)
        assert texts(encoded(chat_row(f"hi{end}"), tokenizer), tokenizer)[1] == f"hi{end}"


@pytest.mark.parametrize(
    ("template", "stops"),
    [(None, ["</s>"]), ("eos", ["</s>"]), ("no_eos", ["</s>"]), ("end_of_turn", ["</s>", "<|im_end|>"])],
)
def test_sampling_stops_on_the_end_of_sequence_and_of_the_turn(
    build_tokenizer: Build, template: str | None, stops: list[str]
) -> None:
    """A model whose turns end otherwise may still say its end-of-sequence token, and nothing follows it."""
    tokenizer = build_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))) == stops


# Tokenizers and templates that are refused


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (None, chat_row("a"), "set tokenizer.chat_template"),
        ("broken", chat_row("a"), "found an error: .*repair tokenizer.chat_template"),
        ("no_generation_prompt", chat_row("a"), "add_generation_prompt"),
        ("unstable", chat_row("a", prompt=("a", "b", "c")), "f:1: .*add_generation_prompt"),
        ("double_bos", chat_row("a"), "f:1: expected one '<s>' at the start of the prompt, found two"),
        (None, text_row("<s><s>q", "a"), "f:1: expected one '<s>' at the start of the prompt, found two"),
    ],
)
@pytest.mark.parametrize("adds", ADDS)
def test_an_unfit_tokenizer_is_refused(
    build_tokenizer: Build, template: str | None, row: Row, message: str, adds: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        encode_rows([row], build_tokenizer(template, adds=adds), **LIMITS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("template", "row"), [("no_eos", chat_row("a")), (None, text_row("q", "a"))])
def test_a_tokenizer_without_eos_is_refused_where_nothing_else_ends_a_reply(
    build_tokenizer: Build, template: str | None, row: Row
) -> None:
    tokenizer = build_tokenizer(template, eos_token=None)
    with pytest.raises(UserError, match=r"set tokenizer\.eos_token"):
        encode_row(row, tokenizer, **LIMITS)
    with pytest.raises(UserError, match=r"set tokenizer\.eos_token"):
        stop_token_ids(tokenizer)


def test_no_rows_are_refused(build_tokenizer: Build) -> None:
    with pytest.raises(UserError, match="at least one row to encode"):
        encode_rows([], build_tokenizer("eos"), **LIMITS)


def test_real_hh_decodes_to_its_replies(build_tokenizer: Build, real_data: Callable[[str], Path]) -> None:
    rows = read_rows(real_data("preferences/hh_harmless_base_test.jsonl.gz")).rows[:100]
    tokenizer = build_tokenizer("bos_eos", adds="<s> $A")
    limits: dict[str, Any] = {"max_prompt_length": 10_000, "max_completion_length": 10_000}
    result = encode_rows(rows, tokenizer, **limits)
    assert len(result.rows) == 100 and not result.skipped and not result.truncated
    for row in result.rows:
        assert row.row.comparisons == (Comparison(0, 1),)
        assert texts(row, tokenizer)[1:] == tuple(f"{response}</s>" for response in row.row.responses)
