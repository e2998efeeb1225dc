"""Every method on the text game: what each reaches exactly, at the same number of verdicts.

    python scripts/bench/methods.py                          # all recipes of recipes/quickstart
    python scripts/bench/methods.py --methods dpo,egpo       # some of them
    python scripts/bench/methods.py --jobs 2                 # so many at once, with one thread each
    python scripts/bench/methods.py --write docs/methods/README.md       # the table also goes there
    python scripts/bench/methods.py --figure docs/methods/gaps.svg       # bars of what is left of each gap
    python scripts/bench/methods.py --read                   # run nothing: the table of the runs in --folder
    python scripts/bench/methods.py --json                   # one line of JSON

Each run is `alignment train recipes/quickstart/NAME.yaml`. DPO also runs at other betas, so that it is compared at its
best. A gap is the duality gap of the game at the recipe's `evaluation.exact.tau`: 0.04, or 0 where a method knows no
tau. A method whose recipe keeps an average of its policies is read by that. `schools` and `minority` are the win rates
against the reference by the two groups, 1/2 at the reference; the lower one is the worst group's.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "quickstart"
OTHER_BETAS = (0.1, 1.0, 2.0, 5.0)
COLOURS = {"offline": "#9aa5b1", "iterative": "#3a7d44", "online": "#c1621b"}
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe with changes.

    Attributes:
        label: in the table, and of its folder.
        method: whose recipe it is.
        overrides: of the recipe.
    """

    label: str
    method: str
    overrides: tuple[str, ...] = ()


def runs_of(methods: Iterable[str]) -> list[Run]:
    """A run for each method, and DPO's at other betas."""
    runs = [Run(name, name) for name in methods]
    if any(run.method == "dpo" for run in runs):
        runs += [Run(f"dpo, beta {beta:g}", "dpo", (f"method.beta={beta}",)) for beta in OTHER_BETAS]
    return runs


def play(run: Run, folder: Path, overrides: Sequence[str]) -> None:
    """Train, and leave what it said in a log."""
    command = [
        *(sys.executable, "-m", "alignment", "train", str(RECIPES / f"{run.method}.yaml")),
        *(*run.overrides, *overrides, f"output_dir={folder / run.label}", "training.disable_tqdm=true"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    (folder / f"{run.label}.log").write_text(done.stdout + done.stderr)
    print(f"{run.label}: {'done' if done.returncode == 0 else f'failed, see {run.label}.log'}", file=sys.stderr)


def row(run: Run, folder: Path) -> dict[str, Any] | None:
    """The ends of a run, or ``None`` where it has not finished."""
    path = folder / run.label / "summary.json"
    if not path.exists():
        return None
    summary = json.loads(path.read_text())
    recipe = yaml.safe_load((folder / run.label / "recipe.yaml").read_text())
    end, start = summary.get("average", summary["after"]), summary["before"]
    return {
        "method": run.label,
        "schedule": recipe["schedule"]["kind"],
        "reads_average": "average" in summary,
        "tau": recipe["evaluation"]["exact"]["tau"],
        "gap_start": start["exact_gap"],
        "gap_end": end["exact_gap"],
        "win_rate": end["exact_win_rate"],
        "schools": end["exact_win_rate_schools"],
        "minority": end["exact_win_rate_minority"],
        "kl": end["exact_kl_to_ref"],
        "outside": end["exact_outside"],
        "oracle_calls": summary["oracle_calls"],
        "seconds": summary["seconds"],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of Markdown, the smallest part of its gap first."""
    head = (
        "method",
        "tau",
        "gap, start",
        "end",
        "left",
        "win rate",
        "schools",
        "minority",
        "KL",
        "verdicts",
        "seconds",
    )
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for item in sorted(rows, key=_left):
        cells = (
            f"`{item['method']}`{' (average)' if item['reads_average'] else ''}",
            f"{item['tau']:g}",
            f"{item['gap_start']:.4f}",
            f"{item['gap_end']:.4f}",
            f"{_left(item):.0%}",
            f"{item['win_rate']:.3f}",
            f"{item['schools']:.3f}",
            f"{item['minority']:.3f}",
            f"{item['kl']:.2f}",
            f"{item['oracle_calls']:,}",
            f"{item['seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the part of each gap that is left, the smallest on top."""
    shown = sorted(rows, key=_left, reverse=True)
    figure = Figure(figsize=(8, 0.19 * len(shown) + 0.9), layout="constrained")
    axis = figure.subplots()
    for schedule, colour in COLOURS.items():
        places = [place for place, item in enumerate(shown) if item["schedule"] == schedule]
        axis.barh(places, [_left(shown[place]) for place in places], color=colour, label=schedule, height=0.7)
    for place, item in enumerate(shown):
        axis.text(_left(item) * 1.03, place, f"{_left(item):.0%}", va="center", fontsize=7)
    axis.set_yticks(range(len(shown)), [item["method"] for item in shown], fontsize=7)
    axis.axvline(1.0, color="#888888", linewidth=0.8)
    axis.set(xscale="log", xlabel="part of the duality gap that is left; 100 %: no better than the reference")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.margins(x=0.08, y=0.01)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="upper right")
    # No date, so that the same rows give the same file.
    figure.savefig(path, metadata={"Date": None})


def _left(item: dict[str, Any]) -> float:
    return float(item["gap_end"] / item["gap_start"])


def write_between(path: Path, text: str) -> None:
    """Put the text between the page's two marks."""
    page = path.read_text()
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{path}: expected {BEGIN} and {END}, which the table goes between")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Run and print."""
    shipped = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(shipped), help="names with commas between them; all unless given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "methods", help="where the runs go")
    parser.add_argument("--write", type=Path, help="a page with marks for the table")
    parser.add_argument("--figure", type=Path, help="a file for the bars, .svg or .png")
    parser.add_argument("--read", action="store_true", help="run nothing: the table of the runs in the folder")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every recipe")
    options = parser.parse_args()
    names = options.methods.split(",")
    unknown = [name for name in names if name not in shipped]
    if unknown:
        parser.error(f"--methods: expected some of {', '.join(shipped)}, got {', '.join(unknown)}")
    runs = runs_of(names)
    if not options.read:
        options.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda run: play(run, options.folder.resolve(), options.overrides), runs))
    rows = [found for run in runs if (found := row(run, options.folder)) is not None]
    missing = len(runs) - len(rows)
    if options.write:
        write_between(options.write, table(rows))
    if options.figure:
        draw(rows, options.figure)
    print(json.dumps({"rows": rows}) if options.json else table(rows))
    if missing:
        raise SystemExit(f"{missing} of {len(runs)} runs have no summary; see the logs in {options.folder}")


if __name__ == "__main__":
    main()
