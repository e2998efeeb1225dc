"""Peak memory of a step of DPO: each way of computing log-probs, and TRL, in a process of its own.

    python scripts/bench/memory.py              # 15.7M and 24.9M parameters, batch 2; prompts of 256, replies of 64
    python scripts/bench/memory.py --json       # one line of JSON

Megabytes above what a process holds once everything is imported: weights of policy and reference, gradients, moments of
Adam, activations, logits. ``ours_stored`` keeps no reference; ``whole`` is the model's own forward, which holds the
logits of all reply columns at once; ``dense`` has a row for each reply. ``planned`` is what the formulas of
``alignment plan`` give: no more than the tensors, where a process also holds what its allocator keeps.
"""

import argparse
import json

from offline_step import peak_elsewhere, shape_of
from rich.console import Console
from rich.table import Table

from alignment.costs import Numbers, activation_bytes, logit_bytes
from alignment.planning.outline import shape_of as numbers_of

WAYS = ("ours", "ours_stored", "dense", "whole", "trl", "trl_stored")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="a narrow model: whether it runs")
    parser.add_argument("--vocabularies", default="8192,32000", help="with commas (default 8192,32000)")
    for name, default in (("batch", 2), ("prompt", 256), ("response", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    sizes = (512,) if options.quick else tuple(map(int, options.vocabularies.split(",")))
    peaks: dict[str, dict[str, float]] = {}
    plans: dict[str, dict[str, float]] = {}
    for size in sizes:
        options.vocabulary = size
        found = {way: peak_elsewhere(way, options.batch, options) for way in WAYS}
        peaks[str(size)] = {way: peak["peak_mb_above_imports"] for way, peak in found.items()}
        plans[str(size)] = {way: planned_mb(way, options) for way in WAYS if not way.startswith("trl")}
    if options.json:
        print(json.dumps({"batch": options.batch, "peak_mb_above_imports": peaks, "planned_mb": plans}))
        return
    heads = (head for size in sizes for head in (f"vocabulary {size:,}", "planned"))
    table = Table("MB above imports", *heads, box=None)
    for way in WAYS:
        found = ((peaks[str(size)][way], plans[str(size)].get(way)) for size in sizes)
        table.add_row(way, *("" if value is None else f"{value:.0f}" for pair in found for value in pair))
    Console(width=None if Console().is_terminal else 120).print(table)


def planned_mb(way: str, options: argparse.Namespace) -> float:
    """Weights, gradients, two moments, a reference where none is stored, and what a step of pairs adds."""
    model = shape_of(options).build()
    shape, numbers = numbers_of(model), sum(parameter.numel() for parameter in model.parameters())
    is_shared = way.startswith("ours")
    rows = options.batch if is_shared else 2 * options.batch
    width = options.prompt + (2 if is_shared else 1) * options.response
    state = 4 * numbers * (4 if way.endswith("stored") else 5)
    kept = activation_bytes(
        shape, rows=rows, width=width, numbers=Numbers(compute=4, stream=4), attention="sdpa", checkpointed=False
    )
    logits = logit_bytes(shape, tokens=2 * options.batch * options.response, size=4, is_whole=way == "whole")
    return (state + kept + logits) / 2**20


if __name__ == "__main__":
    main()
