"""Certificates of the text game's language model: attacked through its text by adversaries that sample and train."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PrinterCallback

from alignment.arguments import AlignmentArguments
from alignment.data import Row, encode_rows, prompt_text, stop_token_ids
from alignment.evaluation.certificates import Certificate, adversary_wins, certify
from alignment.oracles import PanelOracle, SettledOracle, VerdictOracle
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts
from alignment.textgame import TextGame, shared_game
from alignment.trainer import PreferenceTrainer
from tests.evaluation.test_certificates import drawn_wins

TRAINED_ON = 20


@pytest.fixture(scope="module")
def text() -> TextGame:
    return shared_game()


@pytest.fixture(scope="module")
def adversary(text: TextGame, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A policy that learned to beat the frozen model: its wins against fresh answers of the model, on 20 questions."""
    trainer = PreferenceTrainer(
        model=text.policy(),
        ref_model=text.ref,
        args=AlignmentArguments(
            output_dir=str(tmp_path_factory.mktemp("adversary")),
            max_steps=80,
            per_device_train_batch_size=TRAINED_ON,
            num_completions=8,
            opponent_completions=16,
            max_new_tokens=20,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=text.rows()[:TRAINED_ON],
        processing_class=text.tokenizer,
        # One group: its own wins against the reference, and no welfare to speak of.
        oracle=PanelOracle({"crowd": SettledOracle(text.oracle())}),
        method={"name": "maxmin", "base": {"name": "omd", "tau": 0.02}, "mode": "mirror", "step": 0.2},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model: nn.Module = trainer.model
    return model.eval()


def sampled(text: TextGame, model: nn.Module, rows: Sequence[Row], num: int, *, seed: int) -> list[tuple[str, ...]]:
    """Answers of a model to each question."""
    encoded = encode_rows(rows, text.tokenizer, max_prompt_length=32, max_completion_length=1).rows
    stops = stop_token_ids(text.tokenizer)
    policy = CausalLMPolicy(model, text.tokenizer, stop_token_ids=stops, temperature=1.0, max_new_tokens=20)
    return [
        item.row.responses for item in answer_prompts(policy, encoded, num_completions=num, batch_size=10, seed=seed)
    ]


def attacked(text: TextGame, candidates: list[tuple[str, ...]], rows: Sequence[Row], *, seed: int) -> np.ndarray:
    """Verdicts of single annotators of the crowd against 16 answers of the frozen model, [P, N, 16]."""
    answers = sampled(text, text.ref, rows, 16, seed=seed)
    oracle = VerdictOracle(text.oracle(), seed=seed)
    return adversary_wins(SettledOracle(oracle), [prompt_text(row) for row in rows], candidates, answers)


def exact(text: TextGame, rows: slice) -> float:
    """Exploitability of the frozen model, mean over questions."""
    gap_X: torch.Tensor = text.game(tau=0.0).duality_gap(text.ref_XA)[rows]
    return float(gap_X.mean()) / 2.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_of_n_texts(text: TextGame) -> None:
    """Six certificates by the best of 16 sampled answers: bounds above 0, and none above the truth.

    An answer that is drawn again is the same text as the policy's and ties, as it should.
    """
    rows = text.rows()
    bounds = [
        certify(attacked(text, sampled(text, text.ref, rows, 16, seed=100 + n), rows, seed=n)).bound for n in range(6)
    ]
    truth = exact(text, slice(None))
    print(f"best of 16: exact {truth:.4f}, bounds {min(bounds):.4f} to {max(bounds):.4f}, mean {np.mean(bounds):.4f}")
    assert max(bounds) < truth
    assert np.mean(bounds) > 0.1 * truth


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trained_adversary(text: TextGame, adversary: nn.Module) -> None:
    """Its mean over sampled answers, nothing chosen: on the questions it learned on, and on those it has not seen."""
    rows = text.rows()

    def certificate(part: slice, seed: int) -> Certificate:
        candidates = sampled(text, adversary, rows[part], 16, seed=200 + seed)
        wins_PNM = attacked(text, candidates, rows[part], seed=seed)
        return certify(wins_PNM.reshape(len(wins_PNM), 1, -1))

    for name, part in (("learned on", slice(0, TRAINED_ON)), ("held out", slice(TRAINED_ON, None))):
        found = [certificate(part, seed) for seed in range(4)]
        truth = exact(text, part)
        bounds = [one.bound for one in found]
        print(f"{name}: exact {truth:.4f}, bounds {min(bounds):.4f} to {max(bounds):.4f}; {found[0].sentence}")
        assert max(bounds) < truth
        if name == "learned on":
            assert np.mean(bounds) > 0.5 * truth


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_text_game_certificates_are_honest(text: TextGame) -> None:
    """Three policies of the text game (the supervised model, a blend with the equilibrium, the equilibrium itself),
    attacked by the best of 32 answers of the model: 200 certificates each, of 30 questions, 32 answers of the policy.

    The error rate is that of the bound above the exact exploitability of the frozen policy.
    """
    game = text.game(tau=0.0)
    nash_XA = game.solve(1e-9).policy_XA
    prefs_XAA, ref_XA = game.prefs_XAA.numpy(), text.ref_XA.numpy()
    rng, num = np.random.default_rng(0), 200
    for name, share in (("supervised", 0.0), ("blend", 0.5), ("equilibrium", 1.0)):
        policy_XA = (1.0 - share) * text.ref_XA + share * nash_XA
        truth = float(game.duality_gap(policy_XA).mean()) / 2.0
        frozen_XA = policy_XA.numpy() / policy_XA.numpy().sum(1, keepdims=True)
        bounds = []
        for _ in range(num):
            candidates_XN = np.stack([rng.choice(len(ref_A), 32, p=ref_A / ref_A.sum()) for ref_A in ref_XA])
            bounds.append(certify(drawn_wins(rng, prefs_XAA, frozen_XA, candidates_XN, num_answers=32)).bound)
        above = float(np.mean([bound > truth + 1e-9 for bound in bounds]))
        print(f"{name}: exact {truth:.4f}, mean bound {np.mean(bounds):.4f}, above the exact one {above:.4f}")
        assert above <= 0.05
        if name == "supervised":
            assert np.mean(bounds) > 0.25 * truth
