"""Rows -> token ids, with one prompt split that all responses of a row share.

Conversations. The prompt is what the chat template renders with its generation prompt; a completion is what follows it
in the rendered whole conversation, cut after the token that ends the turn. That token is the tokenizer's
end-of-sequence token where the template writes it; else the first special token that the template writes after a reply
(Gemma's ``<end_of_turn>``); where it writes neither, the end-of-sequence token is appended. So every untruncated
completion ends in exactly one token on which sampling must stop: see :func:`stop_token_ids`.

Raw text. Prompt and response are tokenised as they stand, and the end-of-sequence token is appended.

Both. Where the tokenizer's own rule puts tokens (such as BOS) in front of a text, they stand there exactly once,
whether the template writes them or not. The ids of the prompt never depend on the responses: where the whole text is
tokenised with a token across the boundary, the completion is tokenised by itself, as a sampler would continue the
prompt; where even that does not give the same text back, the row is left out and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jinja2
from transformers import PreTrainedTokenizerBase

from alignment.data.rows import RAW_TEXT, Row, Skipped, Turn, describe_skipped, shorten_sources
from alignment.errors import UserError

# Letters only, so that no template's trimming or escaping changes it.
_PROBE_REPLY = "probereply"
_PROBE_PROMPT = (Turn("user", "probe"),)
# Bounds the memory of texts and ids on their way; the tokenizer is as fast at this size as at any larger one.
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """A row as token ids.

    Args:
        prompt_ids: at least one token.
        completion_ids: G completions; each ends in a stop token unless it was truncated.
        row: what was encoded.
        num_truncated: how many completions were cut to the limit.
        mismatched_ids: a completion of another prompt, for losses that read one; else empty.
        anchors: stored log-probs of the completions under frozen policies, by name; empty where they are not stored.
        mismatched_anchors: the same of the mismatched completion.
        number: its place among the rows of a data set, by which its answers are seeded; ``None`` outside of one.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    row: Row
    num_truncated: int = 0
    mismatched_ids: tuple[int, ...] = ()
    anchors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    mismatched_anchors: Mapping[str, float] = field(default_factory=dict)
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """What was encoded, what was left out and what was cut.

    Args:
        rows: in the order of the input.
        skipped: reason -> the sources left out for it.
        truncated: the source of each truncated completion, once for each.
    """

    rows: tuple[EncodedRow, ...]
    skipped: Mapping[str, tuple[str, ...]]
    truncated: tuple[str, ...]

    def summary(self) -> str:
        """One line: how many rows, what was left out, how many completions were cut."""
        cut = f" ({shorten_sources(tuple(dict.fromkeys(self.truncated)))})" if self.truncated else ""
        return (
            f"{len(self.rows):,} rows encoded; {describe_skipped(self.skipped)}; "
            f"{len(self.truncated):,} completion truncated{cut}"
        )


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_prompt_length: int, max_completion_length: int
) -> EncodedRow | Skipped:
    """Encode one row; for many, :func:`encode_rows` is much faster.

    Returns:
        The row as token ids, or why it was left out.

    Raises:
        UserError: as :func:`encode_rows`.
    """
    _check_limits(max_prompt_length, max_completion_length)
    return _encode([row], tokenizer, max_prompt_length, max_completion_length)[0]


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_prompt_length: int, max_completion_length: int
) -> EncodeResult:
    """Encode rows.

    Args:
        rows: conversations, raw text, or a mixture of the two.
        tokenizer: with a chat template, if any row is a conversation.
        max_prompt_length: in tokens; a row with a longer prompt is left out and counted.
        max_completion_length: in tokens; a longer completion is cut, has no stop token then, and is counted.

    Returns:
        The rows as token ids, what was left out and what was cut.

    Raises:
        UserError: if the chat template is missing or unfit, BOS comes twice, no end-of-sequence token is known, a limit
            is below 1, or no row is left.
    """
    return collect_outcomes(encode_outcomes(rows, tokenizer, max_prompt_length, max_completion_length))


def encode_outcomes(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, max_completion_length: int
) -> list[EncodedRow | Skipped]:
    """For each row its token ids, or why it was left out."""
    _check_limits(max_prompt_length, max_completion_length)
    if not rows:
        raise UserError("expected at least one row to encode, found none; read a data file first")
    outcomes: list[EncodedRow | Skipped] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS]
        outcomes += _encode(chunk, tokenizer, max_prompt_length, max_completion_length)
    return outcomes


def collect_outcomes(outcomes: Sequence[EncodedRow | Skipped]) -> EncodeResult:
    """Sort what was encoded from what was left out; nothing left is an error."""
    encoded: list[EncodedRow] = []
    skipped: dict[str, list[str]] = {}
    for outcome in outcomes:
        if isinstance(outcome, EncodedRow):
            encoded.append(outcome)
        else:
            skipped.setdefault(outcome.reason, []).append(outcome.source)
    result = EncodeResult(
        rows=tuple(encoded),
        skipped={reason: tuple(sources) for reason, sources in skipped.items()},
        truncated=tuple(item.row.source for item in encoded for _ in range(item.num_truncated)),
    )
    if not encoded:
        raise UserError(
            f"expected at least one usable row, found none: {describe_skipped(result.skipped)}; raise the limits, or "
            "use a chat template that fits the data"
        )
    return result


def merged_boundaries(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Where the tokenizer, given prompt and response as one text, makes a token out of the end of one and the start of
    the other.

    The completion is tokenised by itself then, as a sampler would continue the prompt; other tools, and data tokenised
    as a whole, have other ids there.

    Returns:
        The source of each such row, once for each response.

    Raises:
        UserError: as :func:`encode_rows`.
    """
    is_chat = [row.prompt[0].role != RAW_TEXT for row in rows]
    drafts = [draft for draft in _draft(rows, is_chat, tokenizer) if isinstance(draft, _Draft)]
    _tokenize_drafts(drafts, tokenizer)
    return tuple(
        draft.row.source
        for draft in drafts
        for ids in draft.whole_ids
        if ids[: len(draft.prompt_ids)] != draft.prompt_ids
    )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion: the end-of-sequence token, and the template's own end of turn if another.

    Raises:
        UserError: if there is none, or the chat template is unfit.
    """
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        ends.append(_read_template(tokenizer).end_id)
    if not ends:
        raise UserError(f"{_no_eos(tokenizer)}")
    return tuple(dict.fromkeys(ends))


# Templates


@dataclass(frozen=True, slots=True)
class _Template:
    """How a chat template ends a reply, found by rendering one.

    Args:
        end_id: the token that ends a completion.
        end_text: its text.
        is_written: whether the template writes it.
        tail: what the template writes after a reply.
    """

    end_id: int
    end_text: str
    is_written: bool
    tail: str


def _read_template(tokenizer: PreTrainedTokenizerBase) -> _Template:
    if tokenizer.chat_template is None:
        raise UserError(
            "expected a tokenizer with a chat template, because the data are conversations; found none: set "
            "tokenizer.chat_template, use the tokenizer of an instruction-tuned model, or give prompts and responses "
            "as plain strings"
        )
    try:
        prompt = _render(tokenizer, _PROBE_PROMPT, add_generation_prompt=True)
        bare = _render(tokenizer, _PROBE_PROMPT, add_generation_prompt=False)
        whole = _render(tokenizer, (*_PROBE_PROMPT, Turn("assistant", _PROBE_REPLY)), add_generation_prompt=False)
    except jinja2.TemplateError as error:
        raise UserError(
            f"expected a chat template that renders a question and its answer, found an error: {error}; repair "
            "tokenizer.chat_template"
        ) from None
    head, found, tail = whole[len(prompt) :].partition(_PROBE_REPLY)
    # Llama-2 and Mistral need no generation prompt: their user turn ends where the reply begins.
    if not whole.startswith(prompt) or not found or (head.strip() and prompt == bare):
        raise UserError(
            f"expected a chat template whose prompt, rendered with add_generation_prompt=True, begins the whole "
            f"conversation up to the reply; found the prompt {prompt!r} and the conversation {whole!r}: add "
            "'{% if add_generation_prompt %}...{% endif %}' to tokenizer.chat_template"
        )
    return _find_end(tokenizer, tail)


def _find_end(tokenizer: PreTrainedTokenizerBase, tail: str) -> _Template:
    tail_ids = _tokenize(tokenizer, [tail])[0] if tail else []
    # Gemma's <end_of_turn> is an added special token and has no named role.
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    special = [token for token in tail_ids if token in added]
    if tokenizer.eos_token_id in special or not special:
        if tokenizer.eos_token_id is None:
            raise UserError(_no_eos(tokenizer))
        return _Template(tokenizer.eos_token_id, str(tokenizer.eos_token), bool(special), tail)
    return _Template(special[0], str(tokenizer.convert_ids_to_tokens(special[0])), True, tail)


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


_TOKEN_IDS: dict[int, int] = {}


def shared_ids(ids: Sequence[int]) -> tuple[int, ...]:
    """Token ids of which each is one object, however often it occurs: a token takes 8 bytes in place of 36."""
    return tuple(map(_TOKEN_IDS.setdefault, ids, ids))


# Encoding: all texts of a chunk are rendered first and tokenised in one batch, which is what makes it fast.


@dataclass(slots=True)
class _Draft:
    """A row on its way: its texts, and later its ids."""

    row: Row
    end_id: int
    prompt: str
    wholes: tuple[str, ...]
    is_cut: bool
    prompt_ids: list[int] = field(default_factory=list)
    whole_ids: list[list[int]] = field(default_factory=list)


def _encode(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, max_completion_length: int
) -> list[EncodedRow | Skipped]:
    drafts = _draft(rows, [row.prompt[0].role != RAW_TEXT for row in rows], tokenizer)
    live = [draft for draft in drafts if isinstance(draft, _Draft)]
    _tokenize_drafts(live, tokenizer)
    return [
        _finish(draft, tokenizer, max_prompt_length, max_completion_length) if isinstance(draft, _Draft) else draft
        for draft in drafts
    ]


def _draft(rows: Sequence[Row], is_chat: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> list[_Draft | Skipped]:
    template = _read_template(tokenizer) if any(is_chat) else None
    return [
        _draft_chat(row, tokenizer, template) if template is not None and chat else _draft_text(row, tokenizer)
        for row, chat in zip(rows, is_chat, strict=True)
    ]


def _draft_chat(row: Row, tokenizer: PreTrainedTokenizerBase, template: _Template) -> _Draft | Skipped:
    if not row.responses and _has_unanswered_turn(row):
        return Skipped("two user turns without a reply between them", row.source)
    if any(template.end_text in response.removesuffix(template.end_text) for response in row.responses):
        return Skipped(f"reply contains the end token {template.end_text}", row.source)
    try:
        prompt = _render(tokenizer, row.prompt, add_generation_prompt=True)
        wholes = tuple(
            _render(
                tokenizer,
                (*row.prompt, Turn("assistant", response.removesuffix(template.end_text))),
                add_generation_prompt=False,
            )
            for response in row.responses
        )
    except jinja2.TemplateError as error:
        return Skipped(f"chat template refuses the turns: {' '.join(str(error).split())}", row.source)
    for whole in wholes:
        if not whole.startswith(prompt):
            raise UserError(
                f"{row.source}: expected the prompt as rendered with add_generation_prompt=True to begin the whole "
                f"conversation; found {prompt[-80:]!r} against {whole[: len(prompt)][-80:]!r}: use a chat template "
                "that renders a turn the same way whatever follows it"
            )
    if not template.is_written:
        wholes = tuple(_without_blank_tail(whole, template) for whole in wholes)
    return _Draft(row, template.end_id, prompt, wholes, is_cut=template.is_written)


def _draft_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> _Draft | Skipped:
    if tokenizer.eos_token_id is None:
        raise UserError(_no_eos(tokenizer))
    end = str(tokenizer.eos_token)
    if any(end in response.removesuffix(end) for response in row.responses):
        return Skipped(f"reply contains the end token {end}", row.source)
    prompt = row.prompt[0].content
    wholes = tuple(prompt + response.removesuffix(end) for response in row.responses)
    return _Draft(row, tokenizer.eos_token_id, prompt, wholes, is_cut=False)


def _tokenize_drafts(drafts: list[_Draft], tokenizer: PreTrainedTokenizerBase) -> None:
    prefix = _own_prefix(tokenizer)
    prompts = iter(_tokenize(tokenizer, [draft.prompt for draft in drafts]))
    wholes = iter(_tokenize(tokenizer, [whole for draft in drafts for whole in draft.wholes]))
    for draft in drafts:
        draft.prompt_ids = _with_prefix(next(prompts), prefix)
        draft.whole_ids = [_with_prefix(next(wholes), prefix) for _ in draft.wholes]
        if tokenizer.bos_token_id is not None and draft.prompt_ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(
                f"{draft.row.source}: expected one {tokenizer.bos_token!r} at the start of the prompt, found two; "
                "remove it from the data or write it once in tokenizer.chat_template"
            )


def _finish(
    draft: _Draft, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, max_completion_length: int
) -> EncodedRow | Skipped:
    if not draft.prompt_ids:
        return Skipped("prompt without tokens", draft.row.source)
    if len(draft.prompt_ids) > max_prompt_length:
        return Skipped(f"prompt longer than {max_prompt_length} tokens", draft.row.source)
    completions: list[tuple[int, ...]] = []
    for whole, ids in zip(draft.wholes, draft.whole_ids, strict=True):
        split = _split(draft, whole, ids, tokenizer)
        if split is None:
            return Skipped("no token boundary between prompt and reply", draft.row.source)
        completions.append(_end(draft, split))
    return EncodedRow(
        prompt_ids=shared_ids(draft.prompt_ids),
        completion_ids=tuple(shared_ids(ids[:max_completion_length]) for ids in completions),
        row=draft.row,
        num_truncated=sum(len(ids) > max_completion_length for ids in completions),
    )


def _split(draft: _Draft, whole: str, whole_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    if whole_ids[: len(draft.prompt_ids)] == draft.prompt_ids:
        return whole_ids[len(draft.prompt_ids) :]
    alone = _tokenize(tokenizer, [whole[len(draft.prompt) :]])[0]
    # A tokenizer that marks the start of a text by a space would put one inside the sequence.
    is_same_text = _decode(tokenizer, draft.prompt_ids + alone) == _decode(tokenizer, whole_ids)
    return alone if is_same_text else None


def _end(draft: _Draft, ids: list[int]) -> tuple[int, ...]:
    if not draft.is_cut:
        return (*ids, draft.end_id)
    if draft.end_id not in ids:
        raise UserError(
            f"{draft.row.source}: expected the chat template to end the last reply with token {draft.end_id}, as it "
            "ends others; found none: repair tokenizer.chat_template"
        )
    return tuple(ids[: ids.index(draft.end_id) + 1])


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: the warning about the model's maximum length comes too early, the limits are applied later.
    return list(tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _own_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text (BOS); what it puts behind (EOS, for some) has no place in a prompt."""
    bare = _tokenize(tokenizer, [_PROBE_REPLY])[0]
    full = list(tokenizer(_PROBE_REPLY, return_attention_mask=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    raise UserError(
        "expected a tokenizer that only adds tokens around a text, found one that changes the text's own tokens when "
        "add_special_tokens is set; use another tokenizer"
    )


def _with_prefix(ids: list[int], prefix: list[int]) -> list[int]:
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def _without_blank_tail(whole: str, template: _Template) -> str:
    return whole.removesuffix(template.tail) + template.tail.rstrip() if whole.endswith(template.tail) else whole


def _has_unanswered_turn(row: Row) -> bool:
    return any(a.role == b.role == "user" for a, b in zip(row.prompt, row.prompt[1:], strict=False))


def _check_limits(max_prompt_length: int, max_completion_length: int) -> None:
    for name, limit in (("max_prompt_length", max_prompt_length), ("max_completion_length", max_completion_length)):
        if limit < 1:
            raise UserError(f"{name}: expected at least 1 token, found {limit}; raise it")


def _no_eos(tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"expected a tokenizer with an end-of-sequence token, found none in {type(tokenizer).__name__}; set "
        "tokenizer.eos_token to the token on which sampling stops"
    )
