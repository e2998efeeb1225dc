"""Length-controlled win rates of six public models: how near they come to the leaderboard, and how long they take.

    ALIGNMENT_REAL_DATA=... python scripts/bench/score.py     # two minutes on one core

Every row is a score as `alignment score alpaca_eval2` makes it, files read and C cross-validated; the last column is a
bootstrap of 1,000 refits of that model.
"""

import argparse
import json
import os
import time
from pathlib import Path

from alignment.evaluation.scoring import Options, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", type=int, default=1000, help="samples")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each model")
    arguments = parser.parse_args()
    folder = Path(os.environ["ALIGNMENT_REAL_DATA"], "alpaca_eval")
    published = json.loads((folder / "expected.json").read_text())["alpaca_eval_2"]
    files = {
        "difficulty": folder / "instruction_difficulty.csv",
        "regularizer": folder / "df_gamed_surrogate.csv",
    }
    if not arguments.json:
        print(f"{'model':<30}{'rate':>8}{'off by':>9}{'error':>8}{'seconds':>9}{'bootstrap s':>13}")
    for model, expected in published.items():
        path = folder / f"ae2_{model}.csv"
        began = time.perf_counter()
        found = score("alpaca_eval2", path, Options(**files, index="positional")).summary
        fitted = time.perf_counter()
        options = Options(**files, index="positional", c=found["c"], bootstrap=arguments.bootstrap)
        error = score("alpaca_eval2", path, options).summary["lc_se_bootstrap"]
        seconds, bootstrap_seconds = fitted - began, time.perf_counter() - fitted
        rate = found["length_controlled_winrate"]
        off = rate - expected["length_controlled_winrate"]
        if arguments.json:
            row = {"model": model, "rate": rate, "off_by": off, "error": error}
            print(json.dumps(row | {"seconds": seconds, "bootstrap_seconds": bootstrap_seconds}))
        else:
            print(f"{model:<30}{rate:>8.2f}{off:>9.4f}{error:>8.2f}{seconds:>9.2f}{bootstrap_seconds:>13.1f}")


if __name__ == "__main__":
    main()
