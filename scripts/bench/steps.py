"""What the benches of a training step share: a model, rows of token ids, and contenders that take turns.

Steps are timed inside the trainers' own loops, from the end of one to the end of the next, so that reading data,
callbacks and logging count. A contender runs a few steps, then the next one does, several times over: a machine that
slows down slows all of them. Reported are medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PrinterCallback, TrainerCallback

from alignment.arguments import AlignmentArguments
from alignment.data import Comparison, EncodedRow, Row, Turn
from alignment.tiny import tiny_tokenizer
from alignment.trainer import PreferenceTrainer

BETA = 0.1
# Random weights in bfloat16 take no steps below 3e-5.
LEARNING_RATE = 1e-4
TOKENIZER = tiny_tokenizer(["nothing is tokenised here"], vocab_size=262)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama: 15.7M parameters at a vocabulary of 8,192, 24.9M at 32,000."""

    vocabulary: int = 8192
    layers: int = 8
    width: int = 384
    heads: int = 6
    key_value_heads: int = 2
    intermediate: int = 1024

    def build(self) -> LlamaForCausalLM:
        """The model with random weights, the same in every call, float32."""
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocabulary,
                hidden_size=self.width,
                intermediate_size=self.intermediate,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.key_value_heads,
                max_position_embeddings=4096,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        ).float()


def narrow(vocabulary: int) -> Shape:
    """A shape to see whether a bench runs."""
    return Shape(vocabulary=vocabulary, layers=1, width=24, heads=2, key_value_heads=1, intermediate=32)


def random_rows(
    count: int, *, prompt: int, response: int, completions: int, vocabulary: int, seed: int = 0
) -> tuple[EncodedRow, ...]:
    """Groups of random tokens of exact lengths, the first response the best, the second the next, and so on."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())

    return tuple(
        row_of(draw(prompt), tuple(draw(response) for _ in range(completions)), number) for number in range(count)
    )


def row_of(prompt_ids: Sequence[int], completion_ids: Sequence[Sequence[int]], number: int) -> EncodedRow:
    """Token ids as a row of comparisons and scores."""
    size = len(completion_ids)
    row = Row(
        prompt=(Turn("user", "."),),
        responses=("",) * size,
        comparisons=tuple(Comparison(i, j) for i in range(size) for j in range(i + 1, size)),
        scores=tuple(1.0 - i / size for i in range(size)),
        source=f"bench:{number + 1}",
    )
    return EncodedRow(prompt_ids=tuple(prompt_ids), completion_ids=tuple(map(tuple, completion_ids)), row=row)


def wall() -> float:
    """Seconds on the clock, once a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS = {"wall": wall, "cpu": time.process_time}
"""Seconds that passed, or seconds of CPU that the process took: on a shared machine, with one thread, the latter."""


class Clock(TrainerCallback):
    """Seconds between the ends of steps; the first step of a loop is not timed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seconds: list[float] = []
        self._since: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = CLOCKS[self.kind]()
        if self._since is not None:
            self.seconds.append(now - self._since)
        self._since = now


Contender = Callable[[int], list[float]]
"""Takes a number of steps -> the seconds of each but the first."""


def trained_by(trainer: Any, clock_kind: str) -> Contender:
    """A trainer of transformers, whosever it is."""
    clock = Clock(clock_kind)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)

    def take(steps: int) -> list[float]:
        clock.seconds = []
        trainer.args.max_steps = steps
        trainer.train()
        return clock.seconds

    return take


def our_trainer(
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    batch: int,
    method: Mapping[str, Any],
    folder: str,
    peft_config: PeftConfig | None = None,
    **options: Any,
) -> PreferenceTrainer:
    """Ours, with the settings that all contenders share."""
    return PreferenceTrainer(
        model=model,
        args=AlignmentArguments(**shared_settings(batch, folder), **options),
        train_dataset=rows,
        processing_class=TOKENIZER,
        method=method,
        peft_config=peft_config,
    )


def shared_settings(batch: int, folder: str) -> dict[str, Any]:
    """Of every trainer."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "max_steps": 2,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def take_turns(contenders: Mapping[str, Contender], *, rounds: int, steps: int) -> dict[str, float]:
    """The median seconds of a step of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, take in contenders.items():
            seconds[name] += take(steps + 1)
    return {name: statistics.median(values) for name, values in seconds.items()}


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what trainers write."""
    return tempfile.TemporaryDirectory(prefix="bench-")
