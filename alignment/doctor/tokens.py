"""Checks of what the model reads: template, ends, boundaries, lengths."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignment.annotator import KL_LENGTH, prompts_of_kl
from alignment.arguments import AlignmentArguments
from alignment.batches import WIN_RATE_LENGTH, check_context
from alignment.config import PolicySpec, Recipe
from alignment.data import RAW_TEXT, EncodedRow, EncodeResult, merged_boundaries, stop_token_ids
from alignment.doctor.findings import Finding
from alignment.doctor.models import positions
from alignment.doctor.sampling import draws_answers, is_judged
from alignment.errors import UserError
from alignment.textgame import resolve_model

# Shares of rows or responses from which a fault is one of the recipe and not of single rows.
_MANY, _SOME = 0.5, 0.01
_ROWS_OF_BOUNDARY_CHECK = 512


def check_template(policy: PolicySpec, rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Raw text passes a model's chat template by."""
    raw = [row.row.source for row in rows if row.row.prompt[0].role == RAW_TEXT]
    # A tiny model is new: it has learned no template.
    if raw and tokenizer.chat_template is not None and policy.tiny is None:
        return Finding(
            "template",
            "note",
            f"{len(raw):,} of {len(rows):,} prompts are raw text, first {raw[0]}, and never pass the model's chat "
            "template: prompt_role: user makes them turns of a conversation",
        )
    turns = len(rows) - len(raw)
    said = f"{turns:,} prompts are turns of a conversation, {len(raw):,} raw text, which no template touches"
    return Finding("template", "ok", said)


def check_bos(rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    """A sequence begins once, with what the tokenizer begins with."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return Finding("BOS", "ok", "the tokenizer has none")
    # In some families one token begins and ends a text.
    if bos == tokenizer.eos_token_id:
        return Finding("BOS", "ok", f"{tokenizer.bos_token} is the end-of-sequence token too; not looked for inside")
    again = [
        row.row.source for row in rows if bos in row.prompt_ids[1:] or any(bos in ids for ids in row.completion_ids)
    ]
    if again:
        return Finding(
            "BOS",
            "fail",
            f"{tokenizer.bos_token} stands inside {len(again):,} of {len(rows):,} rows, first {again[0]}: remove it "
            "from the data, or from the turns in tokenizer.chat_template",
        )
    at_start = sum(row.prompt_ids[0] == bos for row in rows)
    if not at_start:
        is_raw = all(row.row.prompt[0].role == RAW_TEXT for row in rows)
        why = "the tokenizer puts none before raw text" if is_raw else "neither tokenizer nor template puts it there"
        return Finding("BOS", "ok", f"no row begins with {tokenizer.bos_token}: {why}")
    return Finding("BOS", "ok", f"{tokenizer.bos_token} once at the start of {at_start:,} of {len(rows):,} rows")


def check_eos(policy: PolicySpec, rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Completions end, and in a token at which sampling stops."""
    stops = stop_token_ids(tokenizer)
    names = " or ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in stops)
    ends = {ids[-1] for row in rows if not row.num_truncated for ids in row.completion_ids}
    if not ends <= set(stops):
        return Finding("EOS", "fail", f"untruncated completions end in {sorted(ends - set(stops))}, not in {names}")
    sampled = _sampling_stops(policy)
    if ends and sampled and not ends & sampled:
        written = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(ends))
        return Finding(
            "EOS",
            "fail",
            f"completions end in {written}, and the model's generation_config stops at {sorted(sampled)} only: the "
            "model would end in a token after which sampling goes on; add the token to generation_config.eos_token_id",
        )
    total, cut = sum(len(row.completion_ids) for row in rows), sum(row.num_truncated for row in rows)
    if not total:
        return Finding("EOS", "ok", f"sampling stops at {names}")
    if cut > _MANY * total:
        return Finding(
            "EOS",
            "note",
            f"{cut:,} of {total:,} completions are cut and have no end: the policy learns little about stopping; raise "
            "data.max_completion_length",
        )
    others = f", {cut:,} are cut" if cut else ""
    return Finding("EOS", "ok", f"{names} ends {total - cut:,} of {total:,} completions{others}")


def _sampling_stops(policy: PolicySpec) -> set[int]:
    if policy.model is None:
        return set()
    try:
        stops = GenerationConfig.from_pretrained(resolve_model(policy.model)).eos_token_id
    except OSError:
        # A model without the file stops at the end-of-sequence token of its tokenizer.
        return set()
    return set() if stops is None else set(stops) if isinstance(stops, list) else {stops}


def check_merges(rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Finding:
    """The tokens of a prompt's end do not depend on the response behind it."""
    looked_at = rows[:_ROWS_OF_BOUNDARY_CHECK]
    total = sum(len(row.responses) for row in looked_at)
    if not total:
        return Finding("boundary", "ok", "the policy continues the prompt's own tokens")
    merged = merged_boundaries(looked_at, tokenizer)
    if not merged:
        return Finding("boundary", "ok", f"no token crosses it in {total:,} completions")
    text = (
        f"in {len(merged):,} of {total:,} completions the tokenizer would merge the prompt's end with the response's "
        f"start, first {merged[0]}; they are split at the prompt's end, where a sampler continues"
    )
    if len(merged) <= _SOME * total:
        return Finding("boundary", "note", text)
    advice = "move white space from the end of the prompt, or of the template's generation prompt, into the response"
    return Finding("boundary", "fail", f"{text}, and the model has not seen such tokens before: {advice}")


def check_truncation(recipe: Recipe, encoded: EncodeResult, num_rows: int) -> Iterator[Finding]:
    """Limits leave most rows, and of each what its responses differ in."""
    lost = 1.0 - len(encoded.rows) / num_rows
    longest = recipe.data.max_prompt_length + recipe.data.max_completion_length
    faults = [*_truncation_faults(encoded, lost, longest, positions(recipe.policy))]
    yield from faults
    if all(fault.verdict != "fail" for fault in faults):
        counts = f"{lost:.1%} of the rows left out, {len(encoded.truncated):,} completions cut"
        yield Finding("truncation", "ok", f"{counts}, {longest:,} tokens")


def _truncation_faults(encoded: EncodeResult, lost: float, longest: int, positions: int | None) -> Iterator[Finding]:
    if lost > _MANY:
        yield Finding(
            "truncation",
            "fail",
            f"{lost:.0%} of the rows are left out ({encoded.summary()}): raise data.max_prompt_length",
        )
    groups = [row for row in encoded.rows if row.num_truncated and len(row.completion_ids) > 1]
    equal = [row.row.source for row in groups if len(set(row.completion_ids)) == 1 < len(set(row.row.responses))]
    if equal:
        yield Finding(
            "truncation",
            "fail" if len(equal) > _SOME * len(encoded.rows) else "note",
            f"in {len(equal):,} of {len(encoded.rows):,} rows nothing of what differs between the responses is left, "
            f"first {equal[0]}: raise data.max_completion_length",
        )
    if positions is not None and longest > positions:
        yield Finding(
            "truncation",
            "fail",
            f"data.max_prompt_length + data.max_completion_length = {longest:,} tokens, the model has {positions:,} "
            "positions: lower them",
        )


def check_room(
    recipe: Recipe, args: AlignmentArguments, rows: Sequence[EncodedRow], held_out: Sequence[EncodedRow]
) -> Iterator[Finding]:
    """For the answers that are learned from, and for those to held-out prompts: for the KL, and for a win rate."""
    needs, policy, samples = recipe.build_method().needs, recipe.policy, draws_answers(recipe)
    longest = args.longest_sample(needs)
    if samples:
        yield _room(policy, (*rows, *held_out), longest, "prompt", "max_new_tokens")
    else:
        is_base = policy.lora is not None and policy.ref_model is None
        asked = prompts_of_kl(held_out, needs, args, is_base=is_base)
        if asked:
            yield _room(policy, asked, longest, "held-out prompt", KL_LENGTH)
    if held_out and is_judged(recipe) and not (samples and recipe.longest_answer <= longest):
        yield _room(policy, held_out, recipe.longest_answer, "held-out prompt", WIN_RATE_LENGTH)


def _room(policy: PolicySpec, rows: Sequence[EncodedRow], length: int, kind: str, named: str) -> Finding:
    limit = positions(policy)
    try:
        check_context(rows, limit, max_new_tokens=length, named=named)
    except UserError as error:
        return Finding("room", "fail", str(error))
    longest = max((len(row.prompt_ids) for row in rows), default=0)
    room = "" if limit is None else f", in {limit:,} positions"
    return Finding("room", "ok", f"an answer of {length:,} tokens fits behind the longest {kind}, of {longest:,}{room}")
