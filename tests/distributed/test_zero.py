"""DeepSpeed ZeRO on two CPU processes: partitioned for real, and on the path of one process without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignment.errors import UserError
from alignment.launch import check_deepspeed
from alignment.methods import build_method
from tests.distributed.launches import ROOT, launch, losses, parameters, write_lists

RECIPE = "recipes/dpo/tiny.yaml"
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("ninja") is None,
    reason="DeepSpeed compiles its communication on a CPU: install g++ and ninja",
)

# What the optimizer of a rank holds, against the whole model.
PARTITION = """
import json
import sys
from pathlib import Path
from alignment.arguments import AlignmentArguments
from alignment.data import read_rows
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainers import DPOTrainer

rows = read_rows("recipes/base/pairs.jsonl").rows
args = AlignmentArguments(output_dir=sys.argv[1], max_steps=1, per_device_train_batch_size=4, save_strategy="no",
                          use_cpu=True, disable_tqdm=True)
tokenizer = tiny_tokenizer([row.prompt[0].content for row in rows], vocab_size=300)
model = tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2)
trainer = DPOTrainer(
    model=model, args=args, train_dataset=rows, processing_class=tokenizer, method_options={"beta": 0.1}
)
total = sum(parameter.numel() for parameter in model.parameters())
trainer.train()
own = sum(part.numel() for part in trainer.model_wrapped.optimizer.single_partition_of_fp32_groups)
# Lines of two processes on one stream may run into each other; files do not.
Path(sys.argv[1], f"rank-{args.process_index}.json").write_text(json.dumps([args.world_size, own, total]))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@needs_compiler
@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", ["zero2_cpu", "zero3_cpu"])
@pytest.mark.parametrize("method", ["dpo", "lipo"])
def test_two_processes_equal_one(tmp_path: Path, method: str, config: str) -> None:
    """Two ranks of 4 prompts under ZeRO against one of 8 without it: losses and weights to 1e-4, accumulated too."""
    overrides = write_lists(tmp_path / "lists.jsonl") if method == "lipo" else ()
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=RECIPE, overrides=overrides, config=config)
    assert "2 process(es), DEEPSPEED" in said and "effective batch 8" in said
    alone = launch(tmp_path / "one", processes=1, batch=8, recipe=RECIPE, overrides=overrides)
    assert "1 process(es), NO" in alone
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-4)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-4)
    if config == "zero2_cpu":
        halved = (*overrides, "training.gradient_accumulation_steps=2")
        launch(tmp_path / "halved", processes=2, batch=2, recipe=RECIPE, overrides=halved, config=config)
        assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-4)


@needs_compiler
@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_rounds_equal_those_of_one_process(tmp_path: Path) -> None:
    """Two rounds in one launch: each has an engine of its own, and samples from what the one before has saved."""
    overrides = (
        *("schedule.rounds=2", "sampling.num_completions=3", "training.save_strategy=no"),
        "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    )
    recipe = "recipes/inpo/tiny.yaml"
    launch(tmp_path / "two", processes=2, batch=4, recipe=recipe, overrides=overrides, config="zero2_cpu")
    launch(tmp_path / "one", processes=1, batch=8, recipe=recipe, overrides=overrides)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-4)


@needs_compiler
@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_the_optimizer_state_is_partitioned(tmp_path: Path) -> None:
    (tmp_path / "partition.py").write_text(PARTITION)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero2_cpu.yaml"),
        *("--main_process_port", "0", str(tmp_path / "partition.py"), str(tmp_path / "run")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        world_size, own, total = json.loads((tmp_path / "run" / f"rank-{rank}.json").read_text())
        assert world_size == 2
        # Padding makes the halves equal.
        assert total / 2 <= own <= total / 2 + 64


@needs_compiler
@pytest.mark.distributed
def test_two_stages_are_refused(tmp_path: Path) -> None:
    recipe = "recipes/egpo/tiny.yaml"
    said = launch(tmp_path / "egpo", processes=2, batch=2, recipe=recipe, config="zero2_cpu", fails=True)
    assert "error: the method has 2 stages an iteration: expected a launch without DeepSpeed" in said


def test_what_is_missing_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    one_stage = build_method({"name": "dpo", "beta": 0.1}).needs
    monkeypatch.setattr("alignment.launch.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("alignment.launch.shutil.which", lambda tool: None)
    check_deepspeed(one_stage, on_cpu=False)
    with pytest.raises(UserError, match=r"found no g\+\+ and no ninja; install them"):
        check_deepspeed(one_stage, on_cpu=True)
    monkeypatch.setattr("alignment.launch.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected the extra `deepspeed`, found none"):
        check_deepspeed(one_stage, on_cpu=False)
    with pytest.raises(UserError, match="2 stages"):
        check_deepspeed(build_method({"name": "egpo", "tau": 0.1}).needs, on_cpu=False)
