"""MaxMin on the text game's groups: the worst group against the exact value, and what the plain mean does to it."""

import pytest
import torch
from torch import Tensor

from alignment.arguments import AlignmentArguments
from alignment.oracles import PanelOracle
from alignment.textgame import TextGame
from alignment.trainer import PreferenceTrainer

TAU = 0.02


def train(text: TextGame, oracle: PanelOracle, folder: str, *, steps: int, mode: str) -> Tensor:
    """The groups' mean utilities [K], P(y > ref), under the trained policy."""
    trainer = PreferenceTrainer(
        model=text.policy(),
        ref_model=text.ref,
        args=AlignmentArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=30,
            num_completions=4,
            opponent_completions=2,
            max_new_tokens=20,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=text.rows(),
        processing_class=text.tokenizer,
        oracle=oracle,
        method={"name": "maxmin", "base": {"name": "spo", "kappa_ref": TAU}, "mode": mode, "step": 0.3},
    )
    trainer.train()
    return text.panel_game(tau=TAU).group_values(text.policy_XA(trainer.model).policy_XA)


@pytest.fixture(scope="module")
def text() -> TextGame:
    return TextGame.build()


def progress(text: TextGame, value: float) -> float:
    """The part of the way from the reference to the exact optimum that a worst group has gone."""
    panel = text.panel_game(tau=TAU)
    start, best = (float(panel.group_values(pi_XA).min()) for pi_XA in (text.ref_XA, panel.maxmin().policy_XA))
    return (value - start) / (best - start)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_worst_group_comes_near_the_exact_value(text: TextGame, tmp_path: object) -> None:
    """The worst group's mean over all questions goes at least 85 % of the way to the convex dual's optimum."""
    found_K = train(text, text.panel(), str(tmp_path), steps=600, mode="mirror")
    assert progress(text, float(found_K.min())) >= 0.85


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_crowd_leaves_the_minority_behind(text: TextGame, tmp_path: object) -> None:
    """The mean of the same groups by their share, as one oracle: the minority goes less than half of the way."""
    crowd_K = train(text, PanelOracle({"crowd": text.oracle()}), str(tmp_path), steps=300, mode="mirror")
    assert torch.argmin(crowd_K) == 1
    assert progress(text, float(crowd_K[1])) <= 0.5
