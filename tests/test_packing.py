"""Shared rows: what stands in them, what each token sees, and how they are divided."""

import dataclasses

import hypothesis
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.attention import PiecewiseMask
from alignment.packing import dense_cost, dense_rows, plan_rows, scored_mask, shared_rows
from alignment.types import Completions
from tests.text.groups_of_tokens import random_completions


def two_groups() -> Completions:
    """Prompts [1, 2] and [5]; completions [3], [4, 4] of the first and [6, 6] of the second, which has lost one."""
    ids = [[[1, 2, 3, 0], [1, 2, 4, 4]], [[0, 5, 6, 6], [0, 5, 7, 0]]]
    completion = [[[0, 0, 1, 0], [0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0, 1, 0]]]
    ids_BGT = torch.tensor(ids)
    return Completions(
        input_ids_BGT=ids_BGT,
        attention_mask_BGT=ids_BGT > 0,
        completion_mask_BGT=torch.tensor(completion).bool(),
        valid_BG=torch.tensor([[True, True], [True, False]]),
    )


def test_a_row_by_hand() -> None:
    """Both groups in one row: positions go on from each prompt, and first tokens are predicted at its end."""
    completions = two_groups()
    plan = plan_rows(completions, 1e9, in_pieces=False)
    rows = shared_rows(completions, plan, attention="sdpa", dtype=torch.float32)
    assert rows.input_ids_RW.tolist() == [[1, 2, 3, 4, 4, 5, 6, 6]]
    assert rows.position_ids_RW.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2]]
    assert rows.targets_N.tolist() == [3, 4, 4, 6, 6]
    assert rows.sources_N.tolist() == [1, 1, 3, 5, 6]
    seen = ["1.......", "11......", "111.....", "11.1....", "11.11...", ".....1..", ".....11.", ".....111"]
    expected_WW = torch.tensor([[letter == "1" for letter in line] for line in seen])
    assert isinstance(rows.attention_mask, torch.Tensor)
    assert torch.equal(rows.attention_mask[0, 0], expected_WW)
    added = shared_rows(completions, plan, attention="eager", dtype=torch.float64).attention_mask
    assert isinstance(added, torch.Tensor)
    assert torch.equal(added[0, 0], torch.zeros(8, 8, dtype=torch.float64).masked_fill(~expected_WW, -torch.inf))


def test_dense_rows_by_hand() -> None:
    """What left its group has no row; a token is predicted one column before it."""
    rows = dense_rows(two_groups())
    assert rows.input_ids_RW.tolist() == [[1, 2, 3, 0], [1, 2, 4, 4], [0, 5, 6, 6]]
    assert rows.position_ids_RW.tolist() == [[0, 1, 2, 2], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert rows.targets_N.tolist() == [3, 4, 4, 6, 6]
    assert rows.sources_N.tolist() == [1, 5, 6, 9, 10]


@hypothesis.settings(max_examples=12)
@given(seed=st.integers(0, 10_000), prompts=st.integers(1, 9), pairs_per_token=st.sampled_from([1.0, 100.0, 1e5]))
def test_rows_hold_every_token_once(seed: int, prompts: int, pairs_per_token: float) -> None:
    """Each prompt and completion once, at most 5 % padding, and the same targets in the same order as dense rows."""
    completions = random_completions(seed, prompts=prompts, longest_prompt=12)
    plan = plan_rows(completions, pairs_per_token, in_pieces=False)
    rows, dense = shared_rows(completions, plan, attention="sdpa", dtype=torch.float32), dense_rows(completions)
    prompt_BT = completions.attention_mask_BGT[:, 0] & ~completions.completion_mask_BGT[:, 0]
    unique = int(prompt_BT.sum() + scored_mask(completions).sum())
    assert unique <= rows.input_ids_RW.numel() <= 1.05 * unique
    assert rows.targets_N.tolist() == dense.targets_N.tolist()
    places = rows.position_ids_RW.flatten()
    assert torch.equal(places[rows.sources_N], dense.position_ids_RW.flatten()[dense.sources_N])
    assert isinstance(rows.attention_mask, torch.Tensor)
    # As much as its position says: the prompt, its own completion, itself.
    num_seen_RW = rows.attention_mask[:, 0].sum(-1).flatten()
    assert torch.equal(num_seen_RW[rows.sources_N], places[rows.sources_N] + 1)


@hypothesis.settings(max_examples=12)
@given(seed=st.integers(0, 10_000), prompts=st.integers(1, 6), pairs_per_token=st.sampled_from([1.0, 1e5]))
def test_pieces_are_the_mask(seed: int, prompts: int, pairs_per_token: float) -> None:
    """Attention at every token and its gradients, ragged groups side by side, some rows padded."""
    completions = random_completions(seed, prompts=prompts, longest_prompt=17, longest_completion=9)
    # Padding is 0.
    completions = dataclasses.replace(completions, input_ids_BGT=completions.input_ids_BGT + 1)
    plan = plan_rows(completions, pairs_per_token, in_pieces=False)
    plan = dataclasses.replace(plan, in_pieces=True)
    rows = shared_rows(completions, plan, attention="sdpa", dtype=torch.float64)
    assert isinstance(rows.attention_mask, PiecewiseMask)
    # To whatever is no SDPA it is a tensor.
    whole = rows.attention_mask.clone()
    assert type(whole) is torch.Tensor and whole.shape == rows.attention_mask.shape
    generator = torch.Generator().manual_seed(seed)
    query, key, value, weights = torch.randn(4, plan.num_rows, 2, plan.width, 3, generator=generator).double()
    weights *= (rows.input_ids_RW > 0)[:, None, :, None]
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    found = []
    for mask in (rows.attention_mask, whole):
        output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
        found.append(torch.stack([weights * output, *torch.autograd.grad((weights * output).sum(), inputs)]))
    torch.testing.assert_close(*found)


def test_equal_groups_get_a_row_each() -> None:
    """Rows of several groups would look at more pairs for the same tokens."""
    one = random_completions(3, prompts=1, all_valid=True)
    four = Completions(
        input_ids_BGT=one.input_ids_BGT.repeat(4, 1, 1),
        attention_mask_BGT=one.attention_mask_BGT.repeat(4, 1, 1),
        completion_mask_BGT=one.completion_mask_BGT.repeat(4, 1, 1),
        valid_BG=one.valid_BG.repeat(4, 1),
    )
    assert plan_rows(four, 6 * 384, in_pieces=False).num_rows == 4


def test_cost_knows_when_sharing_does_not_pay() -> None:
    """Long answers to a short prompt: a row of all of them looks at many pairs, which a narrow model notices."""

    def saves(prompt: int, answer: int, pairs_per_token: float, in_pieces: bool) -> bool:
        shape = (1, 8, prompt + answer)
        is_answer_BGT = (torch.arange(prompt + answer) >= prompt).expand(shape)
        completions = Completions(
            input_ids_BGT=torch.ones(shape, dtype=torch.int64),
            attention_mask_BGT=torch.ones(shape, dtype=torch.bool),
            completion_mask_BGT=is_answer_BGT,
            valid_BG=torch.ones(1, 8, dtype=torch.bool),
        )
        plan = plan_rows(completions, pairs_per_token, in_pieces=in_pieces)
        return plan.cost(pairs_per_token) < dense_cost(completions, pairs_per_token)

    for in_pieces in (False, True):
        assert saves(256, 64, 6 * 384, in_pieces)
        assert saves(8, 32, 6 * 384, in_pieces)
        assert not saves(8, 256, 6 * 384, in_pieces)
    # In pieces completions do not look at one another.
    assert not saves(64, 256, 6 * 384, in_pieces=False) and saves(64, 256, 6 * 384, in_pieces=True)
