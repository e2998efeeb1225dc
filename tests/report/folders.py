"""Run folders made of chosen figures, as a run would have left them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.evaluation.ablations import Ablated, Outcome, summarise

Record = Mapping[str, Any]

# The gap falls to a tenth at each evaluation: on a logarithmic axis the points lie on a line.
GAPS = {0: 0.1, 20: 0.01, 40: 0.001}


def evaluation(iteration: int, **metrics: float) -> Record:
    """A line of the log about held-out prompts."""
    return {"step": iteration, "iteration": iteration, **{f"eval_{name}": value for name, value in metrics.items()}}


def training(iteration: int, **metrics: float) -> Record:
    """A line of the log about what is trained on."""
    return {"step": iteration, "iteration": iteration, **metrics}


def rate(name: str, value: float) -> dict[str, float]:
    """A win rate with an interval of a tenth on either side."""
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def metrics_at(iteration: int) -> dict[str, float]:
    """What is measured on the text game, of two groups."""
    gain = iteration / 400
    return {
        "exact_gap": GAPS[iteration],
        "exact_win_rate": 0.5 + gain,
        "exact_win_rate_schools": 0.5 + 1.5 * gain,
        "exact_win_rate_minority": 0.5 - gain,
        "exact_win_rate_worst": 0.5 - gain,
        "exact_kl_to_ref": 3.0 * gain,
        **rate("win_rate_vs_ref", 0.5 + gain),
        "win_rate_num_prompts": 30,
        "kl_to_ref": 3.1 * gain,
        "loss": 1.0 - gain,
    }


def log_of_a_game() -> list[Record]:
    """Three evaluations with training between them."""
    return [
        evaluation(0, **metrics_at(0)),
        training(10, loss=0.9, learning_rate=1e-3),
        training(20, loss=0.8, learning_rate=5e-4),
        evaluation(20, **metrics_at(20)),
        training(40, loss=0.7, learning_rate=0.0),
        training(40, train_runtime=12.5, train_loss=0.8),
        evaluation(40, **metrics_at(40)),
    ]


SAMPLES: Sequence[Record] = [
    {
        "prompt": f"Question {number}?",
        "ref": "no",
        "policy": "yes" * number,
        "win": number / 10,
        "members": {"schools": number / 10, "minority": 1 - number / 10},
    }
    for number in range(11)
]


def write_jsonl(path: Path, rows: Sequence[Record]) -> None:
    """Lines as a run writes them: NaN stays NaN."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(
    folder: Path,
    *,
    method: str = "egpo",
    log: Sequence[Record] | None = None,
    summary: Record | None = None,
    samples: Sequence[Record] = SAMPLES,
) -> Path:
    """A whole run of the text game, or one with another log or summary."""
    folder.mkdir(parents=True)
    recipe = f"method:\n  name: {method}\n  tau: 0.1\nschedule:\n  kind: online\noutput_dir: {folder.name}\nseed: 7\n"
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.7", "alignment": "0.1.0"}))
    write_jsonl(folder / "metrics.jsonl", log_of_a_game() if log is None else log)
    ended = {"before": metrics_at(0), "after": metrics_at(40), "seconds": 30.0, "oracle_calls": 7200}
    (folder / "summary.json").write_text(json.dumps(ended if summary is None else summary))
    if samples:
        write_jsonl(folder / "samples.jsonl", samples)
    return folder


def ablated() -> Ablated:
    """Six variants over three seeds, with names of any length; one run failed, one method was tuned."""
    variants = ["short", "a variant with a rather long name", "x" * 40, "d", "e", "f"]
    outcomes = [
        Outcome(
            variant=variant,
            trial="learning_rate=0.001",
            seed=seed,
            is_tuning=seed == 9,
            folder=f"runs/ablations/methods/cells/{variant}/learning_rate=0.001/seed-{seed}",
            state="failed" if (number, seed) == (1, 2) else "finished",
            figures={} if (number, seed) == (1, 2) else {"exact_gap": 0.01 * number + 0.001 * (seed * number % 5)},
            start={"exact_gap": 0.145},
            seconds=40.0 + 10.0 * number + seed,
            oracle_calls=57_600,
            error="RuntimeError: " + "out of memory " * 20 if (number, seed) == (1, 2) else "",
        )
        for number, variant in enumerate(variants)
        for seed in (9, 0, 1, 2)
    ]
    return summarise(
        outcomes, variants=variants, metrics={"exact_gap": "lower"}, seeds=[0, 1, 2], budget=57_600, tolerance=0.0
    )
