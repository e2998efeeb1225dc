"""``alignment sft``: the loss falls, the loss is on the demonstration alone, and the ids are ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from alignment.cli import main
from alignment.config.fitting import load_sft_recipe
from alignment.data import encode_rows, read_rows
from alignment.errors import UserError
from alignment.fitting import sft
from tests.fitting.data import separable_pairs, write


def test_the_loss_falls_and_the_model_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, separable_pairs())
    recipe = load_sft_recipe(path).recipe
    result = sft.run(recipe)
    loss = "loss, nats a token"
    assert result.after[loss] < result.before[loss] - 0.5
    # Before training all tokens are about equally likely: log 300 is 5.70.
    assert result.before[loss] == pytest.approx(5.70, abs=0.15)
    assert load_sft_recipe(result.folder / "recipe.yaml").recipe == recipe
    assert json.loads((result.folder / "versions.json").read_text())["trl"]
    assert json.loads((result.folder / "summary.json").read_text())["after"] == result.after
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in logged) and any("eval_loss" in line for line in logged)
    said = capsys.readouterr().err
    assert "held-out rows" in said and "token accuracy" in said
    # The table's number is the loss of the saved model on the demonstrations, counted here by hand.
    assert loss_of(result.model_folder, recipe) == pytest.approx(result.after[loss], abs=0.02)


def loss_of(folder: Path, recipe: object) -> float:
    """Mean negative log-likelihood of the demonstrations' tokens on the held-out rows, one row at a time."""
    from alignment.data import split_rows

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = read_rows(recipe.data.sources[0].path).rows  # type: ignore[attr-defined]
    _, held_out = split_rows(rows, 0.2, 0)
    encoded = encode_rows(held_out, tokenizer, max_prompt_length=48, max_completion_length=24).rows
    total, count = 0.0, 0
    for item in encoded:
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids[0]]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)
        for t in range(len(item.prompt_ids), ids.shape[1]):
            total -= logps[0, t - 1, ids[0, t]].item()
            count += 1
    return total / count


def test_what_reaches_the_model_are_our_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence is prompt and preferred response as ``encode_rows`` gives them, and labels cover the response."""
    seen: list[tuple[list[int], list[int]]] = []
    original = sft.SFTTrainer.compute_loss

    def spy(self: object, model: object, inputs: dict, *args: object, **kwargs: object) -> object:
        for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True):
            kept = mask.bool()
            seen.append((ids[kept].tolist(), labels[kept].tolist()))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.SFTTrainer, "compute_loss", spy)
    path = write(tmp_path, separable_pairs()[:20])
    recipe = load_sft_recipe(path, ["training.num_train_epochs=1", "data.eval_fraction=0"]).recipe
    result = sft.run(recipe)
    tokenizer = AutoTokenizer.from_pretrained(result.model_folder)
    rows = read_rows(tmp_path / "rows.jsonl").rows
    expected = [
        ([*item.prompt_ids, *item.completion_ids[0]], [-100] * len(item.prompt_ids) + list(item.completion_ids[0]))
        for item in encode_rows(rows, tokenizer, max_prompt_length=48, max_completion_length=24).rows
    ]
    assert sorted(seen) == sorted(expected)
    assert not result.after


def test_demonstrations_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Completions are taken as they are; of a scored list the best is, and a list without one best is left out."""
    quick = ["training.max_steps=1"]
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(10)]
    path = write(tmp_path, rows, key="demonstrations")
    sft.run(load_sft_recipe(path, quick).recipe)
    lists = [
        {"prompt": f"Say {n}.", "responses": ["a", "b", "c"], "scores": [1, 3, 3 if n == 4 else 2]} for n in range(9)
    ]
    path = write(tmp_path, lists)
    sft.run(load_sft_recipe(path, [*quick, f"output_dir={tmp_path / 'lists'}"]).recipe)
    assert "left out 1: 1 without a preferred response (rows.jsonl:5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        (
            {"prompt": "A", "chosen": "b", "rejected": "c", "weight": 2.0},
            "preferences",
            "expected the weight 1, found 2",
        ),
        ({"prompt": "A", "completion": "b"}, "preferences", "expected feedback on responses in data.preferences"),
        ({"prompt": "A", "chosen": "b", "rejected": "c"}, "demonstrations", "expected the format completions"),
        ({"prompt": "A", "chosen": "b", "rejected": "c", "preference": 0.5}, "preferences", "preferred to all others"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    row: dict, key: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sft", str(write(tmp_path, [row], key=key)), "data.eval_fraction=0"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("command", ["sft", "reward"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.optim_args=foo", "training.optim, training.optim_args: expected what makes an optimizer, got"),
        (
            "training.optim_args='beta1=0.5'",
            "training.optim_args: expected options that 'adamw_torch_fused' reads, got",
        ),
        ("training.lr_scheduler_kwargs={foo: 1}", "training.lr_scheduler_kwargs: expected what makes a scheduler, got"),
        ("training.lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs: expected what makes a sched"),
        (
            "training={lr_scheduler_type: constant, warmup_steps: 20}",
            "training.warmup_steps: expected 0 for 'constant', which does not warm up, got 20; write",
        ),
    ],
)
def test_options_of_no_optimizer_and_no_scheduler(
    command: str, override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both commands, one line before a row is read."""
    recipe = write(tmp_path, separable_pairs())
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(SystemExit) as stop:
        main([command, str(recipe), override])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and message in line


def find_nothing(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
    """As GaLore does where the model has no such modules."""
    assert model is not None
    list(model.named_modules())
    raise ValueError(f"None of the target modules were found! ({args.optim_target_modules})")


@pytest.mark.parametrize("command", ["train", "sft", "reward"])
def test_a_fault_of_the_optimizer_that_only_the_model_shows(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each command one line."""
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(find_nothing))
    recipe = write(tmp_path, separable_pairs())
    if command == "train":
        recipe.write_text(recipe.read_text() + "method: {name: dpo, beta: 0.1}\nschedule: {kind: offline}\n")
    with pytest.raises(SystemExit) as stop:
        main([command, str(recipe), "training.optim_target_modules=nowhere"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: training.optim, training.optim_args: expected what makes an optimizer, got 'adamw_torch_fused' with no "
        "options (None of the target modules were found! (nowhere))"
    )


def test_lora_saves_an_adapter_and_a_run_resumes(tmp_path: Path) -> None:
    path = write(tmp_path, separable_pairs())
    overrides = ["policy.lora.rank=4", "training.save_strategy=steps", "training.save_steps=4", "training.max_steps=4"]
    first = sft.run(load_sft_recipe(path, overrides).recipe)
    assert (first.model_folder / "adapter_config.json").exists()
    overrides = [*overrides[:3], "training.max_steps=8", "training.resume_from_checkpoint=last"]
    second = sft.run(load_sft_recipe(path, overrides).recipe)
    lines = [json.loads(line) for line in (first.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 4, 4, 8, 8, 8]
    # Before training, at its first end and at its last one: what is continued is not evaluated before.
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, 8]
    assert second.before == first.before
    with pytest.raises(UserError, match="expected a whole checkpoint to resume from"):
        sft.run(load_sft_recipe(path, [*overrides, f"output_dir={tmp_path / 'elsewhere'}"]).recipe)


def test_a_checkpoint_that_was_broken_off_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, separable_pairs())
    saves = ["training.save_strategy=steps", "training.save_steps=2", "training.max_steps=2"]
    folder = sft.run(load_sft_recipe(path, saves).recipe).folder
    (folder / "checkpoint-3").mkdir()
    resumed = [*saves, "training.max_steps=4", "training.resume_from_checkpoint=last"]
    sft.run(load_sft_recipe(path, resumed).recipe)
    assert (folder / "checkpoint-4" / "trainer_state.json").exists()
