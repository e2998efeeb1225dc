"""MaxMin on language models: the panel's path is the matrix's, its state is kept, and wrong oracles are refused."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.arguments import AlignmentArguments
from alignment.checkpoints import STATE_FILE
from alignment.errors import UserError
from alignment.games import PanelGame
from alignment.groups import GroupWelfare
from alignment.methods import build_method
from alignment.oracles import CalibratedOracle, MatrixOracle, PanelOracle, build_oracle
from alignment.stages import Annotated
from alignment.tabular import run_tabular
from alignment.trainer import PreferenceTrainer
from alignment.types import Feedback, LossInputs, LossOutput, Method, Needs
from alignment.welfare import MirrorWeights
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_policy, symbol_tokenizer
from tests.text.test_mixture import sharp
from tests.text.test_stages import empty_completions

START = torch.tensor([1.0, 0.0, -1.0])
# Two people with contrary tastes, the second the more decided, and a cyclic third.
PREFS_KXAA = torch.tensor(
    [
        [[[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]]],
        [[[0.5, 0.0, 0.1], [1.0, 0.5, 0.2], [0.9, 0.8, 0.5]]],
        [[[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]],
    ],
    dtype=torch.float64,
)
BASE = {"name": "spo", "kappa_ref": 0.1}


def panel(num_oracles: int = 3) -> PanelOracle:
    names = ("ann", "bob", "cai")[:num_oracles]
    return PanelOracle({name: MatrixOracle(PREFS_KXAA[k], responses=SYMBOLS) for k, name in enumerate(names)})


def trainer(method: dict[str, Any], folder: Path, oracle: Any, **changes: Any) -> PreferenceTrainer:
    args = AlignmentArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.3,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "engine": "enumerate",
            "responses": list(SYMBOLS),
            "max_new_tokens": 1,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            **changes,
        }
    )
    return PreferenceTrainer(
        model=sharp(START),
        ref_model=sharp(cyclic_game(tau=0.1).ref_XA[0].log()),
        args=args,
        train_dataset=question_rows(16),
        eval_dataset=question_rows(2),
        processing_class=symbol_tokenizer(),
        oracle=oracle,
        method=method,
    )


def policy_of(trained: PreferenceTrainer) -> Tensor:
    return symbol_policy(trained.model)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mode", ["group_argmin", "sample_min", "mirror"])
def test_the_language_model_walks_with_the_matrix(mode: str, accumulation: int, tmp_path: Path) -> None:
    """Eight steps with all responses enumerated equal the tabular run; accumulation moves the state once a step."""
    method = {"name": "maxmin", "base": BASE, "mode": mode, "step": 0.5}
    run = run_tabular(
        build_method(method),
        PanelGame(prefs_KXAA=PREFS_KXAA, ref_XA=cyclic_game(tau=0.1).ref_XA, tau=0.1),
        lr=0.3,
        iterations=8,
        init_XA=START.double().softmax(-1)[None],
    )
    changes = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2 // accumulation}
    trained = trainer(method, tmp_path, panel(), **changes)
    trained.train()
    torch.testing.assert_close(policy_of(trained), run.policy_XA, rtol=0, atol=3e-6)
    assert (run.policy_XA - START.double().softmax(-1)).abs().max() > 1e-2


@dataclass(frozen=True)
class AgainstRef:
    """A base method whose opponent is the reference, as it is inside MaxMin."""

    base: Method

    @property
    def needs(self) -> Needs:
        return replace(self.base.needs, opponent="ref")

    def loss(self, x: LossInputs) -> LossOutput:
        return self.base.loss(x)


def weights_after(method: Any, oracle: Any, folder: Path) -> dict[str, Tensor]:
    """Weights after two steps on sampled responses."""
    changes = {"engine": "transformers", "responses": None, "num_completions": 4, "opponent_completions": 2}
    trained = trainer(method, folder, oracle, max_steps=2, **changes)
    trained.train()
    return trained.model.state_dict()


@pytest.mark.parametrize("mode", ["group_argmin", "sample_min", "mirror"])
@pytest.mark.parametrize("base", [BASE, {"name": "omd", "tau": 0.1}], ids=["policy gradient", "regression"])
def test_one_member_is_the_base_against_the_reference(base: dict[str, Any], mode: str, tmp_path: Path) -> None:
    """Invariant 100, K = 1: from the same seed both end with the same weights, bit for bit."""
    expected = weights_after(AgainstRef(build_method(base)), panel().members[0], tmp_path)
    found = weights_after({"name": "maxmin", "base": base, "mode": mode}, panel(1), tmp_path)
    assert all(weight.equal(found[name]) for name, weight in expected.items())
    start = sharp(START).state_dict()
    assert any(not weight.equal(start[name]) for name, weight in expected.items())


def test_every_member_is_reported(tmp_path: Path) -> None:
    """Before training the state is not moved; the rates are exact: sum pi_a P_k(a, b) ref_b."""
    trained = trainer({"name": "maxmin", "base": BASE}, tmp_path, panel())
    metrics = trained.evaluate()
    assert trained.groups is not None and trained.groups.state.isnan().all()
    pi_A, ref_A = START.double().softmax(-1), cyclic_game(tau=0.1).ref_XA[0]
    rates = [float(pi_A @ PREFS_KXAA[k, 0] @ ref_A) for k in range(3)]
    found = [metrics[f"eval_win_rate_vs_ref_{name}"] for name in ("ann", "bob", "cai")]
    assert found == pytest.approx(rates, abs=1e-5)
    assert metrics["eval_win_rate_vs_ref_worst"] == pytest.approx(min(rates), abs=1e-5)
    assert metrics["eval_win_rate_vs_ref"] == pytest.approx(sum(rates) / 3, abs=1e-5)


def test_the_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    method = {"name": "maxmin", "base": BASE, "mode": "mirror", "step": 0.5}
    whole = trainer(method, tmp_path / "whole", panel())
    whole.train()
    first = trainer(method, tmp_path / "half", panel(), max_steps=4, save_strategy="steps", save_steps=4)
    first.train()
    saved = torch.load(tmp_path / "half" / "checkpoint-4" / STATE_FILE)
    assert first.groups is not None and saved["groups"].equal(first.groups.state)
    second = trainer(method, tmp_path / "half", panel())
    second.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert second.groups is not None and whole.groups is not None
    torch.testing.assert_close(second.groups.state, whole.groups.state, rtol=0, atol=1e-12)
    torch.testing.assert_close(policy_of(second), policy_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_prompt_counts_by_its_weight(num_batches: int) -> None:
    """Mean wins .2 and 1 of the first oracle, weights 3 and 1, in one batch or in two, and another process with 0 and
    the weight 4: (.6 + 1) / 8 = .2; the second oracle has .6 here and .4 there. An evaluation leaves the state."""
    wins_KBG = torch.tensor([[[0.1, 0.3], [1.0, 1.0]], [[0.6, 0.6], [0.5, 0.7]]])
    weight_B, completions = torch.tensor([3.0, 1.0]), empty_completions(2 // num_batches, 2)
    batches = [
        Annotated(
            completions=completions,
            feedback=Feedback(wins_KBG=wins_KBG[:, rows]),
            weights_BG=None,
            anchors={},
            token_anchors={},
            row_weight_B=weight_B[rows],
        )
        for rows in ([slice(2)] if num_batches == 1 else [slice(0, 1), slice(1, 2)])
    ]
    groups = GroupWelfare(Needs(feedback="wins", num_oracles="many", welfare=MirrorWeights(step=1.0)), 2)
    start, elsewhere_K1 = groups.state, torch.tensor([0.0, 1.6, 4.0])
    groups.combine(batches, lambda sums_K1: sums_K1 + elsewhere_K1, moves=False)
    assert groups.state is start
    groups.combine(batches, lambda sums_K1: sums_K1 + elsewhere_K1, moves=True)
    torch.testing.assert_close(groups.state, torch.tensor([-0.2, -0.5], dtype=torch.float64).softmax(0))


def test_wrong_oracles_are_refused(tmp_path: Path) -> None:
    one = MatrixOracle(PREFS_KXAA[0], responses=SYMBOLS)
    with pytest.raises(UserError, match=r"expected a panel \(oracle\.kind: panel\), got one oracle"):
        trainer({"name": "maxmin", "base": BASE}, tmp_path, one)
    with pytest.raises(UserError, match="expected no panel; kind: mixture is the mean of its members"):
        trainer(BASE, tmp_path, panel())
    rule = {"kind": "rule", "rule": "shorter"}
    built = build_oracle({"kind": "panel", "members": {"brief": rule, "noisy": {**rule, "flip": 0.2}}})
    assert isinstance(built, PanelOracle) and built.names == ("brief", "noisy")
    with pytest.raises(UserError, match="in the members of a panel"):
        build_oracle({"kind": "panel", "members": {"a": rule}, "flip": 0.1})


@pytest.mark.parametrize("reference", [True, False], ids=["given", "the start"])
def test_an_opponent_that_no_loss_reads(reference: bool, tmp_path: Path) -> None:
    """A base without a reference in its loss still plays against one: the given model, or a copy of the start."""
    maxmin = trainer({"name": "maxmin", "base": {"name": "spo"}}, tmp_path, panel())
    ref_policy_XA = symbol_policy(maxmin.anchors._copies["ref"])
    if not reference:
        args = maxmin.args
        maxmin = PreferenceTrainer(
            model=sharp(START),
            args=args,
            train_dataset=question_rows(2),
            processing_class=symbol_tokenizer(),
            oracle=panel(),
            method={"name": "maxmin", "base": {"name": "spo"}},
        )
        ref_policy_XA = symbol_policy(sharp(START))
    assert maxmin.anchors.names == ()
    maxmin.train()
    with maxmin.anchors.model("ref") as module:
        torch.testing.assert_close(symbol_policy(module), ref_policy_XA)
    assert not torch.equal(symbol_policy(maxmin.model), symbol_policy(sharp(START)))


class Reward:
    """A Bradley-Terry oracle with a reward for each symbol."""

    def __init__(self, *rewards: float) -> None:
        self.rewards = dict(zip(SYMBOLS, rewards, strict=True))

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        differences = [self.rewards[a] - self.rewards[b] for a, b in zip(left, right, strict=True)]
        return torch.tensor(differences, dtype=torch.float64).sigmoid()


def test_rewards_are_calibrated_to_one_another(tmp_path: Path) -> None:
    """Invariant 104: another unit and another zero of one reward change nothing; taken raw they change the weights."""
    method = {"name": "maxmin", "base": {"name": "spo", "kappa_ref": 0.1}, "mode": "mirror", "step": 1.0}
    states, raw = [], []
    for unit, zero in ((1.0, 0.0), (5.0, 3.0)):
        rewards = {"ann": Reward(1.0, 0.2, 0.0), "bob": Reward(*(unit * r + zero for r in (0.0, 0.1, 1.0)))}
        calibrated = PanelOracle({name: CalibratedOracle(reward) for name, reward in rewards.items()})
        changes: dict[str, Any] = {"engine": "transformers", "responses": None, "num_completions": 4}
        for panel_of, found in ((calibrated, states), (PanelOracle(rewards), raw)):
            maxmin = trainer(method, tmp_path, panel_of, **changes)
            maxmin.train()
            assert maxmin.groups is not None
            found.append(maxmin.groups.state)
        assert calibrated.uncalibrated == ()
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-10)
    assert float((raw[0] - raw[1]).abs().max()) > 1e-2


def test_the_unit_is_the_spread_of_the_references_answers() -> None:
    """Rewards 2 and 0 of two answers: differences of 2 and 0, mean square 2, a standard deviation of 1."""
    oracle = CalibratedOracle(Reward(2.0, 0.0, 7.0))
    with pytest.raises(UserError, match="call calibrate first"):
        oracle.prefer(["?"], [SYMBOLS[0]], [SYMBOLS[1]])
    first, second, third = SYMBOLS
    oracle.calibrate(["?", "?"], [first, second], [second, second])
    assert oracle.sd == pytest.approx(1.0)
    assert oracle.prefer(["?"], [third], [first]).item() == pytest.approx(torch.tensor(5.0).sigmoid().item())
    with pytest.raises(UserError, match="found the same for both answers to each of 1 prompts"):
        CalibratedOracle(Reward(2.0, 0.0, 7.0)).calibrate(["?"], [first], [first])
