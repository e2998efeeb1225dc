"""Rollout and judge: whose answers are compared with whose, and which methods are refused."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from alignment.data import Batch, Row, Turn, collate, encode_rows
from alignment.errors import UserError
from alignment.oracles import MatrixOracle, PanelOracle
from alignment.stages import (
    Rollout,
    Sampling,
    annotate,
    check_needs,
    describe_foreign_samples,
    group_wins_of_pairs,
    judge,
    rollout,
    sample_metrics,
)
from alignment.types import AnchorSpec, Completions, Feedback, Needs
from tests.methods.runs import build
from tests.text.symbols import SYMBOLS, symbol_tokenizer

PROMPTS = ("question", "question question")
WINS = Needs(feedback="wins", sampler="policy", opponent="fresh", schedule="online")


def empty_completions(num_prompts: int, num_completions: int) -> Completions:
    ids_BGT = torch.zeros(num_prompts, num_completions, 2, dtype=torch.int64)
    mask_BGT = torch.ones_like(ids_BGT, dtype=torch.bool)
    return Completions(
        input_ids_BGT=ids_BGT,
        attention_mask_BGT=mask_BGT,
        completion_mask_BGT=mask_BGT,
        valid_BG=mask_BGT[..., 0],
    )


def planted() -> MatrixOracle:
    """Two prompts with opposite tastes: the first likes red, then green, then blue; the second the reverse."""
    first_AA = torch.tensor([[0.5, 0.8, 0.9], [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]], dtype=torch.float64)
    return MatrixOracle(torch.stack([first_AA, first_AA.T]), responses=SYMBOLS, prompts=PROMPTS)


def test_each_response_meets_its_own_prompts_opponents_by_its_own_prompts_taste() -> None:
    """Invariant 8: prompts, responses and opponents all differ, so any mix-up shows.

    By hand: prompt 1, red against blue and green (.9 + .8)/2, green against them (.7 + .5)/2; prompt 2, blue against
    red twice .9, green against red twice .8.
    """
    rolled = Rollout(
        prompts=PROMPTS,
        completions=empty_completions(2, 2),
        responses=[["red", "green"], ["blue", "green"]],
        opponents=[["blue", "green"], ["red", "red"]],
    )
    wins_KBG = judge(rolled, planted(), WINS).wins_KBG
    assert wins_KBG is not None
    assert wins_KBG[0].tolist() == [pytest.approx([0.85, 0.6]), pytest.approx([0.9, 0.8])]


def test_a_group_is_judged_by_its_own_prompts_taste() -> None:
    """Preferences inside each group; wins against the group are their means over the others."""
    rolled = Rollout(
        prompts=PROMPTS,
        completions=empty_completions(2, 3),
        responses=[["red", "green", "blue"], ["red", "blue", "blue"]],
    )
    prefs_KBGG = judge(rolled, planted(), Needs(feedback="prefs", sampler="policy")).prefs_KBGG
    assert prefs_KBGG is not None
    assert prefs_KBGG[0, 0, 0].tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert prefs_KBGG[0, 1, 0].tolist() == pytest.approx([0.5, 0.1, 0.1])
    torch.testing.assert_close(prefs_KBGG + prefs_KBGG.mT, torch.ones_like(prefs_KBGG))
    wins_KBG = judge(rolled, planted(), Needs(feedback="wins", sampler="policy", opponent="group")).wins_KBG
    assert wins_KBG is not None
    assert wins_KBG[0].tolist() == [pytest.approx([0.85, 0.45, 0.2]), pytest.approx([0.1, 0.7, 0.7])]


@pytest.mark.parametrize("opponents", [[["green", "blue"], ["blue", "red"]], None], ids=["opponents", "group"])
def test_a_panels_feedback_stands_in_the_order_of_its_members(opponents: list[list[str]] | None) -> None:
    """Each member's is what it says alone, wins and preferences."""
    members = {"ann": planted(), "bob": MatrixOracle(planted().prefs_XAA.flip(0), responses=SYMBOLS, prompts=PROMPTS)}
    rolled = Rollout(
        prompts=PROMPTS,
        completions=empty_completions(2, 3),
        responses=[["red", "green", "blue"], ["red", "blue", "blue"]],
        opponents=opponents,
    )
    for needs, name in ((WINS, "wins_KBG"), (Needs(feedback="prefs", sampler="policy"), "prefs_KBGG")):
        first, second = (getattr(judge(rolled, member, needs), name) for member in members.values())
        together = getattr(judge(rolled, PanelOracle(members), needs), name)
        assert together.equal(torch.cat([first, second])) and not first.equal(second)


class Fixed:
    """A policy that always gives the next of its answers, and remembers who asked."""

    def __init__(self, name: str, temperature: float) -> None:
        self.name, self.temperature = name, temperature

    def sample_by_seeds(self, prompts: Completions, *, num_completions: int, seeds: Sequence[int]) -> Completions:
        return empty_completions(len(prompts.input_ids_BGT), num_completions)

    def texts(self, completions: Completions) -> list[list[str]]:
        return [[f"{self.name}@{self.temperature:g}"] * group.shape[0] for group in completions.valid_BG]


class Named:
    """Stands for a module: its name is all that the fixed policy needs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *error: object) -> None:
        pass


def prompts_batch() -> Batch:
    rows = [Row(prompt=(Turn("user", prompt),), source=f"t:{i}") for i, prompt in enumerate(PROMPTS)]
    encoded = encode_rows(rows, symbol_tokenizer(), max_prompt_length=9, max_completion_length=1).rows
    return collate(encoded, pad_token_id=0)


def sampling(temperature: float) -> Sampling:
    """Three responses at this temperature, two of the opponent at 1."""
    return Sampling(
        num_completions=3,
        temperature=temperature,
        max_new_tokens=1,
        engine="transformers",
        opponent_temperature=1.0,
        opponent_completions=2,
    )


@pytest.mark.parametrize(
    ("opponent", "expected"),
    [("fresh", "policy@1"), ("target", "target@1"), ("ref", "ref@1"), ("group", None), ("none", None)],
)
def test_the_opponent_is_who_the_method_names(opponent: Any, expected: str | None) -> None:
    """G responses of the policy at the sampler's temperature, J of the opponent at its own."""
    rolled = rollout(
        prompts_batch(),
        needs=Needs(feedback="wins", sampler="policy", opponent=opponent),
        sampling=sampling(2.0),
        make_policy=Fixed,  # type: ignore[arg-type]
        policy_of=Named,  # type: ignore[arg-type]
        seeds=[0, 1],
    )
    assert rolled.prompts == PROMPTS
    assert rolled.responses == [["policy@2"] * 3] * 2
    assert rolled.opponents == (None if expected is None else [[expected] * 2] * 2)
    assert rolled.weights_BG is None


class Counted(Fixed):
    """Answers that differ: 0, 1, 2, ... of each prompt."""

    draws: ClassVar[list[int]] = []

    def sample_by_seeds(self, prompts: Completions, *, num_completions: int, seeds: Sequence[int]) -> Completions:
        self.draws.append(num_completions)
        return super().sample_by_seeds(prompts, num_completions=num_completions, seeds=seeds)

    def texts(self, completions: Completions) -> list[list[str]]:
        return [[str(g) for g in range(group.shape[0])] for group in completions.valid_BG]


@pytest.mark.parametrize(("temperature", "draws"), [(1.0, [5]), (2.0, [3, 2])])
def test_answers_of_one_distribution_are_drawn_together(temperature: float, draws: list[int]) -> None:
    """The policy against itself at one temperature: one generation, whose answers are divided."""
    Counted.draws.clear()
    rolled = rollout(
        prompts_batch(),
        needs=WINS,
        sampling=sampling(temperature),
        make_policy=Counted,  # type: ignore[arg-type]
        policy_of=Named,  # type: ignore[arg-type]
        seeds=[0, 1],
    )
    assert Counted.draws == draws
    assert rolled.responses == [["0", "1", "2"]] * 2
    assert rolled.opponents == [["3", "4"] if len(draws) == 1 else ["0", "1"]] * 2
    assert list(rolled.completions.valid_BG.shape) == [2, 3]


def test_a_group_is_alike_by_its_answers_alone() -> None:
    """Two equal answers are alike, whatever pads their group; two different ones are not, and neither is a single one.
    A quarter of the second group's texts is empty."""
    said = [[3, 3, None, None], [3, 4, 3, 3], [3, None, None, None]]
    ids_BGT = torch.tensor([[[7, token or 0] for token in group] for group in said])
    valid_BG = torch.tensor([[token is not None for token in group] for group in said])
    seen_BGT = torch.stack([torch.ones_like(valid_BG), valid_BG], dim=-1)
    answer_BGT = torch.stack([torch.zeros_like(valid_BG), valid_BG], dim=-1)
    completions = Completions(
        input_ids_BGT=ids_BGT, attention_mask_BGT=seen_BGT, completion_mask_BGT=answer_BGT, valid_BG=valid_BG
    )
    metrics = sample_metrics(completions, [["a", "a"], ["a", "", "a", "a"], ["a"]])
    assert metrics["identical_groups"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["empty_responses"].tolist() == [0.0, 0.25, 0.0]


def test_wins_of_pairs_are_means_over_whom_a_response_met() -> None:
    """The first met the second (.8) and the third (.4), those two not each other; the fourth met nobody and leaves."""
    nan = float("nan")
    prefs_GG = [[0.5, 0.8, 0.4, nan], [0.2, 0.5, nan, nan], [0.6, nan, 0.5, nan], [nan, nan, nan, 0.5]]
    completions, feedback = group_wins_of_pairs(
        empty_completions(1, 4), Feedback(prefs_KBGG=torch.tensor([[prefs_GG]], dtype=torch.float64))
    )
    assert completions.valid_BG.tolist() == [[True, True, True, False]]
    assert feedback.wins_KBG is not None
    assert feedback.wins_KBG[0, 0, :3].tolist() == pytest.approx([0.6, 0.2, 0.6])


class Spy:
    """Anchors whose log-probs are planted."""

    def score(self, completions: Completions, *, without: Collection[str]) -> dict[str, Any]:
        shape = completions.valid_BG.shape

        class Scored:
            logps_BG: Tensor = torch.full(shape, -3.0)
            token_logps_BGT: Tensor = torch.full((*shape, 2), -1.5)

        return {"ref": Scored, "target": Scored}


@pytest.mark.parametrize("per_token", [False, True])
def test_annotate_adds_every_anchor(per_token: bool) -> None:
    """Sums always, tokens only where the loss reads them."""
    annotated = annotate(
        empty_completions(2, 2),
        Feedback(wins_KBG=torch.full((1, 2, 2), 0.5)),
        Spy(),  # type: ignore[arg-type]
        Needs(feedback="wins", per_token=per_token),
        weights_BG=None,
        row_weight_B=torch.ones(2),
    )
    assert annotated.anchors.keys() == {"ref", "target"}
    assert annotated.token_anchors.keys() == ({"ref", "target"} if per_token else set())


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(feedback="wins", sampler="target"), "the sampler 'target'"),
        (Needs(feedback="wins", sampler="policy", opponent="past"), "the opponent 'past'"),
        (Needs(feedback="pairs", anchors=(AnchorSpec("oracle"),)), "log-probs of the policy 'oracle'"),
    ],
)
def test_methods_that_nobody_can_supply_are_refused(needs: Needs, expected: str) -> None:
    """They used to train against their own group without a word."""
    with pytest.raises(UserError, match=f"the method needs .*{expected}"):
        check_needs(needs)


@pytest.mark.parametrize(
    ("method", "changed", "found"),
    [
        ("online_ipo", {}, []),
        ("online_ipo", {"temperature": 2.0}, ["sampling: responses at temperature 2 are"]),
        ("online_ipo", {"opponent_temperature": 2.0}, []),
        ("spo", {"top_k": 10}, ["sampling: responses at temperature 1 from the 10 likeliest tokens are"]),
        ("egpo", {"temperature": 2.0}, []),
        (
            "egpo",
            {"temperature": 2.0, "opponent_temperature": 0.5},
            ["sampling.opponent: answers at temperature 0.5 are"],
        ),
        (
            "nash_mp",
            {"temperature": 2.0, "opponent_temperature": 0.5},
            ["sampling: resp", "sampling.opponent: answers"],
        ),
        ("inpo", {"temperature": 0.7}, ["sampling: responses at temperature 0.7 are"]),
        ("dpo", {"temperature": 2.0}, []),
    ],
)
def test_answers_that_are_not_the_policys_own_are_said(method: str, changed: dict[str, Any], found: list[str]) -> None:
    """EGPO holds for any sampler of full support, against the policy's own answers; DPO samples nothing."""
    plain = Sampling(
        num_completions=2,
        temperature=1.0,
        max_new_tokens=8,
        engine="transformers",
        opponent_temperature=1.0,
        opponent_completions=1,
    )
    lines = describe_foreign_samples(build(method).needs, replace(plain, **changed))
    assert [line[: len(start)] for line, start in zip(lines, found, strict=True)] == found
