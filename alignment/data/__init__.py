"""Data files -> rows -> token ids -> batches."""

from alignment.data.collate import Batch, collate, split_rows
from alignment.data.contamination import drop_contaminated
from alignment.data.duplicates import content_key, drop_duplicates
from alignment.data.filters import filter_rows
from alignment.data.mixing import mix_rows
from alignment.data.readers import Battle, ReadResult, rank_scores, read_battles, read_rows
from alignment.data.rows import RAW_TEXT, Comparison, Kept, OracleScores, PromptText, Row, Skipped, Turn, prompt_text
from alignment.data.token_cache import encode_rows_cached, tokenizer_fingerprint
from alignment.data.tokens import (
    EncodedRow,
    EncodeResult,
    encode_row,
    encode_rows,
    merged_boundaries,
    stop_token_ids,
)
from alignment.data.unpaired import unpair_rows, with_mismatched

__all__ = [
    "RAW_TEXT",
    "Batch",
    "Battle",
    "Comparison",
    "EncodeResult",
    "EncodedRow",
    "Kept",
    "OracleScores",
    "PromptText",
    "ReadResult",
    "Row",
    "Skipped",
    "Turn",
    "collate",
    "content_key",
    "drop_contaminated",
    "drop_duplicates",
    "encode_row",
    "encode_rows",
    "encode_rows_cached",
    "filter_rows",
    "merged_boundaries",
    "mix_rows",
    "prompt_text",
    "rank_scores",
    "read_battles",
    "read_rows",
    "split_rows",
    "stop_token_ids",
    "tokenizer_fingerprint",
    "unpair_rows",
    "with_mismatched",
]
