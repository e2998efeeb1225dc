"""``alignment reward``: separable pairs are learned, on our ids, and the saved model scores as the trained one did."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.cli import main
from alignment.config.fitting import RewardRecipe, load_reward_recipe, load_sft_recipe
from alignment.data import encode_rows, read_rows, split_rows
from alignment.errors import UserError
from alignment.fitting import reward, sft
from alignment.rewards import text
from alignment.rewards.pairs import strict_pairs
from tests.fitting.data import separable_pairs, write


def held_out_accuracy(folder: Path, recipe: RewardRecipe, model: torch.nn.Module | None = None) -> float:
    """By plain transformers on the saved folder, one text at a time, without any of our scoring."""
    if model is None:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    _, rows = split_rows(read_rows(recipe.data.sources[0].path).rows, recipe.data.eval_fraction, recipe.seed)
    pairs = strict_pairs(encode_rows(rows, tokenizer, max_prompt_length=48, max_completion_length=24).rows).pairs
    right = 0
    for pair in pairs:
        with torch.no_grad():
            chosen, rejected = (
                model(torch.tensor([ids])).logits.item() for ids in (pair.chosen_ids, pair.rejected_ids)
            )
        right += chosen > rejected
    return right / len(pairs)


def test_separable_pairs_are_learned_and_the_saved_model_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_reward_recipe(write(tmp_path, separable_pairs())).recipe
    result = reward.run(recipe)
    assert result.after["accuracy"] > 0.95 and 0.2 < result.before["accuracy"] < 0.8
    assert result.before["loss, nats a pair"] == pytest.approx(0.6931, abs=0.02)
    assert held_out_accuracy(result.model_folder, recipe) == result.after["accuracy"]
    assert load_reward_recipe(result.folder / "recipe.yaml").recipe == recipe
    assert json.loads((result.folder / "summary.json").read_text())["after"] == result.after
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in logged)
    assert "accuracy" in capsys.readouterr().err


def test_what_reaches_the_model_are_our_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The winners stand in the first half of TRL's batch, the losers in the second, as ``encode_rows`` gives them."""
    seen: list[tuple[list[int], list[int]]] = []
    original = text.RewardTrainer.compute_loss

    def spy(self: object, model: object, inputs: dict, *args: object, **kwargs: object) -> object:
        texts = [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        half = len(texts) // 2
        seen.extend(zip(texts[:half], texts[half:], strict=True))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(text.RewardTrainer, "compute_loss", spy)
    path = write(tmp_path, separable_pairs()[:20])
    result = reward.run(load_reward_recipe(path, ["training.num_train_epochs=1", "data.eval_fraction=0"]).recipe)
    tokenizer = AutoTokenizer.from_pretrained(result.model_folder)
    encoded = encode_rows(
        read_rows(tmp_path / "rows.jsonl").rows, tokenizer, max_prompt_length=48, max_completion_length=24
    ).rows
    expected = [
        ([*item.prompt_ids, *item.completion_ids[0]], [*item.prompt_ids, *item.completion_ids[1]]) for item in encoded
    ]
    assert sorted(seen) == sorted(expected)


def test_lora_on_a_saved_model_saves_an_adapter_with_its_head(tmp_path: Path) -> None:
    """A causal language model gets a new head; the adapter alone, loaded by peft on it, scores as the run said."""
    path = write(tmp_path, separable_pairs())
    base = sft.run(load_sft_recipe(path, ["training.max_steps=2"]).recipe).model_folder
    overrides = [f"policy.model={base}", "policy.tiny=null", "policy.lora.rank=8", "training.learning_rate=1e-2"]
    recipe = load_reward_recipe(path, [*overrides, f"output_dir={tmp_path / 'adapter'}"]).recipe
    result = reward.run(recipe)
    assert result.after["accuracy"] > 0.9 and not (result.model_folder / "model.safetensors").exists()
    model = AutoPeftModelForSequenceClassification.from_pretrained(result.model_folder, num_labels=1).eval()
    assert held_out_accuracy(result.model_folder, recipe, model) == result.after["accuracy"]


def test_lists_and_ties(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of three with one tie gives two pairs; a tied pair gives none; both are counted."""
    lists = [{"prompt": f"Say {n}.", "responses": ["a", "b", "c"], "scores": [1, 2, 2]} for n in range(9)]
    path = write(tmp_path, lists)
    reward.run(load_reward_recipe(path, ["training.max_steps=1", "data.eval_fraction=0"]).recipe)
    said = capsys.readouterr().err
    assert "training: 18 pairs; left out 9: 9 tied (rows.jsonl:1, rows.jsonl:2, rows.jsonl:3, ...)" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "A", "chosen": "b", "rejected": "c", "weight": 0.5},
            "rows.jsonl:1: expected the weight 1, found 0.5",
        ),
        ({"prompt": "A", "chosen": "b", "rejected": "c", "preference": 0.8}, "found the probability 0.8"),
        ({"prompt": "A", "chosen": "b", "rejected": "c", "preference": 0.5}, "expected pairs with a winner"),
        ({"prompt": "A", "completion": "b"}, "expected feedback on responses in data.preferences"),
        (
            {"prompt": "A", "responses": ["b", "c"], "scores": {"x": [1, 2], "y": [2, 1]}},
            "feedback of one oracle, found x, y",
        ),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    row: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is ignored in silence: TRL's loss has neither weights nor soft labels."""
    with pytest.raises(SystemExit) as stop:
        main(["reward", str(write(tmp_path, [row])), "data.eval_fraction=0"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and len(errors) == 1 and message in errors[0]


def test_an_adapter_of_no_module_is_refused(tmp_path: Path) -> None:
    """Of both commands: TRL makes the adapter of one, and peft has other words for a model with a head."""
    path = write(tmp_path, separable_pairs())
    nowhere = ["policy.lora={rank: 2, target_modules: [foo]}"]
    for fit in (
        lambda: sft.run(load_sft_recipe(path, nowhere).recipe),
        lambda: reward.run(load_reward_recipe(path, nowhere).recipe),
    ):
        with pytest.raises(UserError, match=r"policy\.lora\.target_modules: expected .*q_proj.*, got \['foo'\]"):
            fit()
