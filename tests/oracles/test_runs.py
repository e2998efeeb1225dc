"""Runs that a judge's budget ends: what is left, what is said, and how they go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignment import cli, loop
from alignment.config import load_recipe
from alignment.errors import UserError
from alignment.folders import check_same_recipe
from tests.oracles.server import Server, serve

ROOT = Path(__file__).parents[2]
SMALL = [
    "policy.tiny={vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 2}",
    "training.per_device_train_batch_size=2",
    "training.logging_steps=1",
    "training.disable_tqdm=true",
    "sampling.max_new_tokens=3",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def overrides(server: Server, folder: Path, *more: str, **oracle: Any) -> list[str]:
    block = {"kind": "judge", "model": "m", "base_url": server.url, **oracle}
    return [*SMALL, f"oracle={json.dumps(block)}", f"output_dir={folder}", *more]


def online(server: Server, folder: Path, *more: str, **oracle: Any) -> list[str]:
    """One-stage self-play without held-out prompts: four iterations."""
    return [
        str(ROOT / "recipes/egpo/tiny.yaml"),
        *overrides(server, folder, "method.name=omd", "data.eval_fraction=0", "training.max_steps=4", *more, **oracle),
    ]


@pytest.mark.slow
def test_an_online_run_ends_and_goes_on(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line, a checkpoint; continued, it asks only what is new and ends as an uninterrupted run."""
    server.requests.clear()
    recipe, *whole = online(server, tmp_path / "whole")
    loop.run(load_recipe(recipe, whole).recipe)
    texts = [str(body) for body in server.requests]
    assert len(texts) == len(set(texts)) > 12
    metrics = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    after = [line["oracle_calls"] for line in metrics if "loss" in line]
    assert len(after) == 4 and after == sorted(after)

    server.requests.clear()
    limit = int(after[1]) + 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *online(server, tmp_path / "run", budget={"calls": limit})])
    assert ended.value.code == 2 and len(server.requests) == limit
    said = " ".join(capsys.readouterr().err.split())
    assert f"would exceed calls ({limit} of {limit} used); raise budget.calls and run again" in said
    assert "checkpoint-2 continues it (training.resume_from_checkpoint=last)" in said
    assert f"{limit} calls" in said.split("oracle: ")[1]
    (summary,) = json.loads((tmp_path / "run/oracle.json").read_text())
    assert summary["calls"] == limit and summary["oracle"] == "judge m" and summary["unparsable"] == 0

    recipe, *rest = online(server, tmp_path / "run", "training.resume_from_checkpoint=last", budget={"calls": 999})
    loop.run(load_recipe(recipe, rest).recipe)
    assert sorted(str(body) for body in server.requests) == sorted(texts), "nothing was asked twice"
    weights = [load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "run")]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])


@pytest.mark.slow
def test_rounds_end_and_go_on(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second round's comparisons are not paid for in full; with another budget and prices they are completed."""

    def arguments(name: str, **oracle: Any) -> list[str]:
        small = ["training.max_steps=2", "sampling.num_completions=2", "schedule.rounds=2", "data.eval_fraction=0"]
        return [str(ROOT / "recipes/inpo/tiny.yaml"), *overrides(server, tmp_path / name, *small, **oracle)]

    server.requests.clear()
    recipe, *whole = arguments("whole")
    loop.run(load_recipe(recipe, whole).recipe)
    texts = sorted(str(body) for body in server.requests)
    first = json.loads((tmp_path / "whole/round-1/preferences.jsonl.manifest.json").read_text())["made_by"]
    assert "budget" not in first["oracle"]

    server.requests.clear()
    limit = len(texts) - 20
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *arguments("run", budget={"calls": limit})])
    assert ended.value.code == 2 and len(server.requests) == limit
    assert "would exceed calls" in " ".join(capsys.readouterr().err.split())
    before = (tmp_path / "run/round-1/model/model.safetensors").stat().st_mtime_ns

    prices = {"prompt": 1.0, "completion": 1.0}
    recipe, *rest = arguments("run", budget={"calls": 9999}, prices=prices, concurrency=2, timeout=9.0)
    loop.run(load_recipe(recipe, rest).recipe)
    assert sorted(str(body) for body in server.requests) == texts, "nothing was asked twice"
    assert (tmp_path / "run/round-1/model/model.safetensors").stat().st_mtime_ns == before
    weights = [load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "run")]
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])


def test_a_zero_budget_is_refused_with_the_recipe(server: Server, tmp_path: Path) -> None:
    recipe, *rest = online(server, tmp_path, budget={"calls": 0})
    with pytest.raises(UserError, match=r"oracle\.budget\.calls: input should be greater than 0, got 0"):
        load_recipe(recipe, rest)


def test_a_continuation_may_cost_another_sum_but_asks_the_same_judge(tmp_path: Path) -> None:
    base = {"kind": "judge", "model": "m", "base_url": "http://host/v1"}

    def recipe(member: dict[str, Any]) -> str:
        crowd = {"kind": "mixture", "members": [base, member]}
        return json.dumps({"oracle": {"kind": "panel", "members": {"one": crowd, "two": member}}})

    (tmp_path / "recipe.yaml").write_text(recipe({**base, "budget": {"calls": 1}}))
    check_same_recipe(tmp_path, recipe({**base, "budget": {"calls": 2, "tokens": 3}, "timeout": 1.0, "ledger": "x"}))
    with pytest.raises(UserError, match=r"oracle\.members\.two\.model \(m then, n now\)"):
        check_same_recipe(tmp_path, recipe({**base, "model": "n"}))


def test_a_rule_s_run_writes_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [*SMALL, "method.name=omd", "data.eval_fraction=0", "training.max_steps=1", f"output_dir={tmp_path}"]
    loop.run(load_recipe(ROOT / "recipes/egpo/tiny.yaml", changes).recipe)
    assert not list(tmp_path.glob("oracle.*")) and "oracle:" not in capsys.readouterr().err
