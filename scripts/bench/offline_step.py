"""A step of DPO on pairs: our trainer, a bare loop, and ``trl.DPOTrainer``, on the same model, rows and precision.

    python scripts/bench/offline_step.py                        # 15.7M parameters; prompts of 256 tokens, replies of 64
    python scripts/bench/offline_step.py --vocabulary 32000     # 24.9M parameters: logits dominate
    python scripts/bench/offline_step.py --data FILE --batch 1,2,4,8     # lengths of real transcripts (hh-rlhf)
    python scripts/bench/offline_step.py --json                 # one line of JSON; a list for several batches

``fresh`` computes the reference in every step, ``stored`` has its log-probs in the rows. The bare loop is what is left
without a trainer: prompts shared, logits of replies only, the same optimizer and clipping, indices made once. ``dense``
is our trainer with a row for each reply. ``over_bare`` is our trainer's time over the bare loop's, less one;
``computed_tokens`` are those that the model reads, over those that differ, each prompt counted once. Memory is
the peak of a process of its own for each contender, imports included (``peak_memory_ratio``), and less what the process
held before a model was built (``peak_memory_ratio_above_imports``). ``mapped_mb`` is the memory that a step
asks the system for and has zeroed, its page faults; their price differs between machines and, on a virtual one, by the
hour.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before trl is imported, which would otherwise report that a trainer was built.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import torch
import trl
from peft import PeftConfig
from rich.console import Console
from rich.table import Table
from steps import (
    BETA,
    CLOCKS,
    LEARNING_RATE,
    TOKENIZER,
    Contender,
    Shape,
    narrow,
    our_trainer,
    random_rows,
    row_of,
    scratch,
    shared_settings,
    take_turns,
    trained_by,
)
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from alignment.data import EncodedRow, collate, encode_rows, read_rows
from alignment.logps import score
from alignment.tiny import tiny_tokenizer

DPO = {"name": "dpo", "beta": BETA}
CONTENDERS = ("ours", "ours_stored", "dense", "bare", "bare_stored", "trl", "trl_stored")
# How ours computes log-probs.
WAYS = {"ours": {}, "dense": {"scoring_layout": "dense"}, "whole": {"scoring_logits": "whole"}}
MAX_TOKENS = 512


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="a narrow model and few steps: whether it runs")
    parser.add_argument(
        "--data", type=Path, help="hh-rlhf's test.jsonl.gz, for its lengths; there is no bare loop then"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a shared machine, with one thread")
    parser.add_argument("--batch", default="2", help="pairs of a step; several with commas (default 2)")
    parser.add_argument("--memory-of", choices=(*CONTENDERS, "whole"), help=argparse.SUPPRESS)
    for name, default in (("vocabulary", 8192), ("prompt", 256), ("response", 64), ("rounds", 10), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    if options.data and not options.data.is_file():
        parser.error(
            f"--data: expected a file of hh-rlhf, such as harmless-base/test.jsonl.gz, found none at {options.data}"
        )
    datasets.disable_progress_bars()
    if options.quick:
        options.vocabulary, options.prompt, options.response, options.rounds, options.steps = 512, 16, 4, 2, 2
    if options.memory_of:
        print(json.dumps(peak_of(options.memory_of, options)))
        return
    found = [measure(int(batch), options) for batch in options.batch.split(",")]
    if options.json:
        print(json.dumps(found[0] if len(found) == 1 else found))
        return
    for result in found:
        show(result)


def measure(batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times and ratios of one batch size; memory where the rows are of exact lengths."""
    shape = shape_of(options)
    rows = rows_of(batch, options)
    names = [name for name in CONTENDERS if not (options.data and name.startswith("bare"))]
    with scratch() as folder:
        os.environ["ALIGNMENT_CACHE"] = folder
        contenders = {name: build(name, shape, rows, batch, folder, options.clock) for name in names}
        seconds = take_turns(contenders, rounds=options.rounds, steps=options.steps)
        parameters = sum(parameter.numel() for parameter in shape.build().parameters())
    result: dict[str, Any] = {
        "parameters": parameters,
        "vocabulary": shape.vocabulary,
        "batch": batch,
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "speedup_fresh": seconds["trl"] / seconds["ours"],
        "speedup_stored": seconds["trl_stored"] / seconds["ours_stored"],
        "speedup_over_dense": seconds["dense"] / seconds["ours"],
        "computed_tokens": computed_tokens(shape, rows, batch),
    }
    if options.data:
        return result
    peaks = {name: peak_elsewhere(name, batch, options) for name in ("ours", "trl")}
    ratios = {key: peaks["ours"][key] / peaks["trl"][key] for key in ("peak_mb", "peak_mb_above_imports")}
    return result | {
        "over_bare": seconds["ours"] / seconds["bare"] - 1.0,
        "over_bare_stored": seconds["ours_stored"] / seconds["bare_stored"] - 1.0,
        "peak_mb": {name: peak["peak_mb"] for name, peak in peaks.items()},
        "mapped_mb": {name: peak["mapped_mb"] for name, peak in peaks.items()},
        "peak_memory_ratio": ratios["peak_mb"],
        "peak_memory_ratio_above_imports": ratios["peak_mb_above_imports"],
    }


@torch.no_grad()
def computed_tokens(shape: Shape, rows: Sequence[EncodedRow], batch: int) -> float:
    """Tokens that our trainer's forward reads, over those that differ."""
    model = shape.build()
    read = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True, prepend=True
    )
    groups = [collate(rows[start : start + batch], pad_token_id=0) for start in range(0, len(rows), batch)]
    # The first forwards find out how the model may be scored.
    score(model, groups[0].completions)
    read.clear()
    for group in groups:
        score(model, group.completions)
    return sum(read) / sum(len(row.prompt_ids) + sum(map(len, row.completion_ids)) for row in rows)


def shape_of(options: argparse.Namespace) -> Shape:
    return narrow(options.vocabulary) if options.quick else Shape(vocabulary=options.vocabulary)


def rows_of(batch: int, options: argparse.Namespace) -> tuple[EncodedRow, ...]:
    """Enough for the steps of one turn."""
    count = batch * (options.steps + 1)
    if options.data is None:
        lengths = {"prompt": options.prompt, "response": options.response, "completions": 2}
        return random_rows(count, vocabulary=options.vocabulary, **lengths)
    with gzip.open(options.data, "rt", encoding="utf-8") as file:
        tokenizer = tiny_tokenizer((json.loads(line)["chosen"] for line in file), vocab_size=options.vocabulary)
    limits = {"max_prompt_length": MAX_TOKENS, "max_completion_length": MAX_TOKENS}
    encoded = encode_rows(read_rows(options.data).rows, tokenizer, **limits).rows
    drawn = random.Random(0).sample(encoded, count)
    return tuple(row_of(item.prompt_ids, item.completion_ids, number) for number, item in enumerate(drawn))


def build(
    name: str, shape: Shape, rows: Sequence[EncodedRow], batch: int, folder: str, clock: str = "wall"
) -> Contender:
    """A contender by its name."""
    kind, _, stored = name.partition("_")
    if kind == "bare":
        return bare_loop(shape, rows, batch, CLOCKS[clock], stored=bool(stored))
    if kind == "trl":
        return trained_by(trl_trainer(shape.build, rows, batch=batch, folder=folder, stored=bool(stored)), clock)
    options = {"store_anchors": bool(stored), **WAYS[kind]}
    return trained_by(our_trainer(shape.build(), rows, batch=batch, method=DPO, folder=folder, **options), clock)


def trl_trainer(
    build: Callable[[], PreTrainedModel],
    rows: Sequence[EncodedRow],
    *,
    batch: int,
    folder: str,
    stored: bool = False,
    peft_config: PeftConfig | None = None,
    gradient_checkpointing: bool = False,
) -> trl.DPOTrainer:
    """Theirs, on the same token ids; stored log-probs are planted, for how they came about is not timed."""
    chat = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
    trainer = trl.DPOTrainer(
        model=build(),
        # It would read its reference by name unless it is given one, or finds it below an adapter.
        ref_model=build() if peft_config is None else None,
        peft_config=peft_config,
        args=trl.DPOConfig(
            **shared_settings(batch, folder),
            beta=BETA,
            max_length=None,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=gradient_checkpointing,
        ),
        train_dataset=datasets.Dataset.from_list([chat]),
        processing_class=TOKENIZER,
    )
    table = [
        {"prompt_ids": list(row.prompt_ids), "chosen_ids": list(row.completion_ids[0])}
        | {"rejected_ids": list(row.completion_ids[1])}
        | ({"ref_chosen_logps": -500.0, "ref_rejected_logps": -500.0} if stored else {})
        for row in rows
    ]
    trainer.train_dataset = datasets.Dataset.from_list(table)
    if stored:
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    return trainer


def bare_loop(
    shape: Shape, rows: Sequence[EncodedRow], batch: int, now: Callable[[], float], *, stored: bool
) -> Contender:
    """DPO with nothing around it, on pairs of exact lengths."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, ref = shape.build().to(device), shape.build().to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True, weight_decay=0.0)
    prompt, response = len(rows[0].prompt_ids), len(rows[0].completion_ids[0])
    width = prompt + 2 * response
    segment_W = torch.tensor([0] * prompt + [1] * response + [2] * response, device=device)
    place_W = torch.arange(width, device=device)
    seen_WW = (place_W <= place_W[:, None]) & ((segment_W == 0) | (segment_W == segment_W[:, None]))
    mask_BW = torch.zeros(width, width, device=device).masked_fill(~seen_WW, -torch.inf).expand(batch, 1, -1, -1)
    position_BW = torch.where(segment_W == 2, place_W - response, place_W).expand(batch, -1)
    last = place_W[prompt - 1 : prompt]
    sources = torch.cat([last, place_W[prompt : prompt + response - 1], last, place_W[prompt + response : -1]])
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]

    def logps(of: torch.nn.Module, ids_BW: torch.Tensor) -> torch.Tensor:
        options = {"attention_mask": mask_BW, "position_ids": position_BW, "use_cache": False}
        hidden_BNH = of.model(input_ids=ids_BW, **options).last_hidden_state[:, sources]
        logits_BNV = of.lm_head(hidden_BNH)
        picked_BN1 = logits_BNV.gather(-1, ids_BW[:, prompt:, None])
        return (picked_BN1[..., 0] - logits_BNV.logsumexp(-1)).unflatten(1, (2, response)).sum(-1)

    def step(chosen: Sequence[EncodedRow]) -> None:
        ids = [[*row.prompt_ids, *row.completion_ids[0], *row.completion_ids[1]] for row in chosen]
        ids_BW = torch.tensor(ids, device=device)
        with torch.no_grad():
            ref_BG = torch.full((len(chosen), 2), -500.0, device=device) if stored else logps(ref, ids_BW)
        ratio_BG = logps(model, ids_BW) - ref_BG
        loss = -logsigmoid(BETA * (ratio_BG[:, 0] - ratio_BG[:, 1])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def take(steps: int) -> list[float]:
        ends = []
        for number in range(steps):
            step(batches[number % len(batches)])
            ends.append(now())
        return [after - before for before, after in itertools.pairwise(ends)]

    return take


def peak_elsewhere(name: str, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """The peak of a process that trains one contender."""
    settings = [f"--{key}={getattr(options, key)}" for key in ("vocabulary", "prompt", "response")]
    command = [sys.executable, __file__, f"--batch={batch}", f"--memory-of={name}", *settings]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak_of(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Megabytes of this process after two steps of a contender, and what a further step maps anew."""
    before = resident_mb("VmRSS")
    options.steps = 1
    batch = int(options.batch)
    with scratch() as folder:
        take = build(name, shape_of(options), rows_of(batch, options), batch, folder)
        take(2)
        peak = resident_mb("VmHWM")
        mapped = mapped_mb_by(take, 6) - mapped_mb_by(take, 2)
    return {"peak_mb": peak, "peak_mb_above_imports": peak - before, "mapped_mb": mapped / 4}


def mapped_mb_by(take: Contender, steps: int) -> float:
    """What the system maps into this process during some steps and what surrounds them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    take(steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20


def resident_mb(key: str) -> float:
    """What Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def show(found: dict[str, Any]) -> None:
    """As a table."""
    console = Console(width=None if Console().is_terminal else 120)
    title = f"DPO, {found['parameters'] / 1e6:.1f}M parameters, vocabulary {found['vocabulary']:,}"
    console.print(f"{title}, batch {found['batch']}, {found['threads']} thread(s), {found['clock']} clock")
    table = Table("contender", "ms a step", "TRL takes", box=None)
    for name, value in found["seconds"].items():
        rival = found["seconds"]["trl_stored" if name.endswith("_stored") else "trl"]
        table.add_row(name, f"{1000 * value:.0f}", f"{rival / value:.2f} times")
    console.print(table)
    console.print(f"over our rows of one reply: {found['speedup_over_dense']:.2f} times as fast")
    console.print(f"tokens that are computed: {found['computed_tokens']:.3f} times those that differ")
    if "over_bare" in found:
        mb, ratio, mapped = found["peak_mb"], found["peak_memory_ratio"], found["mapped_mb"]
        above = found["peak_memory_ratio_above_imports"]
        console.print(f"over the bare loop: {found['over_bare']:+.1%} fresh, {found['over_bare_stored']:+.1%} stored")
        console.print(
            f"peak memory {mb['ours']:.0f} MB, of TRL {mb['trl']:.0f} MB: {ratio:.2f}; above imports {above:.2f}"
        )
        console.print(f"memory mapped anew in a step: ours {mapped['ours']:.0f} MB, TRL {mapped['trl']:.0f} MB")


if __name__ == "__main__":
    main()
