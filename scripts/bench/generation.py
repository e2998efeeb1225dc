"""How fast answers of unequal length are drawn: plain batches of several sizes, and continuous batching.

    python scripts/bench/generation.py [--json]

Two models with random weights: a tiny one, and 8 layers of width 384 with 8,192 tokens (15.7M parameters without the
head). Stop tokens are a fixed share of the vocabulary, so that lengths are nearly geometric with mean 32, cut at 256.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.generation import Decoding, TransformersOptions
from alignment.generation.transformers import TransformersEngine
from alignment.seeds import seeds_of

MODELS = {"tiny": (512, 64, 2, 4), "15.7M": (8192, 384, 8, 6)}
NUM_PROMPTS, PROMPT_TOKENS = 48, (8, 64)
MAX_NEW_TOKENS, MEAN_TOKENS = 256, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: tokens are those that belong to answers; of a busy machine, believe the seconds of the CPU."""

    model: str
    way: str
    seconds: float
    cpu_seconds: float
    tokens: int
    tokens_per_cpu_second: float


def build_model(vocabulary: int, width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with random weights, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-8 * width // 24) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def measure(name: str, model: LlamaForCausalLM, prompts: list[list[int]], way: str) -> Row:
    """Draw one answer to each prompt; ``way`` is ``continuous``, a batch size, or a batch size of sorted prompts."""
    vocabulary = model.config.vocab_size
    decoding = Decoding(
        temperature=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        stop_token_ids=tuple(range(3, 3 + vocabulary // MEAN_TOKENS)),
        pad_token_id=0,
    )
    if way == "continuous":
        engine, chunks = TransformersEngine(TransformersOptions(continuous_batching=True)), [prompts]
    else:
        size, _, order = way.partition(", ")
        ordered = sorted(prompts, key=len) if order else prompts
        engine = TransformersEngine()
        chunks = [ordered[start : start + int(size)] for start in range(0, len(ordered), int(size))]
    start, cpu_start = time.perf_counter(), time.process_time()
    answers = [
        engine.answer(model, chunk, decoding, num_completions=1, seeds=seeds_of(len(chunk), i))
        for i, chunk in enumerate(chunks)
    ]
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    tokens = sum(len(said) for chunk in answers for group in chunk for said in group)
    return Row(
        model=name,
        way=way,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        tokens=tokens,
        tokens_per_cpu_second=tokens / cpu_seconds,
    )


def main() -> None:
    """Measure every way on both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    as_json = parser.parse_args().json
    rows = []
    for name, shape in MODELS.items():
        model = build_model(*shape)
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(*PROMPT_TOKENS, (NUM_PROMPTS,), generator=generator).tolist()
        prompts = [torch.randint(3, shape[0], (length,), generator=generator).tolist() for length in lengths]
        # The first call pays for what is set up once.
        measure(name, model, prompts[:2], "2")
        for way in ("8", "8, sorted", "16", "48", "continuous"):
            rows.append(measure(name, model, prompts, way))
            row = rows[-1]
            if not as_json:
                print(
                    f"{name:6} {way:12} {row.seconds:7.2f} s {row.cpu_seconds:7.2f} s of the CPU "
                    f"{row.tokens_per_cpu_second:7.0f} tokens/s of the CPU",
                    flush=True,
                )
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
