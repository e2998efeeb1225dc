"""Recipes on two processes, as a user launches them: the launch is what it says, the result that of one process."""

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.launches import launch, losses, needs_compiler, parameters

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

RECIPE = "recipes/dpo/tiny.yaml"


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Invariant 111: two ranks of 4 prompts and one of 8, same rows, plain SGD: the same path to 1e-5."""
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE)
    assert "2 process(es), MULTI_CPU (gloo); effective batch 8 prompts" in said
    assert said.count("policy:") == 1, "one process speaks"
    alone = launch(tmp_path / "one", processes=1, batch=8, recipe=RECIPE)
    assert "1 process(es), NO" in alone and "effective batch 8" in alone
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-5)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", ["ddp_cpu", pytest.param("zero3_cpu", marks=needs_compiler)])
def test_rounds_on_two_processes_equal_one(config: str, tmp_path: Path) -> None:
    """Two rounds: the same answers to the letter, the same comparisons, and weights to 1e-4.

    Under DeepSpeed each round has an engine of its own, and samples from what the one before has saved.
    """
    overrides = (
        *("schedule.rounds=2", "sampling.num_completions=3", "training.save_strategy=no"),
        "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    )
    recipe = "recipes/inpo/tiny.yaml"
    launch(tmp_path / "two", processes=2, batch=4, recipe=recipe, overrides=overrides, config=config)
    launch(tmp_path / "one", processes=1, batch=8, recipe=recipe, overrides=overrides)
    for name in ("answers", "preferences"):
        two, one = ((tmp_path / run / "round-1" / f"{name}.jsonl").read_text() for run in ("two", "one"))
        assert two == one
    assert losses(tmp_path / "two" / "round-2") == pytest.approx(losses(tmp_path / "one" / "round-2"), rel=1e-3)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-4)


def test_win_rates_of_two_processes(tmp_path: Path) -> None:
    """Each answers its own share of the held-out prompts; together they count every prompt once."""
    evaluation = "evaluation={every: 2, num_prompts: 7, max_new_tokens: 4, oracle: {kind: rule, rule: shorter}}"
    launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE, overrides=(evaluation,))
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval_win_rate_vs_ref" in line]
    # Before training, at iteration 2, at the end of training, and of the model that is saved.
    assert [line["iteration"] for line in found] == [0, 2, 3, 3]
    assert {line["eval_win_rate_num_prompts"] for line in found} == {7}
    assert all(line["eval_win_rate_vs_ref_low"] < line["eval_win_rate_vs_ref"] for line in found)
