"""Recipes of ``alignment sft`` and ``alignment reward``: strict, complete, and with the defaults of transformers."""

from pathlib import Path

import pytest
from transformers import TrainingArguments
from trl import RewardConfig, SFTConfig

from alignment.config.fitting import load_reward_recipe, load_sft_recipe
from alignment.errors import UserError
from alignment.fitting.setup import build_config

GOOD = "policy: {tiny: {}}\ndata: {preferences: {path: pairs.jsonl}}\noutput_dir: runs/test\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("load", [load_sft_recipe, load_reward_recipe])
def test_all_mistakes_are_reported_together(good: Path, load: object) -> None:
    overrides = [
        "policy.ref_model=other",
        "policy.lora.rnk=4",
        "data.eval_fraction=2",
        "training.learning_rate=1/3",
        "training.warmup_ratio=0.1",
        "training.max_step=3",
        "method.name=dpo",
        "output_dir=${NOWHERE}",
    ]
    with pytest.raises(UserError) as caught:
        load(good, overrides)  # type: ignore[operator]
    lines = str(caught.value).splitlines()
    expected = [
        "output_dir: the environment variable NOWHERE is not set",
        "unknown key 'policy.ref_model'",
        "unknown key 'policy.lora.rnk'; did you mean 'policy.lora.rank'?",
        "policy.lora.rank: expected a value, got none",
        "data.eval_fraction: expected a number < 1, got 2",
        "unknown key 'method'",
        "training.learning_rate: expected a number",
        "training.warmup_ratio: transformers 5 removed it",
        "unknown key 'training.max_step'; did you mean 'training.max_steps'?",
    ]
    missing = [text for text in expected if not any(line.startswith(text) for line in lines)]
    assert not missing and len(lines) == len(expected), lines


def test_what_only_one_command_knows(good: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'mixture'"):
        load_sft_recipe(good, ["mixture.groups=2"])
    with pytest.raises(UserError, match=r"unknown key 'data\.demonstrations'"):
        load_reward_recipe(good, ["data.demonstrations.path=more.jsonl"])
    with pytest.raises(UserError, match=r"exactly one of data\.preferences and data\.demonstrations, got both"):
        load_sft_recipe(good, ["data.demonstrations.path=more.jsonl"])
    with pytest.raises(UserError, match=r"mixture\.groups: expected a number >= 2"):
        load_reward_recipe(good, ["mixture.groups=1"])


def test_null_takes_back(good: Path) -> None:
    recipe = load_reward_recipe(good, ["mixture.groups=2", "mixture.num_starts=null", "mixture=null"]).recipe
    assert recipe.mixture is None
    recipe = load_sft_recipe(good, ["data.preferences=null", "data.demonstrations.path=more.jsonl"]).recipe
    assert recipe.data.preferences is None


@pytest.mark.parametrize("load", [load_sft_recipe, load_reward_recipe])
def test_the_resolved_recipe_reads_back(good: Path, load: object, tmp_path: Path) -> None:
    recipe = load(good, ["policy.lora.rank=4", "training.learning_rate=5e-7", "seed=3"]).recipe  # type: ignore[operator]
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load(tmp_path / "resolved.yaml").recipe == recipe  # type: ignore[operator]


def test_numbers_of_the_training_block_are_named_by_their_keys(good: Path) -> None:
    wrong = ["training.learning_rate=-1", "training.logging_steps=0", "training.eval_strategy=epoch"]
    recipe = load_sft_recipe(good, [*wrong, "data.eval_fraction=0"]).recipe
    with pytest.raises(UserError) as caught:
        build_config(SFTConfig, recipe)
    assert str(caught.value).splitlines() == [
        "training.learning_rate: expected a finite number of at least 0, got -1",
        "training.logging_steps: expected a whole number above 0, or a fraction of the run below 1, got 0",
        "training.eval_strategy: expected held-out rows (data.evaluation or data.eval_fraction), got none; name some, "
        "or write training.eval_strategy=no",
    ]


def test_the_defaults_are_those_of_transformers(good: Path) -> None:
    """Whatever TRL changes: a recipe that is silent trains as ``alignment train`` would."""
    plain = TrainingArguments(output_dir="runs/test", use_cpu=True, report_to="none")
    ours = (
        build_config(SFTConfig, load_sft_recipe(good).recipe),
        build_config(RewardConfig, load_reward_recipe(good).recipe),
    )
    # A recipe's seed is a key of its own, and its default is 0.
    volatile = {"seed", "_n_gpu", "distributed_state", "deepspeed_plugin", "use_cpu"}
    for config in ours:
        changed = {
            name
            for name in TrainingArguments.__dataclass_fields__
            if name not in volatile and str(vars(config)[name]) != str(vars(plain)[name])
        }
        assert not changed and config.max_length is None
    config = build_config(RewardConfig, load_reward_recipe(good, ["training.gradient_checkpointing=true"]).recipe)
    assert config.gradient_checkpointing
