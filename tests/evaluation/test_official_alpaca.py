"""The official alpaca_eval package reads what we write, and we read what it writes: the same figures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.evaluation.alpaca import annotations
from alignment.evaluation.scoring import Options, score
from alignment.sample import Answered, model_outputs

C = 2.782559402207126
FIGURES = ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws", "n_total")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("alpaca_eval") is None,
        reason="needs the official package: pip install alpaca_eval (it is in the extra dev)",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 instructions with answers of both models, a judge's probabilities, and regularising rows for as many."""
    folder = tmp_path_factory.mktemp("official")
    generator = np.random.default_rng(0)
    instructions = [f"Question {place}: is it – or “is” it not?" for place in range(60)]
    ours, theirs = (["é" * int(length) for length in generator.integers(5, 60, size=60)] for _ in range(2))
    for name, generator_name, outputs in (("model", "ours", ours), ("reference", "base", theirs)):
        answered = [
            Answered(prompt=text, answers=(output,)) for text, output in zip(instructions, outputs, strict=True)
        ]
        write(folder / f"{name}_outputs.json", model_outputs(answered, generator_name))
    wins = generator.uniform(size=60)
    wins[::10] = 0.5
    wins[7] = np.nan
    write(
        folder / "annotations.json",
        annotations(
            instructions, theirs, ours, wins.tolist(), generator_1="base", generator_2="ours", annotator="judge"
        ),
    )
    rows = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    difficulty = generator.normal(size=60)
    for name in ("concise", "verbose"):
        for place in range(60):
            cells = (name, place, generator.uniform(), generator.normal(), difficulty[place], False)
            rows.append(",".join(map(str, cells)))
    (folder / "df_gamed.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def official(folder: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "official_alpaca.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), repr(C)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def test_it_scores_our_annotations_as_we_do(folder: Path, official: dict[str, Any]) -> None:
    found = score("alpaca_eval1", folder / "annotations.json").summary
    for name in FIGURES:
        assert found[name] == pytest.approx(official["controlled"][name], abs=1e-9)
    assert found["n_dropped"] == 1


def test_it_controls_the_length_of_our_annotations_as_we_do(folder: Path, official: dict[str, Any]) -> None:
    """At a given C; its solver stops at a tolerance of 1e-4."""
    options = Options(regularizer=folder / "df_gamed.csv", index="positional", c=C)
    found = score("alpaca_eval2", folder / "annotations.json", options).summary
    assert found["length_controlled_winrate"] == pytest.approx(
        official["controlled"]["length_controlled_winrate"], abs=0.02
    )
    assert found["lc_se_upstream"] == pytest.approx(official["controlled"]["lc_standard_error"], abs=0.02)


def test_it_reads_our_model_outputs_and_we_its_annotations(folder: Path, official: dict[str, Any]) -> None:
    (written,) = (folder / "official").rglob("annotations.json")
    found = score("alpaca_eval1", written).summary
    assert found["model"] == "ours" and found["n_total"] == 60
    for name in (*FIGURES, "avg_length"):
        assert found[name] == pytest.approx(official["evaluated"][name], abs=1e-9)
