"""A step on lists: prompts read once for all responses against a row for each, by our own trainer.

    python scripts/bench/listwise_step.py                       # 15.7M parameters, 8 responses of 64 tokens to 256
    python scripts/bench/listwise_step.py --completions 2       # pairs
    python scripts/bench/listwise_step.py --json                # one line of JSON

``speedup`` is the dense step's time over the shared one's, the reference computed in both; ``speedup_stored`` with its
log-probs in the rows. ``max_relative_gradient_error`` is the largest distance of a parameter's gradient from the dense
one, over the length of that.
"""

import argparse
import copy
import json
import os
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from steps import CLOCKS, Shape, narrow, our_trainer, random_rows, scratch, take_turns, trained_by

from alignment.data import collate
from alignment.logps import Scoring, score

LIPO = {"name": "lipo", "beta": 0.1}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="a narrow model and few steps: whether it runs")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a shared machine, with one thread")
    for name, default in (("completions", 8), ("batch", 2), ("vocabulary", 8192), ("prompt", 256), ("response", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    for name, default in (("rounds", 3), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    if options.quick:
        options.vocabulary, options.prompt, options.response, options.rounds = 512, 16, 4, 2
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    console = Console(width=None if Console().is_terminal else 120)
    size = f"{found['parameters'] / 1e6:.1f}M parameters, vocabulary {options.vocabulary:,}"
    console.print(f"LiPO, {size}, {options.batch} lists of {options.completions}")
    console.print(f"{found['threads']} thread(s), {options.clock} clock")
    table = Table("a row for each response", "ms a step", "shared", "speedup", box=None)
    for kind, key in (("fresh", "speedup"), ("stored", "speedup_stored")):
        dense, shared = (1000 * found["seconds"][f"{layout}_{kind}"] for layout in ("dense", "prefix"))
        table.add_row(f"reference {kind}", f"{dense:.0f}", f"{shared:.0f}", f"{found[key]:.2f}")
    console.print(table)
    console.print(f"largest relative distance of a gradient: {found['max_relative_gradient_error']:.1e}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of both layouts, and how far their gradients are apart."""
    shape = narrow(options.vocabulary) if options.quick else Shape(vocabulary=options.vocabulary)
    lengths = {"prompt": options.prompt, "response": options.response, "completions": options.completions}
    rows = random_rows(options.batch * (options.steps + 1), vocabulary=options.vocabulary, **lengths)
    with scratch() as folder:
        os.environ["ALIGNMENT_CACHE"] = folder
        contenders = {}
        for kind in ("fresh", "stored"):
            for layout in ("dense", "prefix"):
                trainer = our_trainer(
                    shape.build(),
                    rows,
                    batch=options.batch,
                    method=LIPO,
                    folder=folder,
                    scoring_layout=layout,
                    store_anchors=kind == "stored",
                )
                contenders[f"{layout}_{kind}"] = trained_by(trainer, options.clock)
        seconds = take_turns(contenders, rounds=options.rounds, steps=options.steps)
    model = shape.build()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "completions": options.completions,
        "batch": options.batch,
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "speedup": seconds["dense_fresh"] / seconds["prefix_fresh"],
        "speedup_stored": seconds["dense_stored"] / seconds["prefix_stored"],
        "max_relative_gradient_error": gradient_error(model, rows[: options.batch]),
    }


def gradient_error(model: torch.nn.Module, rows: Any) -> float:
    """Of log-probs summed with random weights, the largest over all parameters."""
    completions = collate(rows, pad_token_id=0).completions
    weights_BG = torch.randn(completions.valid_BG.shape, generator=torch.Generator().manual_seed(0))
    gradients = []
    for layout in ("dense", "prefix"):
        one = copy.deepcopy(model)
        scores = score(one, completions, scoring=Scoring(layout=layout))
        (weights_BG * scores.logps_BG).sum().backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    return max(float((shared - dense).norm() / dense.norm()) for dense, shared in zip(*gradients, strict=True))


if __name__ == "__main__":
    main()
