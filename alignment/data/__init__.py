"""Data files -> rows -> token ids -> batches."""

from alignment.data.collate import Batch, collate, split_rows
from alignment.data.readers import ReadResult, rank_scores, read_rows
from alignment.data.rows import RAW_TEXT, Comparison, OracleScores, Row, Skipped, Turn, prompt_text
from alignment.data.tokens import EncodedRow, EncodeResult, encode_row, encode_rows, show_boundary, stop_token_ids
from alignment.data.unpaired import unpair_rows, with_mismatched

__all__ = [
    "RAW_TEXT",
    "Batch",
    "Comparison",
    "EncodeResult",
    "EncodedRow",
    "OracleScores",
    "ReadResult",
    "Row",
    "Skipped",
    "Turn",
    "collate",
    "encode_row",
    "encode_rows",
    "prompt_text",
    "rank_scores",
    "read_rows",
    "show_boundary",
    "split_rows",
    "stop_token_ids",
    "unpair_rows",
    "with_mismatched",
]
