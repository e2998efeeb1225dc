"""Oracles that are models: they read the tokens of training, refuse random heads, and say what they compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignment import loop
from alignment.config import load_recipe
from alignment.data import Row, Turn, encode_row, prompt_text
from alignment.errors import UserError
from alignment.oracles import BradleyTerryOracle, LabelOracle, PairwiseOracle, ask, build_oracle
from alignment.oracles.templates import PAIR_TEMPLATE, fill_template
from alignment.tiny import tiny_model, tiny_reward_model, tiny_tokenizer

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
TEXTS = ["Which answer is better? Reply with one letter, A or B.", "A B", "red green blue"]
PROMPTS, LEFT, RIGHT = (
    ["Colour?", "Colour?", "Name one."],
    ["red", "green {left}", "blue"],
    ["green", "red", "a {prompt}"],
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    tiny_reward_model(tokenizer, **SIZES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_rewards_are_those_of_the_training_tokens(tokenizer: Any) -> None:
    """One text at a time without padding, ids as ``encode_row`` gives them: the same rewards to 1e-6."""
    model = tiny_reward_model(tokenizer, **SIZES)
    oracle = BradleyTerryOracle(model, tokenizer, batch_size=2)
    rewards_N = oracle.score(PROMPTS, LEFT)
    for prompt, response, reward in zip(PROMPTS, LEFT, rewards_N.tolist(), strict=True):
        row = Row(prompt=(Turn("user", prompt),), responses=(response,), source="x")
        item = encode_row(row, tokenizer, max_prompt_length=99, max_completion_length=99)
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids[0]]])  # type: ignore[union-attr]
        assert reward == pytest.approx(model(ids).logits[0, 0].item(), abs=1e-6)
    expected_N = torch.sigmoid(rewards_N - oracle.score(PROMPTS, RIGHT))
    torch.testing.assert_close(oracle.prefer(PROMPTS, LEFT, RIGHT), expected_N)
    assert oracle.prefer(["x"], ["red"], ["red"]).item() == 0.5


def test_a_conversation_keeps_its_turns(tokenizer: Any) -> None:
    """The flattened text of a conversation is another prompt than the conversation itself."""
    oracle = BradleyTerryOracle(tiny_reward_model(tokenizer, **SIZES), tokenizer)
    turns = (Turn("user", "red"), Turn("assistant", "green"), Turn("user", "blue"))
    prompt = prompt_text(Row(prompt=turns, source="x"))
    as_turns, as_text = oracle.score([prompt, str(prompt)], ["A", "A"]).tolist()
    assert as_turns != as_text
    item = encode_row(
        Row(prompt=turns, responses=("A",), source="x"), tokenizer, max_prompt_length=99, max_completion_length=99
    )
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids[0]]])  # type: ignore[union-attr]
    assert as_turns == pytest.approx(oracle.model(ids).logits[0, 0].item(), abs=1e-6)


def test_a_saved_reward_model_is_an_oracle(reward_folder: Path, tokenizer: Any) -> None:
    built = build_oracle({"kind": "bradley_terry", "model": str(reward_folder), "batch_size": 2})
    own = BradleyTerryOracle(AutoModelForSequenceClassification.from_pretrained(reward_folder), tokenizer)
    torch.testing.assert_close(built.prefer(PROMPTS, LEFT, RIGHT), own.prefer(PROMPTS, LEFT, RIGHT))


def test_a_random_head_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    tiny_model(tokenizer, **SIZES).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for kind in ("bradley_terry", "pairwise"):
        with pytest.raises(UserError, match=r"found no weights for score\.weight; they would be random numbers"):
            build_oracle({"kind": kind, "model": str(tmp_path)})
    with pytest.raises(UserError, match=r"oracle\.model: expected a classifier of texts at 'nowhere'"):
        build_oracle({"kind": "bradley_terry", "model": "nowhere"})


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_classifier_of_pairs_reads_both(tokenizer: Any, num_labels: int) -> None:
    model = tiny_reward_model(tokenizer, **SIZES)
    if num_labels == 2:
        model.config.num_labels = 2
        model.score = torch.nn.Linear(16, 2, bias=False)
    oracle = PairwiseOracle(model, tokenizer, batch_size=2)
    answers_N = oracle.prefer(PROMPTS, LEFT, RIGHT)
    for n, text in enumerate(fill_template(PAIR_TEMPLATE, PROMPTS, LEFT, RIGHT)):
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        expected = logits.sigmoid()[0] if num_labels == 1 else logits.softmax(-1)[0]
        assert answers_N[n].item() == pytest.approx(expected.item(), abs=1e-6)
    both = ask(oracle, PROMPTS, LEFT, RIGHT) + ask(oracle, PROMPTS, RIGHT, LEFT)
    torch.testing.assert_close(both, torch.ones(3, dtype=torch.float64))


def test_a_language_model_names_the_better_one(tokenizer: Any) -> None:
    model = tiny_model(tokenizer, **SIZES)
    oracle = LabelOracle(model, tokenizer, batch_size=2)
    answers_N = oracle.prefer(PROMPTS, LEFT, RIGHT)
    a, b = (tokenizer(label)["input_ids"][0] for label in "AB")
    for n, text in enumerate(fill_template(PAIR_TEMPLATE, PROMPTS, LEFT, RIGHT)):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        logits = model(torch.tensor([ids])).logits[0, -1]
        assert answers_N[n].item() == pytest.approx(logits[[a, b]].softmax(-1)[0].item(), abs=1e-6)
    with pytest.raises(UserError, match="expected two labels of one token each, found 'left' and 'B'"):
        LabelOracle(model, tokenizer, labels=("left", "B"))


def test_braces_in_an_answer_stay() -> None:
    (text,) = fill_template("{left}|{prompt}|{right}", ["p {left}"], ["l {right}"], ["r {prompt}"])
    assert text == "l {right}|p {left}|r {prompt}"


def test_a_text_beyond_the_context_is_an_error(tokenizer: Any) -> None:
    oracle = BradleyTerryOracle(tiny_reward_model(tokenizer, **SIZES, max_position_embeddings=16), tokenizer)
    with pytest.raises(UserError, match="expected texts of at most 16 tokens"):
        oracle.score(["x"], ["red " * 30])


def test_templates_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text("{prompt} {left}")
    with pytest.raises(UserError, match=r"oracle\.template: expected \{right\} once, found it 0 times"):
        build_oracle({"kind": "pairwise", "model": "nowhere", "template": str(tmp_path / "template.txt")})
    with pytest.raises(UserError, match=r"oracle\.template: expected a file, got 'missing\.txt'"):
        build_oracle({"kind": "language_model", "model": "nowhere", "template": "missing.txt"})


def test_a_method_trains_against_a_reward_model(reward_folder: Path, tmp_path: Path) -> None:
    """From a recipe: the reward model that `alignment reward` saves is the oracle of a self-play run."""
    overrides = [
        f"oracle={{kind: bradley_terry, model: {reward_folder}, flip: 0.1}}",
        "policy.tiny={vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 2}",
        *("training.max_steps=2", "training.per_device_train_batch_size=2", "sampling.max_new_tokens=4"),
        *("training.logging_steps=1", "training.disable_tqdm=true", f"output_dir={tmp_path}"),
    ]
    result = loop.run(load_recipe("recipes/egpo/tiny.yaml", overrides).recipe)
    assert 0.0 < result.after["win_rate_vs_ref"] < 1.0
