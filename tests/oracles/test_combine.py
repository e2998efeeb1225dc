"""Crowds, noise, ties and verdicts: their definitions, and that they stay preferences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment.errors import UserError
from alignment.oracles import (
    MixtureOracle,
    NoisyOracle,
    RuleOracle,
    TiedOracle,
    VerdictOracle,
    ask,
    build_oracle,
    preference_matrix,
)

ORDERS = ["abc", "bca", "cab"]


def ranked(order: str) -> RuleOracle:
    """Somebody who prefers what comes first in the order, for certain."""
    return RuleOracle(
        lambda prompt, left, right: 0.5 if left == right else float(order.index(left) < order.index(right))
    )


class Fixed:
    def __init__(self, answer: float) -> None:
        self.answer = answer

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        return torch.full((len(prompts),), self.answer, dtype=torch.float64)


def test_three_transitive_people_make_a_cycle() -> None:
    """Condorcet: each pair is won with 2/3, in a circle."""
    crowd = MixtureOracle([ranked(order) for order in ORDERS])
    prefs_AA = preference_matrix(crowd, ["x"], [["a", "b", "c"]])[0]
    third = 1.0 / 3.0
    expected = torch.tensor([[0.5, 2 * third, third], [third, 0.5, 2 * third], [2 * third, third, 0.5]])
    torch.testing.assert_close(prefs_AA, expected.double())


def test_weights_are_shares() -> None:
    crowd = MixtureOracle([Fixed(1.0), Fixed(0.0)], [3.0, 1.0])
    assert crowd.prefer(["x"], ["a"], ["b"]).tolist() == [0.75]
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UserError, match="expected a positive weight for each of 2 members"):
            MixtureOracle([Fixed(1.0), Fixed(0.0)], weights)


@given(st.floats(0, 1), st.floats(0, 0.5))
def test_noise_is_a_flip(answer: float, flip: float) -> None:
    """P (1 - flip) + (1 - P) flip; one half stays, and both orders still add up to one."""
    noisy = NoisyOracle(Fixed(answer), flip=flip).prefer(["x"], ["a"], ["b"]).item()
    assert noisy == pytest.approx(answer * (1 - flip) + (1 - answer) * flip, abs=1e-12)
    other = NoisyOracle(Fixed(1 - answer), flip=flip).prefer(["x"], ["b"], ["a"]).item()
    assert noisy + other == pytest.approx(1.0, abs=1e-12)


def test_ties_are_what_lies_nearer_than_the_width() -> None:
    answers = [TiedOracle(Fixed(p), width=0.25).prefer(["x"], ["a"], ["b"]).item() for p in (0.3, 0.75, 0.2, 0.5)]
    assert answers == [0.5, 0.75, 0.2, 0.5]


def test_verdicts_follow_the_probability_and_both_orders_agree() -> None:
    """4,000 questions at P = .7: a share with a standard error of .7 %; another seed is another annotator."""
    prompts = [f"question {n}" for n in range(4000)]
    left, right = ["a"] * 4000, ["b"] * 4000
    oracle = VerdictOracle(NoisyOracle(ranked("abc"), flip=0.3), seed=1)
    verdicts_N = oracle.prefer(prompts, left, right)
    assert set(verdicts_N.tolist()) == {0.0, 1.0}
    assert verdicts_N.mean().item() == pytest.approx(0.7, abs=0.035)
    assert oracle.prefer(prompts, left, right).equal(verdicts_N)
    assert oracle.prefer(prompts, right, left).equal(1.0 - verdicts_N)
    assert ask(oracle, prompts, left, right).equal(verdicts_N)
    other_N = VerdictOracle(NoisyOracle(ranked("abc"), flip=0.3), seed=2).prefer(prompts, left, right)
    assert 0.3 < (other_N != verdicts_N).double().mean().item() < 0.55, "independent: 2 x .7 x .3 = .42"
    assert VerdictOracle(Fixed(0.9)).prefer(["x"], ["a"], ["a"]).item() == 0.5


def test_recipes_compose_them() -> None:
    paper = {"kind": "rule", "rule": "paper_scissors_stone"}
    crowd = {"kind": "mixture", "members": [paper, {"kind": "rule", "rule": "shorter", "flip": 0.5}], "weights": [1, 3]}
    assert build_oracle(crowd).prefer(["x"], ["paper"], ["stone"]).item() == pytest.approx(0.25 + 0.75 * 0.5)
    noisy = build_oracle({**paper, "flip": 0.1, "ties": 0.3})
    assert noisy.prefer(["x", "x"], ["paper", "stone"], ["stone", "stone"]).tolist() == pytest.approx([0.9, 0.5])
    assert build_oracle({**paper, "flip": 0.4, "verdict_seed": 3}).prefer(["x"], ["paper"], ["stone"]).item() in (0, 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "rules"}, r"oracle\.kind: expected one of rule, matrix, textgame, .*, got 'rules'"),
        ({"kind": "rule", "rul": "shorter"}, r"unknown key 'rul' for kind 'rule'; did you mean 'rule'\?"),
        ({"kind": "rule"}, r"oracle\.rule: expected a value for kind 'rule', got none"),
        ({"kind": "rule", "rule": "shorter", "flip": 0.7}, r"oracle\.flip: input should be less than or equal to 0\.5"),
        ({"kind": "rule", "rule": "shorter", "flip": "0.1"}, r"oracle\.flip: .*valid number, got '0\.1'"),
        (
            {"kind": "rule", "rule": "shorter", "ties": 0.1, "verdict_seed": 1},
            "expected ties or verdict_seed",
        ),
        ({"kind": "mixture", "members": [{"kind": "rule", "rule": "tallest"}]}, r"oracle\.rule: expected one of"),
        ({"kind": "mixture", "members": [{"kind": "rule", "rule": "shorter"}], "weights": [1, 2]}, r"oracle\.weights"),
    ],
)
def test_mistakes_are_named(spec: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_oracle(spec)
