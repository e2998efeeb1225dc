"""The win rate while training: of every kind of method, at the iterations asked for, and the best checkpoint by it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment import loop
from alignment.arguments import AlignmentArguments
from alignment.config import load_recipe
from alignment.data import Comparison, Row, Turn
from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.oracles import MatrixOracle
from alignment.trainer import PreferenceTrainer
from tests.text.symbols import SYMBOLS, symbol_model, symbol_tokenizer

ROOT = Path(__file__).parents[2]


def judge() -> MatrixOracle:
    """Red beats green in 9 of 10 cases; blue meets nobody here."""
    prefs_XAA = torch.tensor([[[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]]], dtype=torch.float64)
    game = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=torch.full((1, 3), 1 / 3, dtype=torch.float64), tau=0.0)
    return MatrixOracle(game.prefs_XAA, responses=SYMBOLS)


def red_wins() -> tuple[Row, ...]:
    """Pairs that teach to say red and not green."""
    row = {"responses": ("red", "green"), "comparisons": (Comparison(0, 1),)}
    return tuple(Row(prompt=(Turn("user", "question"),), source=f"pairs:{i + 1}", **row) for i in range(8))


def offline(method: dict[str, Any], folder: object, **changes: Any) -> PreferenceTrainer:
    """From a policy whose likeliest answer is green."""
    model = symbol_model(logits_A=torch.tensor([0.0, 0.5, -3.0]))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "max_completion_length": 1,
        "win_rate_temperature": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=model,
        args=AlignmentArguments(**settings | changes),
        train_dataset=red_wins(),
        eval_dataset=red_wins(),
        processing_class=symbol_tokenizer(),
        eval_oracle=judge(),
        method=method,
    )


def rates(trainer: PreferenceTrainer) -> dict[int, float]:
    logged = [entry for entry in trainer.state.log_history if "eval_win_rate_vs_ref" in entry]
    return {entry["step"]: entry["eval_win_rate_vs_ref"] for entry in logged}


@pytest.mark.parametrize(
    "method",
    [{"name": "dpo", "beta": 1.0}, {"name": "simpo", "beta": 2.0, "gamma": 1.0}, {"name": "orpo", "weight": 1.0}],
    ids=lambda method: method["name"],
)
def test_an_offline_method_meets_the_start_of_training(method: dict[str, Any], tmp_path: object) -> None:
    """The likeliest answer was green and becomes red: 1/2 before, 9/10 after, with or without an anchor."""
    trainer = offline(method, tmp_path)
    assert trainer.evaluate()["eval_win_rate_vs_ref"] == pytest.approx(0.5)
    trainer.train()
    assert rates(trainer)[4] == pytest.approx(0.9)


def test_another_reference_is_met_where_one_is_given(tmp_path: object) -> None:
    """A reference that says red, against a policy that says green, also for a method that reads none."""
    ref = symbol_model(logits_A=torch.tensor([5.0, 0.0, -3.0]))
    for method in ({"name": "dpo", "beta": 0.1}, {"name": "orpo", "weight": 1.0}):
        trainer = offline(method, tmp_path)
        met = PreferenceTrainer(
            model=trainer.model,
            ref_model=ref,
            args=trainer.args,
            train_dataset=red_wins(),
            eval_dataset=red_wins(),
            processing_class=symbol_tokenizer(),
            eval_oracle=judge(),
            method=trainer.method,
        )
        assert met.evaluate()["eval_win_rate_vs_ref"] == pytest.approx(0.1)


def test_prompts_alone_have_a_win_rate_and_no_loss(tmp_path: object) -> None:
    trainer = offline({"name": "dpo", "beta": 0.1}, tmp_path)
    alone = PreferenceTrainer(
        model=trainer.model,
        args=trainer.args,
        train_dataset=red_wins(),
        eval_dataset=[Row(prompt=(Turn("user", "question"),), source="prompts:1")],
        processing_class=symbol_tokenizer(),
        eval_oracle=judge(),
        method=trainer.method,
    )
    metrics = alone.evaluate()
    assert metrics["eval_win_rate_vs_ref"] == pytest.approx(0.5) and "eval_loss" not in metrics


@pytest.mark.parametrize("key", ["win_rate_max_new_tokens", "max_completion_length"])
def test_held_out_prompts_need_room_for_an_answer(key: str, tmp_path: object) -> None:
    """The symbol model has 16 positions; a prompt is one token. Only where somebody judges."""
    method = {"name": "orpo", "weight": 1.0}
    trainer = offline(method, tmp_path, **{key: 15})
    with pytest.raises(UserError, match=r"room for win_rate_max_new_tokens .* = 16 .* in the 16 positions .* 8 of 8 "):
        offline(method, tmp_path, **{key: 16})
    args = offline(method, tmp_path, eval_strategy="no").args
    setattr(args, key, 16)
    rows = {"train_dataset": red_wins(), "eval_dataset": red_wins(), "processing_class": symbol_tokenizer()}
    assert PreferenceTrainer(model=trainer.model, args=args, method=method, **rows).match is None


def test_the_kl_to_the_reference_needs_room_for_its_answers(tmp_path: object) -> None:
    """Of the prompts that are answered for it, which are 64 here, and where a reference answers."""

    def build(held_out: Sequence[Row] = red_wins(), name: str = "dpo", **lengths: Any) -> PreferenceTrainer:
        method = {"dpo": {"name": "dpo", "beta": 0.1}, "orpo": {"name": "orpo", "weight": 1.0}}[name]
        args = AlignmentArguments(output_dir=str(tmp_path), save_strategy="no", disable_tqdm=True, **lengths)
        rows = {"train_dataset": red_wins(), "eval_dataset": held_out, "processing_class": symbol_tokenizer()}
        return PreferenceTrainer(model=symbol_model(), args=args, method=method, **rows)

    named = r"room for min\(max_new_tokens, max_completion_length\) .* = 16 .* in the 16 positions"
    with pytest.raises(UserError, match=f"{named} .* 8 of 8 "):
        build(max_new_tokens=16)
    with pytest.raises(UserError, match=f"{named} .* 8 of 8 "):
        build(max_completion_length=16)
    assert build(max_completion_length=15).evaluate()["eval_kl_to_ref"] == pytest.approx(0.0, abs=1e-6)
    assert "eval_kl_to_ref" not in build(max_new_tokens=16, name="orpo").evaluate()
    assert "eval_kl_to_ref" not in build(max_new_tokens=16, store_anchors=True).evaluate()
    longer = replace(red_wins()[0], prompt=(Turn("user", "question question"),))
    build((*red_wins() * 8, longer), max_new_tokens=15)
    with pytest.raises(UserError, match=r"1 of 64 prompts leave none, the longest has 2 "):
        build((longer, *red_wins() * 8), max_new_tokens=15)


OFFLINE = "evaluation={every: 2, oracle: {kind: rule, rule: shorter}, num_prompts: 5, max_new_tokens: 4}"
RECIPES = {
    "offline": ("dpo/tiny", OFFLINE),
    "adapter": ("dpo/tiny", OFFLINE, "policy.lora={rank: 2}"),
    "stored": ("dpo/tiny", OFFLINE, "anchors.store=true"),
    "two stages": (
        "egpo/tiny",
        "evaluation={every: 2, num_prompts: 5, num_completions: 2}",
        "sampling.max_new_tokens=4",
    ),
}
TINY = (
    "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    "training.max_steps=4",
    "training.logging_steps=2",
    "training.per_device_train_batch_size=4",
    "training.disable_tqdm=true",
)


def run(folder: Path, name: str, *overrides: str) -> Path:
    loop.run(load_recipe(ROOT / "recipes" / f"{name}.yaml", [*TINY, *overrides, f"output_dir={folder}"]).recipe)
    return folder


def logged(folder: Path) -> list[Mapping[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_win_rate_vs_ref" in line]


@pytest.mark.parametrize(
    "kind", [kind if kind == "offline" else pytest.param(kind, marks=pytest.mark.slow) for kind in RECIPES]
)
def test_recipes_log_the_rate_with_its_interval(kind: str, tmp_path: Path) -> None:
    """Before, every second iteration, and at the end; iterations are counted, not the stages of one."""
    name, *overrides = RECIPES[kind]
    lines = logged(run(tmp_path, name, *overrides))
    assert [line["iteration"] for line in lines] == [0, 2, 4, 4]
    for line in lines:
        assert 0 <= line["eval_win_rate_vs_ref_low"] <= line["eval_win_rate_vs_ref"]
        assert line["eval_win_rate_vs_ref"] <= line["eval_win_rate_vs_ref_high"] <= 1
        assert line["eval_win_rate_num_prompts"] == 5
    assert len({line["eval_win_rate_vs_ref"] for line in lines}) > 1


@pytest.mark.slow
def test_rounds_log_it_inside_a_round(tmp_path: Path) -> None:
    evaluation = "evaluation={every: 2, num_prompts: 5}"
    small = ("sampling.num_completions=2", "sampling.max_new_tokens=4", "schedule.rounds=2")
    folder = run(tmp_path, "inpo/tiny", evaluation, *small)
    for number in (1, 2):
        lines = logged(folder / f"round-{number}")
        assert [line["iteration"] for line in lines] == [2, 4, 4] and {line["round"] for line in lines} == {number}
    after = json.loads((folder / "summary.json").read_text())["after"]
    assert after["win_rate_vs_ref"] == lines[-1]["eval_win_rate_vs_ref"] and after["win_rate_num_prompts"] == 5


@pytest.mark.slow
def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    evaluation = OFFLINE.replace("every: 2", "every: 1")
    saves = ("training.save_strategy=steps", "training.save_steps=2")
    whole = run(tmp_path / "whole", "dpo/tiny", evaluation, *saves)
    run(tmp_path / "cut", "dpo/tiny", evaluation, *saves, "training.max_steps=2")
    resumed = run(tmp_path / "cut", "dpo/tiny", evaluation, *saves, "training.resume_from_checkpoint=last")
    keep = ("step", "eval_win_rate_vs_ref", "eval_win_rate_vs_ref_low")
    ends = [[{key: line[key] for key in keep} for line in logged(folder)][-3:] for folder in (whole, resumed)]
    assert ends[0] == ends[1] and [line["step"] for line in ends[0]] == [3, 4, 4]


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_with_the_highest_win_rate(tmp_path: Path) -> None:
    """Steps that are far too large: the rate goes up and down, and what the run leaves is its highest point."""
    folder = run(
        tmp_path,
        "dpo/tiny",
        "evaluation={every: 1, oracle: {kind: rule, rule: shorter}, max_new_tokens: 8}",
        "training.learning_rate=0.1",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval_win_rate_vs_ref",
        "training.save_strategy=steps",
        "training.save_steps=1",
        "early_stopping={patience: 4}",
    )
    lines = [line for line in logged(folder) if line["step"] > 0]
    by_step = {line["step"]: line["eval_win_rate_vs_ref"] for line in lines[:-1]}
    best = max(by_step, key=lambda step: by_step[step])
    assert best != max(by_step) and len(set(by_step.values())) > 1
    kept, expected = (
        load_file(path / "model.safetensors") for path in (folder / "final", folder / f"checkpoint-{best}")
    )
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
