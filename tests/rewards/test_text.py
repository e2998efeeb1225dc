"""A text component keeps the contract that EM relies on."""

from pathlib import Path

import numpy as np
import torch
from trl import RewardConfig

from alignment.data import Row, Turn
from alignment.rewards.pairs import TextPair
from alignment.rewards.text import TextBradleyTerry
from alignment.tiny import tiny_reward_model, tiny_tokenizer


def component(folder: Path) -> TextBradleyTerry:
    tokenizer = tiny_tokenizer(["one two three"], vocab_size=270)
    model = tiny_reward_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, seed=0)

    def arguments() -> RewardConfig:
        return RewardConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=None, max_steps=3,
            learning_rate=1e-2, report_to="none", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip

    return TextBradleyTerry(model, tokenizer, arguments)


def pairs(*lengths: int) -> list[TextPair]:
    row = Row(prompt=(Turn("text", "?"),), source="f:1")
    return [
        TextPair(chosen_ids=tuple(range(20, 20 + n)), rejected_ids=tuple(range(100, 100 + 2 * n)), row=row)
        for n in lengths
    ]


def test_scoring_is_free_of_padding(tmp_path: Path) -> None:
    """Scored together and alone, in any order, a text has one reward."""
    texts = [tuple(range(10, 10 + length)) for length in (9, 2, 5, 2, 7)]
    own = component(tmp_path)
    together = own.score(texts)
    np.testing.assert_allclose(together, [own.score([ids])[0] for ids in texts], atol=1e-6)
    assert len(set(together)) == 4 and together[1] == together[3]


def test_scoring_has_no_dropout_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    own, texts = component(tmp_path), [tuple(range(10, 19)), tuple(range(30, 33))]
    for layer in own.model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    scores = []
    for is_training in (False, True, True):
        own.model.train(is_training)
        scores.append(own.score(texts))
        assert own.model.training is is_training
    assert scores[0] == scores[1] == scores[2]


def test_fits_go_on_and_can_be_taken_back(tmp_path: Path) -> None:
    """A second fit starts from the first; parameters are a copy of their own; restoring is exact."""
    own, data = component(tmp_path), pairs(2, 3, 4)
    start, margins = own.parameters(), own.margins(data)
    own.fit(data)
    once = own.margins(data)
    assert once.sum() > margins.sum()
    own.fit(data)
    assert own.margins(data).sum() > once.sum()
    own.restore(start)
    np.testing.assert_array_equal(own.margins(data), margins)
    assert all(torch.equal(weight, own.parameters()[name]) for name, weight in start.items())
