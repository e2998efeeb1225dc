"""What a loss may see, and how it hears that something is missing."""

import dataclasses
from typing import Any

import pytest
import torch

from alignment.errors import MissingAnchorError, MissingFeedbackError, UserError
from alignment.types import (
    Completions,
    Ema,
    Feedback,
    Frozen,
    LossInputs,
    LossOutput,
    Needs,
    Paper,
    Past,
    Player,
    Previous,
)
from tests.methods.problem import pair_inputs


def test_a_missing_anchor_lists_what_is_there() -> None:
    """Never a default of zeros."""
    with pytest.raises(MissingAnchorError, match="'prev'; the batch has ref"):
        pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2]).anchor("prev")


def test_missing_feedback_says_what_came() -> None:
    """And several oracles are refused where one is meant."""
    x = pair_inputs(logps=[-4.0, -5.0])
    with pytest.raises(MissingFeedbackError, match="needs feedback 'wins'; the batch has prefs"):
        _ = x.wins_BG
    many = Feedback(wins_KBG=torch.full((2, 1, 2), 0.5))
    y = LossInputs(logps_BG=x.logps_BG, lengths_BG=x.lengths_BG, valid_BG=x.valid_BG, feedback=many)
    with pytest.raises(MissingFeedbackError, match="expects one oracle, got 2"):
        _ = y.wins_BG
    with pytest.raises(MissingFeedbackError, match="per_token=True"):
        y.tokens()


def test_anchor_columns() -> None:
    """A window of past policies is as many columns; the others have their own name."""
    needs = Needs(feedback="pairs", anchors=(Past("past", window=2), Ema("target", decay=0.5), Player("a")))
    assert needs.anchor_columns() == ("past_0", "past_1", "target", "a")


def inputs(**changes: Any) -> LossInputs:
    """Two prompts, three responses, two tokens each; the last response of the second prompt is padding."""
    feedback = Feedback(
        prefs_KBGG=torch.full((1, 2, 3, 3), 0.5),
        wins_KBG=torch.full((1, 2, 3), 0.7),
        scores_KBG=torch.full((1, 2, 3), 2.0),
    )
    values: dict[str, Any] = {
        "logps_BG": torch.full((2, 3), -1.0),
        "lengths_BG": torch.full((2, 3), 2),
        "valid_BG": torch.tensor([[True, True, True], [True, True, False]]),
        "feedback": feedback,
        "anchors": {"ref": torch.full((2, 3), -2.0)},
        "token_logps_BGT": torch.full((2, 3, 2), -0.5),
        "token_mask_BGT": torch.tensor([True, False]).expand(2, 3, 2),
        "token_anchors": {"ref": torch.full((2, 3, 2), -0.25)},
        "mismatched_anchors": {"ref": torch.zeros(2)},
    }
    return LossInputs(**values | changes)


@pytest.mark.parametrize("junk", [1e9, -torch.inf, torch.nan])
def test_padding_is_zero_whatever_it_held(junk: float) -> None:
    """On construction for the policy, on reading for anchors; preferences are nan, wins 1/2 and scores 0 there."""
    logps_BG, ref_BG = torch.full((2, 3), -1.0), torch.full((2, 3), -2.0)
    logps_BG[1, 2] = ref_BG[1, 2] = junk
    x = inputs(logps_BG=logps_BG.requires_grad_(), anchors={"ref": ref_BG})
    assert x.logps_BG[1].tolist() == [-1.0, -1.0, 0.0] and x.anchor("ref")[1].tolist() == [-2.0, -2.0, 0.0]
    (grad_BG,) = torch.autograd.grad(x.logps_BG.square().sum(), logps_BG)
    assert grad_BG[1].tolist() == [-2.0, -2.0, 0.0]
    assert x.prefs_BGG[1, 2].isnan().all() and x.prefs_BGG[1, :, 2].isnan().all() and not x.prefs_BGG[0].isnan().any()
    assert x.wins_BG[1, 2] == 0.5 and x.scores_BG[1, 2] == 0.0
    logps_BGT, mask_BGT = x.tokens()
    assert mask_BGT[1].tolist() == [[True, False], [True, False], [False, False]]
    assert logps_BGT[1].tolist() == [[-0.5, 0.0], [-0.5, 0.0], [0.0, 0.0]]
    assert x.token_anchor("ref")[1, 1].tolist() == [-0.25, 0.0]


@pytest.mark.parametrize("method", ["anchor", "token_anchor", "mismatched_anchor"])
def test_every_kind_of_anchor_is_missed_by_name(method: str) -> None:
    """The name that was asked for and the names that are there, or that there is nothing; a mistake of the user."""
    with pytest.raises(MissingAnchorError, match=r"of 'target'; the batch has ref$") as error:
        getattr(inputs(), method)("target")
    assert isinstance(error.value, UserError)
    bare = inputs(anchors={}, token_anchors={}, mismatched_anchors={})
    with pytest.raises(MissingAnchorError, match=r"of 'ref'; the batch has nothing$"):
        getattr(bare, method)("ref")


@pytest.mark.parametrize("kind", ["prefs", "wins", "scores"])
def test_several_oracles_are_refused(kind: str) -> None:
    """Each reader of feedback means one oracle; the message says what combines several."""
    name, reader = {"prefs": ("prefs_KBGG", "prefs_BGG")}.get(kind, (f"{kind}_KBG", f"{kind}_BG"))
    shape = (3, 2, 3, 3) if kind == "prefs" else (3, 2, 3)
    x = inputs(feedback=Feedback(**{name: torch.full(shape, 0.5)}))
    with pytest.raises(MissingFeedbackError, match=r"expects one oracle, got 3: combine them with a welfare function"):
        getattr(x, reader)
    with pytest.raises(MissingFeedbackError, match=f"needs feedback '{kind}'; the batch has nothing"):
        getattr(inputs(feedback=Feedback()), reader)


def test_feedback_and_anchors_carry_no_gradient() -> None:
    """A judge that is a model, or an anchor that shares weights, must not be trained through the loss."""
    wins_KBG = torch.full((1, 2, 3), 0.7, requires_grad=True)
    ref_BG = torch.full((2, 3), -2.0, requires_grad=True)
    x = inputs(feedback=Feedback(wins_KBG=wins_KBG), anchors={"ref": ref_BG})
    assert not x.wins_BG.requires_grad and not x.anchor("ref").requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths_BG": torch.ones(2, 2)}, "lengths_BG: expected shape"),
        ({"valid_BG": torch.ones(3, 2, dtype=torch.bool)}, "valid_BG: expected shape"),
        ({"weights_BG": torch.ones(2)}, "weights_BG: expected shape"),
        ({"feedback": Feedback(wins_KBG=torch.ones(1, 2, 2))}, r"wins_KBG: expected shape \[K, B=2, G=3\]"),
        ({"token_mask_BGT": torch.ones(2, 3, 4)}, "token_mask_BGT: expected shape"),
        ({"mismatched_logps_B": torch.ones(3)}, "mismatched_logps_B: expected shape"),
    ],
)
def test_inputs_must_agree(changes: dict[str, Any], message: str) -> None:
    """Checked once, on construction, so that no loss broadcasts by accident."""
    with pytest.raises(ValueError, match=message):
        inputs(**changes)


def test_an_anchor_of_another_shape_is_refused() -> None:
    """[B, 1] would broadcast silently."""
    with pytest.raises(ValueError, match=r"anchor_BG: expected shape \[B=2, G=3\], got \[2, 1\]"):
        inputs(anchors={"ref": torch.zeros(2, 1)}).anchor("ref")


def test_outputs_have_one_loss_per_prompt() -> None:
    """A mean over the batch is not a loss per prompt."""
    with pytest.raises(ValueError, match=r"loss_B: expected shape \[B\], got \[\]"):
        LossOutput(loss_B=torch.zeros(()), weight_B=torch.ones(2))
    with pytest.raises(ValueError, match=r"weight_B: expected shape \[B=2\], got \[3\]"):
        LossOutput(loss_B=torch.zeros(2), weight_B=torch.ones(3))


def test_feedback_checks_and_names_its_kinds() -> None:
    """Prefs are square; kinds in a fixed order; moving keeps absent kinds absent."""
    with pytest.raises(ValueError, match=r"prefs_KBGG: expected shape \[K, B, G, G\]"):
        Feedback(prefs_KBGG=torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="scores_KBG"):
        Feedback(wins_KBG=torch.zeros(1, 2, 3), scores_KBG=torch.zeros(2, 2, 3))
    partial = Feedback(scores_KBG=torch.zeros(1, 2, 3), prefs_KBGG=torch.zeros(1, 2, 3, 3))
    assert partial.kinds() == partial.to("cpu").kinds() == ("prefs", "scores")
    assert partial.to("meta").scores_KBG.is_meta  # type: ignore[union-attr]


def test_completions_count_their_tokens() -> None:
    """Lengths are those of completions, prompts apart; all four tensors move; shapes must agree."""
    completion_mask_BGT = torch.tensor([[[False, True, True], [False, True, False]]])
    completions = Completions(
        input_ids_BGT=torch.ones(1, 2, 3, dtype=torch.long),
        attention_mask_BGT=torch.ones(1, 2, 3, dtype=torch.bool),
        completion_mask_BGT=completion_mask_BGT,
        valid_BG=torch.ones(1, 2, dtype=torch.bool),
    )
    assert completions.lengths_BG.tolist() == [[2, 1]]
    moved = completions.to("meta")
    assert all(getattr(moved, spec.name).is_meta for spec in dataclasses.fields(moved))
    with pytest.raises(ValueError, match="valid_BG: expected shape"):
        dataclasses.replace(completions, valid_BG=torch.ones(2, 2, dtype=torch.bool))


def test_anchor_specs_name_their_columns() -> None:
    """In the order of the card, the newest past policy first."""
    needs = Needs(feedback="pairs", anchors=(Frozen("ref"), Previous("prev"), Past("past", window=3)))
    assert needs.anchor_columns() == ("ref", "prev", "past_0", "past_1", "past_2")
    assert Needs(feedback="wins").anchor_columns() == ()


def test_bibtex() -> None:
    """One entry; titles keep their capitals."""
    entry = Paper(title="On Games", authors="Doe, Jane and others", year=2024, arxiv="2401.00001").bibtex("doe")
    assert entry.startswith("@misc{doe,\n") and entry.endswith("\n}")
    for line in ("title = {{On Games}}", "author = {Doe, Jane and others}", "year = {2024}", "eprint = {2401.00001}"):
        assert line in entry


def test_the_first_completions_lose_the_columns_of_the_others() -> None:
    """Two prompts, three completions of 1, 2 and 4 tokens after one of the prompt."""
    length_G = torch.tensor([1, 2, 4])
    answer_BGT = (torch.arange(4) < length_G[:, None]).expand(2, 3, 4)
    prompt_BG1 = torch.ones(2, 3, 1, dtype=torch.bool)
    completions = Completions(
        input_ids_BGT=torch.arange(30).reshape(2, 3, 5),
        attention_mask_BGT=torch.cat([prompt_BG1, answer_BGT], dim=-1),
        completion_mask_BGT=torch.cat([~prompt_BG1, answer_BGT], dim=-1),
        valid_BG=torch.ones(2, 3, dtype=torch.bool),
    )
    first = completions.first(2)
    assert first.input_ids_BGT.tolist() == [[[0, 1, 2], [5, 6, 7]], [[15, 16, 17], [20, 21, 22]]]
    assert first.lengths_BG.tolist() == [[1, 2]] * 2
    assert torch.equal(completions.first(3).input_ids_BGT, completions.input_ids_BGT)
