"""Token ids on disk, found by the content of what made them: tokenizer, chat template, limits and texts.

Feedback, weights and sources are not part of it: they come with the rows, so another label is no other token.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from alignment.cache import Entry, read_entry, write_entry
from alignment.data.rows import Row, Skipped
from alignment.data.tokens import EncodedRow, EncodeResult, collect_outcomes, encode_outcomes, shared_ids

_FORMAT = "1"
_SKIPPED = -1


def encode_rows_cached(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    max_completion_length: int,
    folder: Path,
) -> tuple[EncodeResult, bool]:
    """As :func:`alignment.data.encode_rows`, from the cache if it holds these rows.

    Returns:
        What ``encode_rows`` returns, and whether it was read from the cache.

    Raises:
        UserError: as ``encode_rows``, and if a file of the cache is damaged.
    """
    limits = (max_prompt_length, max_completion_length)
    key = _key(rows, tokenizer, limits)
    path = folder / f"{key}.safetensors"
    if path.exists():
        return collect_outcomes(_unpack(read_entry(path, key, "token ids"), rows)), True
    outcomes = encode_outcomes(rows, tokenizer, *limits)
    result = collect_outcomes(outcomes)
    write_entry(path, key, _pack(outcomes))
    return result, False


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that a tokenizer saves: vocabulary, merges, special tokens, chat template."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limits: tuple[int, int]) -> str:
    versions = (_FORMAT, transformers.__version__, tokenizers.__version__)
    digest = hashlib.sha256(repr((versions, tokenizer_fingerprint(tokenizer), limits)).encode())
    for row in rows:
        digest.update(repr(([(turn.role, turn.content) for turn in row.prompt], row.responses)).encode())
    return digest.hexdigest()


def _pack(outcomes: Sequence[EncodedRow | Skipped]) -> Entry:
    """Ids one after the other; for each row its number of completions, cut completions and lengths, or its reason."""
    ids: list[int] = []
    sizes: list[int] = []
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            sizes += [_SKIPPED, reasons.setdefault(outcome.reason, len(reasons))]
            continue
        sizes += [len(outcome.completion_ids), outcome.num_truncated, len(outcome.prompt_ids)]
        sizes += [len(completion) for completion in outcome.completion_ids]
        ids += outcome.prompt_ids
        for completion in outcome.completion_ids:
            ids += completion
    tensors = {"ids": torch.tensor(ids, dtype=torch.int32), "sizes": torch.tensor(sizes, dtype=torch.int32)}
    return Entry(tensors=tensors, notes={"reasons": list(reasons)})


def _unpack(entry: Entry, rows: Sequence[Row]) -> list[EncodedRow | Skipped]:
    ids, sizes = entry.tensors["ids"], iter(entry.tensors["sizes"].tolist())
    position = 0

    def take(length: int) -> tuple[int, ...]:
        nonlocal position
        position += length
        return shared_ids(ids[position - length : position].tolist())

    outcomes: list[EncodedRow | Skipped] = []
    for row in rows:
        num_completions = next(sizes)
        if num_completions == _SKIPPED:
            outcomes.append(Skipped(entry.notes["reasons"][next(sizes)], row.source))
            continue
        num_truncated, prompt_length = next(sizes), next(sizes)
        lengths = [next(sizes) for _ in range(num_completions)]
        prompt_ids = take(prompt_length)
        outcomes.append(
            EncodedRow(
                prompt_ids=prompt_ids,
                completion_ids=tuple(take(length) for length in lengths),
                row=row,
                num_truncated=num_truncated,
            )
        )
    assert position == len(ids), "a cache file has the ids of each row"
    return outcomes
