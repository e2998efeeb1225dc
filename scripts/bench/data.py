"""Seconds to prepare real pairs for training: our reader and encoder against ``trl.DPOTrainer``, in one run.

    python scripts/bench/data.py             # a table; needs ALIGNMENT_REAL_DATA, or --data FILE
    python scripts/bench/data.py --json      # the same as one line of JSON

Both start cold, ours first, and give token ids of the same pairs by the same tokenizer and chat template. Ours also
reads and parses the packed transcripts; TRL's rows are in memory as conversations before its clock starts.
"""

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before trl is imported, which would otherwise report that a trainer was built.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import trl
from transformers import PreTrainedTokenizerBase

from alignment.data import EncodedRow, Row, Turn, encode_rows, read_rows
from alignment.tiny import tiny_model, tiny_tokenizer

PAIRS = "preferences/hh_harmless_base_test.jsonl.gz"
MAX_TOKENS = 100_000


@dataclass(frozen=True, kw_only=True)
class Timing:
    """``rows`` lines of the file, of which ``pairs`` were prepared by both.

    ``same_ids`` is the share of pairs of which prompt and replies got the same tokens on both sides.
    """

    ours_s: float
    read_s: float
    encode_s: float
    trl_s: float
    speedup: float
    rows: int
    pairs: int
    same_ids: float


class TimedTrainer(trl.DPOTrainer):
    """Remembers how long its preparation of a data set took."""

    prepare_s = 0.0

    def _prepare_dataset(self, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        prepared = super()._prepare_dataset(*arguments, **options)
        self.prepare_s += time.perf_counter() - start
        return prepared


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def time_trl(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[float, datasets.Dataset]:
    table = datasets.Dataset.from_list(
        [
            {
                "prompt": messages(row.prompt),
                "chosen": messages([Turn("assistant", row.responses[0])]),
                "rejected": messages([Turn("assistant", row.responses[1])]),
            }
            for row in rows
        ]
    )
    # Two, because TRL reads its reference by name unless it is given one.
    model, ref_model = (tiny_model(tokenizer, hidden_size=32, num_layers=1, num_heads=2) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        args = trl.DPOConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none", max_length=MAX_TOKENS)
        trainer = TimedTrainer(
            model=model, ref_model=ref_model, args=args, train_dataset=table, processing_class=tokenizer
        )
    return trainer.prepare_s, trainer.train_dataset


def share_of_same_ids(ours: Sequence[EncodedRow], theirs: datasets.Dataset) -> float:
    same = [
        (mine.prompt_ids, *mine.completion_ids)
        == (tuple(other["prompt_ids"]), tuple(other["chosen_ids"]), tuple(other["rejected_ids"]))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return sum(same) / len(same)


def measure(path: Path) -> Timing:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        tokenizer = tiny_tokenizer((json.loads(line)["chosen"] for line in file), vocab_size=2048)
    start = time.perf_counter()
    read = read_rows(path)
    read_s = time.perf_counter() - start
    encoded = encode_rows(read.rows, tokenizer, max_prompt_length=MAX_TOKENS, max_completion_length=MAX_TOKENS).rows
    ours_s = time.perf_counter() - start
    trl_s, prepared = time_trl([item.row for item in encoded], tokenizer)
    return Timing(
        ours_s=ours_s,
        read_s=read_s,
        encode_s=ours_s - read_s,
        trl_s=trl_s,
        speedup=trl_s / ours_s,
        rows=read.num_read,
        pairs=len(encoded),
        same_ids=share_of_same_ids(encoded, prepared),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the preparation of preference pairs against trl.DPOTrainer.")
    folder = os.environ.get("ALIGNMENT_REAL_DATA")
    parser.add_argument("--data", type=Path, default=folder and Path(folder, PAIRS), help="hh transcripts")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.exists():
        parser.error(f"expected a file of hh transcripts, found {arguments.data}; set ALIGNMENT_REAL_DATA or --data")
    datasets.disable_progress_bars()
    timing = measure(arguments.data)
    if arguments.json:
        print(json.dumps(asdict(timing)))
        return
    print(f"{'preparation':34s} {'seconds':>8s} {'pairs/s':>9s}")
    for name, seconds in (
        ("ours: read, parse, render, tokenise", timing.ours_s),
        ("trl.DPOTrainer: render, tokenise", timing.trl_s),
    ):
        print(f"{name:34s} {seconds:8.2f} {timing.pairs / seconds:9,.0f}")
    print(
        f"{timing.rows:,} lines, {timing.pairs:,} pairs; ours is {timing.speedup:.1f} times as fast (reading "
        f"{timing.read_s:.2f} s, encoding {timing.encode_s:.2f} s); the same tokens in {timing.same_ids:.1%} of pairs"
    )


if __name__ == "__main__":
    main()
