"""Tokens around the end of a prompt, where the loss begins, as a person looks at them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from alignment.data import EncodedRow

_START, _BEFORE, _AFTER, _END = 3, 10, 8, 3
_SHOWN_OF_A_LIST = 2


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is trained on. ``mark`` is BOS, EOS, special (of the template), or empty for ordinary text."""

    id: int
    text: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Tokens of one completion of a row around the end of its prompt; ``None`` stands for tokens that are not shown."""

    source: str
    prompt: tuple[Token | None, ...]
    completion: tuple[Token | None, ...]


def boundaries_of(rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[Boundary]:
    """Of the first completions of each row; a prompt without any has its own end."""
    for row in rows:
        prompt = _tokens(row.prompt_ids, _START, _BEFORE, tokenizer)
        for ids in row.completion_ids[:_SHOWN_OF_A_LIST] or ((),):
            yield Boundary(source=row.row.source, prompt=prompt, completion=_tokens(ids, _AFTER, _END, tokenizer))


def _tokens(
    ids: Sequence[int], num_first: int, num_last: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Token | None, ...]:
    if len(ids) <= num_first + num_last:
        return tuple(_token(token, tokenizer) for token in ids)
    first, last = ids[:num_first], ids[len(ids) - num_last :]
    return (*(_token(token, tokenizer) for token in first), None, *(_token(token, tokenizer) for token in last))


def _token(token: int, tokenizer: PreTrainedTokenizerBase) -> Token:
    entry = tokenizer.added_tokens_decoder.get(token)
    mark = "special" if entry is not None and entry.special else ""
    named = {tokenizer.bos_token_id: "BOS", tokenizer.eos_token_id: "EOS"}
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return Token(id=token, text=text, mark=named.get(token, mark))
