"""Two processes on the CPU: the launch is what it says, and the result is that of one process."""

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.launches import launch, losses, parameters, write_lists

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

RECIPE = "recipes/dpo/tiny.yaml"


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Invariant 111: two ranks of 4 prompts and one of 8, same rows, plain SGD: the same path to 1e-5."""
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE)
    assert "2 process(es), MULTI_CPU" in said and "effective batch 8" in said
    assert said.count("policy:") == 1, "one process speaks"
    alone = launch(tmp_path / "one", processes=1, batch=8, recipe=RECIPE)
    assert "1 process(es), NO" in alone and "effective batch 8" in alone
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-5)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)


def test_lists_on_two_processes_equal_one(tmp_path: Path) -> None:
    """The same for ragged lists with row weights, whose loss is a mean over pairs of all ranks."""
    overrides = write_lists(tmp_path / "lists.jsonl")
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE, overrides=overrides)
    assert "2 process(es), MULTI_CPU" in said and "effective batch 8" in said
    launch(tmp_path / "one", processes=1, batch=8, recipe=RECIPE, overrides=overrides)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-5)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)
    launch(tmp_path / "half", processes=1, batch=4, recipe=RECIPE, overrides=overrides)
    assert (parameters(tmp_path / "half") - parameters(tmp_path / "one")).abs().max() > 1e-4


def test_two_stages_on_two_processes(tmp_path: Path) -> None:
    """Extragradient with rollouts on both ranks runs, and ends with finite weights."""
    said = launch(tmp_path / "egpo", processes=2, batch=2, recipe="recipes/egpo/tiny.yaml")
    assert "2 process(es), MULTI_CPU" in said and "win rate" in said
    assert parameters(tmp_path / "egpo").isfinite().all()


def test_rounds_on_two_processes_equal_one(tmp_path: Path) -> None:
    """Two rounds: the same answers to the letter, the same comparisons, and weights to 1e-5."""
    overrides = (
        *("schedule.rounds=2", "sampling.num_completions=3", "training.save_strategy=no"),
        "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    )
    launch(tmp_path / "two", processes=2, batch=4, recipe="recipes/inpo/tiny.yaml", overrides=overrides)
    launch(tmp_path / "one", processes=1, batch=8, recipe="recipes/inpo/tiny.yaml", overrides=overrides)
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
