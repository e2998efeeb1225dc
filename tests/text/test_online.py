"""Methods that sample: they move towards what wins, each gets every anchor that it declares, evaluation only looks."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.arguments import AlignmentArguments
from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.methods import build_method
from alignment.oracles import MatrixOracle
from alignment.trainer import PreferenceTrainer
from alignment.types import LossInputs, LossOutput
from tests.text.symbols import SYMBOLS, question_rows, symbol_model, symbol_policy, symbol_tokenizer

METHODS: Mapping[str, dict[str, Any]] = {
    "egpo": {"tau": 0.1},
    "omd": {"tau": 0.1},
    "online_ipo": {"tau": 0.1},
    "online_dpo": {"beta": 0.1},
    "spo": {"kappa_ref": 0.05},
    "nash_mp": {"tau": 0.1, "eta": 0.5},
    "nash_prox": {"tau": 0.1, "eta": 0.5},
}


def transitive_game() -> PreferenceGame:
    """Red beats green beats blue, nine times of ten: whoever learns says red more often and blue less."""
    prefs_XAA = torch.tensor([[[0.5, 0.9, 0.9], [0.1, 0.5, 0.9], [0.1, 0.1, 0.5]]], dtype=torch.float64)
    uniform_XA = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    return PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=uniform_XA, tau=0.1)


def trainer_of(name: str, folder: object, *, method: Any = None, **changes: Any) -> PreferenceTrainer:
    """Of the method as it stands above, or of a given one."""
    model = symbol_model(logits_A=torch.zeros(3))
    model.requires_grad_(True)
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 64,
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "num_completions": 4,
        "temperature": 1.0,
        "max_new_tokens": 1,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=model,
        args=AlignmentArguments(**settings | changes),
        train_dataset=question_rows(64),
        eval_dataset=question_rows(8),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(transitive_game().prefs_XAA, responses=SYMBOLS),
        method={"name": name, **METHODS[name]} if method is None else method,
    )


@pytest.mark.parametrize("name", METHODS)
def test_one_answer_teaches_a_policy_or_is_refused(name: str, tmp_path: object) -> None:
    """Pairs and wins inside a group need two; against an opponent's answer one is enough."""
    if name not in ("nash_mp", "nash_prox"):
        with pytest.raises(UserError, match="num_completions: expected at least 2 answers to compare, got 1"):
            trainer_of(name, tmp_path, num_completions=1)
        with pytest.raises(UserError, match="responses: expected at least 2 answers to compare, got 1"):
            trainer_of(name, tmp_path, engine="enumerate", responses=list(SYMBOLS[:1]))
        return
    trainer = trainer_of(name, tmp_path, num_completions=1)
    trainer.train()
    assert trainer.count_oracle_calls() == 2 * 64
    assert exact_win_rate(symbol_policy(trainer.model)) > 0.51


def exact_win_rate(policy_XA: Tensor) -> float:
    """Against the uniform policy, where training starts; without the KL terms of the game's value."""
    game = transitive_game()
    return float(torch.einsum("xa,xab,xb->", policy_XA, game.prefs_XAA, game.ref_XA))


@pytest.mark.parametrize("engine", ["transformers", "enumerate"])
@pytest.mark.parametrize("name", METHODS)
def test_two_iterations_raise_the_win_rate(name: str, engine: str, tmp_path: object) -> None:
    """From 1/2, in samples of 64 prompts and four answers each, and exactly where responses are enumerated.

    A step the wrong way lowers it: sign errors do not pass.
    """
    enumerates = {"engine": "enumerate", "responses": list(SYMBOLS)} if engine == "enumerate" else {}
    trainer = trainer_of(name, tmp_path, **enumerates)
    assert exact_win_rate(symbol_policy(trainer.model)) == pytest.approx(0.5, abs=1e-6)
    trainer.train()
    policy_XA = symbol_policy(trainer.model)
    assert exact_win_rate(policy_XA) > 0.52
    assert policy_XA[0, 0] > 0.35 and policy_XA[0, 2] < 0.32


class Recorded:
    """A method that remembers what its loss was given."""

    def __init__(self, method: Any) -> None:
        self.method, self.seen = method, []
        self.needs = method.needs

    def loss(self, x: LossInputs) -> LossOutput:
        if x.logps_BG.requires_grad:
            self.seen.append(x)
        return self.method.loss(x)


@pytest.mark.parametrize(
    ("name", "options"),
    [*METHODS.items(), ("spo", {"clip": 0.2, "kappa_ref": 0.1})],
    ids=[*METHODS, "spo clipped"],
)
def test_every_declared_anchor_arrives(name: str, options: dict[str, Any], tmp_path: object) -> None:
    """The loss sees the columns that its card declares and no other, without gradient, and they are what they say.

    Behaviour is the policy at the time of the gradient; ref and target start as copies of it and stay behind.
    """
    method = Recorded(build_method({"name": name, **options}))
    trainer = trainer_of(name, tmp_path, method=method)
    trainer.train()
    seen = method.seen
    assert len(seen) == 2 * trainer.needs.stages
    for x in seen:
        assert x.anchors.keys() == set(trainer.needs.anchor_columns())
        for values_BG in x.anchors.values():
            assert values_BG.shape == x.logps_BG.shape and not values_BG.requires_grad and values_BG.isfinite().all()
        if "behaviour" in x.anchors:
            torch.testing.assert_close(x.anchors["behaviour"], x.logps_BG.detach(), rtol=0, atol=1e-5)
    if "ref" in seen[0].anchors:
        torch.testing.assert_close(seen[0].anchors["ref"], seen[0].logps_BG.detach(), rtol=0, atol=1e-5)
        assert float((seen[-1].anchors["ref"] - seen[-1].logps_BG.detach()).abs().max()) > 1e-3


def test_the_target_follows_every_inner_steps(tmp_path: object) -> None:
    """decay 0: the target is a copy of the policy after the last advance, so it lags by at most inner_steps - 1."""
    method = {"name": "nash_mp", "tau": 0.1, "eta": 0.5, "inner_steps": 2}
    trainer = trainer_of("nash_mp", tmp_path, method=method, max_steps=3)
    policies, targets = [], []

    class Watched(PreferenceTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Tensor:
            policies.append(symbol_policy(self.model))
            with self.anchors.model("target") as target:
                targets.append(symbol_policy(target))
            return super().compute_loss(*arguments, **options)

    trainer.__class__ = Watched
    trainer.train()
    assert torch.equal(targets[0], policies[0]) and torch.equal(targets[1], policies[0])
    assert not torch.equal(policies[1], policies[0])
    assert torch.equal(targets[2], policies[2])


def test_evaluation_only_looks(tmp_path: object) -> None:
    """A run that evaluates after every iteration ends where one that never does, to the bit; the metrics are there."""
    plain = trainer_of("egpo", tmp_path, max_steps=3)
    plain.train()
    watched = trainer_of("egpo", tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1)
    watched.train()
    for mine, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    logged = [line for line in watched.state.log_history if "eval_loss" in line]
    assert [line["iteration"] for line in logged] == [1, 2, 3]
    assert all(0 <= line["eval_win_rate_vs_ref"] <= 1 for line in logged)
    before = copy.deepcopy(watched.model.state_dict())
    again = watched.evaluate()
    assert again == pytest.approx(watched.evaluate())
    assert all(torch.equal(value, before[name]) for name, value in watched.model.state_dict().items())


def test_enumerated_win_rates_are_exact(tmp_path: object) -> None:
    """Against the reference at temperature 1: one half at the start, what the game says at the end."""
    trainer = trainer_of("egpo", tmp_path, engine="enumerate", responses=list(SYMBOLS))
    assert trainer.evaluate()["eval_win_rate_vs_ref"] == pytest.approx(0.5, abs=1e-6)
    trainer.train()
    expected = exact_win_rate(symbol_policy(trainer.model))
    assert trainer.evaluate()["eval_win_rate_vs_ref"] == pytest.approx(expected, abs=1e-6)
