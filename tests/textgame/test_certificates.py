"""Certificates of the text game's language model: attacked through its text by adversaries that sample and train."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from alignment import loop
from alignment.config import load_recipe
from alignment.config.evaluation import EvaluationRecipe, load_evaluation_recipe
from alignment.data import Row, encode_rows, prompt_text, stop_token_ids
from alignment.errors import UserError
from alignment.evaluate import evaluate
from alignment.evaluation.certificates import Certificate, adversary_wins, certify
from alignment.oracles import SettledOracle, VerdictOracle
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts
from alignment.seeds import seeds_of
from alignment.textgame import TextGame, shared_game
from alignment.trained import TrainedModel, find_model, run_data
from tests.evaluation.test_certificates import drawn_wins

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text() -> TextGame:
    return shared_game()


@pytest.fixture(scope="module")
def adversary(text: TextGame, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A policy that learned to beat the frozen model: its wins against fresh answers of the model, on 20 questions."""
    folder = tmp_path_factory.mktemp("adversary")
    overrides = (f"output_dir={folder}", "training.disable_tqdm=true")
    loop.run(load_recipe(ROOT / "recipes/maxmin/textgame_adversary.yaml", overrides).recipe)
    return find_model(str(folder))


def sampled(text: TextGame, model: nn.Module, rows: Sequence[Row], num: int, *, seed: int) -> list[tuple[str, ...]]:
    """Answers of a model to each question."""
    encoded = encode_rows(rows, text.tokenizer, max_prompt_length=32, max_completion_length=1).rows
    stops = stop_token_ids(text.tokenizer)
    policy = CausalLMPolicy(model, text.tokenizer, stop_token_ids=stops, temperature=1.0, max_new_tokens=20)
    answers = answer_prompts(policy, encoded, num_completions=num, batch_size=10, seeds=seeds_of(len(encoded), seed))
    return [item.row.responses for item in answers]


def attacked(text: TextGame, candidates: list[tuple[str, ...]], rows: Sequence[Row], *, seed: int) -> np.ndarray:
    """Verdicts of single annotators of the crowd against 16 answers of the frozen model, [P, N, 16]."""
    answers = sampled(text, text.ref, rows, 16, seed=seed)
    oracle = VerdictOracle(text.oracle(), seed=seed)
    return adversary_wins(SettledOracle(oracle), [prompt_text(row) for row in rows], candidates, answers)


def exact(text: TextGame, rows: Sequence[Row]) -> float:
    """Exploitability of the frozen model, mean over questions."""
    gap_X = text.game(tau=0.0).duality_gap(text.ref_XA)
    places = [text.world.questions.index(prompt_text(row)) for row in rows]
    return float(gap_X[places].mean()) / 2.0


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
    truth = exact(text, rows)
    print(f"best of 16: exact {truth:.4f}, bounds {min(bounds):.4f} to {max(bounds):.4f}, mean {np.mean(bounds):.4f}")
    assert max(bounds) < truth
    assert np.mean(bounds) > 0.1 * truth


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trained_adversary(text: TextGame, adversary: TrainedModel) -> None:
    """Its mean over sampled answers, nothing chosen: on the questions it learned on, and on those it has not seen."""
    model, data = adversary.load(), run_data(adversary)

    def certificate(rows: Sequence[Row], seed: int) -> Certificate:
        candidates = sampled(text, model, rows, 16, seed=200 + seed)
        wins_PNM = attacked(text, candidates, rows, seed=seed)
        return certify(wins_PNM.reshape(len(wins_PNM), 1, -1))

    for name, rows in (("learned on", data.train), ("held out", data.evaluation)):
        found = [certificate(rows, seed) for seed in range(4)]
        truth = exact(text, rows)
        bounds = [one.bound for one in found]
        print(f"{name}: exact {truth:.4f}, bounds {min(bounds):.4f} to {max(bounds):.4f}; {found[0].sentence}")
        assert max(bounds) < truth
        if name == "learned on":
            assert np.mean(bounds) > 0.5 * truth


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_attacks_on_questions_that_the_adversary_has_not_seen(
    text: TextGame, adversary: TrainedModel, tmp_path: Path
) -> None:
    """Both bounds of the shipped recipe are above 0 and below the truth; the questions it learned on are refused."""
    path = ROOT / "recipes/evaluation/exploitability.yaml"
    overrides = (f"policies.adversary.run={adversary.run}", f"prompts.held_out={adversary.run}")
    folder = f"output_dir={tmp_path / 'out'}"
    recipe = load_evaluation_recipe(path, (*overrides, folder)).recipe
    assert isinstance(recipe, EvaluationRecipe)
    found = evaluate(recipe, announce=lambda line: None, progress=lambda *_: None)
    truth = exact(text, run_data(adversary).evaluation)
    print(*(one.sentence for one in found.certificates), sep="\n")
    assert all(0.0 < one.certificate.bound < truth for one in found.certificates)
    assert [one.training_verdicts for one in found.certificates] == [None, 204_800] and not found.notes
    seen = ("prompts.held_out=null", "prompts.path=textgame://prompts", "output_dir=" + str(tmp_path / "seen"))
    recipe = load_evaluation_recipe(path, (*overrides[:1], *seen)).recipe
    assert isinstance(recipe, EvaluationRecipe)
    with pytest.raises(UserError, match="was not trained on, found 20 of its rows"):
        evaluate(recipe, announce=lambda line: None, progress=lambda *_: None)


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
