"""A run that is killed and resumed ends where an uninterrupted one does, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment import loop, resumable
from alignment.checkpoints import last_checkpoint, load_state, save_state
from alignment.config import load_recipe
from alignment.errors import UserError
from tests.runs import small_run

ROOT = Path(__file__).parents[2]


def command(recipe: str, folder: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "scripts/train.py", recipe, f"output_dir={folder}", "training.max_steps=12"),
        *("training.save_strategy=steps", "training.save_steps=3", "training.logging_steps=1"),
        *("training.disable_tqdm=true", "training.eval_strategy=no", "data.eval_fraction=0", *overrides),
    ]


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("recipes/dpo/tiny.yaml", ("policy.lora={rank: 4, dropout: 0.1}",)),
        ("recipes/dpo/tiny.yaml", ("anchors.store=true",)),
        ("recipes/egpo/tiny.yaml", ()),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(recipe: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Losses and final weights are equal: data order, dropout, optimizer, schedule, samples and stages included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(recipe, whole, *overrides), cwd=ROOT, env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        command(recipe, broken, *overrides), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    # Killed at whatever point it has reached a moment after its first checkpoint is on the disk.
    while not list(broken.glob("checkpoint-*/alignment_state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "final").exists(), "killed too late to prove anything"
    (broken / "checkpoint-99").mkdir()  # torn: the state that is written last is missing
    resumed = command(recipe, broken, *overrides, "training.resume_from_checkpoint=last")
    subprocess.run(resumed, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert losses(broken) == losses(whole) and len(losses(whole)) == 12
    names = [path.name for path in (whole / "final").glob("*.safetensors")]
    assert names
    for name in names:
        first, second = load_file(whole / "final" / name), load_file(broken / "final" / name)
        assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("recipe", ["dpo", "egpo"])
def test_a_finished_run_takes_no_further_step(recipe: str, tmp_path: Path) -> None:
    """Resumed once more, as a scheduler does that starts a job again, it ends where it was, and took what it took."""
    saves = (
        *("training.save_strategy=steps", "training.save_steps=2", "training.logging_steps=1"),
        *("data.eval_fraction=0", "training.eval_strategy=no"),
    )
    folder = small_run(tmp_path, *saves, recipe=f"{recipe}/tiny")
    first = load_file(folder / "final" / "model.safetensors")
    save_state(last_checkpoint(folder), load_state(last_checkpoint(folder)) | {"seconds": 100.0})
    small_run(tmp_path, *saves, "training.resume_from_checkpoint=last", recipe=f"{recipe}/tiny")
    again = load_file(folder / "final" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(losses(folder)) == 2
    assert 100.0 <= json.loads((folder / "summary.json").read_text())["seconds"] < 200.0


def test_a_save_that_is_broken_off_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones go when the new one is whole, and what a broken one left is no part of the next."""
    saves = (
        *("training.save_strategy=steps", "training.save_steps=1", "training.save_total_limit=1"),
        *("data.eval_fraction=0", "training.eval_strategy=no"),
    )
    save_state = resumable.save_state

    def break_off(folder: Path, state: Mapping[str, object]) -> None:
        if folder.name == "checkpoint-2":
            (folder / "rest").touch()
            raise KeyboardInterrupt
        save_state(folder, state)

    monkeypatch.setattr(resumable, "save_state", break_off)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, *saves)
    assert last_checkpoint(tmp_path).name == "checkpoint-1" and (tmp_path / "checkpoint-2" / "rest").exists()
    monkeypatch.undo()
    small_run(tmp_path, *saves, "training.resume_from_checkpoint=last")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-2" / "rest").exists()


def test_a_run_does_not_write_over_another(tmp_path: Path) -> None:
    """The same recipe may run again; another one would leave a mixture."""
    small_run(tmp_path)
    small_run(tmp_path)
    for other, said in (
        ("method={name: ipo, tau: 0.1}", r"method\.name \(dpo then, ipo now\)"),
        ("training.max_steps=3", r"training\.max_steps \(2 then, 3 now\)"),
    ):
        with pytest.raises(UserError, match=f"found other values of .*{said}"):
            small_run(tmp_path, other)


def test_a_run_does_not_begin_beside_checkpoints(tmp_path: Path) -> None:
    """It would remove them, and ``last`` would continue them."""
    saves = ("training.save_strategy=steps", "training.save_steps=1", "data.eval_fraction=0")
    small_run(tmp_path, *saves)
    with pytest.raises(UserError, match=r"found checkpoint-1, .*resume_from_checkpoint=last"):
        small_run(tmp_path, *saves)


SAVES = ("training.save_strategy=steps", "training.save_steps=1", "data.eval_fraction=0", "training.eval_strategy=no")
LAST = "training.resume_from_checkpoint=last"


def test_a_checkpoint_without_a_recipe_is_of_its_run(tmp_path: Path) -> None:
    """Whoever is killed between the state of a checkpoint and its recipe leaves the one without the other."""
    small_run(tmp_path, *SAVES)
    for path in tmp_path.glob("checkpoint-*/recipe.yaml"):
        path.unlink()
    with pytest.raises(UserError, match=r"found other values of method\.beta"):
        small_run(tmp_path, *SAVES, LAST, "method.beta=0.7")
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match=r"recipe\.yaml: expected keys with their values, found nothing"):
        small_run(tmp_path, *SAVES, LAST)


def test_a_checkpoint_without_moments_is_not_continued(tmp_path: Path) -> None:
    small_run(tmp_path, *SAVES, "training.save_only_model=true")
    with pytest.raises(UserError, match=r"expected the optimizer's state in .*save_only_model left out"):
        small_run(tmp_path, *SAVES, "training.save_only_model=true", LAST)


def test_other_rows_do_not_continue_a_run(tmp_path: Path) -> None:
    """The file has the same name, and chosen and rejected in other places."""
    rows = [{"prompt": f"Say {i}", "chosen": f" {i}", "rejected": " no"} for i in range(8)]
    path = tmp_path / "pairs.jsonl"
    data = f"data={{preferences: {{path: {path}}}}}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small_run(tmp_path / "run", *SAVES, data)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in turned))
    with pytest.raises(UserError, match=r"expected the training rows that the checkpoint has seen, found others"):
        small_run(tmp_path / "run", *SAVES, data, LAST)


def test_patience_is_not_forgotten(tmp_path: Path) -> None:
    """Continued from a checkpoint of its middle, or of its end, a run stops where it had stopped."""
    watched = (
        *("training.save_strategy=steps", "training.save_steps=1", "training.eval_strategy=steps"),
        *("training.eval_steps=1", "training.load_best_model_at_end=true", "training.max_steps=9"),
        # Nothing is ever better by so much.
        *("training.metric_for_best_model=eval_loss", "early_stopping={patience: 3, threshold: 99}"),
    )
    small_run(tmp_path / "run", *watched)

    def last_step(folder: Path) -> int:
        return max(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))

    stopped = last_step(tmp_path / "run")
    assert 3 <= stopped < 9
    for number in (stopped - 1, stopped):
        folder = tmp_path / f"from-{number}"
        shutil.copytree(tmp_path / "run", folder)
        shutil.rmtree(folder / "final")
        for later in range(number + 1, 10):
            shutil.rmtree(folder / f"checkpoint-{later}", ignore_errors=True)
        small_run(folder, *watched, LAST)
        assert last_step(folder) == stopped and (folder / "final").exists()


@pytest.mark.parametrize("recipe", ["dpo", "egpo"])
def test_the_largest_seed(recipe: str, tmp_path: Path) -> None:
    small_run(tmp_path, "seed=2147483647", recipe=f"{recipe}/tiny")
    with pytest.raises(UserError, match=r"seed: expected a number < 2\.14748e\+09"):
        small_run(tmp_path, "seed=2147483648", recipe=f"{recipe}/tiny")


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_a_run_that_diverges_ends(held_out: float, tmp_path: Path) -> None:
    """With a line that says where, and without a model."""
    diverges = ("training.learning_rate=1e9", "training.max_steps=12", "training.max_grad_norm=0")
    with pytest.raises(UserError, match=r"step \d+: expected a finite loss, found (nan|inf).*learning_rate"):
        small_run(tmp_path, *diverges, f"data.eval_fraction={held_out}")
    assert not (tmp_path / "final").exists()


def test_without_a_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match=r"expected a whole checkpoint to resume from .* found none"):
        last_checkpoint(tmp_path)


def test_another_recipe_does_not_continue_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer: yes. Another learning rate or method option: no, with the keys named."""
    monkeypatch.chdir(ROOT)
    quick = [
        *(f"output_dir={tmp_path}", "training.max_steps=2", "training.save_strategy=steps", "training.save_steps=2"),
        *("training.disable_tqdm=true", "policy.tiny={vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 1}"),
    ]
    loop.run(load_recipe("recipes/dpo/tiny.yaml", quick).recipe)
    resumed = [*quick, "training.resume_from_checkpoint=last", "training.max_steps=4"]
    other = [*resumed, "training.learning_rate=1e-5", "method.beta=0.2"]
    with pytest.raises(UserError, match=r"method\.beta \(0\.1 then, 0\.2 now\), training\.learning_rate \(0\.001 then"):
        loop.run(load_recipe("recipes/dpo/tiny.yaml", other).recipe)
    loop.run(load_recipe("recipes/dpo/tiny.yaml", resumed).recipe)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 4


def test_the_evaluation_before_training_stands_first_and_once(tmp_path: Path) -> None:
    """Also after a continuation, whose evaluation may say more."""
    saved = ("training.save_strategy=steps", "training.save_steps=2", "training.logging_steps=1")
    small_run(tmp_path, *saved)
    judge = "evaluation={oracle: {kind: rule, rule: shorter}, num_prompts: 2, max_new_tokens: 4}"
    small_run(tmp_path, *saved, judge, "training.max_steps=4", "training.resume_from_checkpoint=last")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps.count(0) == 1 and set(steps) == {0, 1, 2, 3, 4}
    assert [line["step"] for line in lines if "eval_win_rate_vs_ref" in line] == [0, 4]
