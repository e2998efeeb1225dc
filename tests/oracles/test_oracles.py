"""Oracles: both orders averaged, answers checked, mistakes quoted."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.oracles import (
    MatrixOracle,
    OneOrder,
    PanelOracle,
    ask,
    build_oracle,
    num_questions,
    preference_matrix,
    settle,
)
from alignment.oracles.rules import RuleOracle, find_rule, paper_scissors_stone, shorter
from tests.text.symbols import SYMBOLS, cyclic_game


class Biased:
    """Likes what stands on the left."""

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        return torch.tensor([0.9 if a <= b else 0.7 for a, b in zip(left, right, strict=True)])


class Constant:
    def __init__(self, answer: float) -> None:
        self.answer = answer

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        return torch.full((len(prompts),), self.answer)


def test_both_orders_are_averaged() -> None:
    """Invariant 7: p(y, y') + p(y', y) = 1; a bias to the left cancels: (.9 + 1 - .7)/2 = .6."""
    forward, backward = ask(Biased(), ["x"], ["a"], ["b"]), ask(Biased(), ["x"], ["b"], ["a"])
    assert forward.item() == pytest.approx(0.6) and (forward + backward).item() == pytest.approx(1.0, abs=1e-12)


def test_equal_answers_are_a_tie_in_one_order_too() -> None:
    """Invariant 7 with y = y': a taste for the left would make .9 of it, in both orders."""
    assert OneOrder(Biased()).prefer(["x"] * 2, ["a", "b"], ["a", "b"]).tolist() == [0.5, 0.5]


def test_questions_are_counted_and_not_calls() -> None:
    """Three, then one in both orders; a panel's are those of all of its members."""
    settled = settle(Biased())
    ask(settled, ["x"] * 3, ["a"] * 3, ["b"] * 3)
    ask(settled, ["x"], ["b"], ["a"])
    panel = PanelOracle({"ann": settled, "bob": Biased()})
    ask(panel.members[1], ["x"] * 2, ["a"] * 2, ["b"] * 2)
    assert (num_questions(settled), num_questions(panel), num_questions(None)) == (4, 6, 0)


@pytest.mark.parametrize("answer", [float("nan"), 1.2, -0.1])
def test_an_answer_that_is_no_probability_is_quoted(answer: float) -> None:
    """The question is in the message; nothing is clamped."""
    with pytest.raises(UserError, match="'Why\\?', left 'a', right 'b'"):
        ask(Constant(answer), ["Why?"], ["a"], ["b"])


class Listing:
    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> list[float]:
        return [0.25 if a < b else 0.75 for a, b in zip(left, right, strict=True)]


class Talking:
    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> list[str]:
        return ["left" for _ in prompts]


def test_what_an_oracle_may_be() -> None:
    """Numbers in a list are as good as a tensor; words, and a function in the place of an object, are not."""
    assert ask(Listing(), ["x"], ["a"], ["b"]).tolist() == [0.25]
    with pytest.raises(UserError, match=r"expected 2 probabilities, got list"):
        ask(Talking(), ["x"], ["a"], ["b"])
    with pytest.raises(UserError, match=r"expected an object with prefer\(prompts.*got function; RuleOracle"):
        ask(lambda prompts, left, right: [0.5], ["x"], ["a"], ["b"])


def of_all_questions(prompts: list[str], left: list[str], right: list[str]) -> list[float]:
    return [0.5] * len(prompts)


def of_one_argument(prompt: str) -> float:
    return 0.5


def test_what_a_rule_may_be() -> None:
    with pytest.raises(UserError, match=r"probability from of_all_questions\(prompt.*one question at a time, got list"):
        RuleOracle(find_rule(f"{__name__}:of_all_questions")).prefer(["x"], ["a"], ["b"])
    with pytest.raises(UserError, match=r"function of \(prompt, left, right\), got '.*:of_one_argument'"):
        find_rule(f"{__name__}:of_one_argument")


def test_matrix_of_a_group() -> None:
    """Each prompt's own responses, antisymmetric, diagonal 1/2; one response asks nothing."""
    game = cyclic_game(tau=0.1)
    oracle = MatrixOracle(game.prefs_XAA, responses=SYMBOLS)
    groups = [list(SYMBOLS), [SYMBOLS[2], SYMBOLS[0], SYMBOLS[0]]]
    prefs_BGG = preference_matrix(oracle, ["p", "q"], groups)
    torch.testing.assert_close(prefs_BGG[0], game.prefs_XAA[0], rtol=0, atol=0)
    assert prefs_BGG[1].tolist() == [[0.5, 1.0, 1.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    assert preference_matrix(oracle, ["p"], [["red"]]).tolist() == [[[0.5]]]


def test_contexts_and_unknown_texts() -> None:
    """With prompts each has its own matrix; an unknown text is named."""
    prefs_XAA = torch.tensor([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.2], [0.8, 0.5]]])
    oracle = MatrixOracle(prefs_XAA, responses=["a", "b"], prompts=["p", "q"])
    assert oracle.prefer(["p", "q"], ["a", "a"], ["b", "b"]).tolist() == pytest.approx([0.9, 0.2])
    with pytest.raises(UserError, match="unknown response 'c'"):
        oracle.prefer(["p"], ["c"], ["a"])
    with pytest.raises(UserError, match="unknown prompt 'r'"):
        oracle.prefer(["r"], ["a"], ["b"])


def test_rules() -> None:
    """``shorter`` is transitive with one logit per 20 characters; the game of hands is a cycle."""
    assert shorter("", "a" * 20, "a" * 40) == pytest.approx(1 / (1 + 2.718281828459045**-1))
    hands = ["paper", "stone", "scissors"]
    assert [paper_scissors_stone("", a, b) for a, b in zip(hands, hands[1:] + hands[:1], strict=True)] == [1, 1, 1]
    assert paper_scissors_stone("", "stone, and not paper", "scissors") == 1, "the first hand counts"
    assert paper_scissors_stone("", "nothing", "paper") == 0 and paper_scissors_stone("", "x", "y") == 0.5


def test_build_oracle(tmp_path: Path) -> None:
    """Rules by name or path, matrices from JSON; unknown keys, kinds and files are named."""
    for rule in ("shorter", "alignment.oracles.rules:shorter"):
        built = build_oracle({"kind": "rule", "rule": rule})
        assert built.prefer(["?"], ["a"], ["a" * 21]).item() == pytest.approx(1 / (1 + math.exp(-1)))
    path = tmp_path / "game.json"
    path.write_text(json.dumps({"responses": ["a", "b"], "preferences": [[0.5, 0.8], [0.2, 0.5]]}))
    oracle = build_oracle({"kind": "matrix", "path": str(path)})
    assert oracle.prefer(["?"], ["a"], ["b"]).item() == pytest.approx(0.8)
    for spec, expected in (
        ({"kind": "judges"}, "expected one of rule, matrix"),
        ({"kind": "rule"}, "oracle.rule: expected a value for kind"),
        ({"kind": "rule", "rule": "longest"}, "expected one of shorter"),
        ({"kind": "rule", "rule": "nowhere:f"}, "can be imported"),
        ({"kind": "matrix", "path": str(tmp_path / "none.json")}, "no file"),
    ):
        with pytest.raises(UserError, match=expected):
            build_oracle(spec)
