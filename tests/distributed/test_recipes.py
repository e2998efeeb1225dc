"""Recipes on two processes, as a user launches them: the launch is what it says, the result that of one process."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.launches import ROOT, launch, losses, needs_compiler, parameters

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

RECIPE = "recipes/dpo/tiny.yaml"


@pytest.mark.parametrize(("config", "kind"), [("ddp_cpu", "MULTI_CPU (gloo)"), ("fsdp2", "FSDP (FSDP, gloo)")])
def test_two_processes_equal_one(config: str, kind: str, tmp_path: Path) -> None:
    """Invariant 111: two ranks of 4 prompts and one of 8, same rows, plain SGD: the same path to 1e-5.

    Epochs and held-out rows end between the two processes: rows that fill up the last batch count for nothing.
    """
    ragged = ("data.preferences.limit=30", "data.eval_fraction=0.3", "training.max_steps=6")
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE, overrides=ragged, config=config)
    assert f"2 process(es), {kind}; effective batch 8 prompts" in said
    assert said.count("policy:") == 1, "one process speaks"
    alone = launch(tmp_path / "one", processes=1, batch=8, recipe=RECIPE, overrides=ragged)
    assert "; 1 process; " in alone and "effective batch 8" in alone
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-5)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)
    two, one = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("two", "one"))
    for end in ("before", "after"):
        assert two[end] == pytest.approx(one[end], rel=1e-4, abs=1e-5, nan_ok=True)


@needs_compiler
@pytest.mark.parametrize(("config", "store"), [("zero2_cpu", False), ("zero3_cpu", False), ("zero3_cpu", True)])
def test_policies_are_compared_in_the_precision_of_the_launch(config: str, store: bool, tmp_path: Path) -> None:
    """DeepSpeed rounds the policy's weights: at the start the reference's are the same, its log-probs stored or not.

    Stored ones are of other batches, which bfloat16 rounds otherwise. A reference in float32 is four times as far.
    """
    overrides = ("training.bf16=true", "method.beta=10", f"anchors.store={str(store).lower()}", "training.max_steps=1")
    launch(tmp_path, processes=2, batch=4, recipe=RECIPE, overrides=overrides, config=config)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    before, first = lines[0], next(line for line in lines if "loss" in line)
    found = [before["eval_loss"], first["loss"]]
    assert found == pytest.approx([math.log(2)] * 2, abs=4e-3 if store else 1e-4)


def test_demonstrations_on_two_processes_equal_one(tmp_path: Path) -> None:
    """Held-out rows are looked at before, which must not keep gradients from being averaged."""
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(
        "policy: {tiny: {hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}}\n"
        f"data: {{preferences: {{path: {ROOT / 'recipes/base/pairs.jsonl'}}}, eval_fraction: 0.2}}\n"
        "training: {max_steps: 3, learning_rate: 0.5, optim: sgd, logging_steps: 1, disable_tqdm: true}\n"
        "output_dir: nowhere\nseed: 0\n"
    )
    for name, processes in (("two", 2), ("one", 1)):
        batch = f"training.per_device_train_batch_size={8 // processes}"
        line = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/ddp_cpu.yaml"),
            *("--num_processes", str(processes), "--main_process_port", "0", "-m", "alignment"),
        ]
        start = line if processes > 1 else [sys.executable, "-m", "alignment"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*start, "sft", str(recipe), f"output_dir={tmp_path / name}", batch],
            **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 200},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-4)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)


def test_the_text_game_is_made_by_several_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is the first to have made its model, what it leaves can be loaded."""
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))
    launch(tmp_path / "two", processes=2, batch=4, recipe="recipes/quickstart/dpo.yaml", overrides=("evaluation=null",))
    (folder,) = (path for path in (tmp_path / "cache").rglob("textgame/*") if path.is_dir())
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ("ddp_cpu", ()),
        # Two fits a round, of which the second begins with what the first process has written.
        ("ddp_cpu", ("method={name: onpo, eta: 3.0}",)),
        pytest.param("zero3_cpu", (), marks=needs_compiler),
        ("fsdp2", ()),
    ],
)
def test_rounds_on_two_processes_equal_one(config: str, method: tuple[str, ...], tmp_path: Path) -> None:
    """Two rounds: the same answers to the letter, the same comparisons, and weights to 1e-4.

    Under DeepSpeed each round has an engine of its own, and samples from what the one before has saved.
    """
    overrides = (
        *method,
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


@pytest.mark.parametrize("config", ["ddp_cpu", "fsdp2"])
def test_win_rates_of_two_processes(config: str, tmp_path: Path) -> None:
    """Each answers its own share of the held-out prompts, as one process does; together they count each prompt once."""
    evaluation = "evaluation={every: 2, num_prompts: 7, max_new_tokens: 4, oracle: {kind: rule, rule: shorter}}"
    runs = {}
    for name, processes in (("two", 2), ("one", 1)):
        options = {"processes": processes, "batch": 8 // processes, "config": config}
        launch(tmp_path / name, **options, recipe=RECIPE, overrides=(evaluation,))
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs[name] = [line for line in lines if "eval_win_rate_vs_ref" in line]
    found = runs["two"]
    rates = {name: [line["eval_win_rate_vs_ref"] for line in lines] for name, lines in runs.items()}
    assert rates["two"] == rates["one"] and len(set(rates["one"])) > 1
    # Before training, at iteration 2, at the end of training, and of the model that is saved.
    assert [line["iteration"] for line in found] == [0, 2, 3, 3]
    assert {line["eval_win_rate_num_prompts"] for line in found} == {7}
    assert all(line["eval_win_rate_vs_ref_low"] < line["eval_win_rate_vs_ref"] for line in found)
    samples = {name: (tmp_path / name / "samples.jsonl").read_text() for name in runs}
    met = [json.loads(line)["prompt"] for line in samples["two"].splitlines()]
    assert len(met) == len(set(met)) == 7 and samples["two"] == samples["one"]
