"""The keystone: a language model that emits one of three symbols is a tabular policy, and the text stack plays it so.

The game is 0/1 rock-paper-scissors at tau 0.05 with the reference of invariant 6; mirror descent is locally stable
below a = 0.0585 there, extragradient below 0.1935 (docs/methods/egpo.md). At a = 0.1 the two must part.
"""

import pytest
import torch
from torch import Tensor

from alignment.arguments import AlignmentArguments
from alignment.games.updates import extragradient_threshold, omd_threshold
from alignment.methods import build_method
from alignment.oracles import MatrixOracle
from alignment.tabular import run_tabular
from alignment.trainer import PreferenceTrainer
from alignment.trainers import EGPOTrainer
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_policy, symbol_tokenizer

TAU, STEP = 0.05, 0.1
LR = STEP * len(SYMBOLS) / 4  # a = 4 lr / n
START = torch.tensor([1.0, 0.0, -1.0])


def train_head(name: str, iterations: int, folder: str) -> Tensor:
    """Train the output head over its fixed unit-norm state, responses enumerated; the policy [1, A] it ends with."""
    game = cyclic_game(tau=TAU)
    model = symbol_model(logits_A=START)
    args = AlignmentArguments(
        output_dir=folder,
        max_steps=iterations,
        per_device_train_batch_size=1,
        learning_rate=LR,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        engine="enumerate",
        responses=list(SYMBOLS),
        temperature=float("inf"),
        max_new_tokens=1,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    common = {
        "model": model,
        "ref_model": symbol_model(logits_A=game.ref_XA[0].log()),
        "args": args,
        "train_dataset": question_rows(1),
        "processing_class": symbol_tokenizer(),
        "oracle": MatrixOracle(game.prefs_XAA, responses=SYMBOLS),
    }
    if name == "egpo":
        EGPOTrainer(**common, method_options={"tau": TAU}).train()
    else:
        PreferenceTrainer(**common, method={"name": name, "tau": TAU}).train()
    return symbol_policy(model)


def test_the_step_lies_between_the_thresholds() -> None:
    """Invariant 45: mirror descent is unstable at this step, extragradient stable."""
    game = cyclic_game(tau=TAU)
    policy_XA = game.solve(1e-12).policy_XA
    assert float(omd_threshold(game, policy_XA)) == pytest.approx(0.0585, abs=1e-4)
    assert float(extragradient_threshold(game, policy_XA)) == pytest.approx(0.1935, abs=1e-4)
    assert omd_threshold(game, policy_XA) < STEP < extragradient_threshold(game, policy_XA)


@pytest.mark.parametrize("name", ["egpo", "omd"])
def test_the_language_model_walks_with_the_matrix(name: str, tmp_path: object) -> None:
    """Invariant 110: eight iterations through tokenizer, model, oracle and Trainer equal the tabular run (float32)."""
    run = run_tabular(
        build_method({"name": name, "tau": TAU}),
        cyclic_game(tau=TAU),
        lr=LR,
        iterations=8,
        init_XA=START.double().softmax(-1)[None],
    )
    torch.testing.assert_close(train_head(name, 8, str(tmp_path)), run.policy_XA, rtol=0, atol=2e-6)


def test_extragradient_finds_the_equilibrium_where_mirror_descent_cycles(tmp_path: object) -> None:
    """EGPO within 1e-3 of the exact equilibrium's gap of 0, OMD above 1e-2, from the same start with the same step."""
    game = cyclic_game(tau=TAU)
    egpo_XA = train_head("egpo", 150, str(tmp_path))
    assert float(game.duality_gap(egpo_XA)) <= 1e-6
    torch.testing.assert_close(egpo_XA, game.solve(1e-12).policy_XA, rtol=0, atol=1e-3)
    assert float(game.duality_gap(train_head("omd", 150, str(tmp_path)))) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_weights_from_samples(seed: int, tmp_path: object) -> None:
    """All weights, AdamW, sampled responses: at most a fifth of the starting gap. No separation is claimed here.

    With one opponent sample a pair the targets are off by up to 1/tau = 10 nats, so the rate decides: six seeds left at
    most 7 % of the gap at these settings, 29 % at twice the rate and 250 iterations.
    """
    model = symbol_model(seed=seed)
    with torch.no_grad():  # a start far from uniform, so that the game is worth playing
        state_H = model.model(torch.tensor([[3]])).last_hidden_state[0, -1]
        head_AH = model.lm_head.weight[-len(SYMBOLS) :]
        wanted_A = torch.tensor([1.5, 0.0, -1.0])
        head_AH += (wanted_A - head_AH @ state_H)[:, None] * state_H / state_H.square().sum()
    ref_XA = symbol_policy(model)
    game = cyclic_game(tau=0.1).with_ref(ref_XA)
    start = float(game.duality_gap(ref_XA))
    args = AlignmentArguments(
        output_dir=str(tmp_path),
        max_steps=400,
        per_device_train_batch_size=64,
        learning_rate=5e-4,
        temperature=2.0,
        max_new_tokens=1,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    EGPOTrainer(
        model=model,
        args=args,
        train_dataset=question_rows(64),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(game.prefs_XAA, responses=SYMBOLS),
        method_options={"tau": 0.1},
    ).train()
    assert start > 0.1
    assert float(game.duality_gap(symbol_policy(model))) <= 0.2 * start
