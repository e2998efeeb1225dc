"""Every shipped recipe takes two steps, with the tiny model in place of its own and small data of the same columns."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment import loop
from alignment.config import load_recipe, recipes_folder, shipped_recipes

pytestmark = pytest.mark.slow

WORDS = ("red", "green", "blue", "brown", "white", "black", "pink", "grey")
TINY = "policy.tiny={vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 2}"


def pairs(i: int) -> dict[str, Any]:
    return {"prompt": f"Name a colour, try {i}.", "chosen": f"It is {WORDS[i % 8]}.", "rejected": f"No {i}."}


def transcripts(i: int) -> dict[str, Any]:
    start = f"\n\nHuman: Name a colour, try {i}.\n\nAssistant:"
    return {"chosen": f"{start} It is {WORDS[i % 8]}.", "rejected": f"{start} No {i}."}


def judged_lists(i: int) -> dict[str, Any]:
    responses = [{"response": f"{word} {i}", "judge_p_win_vs_baseline": 0.9 - 0.1 * k} for k, word in enumerate(WORDS)]
    return {"instruction": f"Name a colour, try {i}.", "responses": responses}


def rated_lists(i: int) -> dict[str, Any]:
    completions = [{"response": f"{word} {i}", "overall_score": 8.0 - k} for k, word in enumerate(WORDS[:4])]
    return {"instruction": f"Name a colour, try {i}.", "completions": completions}


def columns_of(recipe: Path) -> Callable[[int], dict[str, Any]]:
    if recipe.stem == "tiny_hh":
        return transcripts
    if recipe.stem == "tiny_kway":
        return judged_lists
    return rated_lists if recipe.parts[0] == "lipo" else pairs


# Those of other commands, and those that play the text game, have tests of their own.
ELSEWHERE = ("sft", "reward", "evaluation", "ablations", "quickstart")
NAMES = [
    path.as_posix()
    for path in shipped_recipes()
    if path.parts[0] not in ELSEWHERE and not path.stem.startswith("textgame")
]


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(columns_of(Path(name))(i)) + "\n" for i in range(24)))
    for variable in ("ALIGNMENT_REAL_DATA", "PREFERENCES", "PROMPTS", "JUDGE"):
        monkeypatch.setenv(variable, str(data))
    monkeypatch.chdir(tmp_path)
    path = recipes_folder() / name
    shipped = load_recipe(path).recipe
    source = "prompts" if shipped.data.prompts else "preferences"
    overrides = [
        f"data.{source}.path={data}",
        "data.eval_fraction=0.25",
        "policy.model=null",
        "policy.attn_implementation=null",
        "policy.dtype=float32",
        TINY,
        "training.max_steps=2",
        "training.per_device_train_batch_size=2",
        "training.gradient_accumulation_steps=2",
        "training.bf16=null",
        "training.eval_strategy=null",
        "training.eval_steps=null",
        "training.save_strategy=no",
        "training.logging_steps=1",
        "training.disable_tqdm=true",
        f"output_dir={tmp_path / 'run'}",
    ]
    if shipped.oracle is not None and "model" in shipped.oracle:
        overrides.append("oracle={kind: rule, rule: shorter}")
    for player in shipped.players or ():
        overrides.append(f"players.{player}.oracle={{kind: rule, rule: shorter}}")
    if shipped.data.prompts:
        overrides += ["sampling.max_new_tokens=4"]
    recipe = load_recipe(path, overrides).recipe
    assert recipe.method == shipped.method and recipe.anchors == shipped.anchors
    assert recipe.policy.lora == shipped.policy.lora
    assert recipe.training["learning_rate"] == shipped.training["learning_rate"]
    result = loop.run(recipe)
    files = sorted(result.folder.rglob("metrics.jsonl"))
    logged = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    num_players = len(recipe.by_player())
    assert len(losses) == 2 * num_players * (recipe.schedule.rounds if recipe.samples_in_rounds else 1)
    # Targets of the sampling methods are hundreds of nats on a random model, and a policy gradient has any sign.
    bound = math.inf if shipped.data.prompts else 100.0
    assert all(math.isfinite(loss) and abs(loss) < bound for loss in losses)
    assert (result.model_folder / "adapter_config.json").exists() == (shipped.policy.lora is not None)
