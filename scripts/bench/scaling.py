"""What a step costs as one thing grows: responses, prompt, vocabulary, stored opponents.

    python scripts/bench/scaling.py                       # four tables, 15.7M parameters unless the vocabulary grows
    python scripts/bench/scaling.py --only opponents      # one of them
    python scripts/bench/scaling.py --json                # one line of JSON

Around two lists of two responses of 64 tokens to prompts of 256, vocabulary 8,192, log-probs of the reference stored.
``shared`` reads prompts once, ``dense`` once for each response. Opponents are past policies of MNPO whose log-probs are
stored; ``growth_per_opponent`` is what one more of them adds, as a share of the step with one.
"""

import argparse
import json
import os
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from steps import CLOCKS, Contender, Shape, narrow, our_trainer, random_rows, scratch, take_turns, trained_by

BASE = {"responses": 2, "prompt": 256, "vocabulary": 8192}
GROWTH = {"responses": (2, 4, 8), "prompt": (64, 256, 512), "vocabulary": (8192, 32000), "opponents": (1, 5, 9)}
QUICK = {"responses": (2, 3), "prompt": (8, 16), "vocabulary": (128, 256), "opponents": (1, 3)}
BATCH, RESPONSE = 2, 64


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="a narrow model and few steps: whether it runs")
    parser.add_argument("--only", choices=GROWTH, help="one of the tables")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a shared machine, with one thread")
    for name, default in (("rounds", 3), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    values = QUICK if options.quick else GROWTH
    found: dict[str, Any] = {"clock": options.clock, "threads": torch.get_num_threads()}
    for what in [options.only] if options.only else values:
        found[what] = opponents(values[what], options) if what == "opponents" else grown(what, values[what], options)
    if options.json:
        print(json.dumps(found))
        return
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"{found['threads']} thread(s), {options.clock} clock; ms a step")
    for what in [name for name in values if name in found]:
        columns = [name for name in found[what] if isinstance(found[what][name], dict)]
        table = Table(what, *columns, box=None)
        for value in values[what]:
            table.add_row(f"{value:,}", *(f"{1000 * found[what][name][str(value)]:.0f}" for name in columns))
        console.print(table)
    if "opponents" in found:
        console.print(f"one more stored opponent: {found['opponents']['growth_per_opponent']:+.2%} of a step")


def grown(what: str, values: tuple[int, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of LiPO, shared and dense, for each value."""
    with scratch() as folder:
        os.environ["ALIGNMENT_CACHE"] = folder
        contenders = {
            (layout, value): contender({**BASE, what: value}, {"name": "lipo", "beta": 0.1}, layout, folder, options)
            for value in values
            for layout in ("prefix", "dense")
        }
        seconds = take_turns(contenders, rounds=options.rounds, steps=options.steps)
    shared, dense = ({str(value): seconds[layout, value] for value in values} for layout in ("prefix", "dense"))
    return {"shared": shared, "dense": dense}


def opponents(values: tuple[int, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of MNPO against so many stored opponents."""
    with scratch() as folder:
        os.environ["ALIGNMENT_CACHE"] = folder
        contenders = {}
        for count in values:
            weights = [0.8 / count] * count
            method = {"name": "mnpo", "eta": 0.1, "ref_weight": 0.2, "history_weights": weights}
            contenders[str(count)] = contender(BASE, method, "prefix", folder, options)
        seconds = take_turns(contenders, rounds=options.rounds, steps=options.steps)
    first, last = values[0], values[-1]
    growth = (seconds[str(last)] / seconds[str(first)] - 1.0) / (last - first)
    return {"shared": seconds, "growth_per_opponent": growth}


def contender(
    sizes: dict[str, int], method: dict[str, Any], layout: str, folder: str, options: argparse.Namespace
) -> Contender:
    """Our trainer with stored log-probs."""
    shape, prompt, response = Shape(vocabulary=sizes["vocabulary"]), sizes["prompt"], RESPONSE
    if options.quick:
        shape, prompt, response = narrow(min(sizes["vocabulary"], 256)), min(prompt, 16), 4
    rows = random_rows(
        BATCH * (options.steps + 1),
        prompt=prompt,
        response=response,
        completions=sizes["responses"],
        vocabulary=shape.vocabulary,
    )
    trainer = our_trainer(
        shape.build(), rows, batch=BATCH, method=method, folder=folder, scoring_layout=layout, store_anchors=True
    )
    return trained_by(trainer, options.clock)


if __name__ == "__main__":
    main()
