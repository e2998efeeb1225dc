"""Peak memory of a step of DPO: each way of computing log-probs, and TRL, in a process of its own.

    python scripts/bench/memory.py              # 15.7M and 24.9M parameters, batch 2; prompts of 256, replies of 64
    python scripts/bench/memory.py --json       # one line of JSON

Megabytes above what a process holds once everything is imported: weights of policy and reference, gradients, moments of
Adam, activations, logits. ``ours_stored`` keeps no reference; ``whole`` is the model's own forward, which holds the
logits of all reply columns at once; ``dense`` has a row for each reply.
"""

import argparse
import json

from offline_step import peak_elsewhere
from rich.console import Console
from rich.table import Table

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
    for size in sizes:
        options.vocabulary = size
        found = {way: peak_elsewhere(way, options.batch, options) for way in WAYS}
        peaks[str(size)] = {way: peak["peak_mb_above_imports"] for way, peak in found.items()}
    if options.json:
        print(json.dumps({"batch": options.batch, "peak_mb_above_imports": peaks}))
        return
    table = Table("MB above imports", *(f"vocabulary {size:,}" for size in sizes), box=None)
    for way in WAYS:
        table.add_row(way, *(f"{peaks[str(size)][way]:.0f}" for size in sizes))
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    main()
