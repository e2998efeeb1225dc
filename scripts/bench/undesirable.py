"""The undesirable set of arXiv 2605.20834 before and after training: DPO against Constrained Preference Optimization.

    ALIGNMENT_REAL_DATA=... python scripts/bench/undesirable.py            # a table; some seven minutes on two cores
    ALIGNMENT_REAL_DATA=... python scripts/bench/undesirable.py --json     # the same as one line of JSON

Both recipes train the same model with random weights on the same 2,312 real pairs; only the loss differs. A pair is in
the set if training moved it in the right direction and the rejected response is still the likelier one.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment import loop
from alignment.config import load_recipe

RECIPES = {"dpo": "recipes/dpo/tiny_hh.yaml", "cpo": "recipes/cpo/tiny_hh.yaml"}
METRICS = (
    "undesirable",
    "undesirable_per_token",
    "accuracy_absolute",
    "accuracy_absolute_per_token",
    "accuracy",
    "margin",
    "chosen_logps",
    "rejected_logps",
    "kl_to_ref",
)


def measure(recipe: str, folder: Path) -> dict[str, dict[str, float]]:
    """Held-out metrics of one run, before and after."""
    overrides = [f"output_dir={folder}", "training.save_strategy='no'", "training.disable_tqdm=true"]
    result = loop.run(load_recipe(recipe, overrides).recipe)
    return {"before": result.before, "after": result.after}


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    as_json = parser.parse_args().json
    if "ALIGNMENT_REAL_DATA" not in os.environ:
        parser.error("set ALIGNMENT_REAL_DATA to the folder of the real data")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(recipe, Path(folder) / name) for name, recipe in RECIPES.items()}
    if as_json:
        print(json.dumps(found))
        return
    table = Table("held-out pairs", *(f"{name} {when}" for name in found for when in ("before", "after")), box=None)
    for metric in METRICS:
        values = (found[name][when][metric] for name in found for when in ("before", "after"))
        table.add_row(metric, *(f"{value:.4f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
