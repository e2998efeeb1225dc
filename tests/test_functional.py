"""Sums over pairs and groups: the one place that knows sampled from enumerated responses; the regression core."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment import functional as f
from alignment.functional import preference_regression, regression_loss, win_regression
from alignment.types import Feedback
from tests.methods.problem import pair_inputs
from tests.methods.regression import enumerated, gradient, minimiser, random_policy, random_preferences


def hard_loss(h_AA: Tensor, prefs_AA: Tensor, sampler_A: Tensor, c: float) -> Tensor:
    """E[(h(yw, yl) - c)^2], winner drawn from the oracle, both responses i.i.d. from the sampler."""
    return (2 * sampler_A[:, None] * sampler_A[None] * prefs_AA * (h_AA - c).square()).sum()


def soft_loss(h_AA: Tensor, prefs_AA: Tensor, sampler_A: Tensor, c: float) -> Tensor:
    """E[P (h - c)^2 + (1 - P)(h + c)^2]."""
    terms_AA = prefs_AA * (h_AA - c).square() + (1 - prefs_AA) * (h_AA + c).square()
    return (sampler_A[:, None] * sampler_A[None] * terms_AA).sum()


def test_three_forms_differ_by_constants() -> None:
    """Invariant 9: hard - regress and soft - regress are the same at two policies."""
    prefs_AA, sampler_A, anchor_A, c = random_preferences(4, 0), random_policy(4, 0).exp(), random_policy(4, 1), 0.8
    gaps = []
    for seed in (2, 3):
        advantages_A = random_policy(4, seed) - anchor_A
        h_AA = advantages_A[:, None] - advantages_A[None]
        x = enumerated(random_policy(4, seed), sampler_A=sampler_A, prefs_AA=prefs_AA)
        regress = preference_regression(x, advantages_A[None], target=c).loss_B[0]
        gaps.append(
            (hard_loss(h_AA, prefs_AA, sampler_A, c) - regress, soft_loss(h_AA, prefs_AA, sampler_A, c) - regress)
        )
    for first, second in zip(*gaps, strict=True):
        assert first.item() == pytest.approx(second.item(), abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_minimiser_is_closed_form(seed: int) -> None:
    """Invariants 10 and 11: log pi = A + 2c P(. > s) + const, for anchor weights that sum to .7 as well; gradient 0."""
    prefs_AA, sampler_A, c = random_preferences(4, seed), random_policy(4, seed).exp(), 0.9
    anchor_A = 0.4 * random_policy(4, seed + 1) + 0.3 * random_policy(4, seed + 2)

    def loss(logps_A: Tensor) -> object:
        x = enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG - anchor_A, target=c)

    closed_A = (anchor_A + 2 * c * prefs_AA @ sampler_A).log_softmax(-1)
    torch.testing.assert_close(minimiser(loss, 4), closed_A, rtol=0, atol=1e-6)
    assert float(gradient(loss, closed_A).abs().max()) < 1e-8


def test_the_sampling_gradient_is_detached() -> None:
    """Invariant 15: differentiating the sampling probabilities as well would be another gradient."""
    prefs_AA, theta_A = random_preferences(4, 1), random_policy(4, 1)

    def grad(detach: bool) -> Tensor:
        leaf_A = theta_A.clone().requires_grad_()
        logps_A = leaf_A.log_softmax(-1)
        sampler_A = logps_A.exp().detach() if detach else logps_A.exp()
        h_AA = logps_A[:, None] - logps_A[None]
        value = (sampler_A[:, None] * sampler_A[None] * (h_AA - (prefs_AA - 0.5)).square()).sum()
        return torch.autograd.grad(value, leaf_A)[0]

    def loss(logps_A: Tensor) -> object:
        x = enumerated(logps_A, sampler_A=logps_A.exp(), prefs_AA=prefs_AA)  # not detached by the caller
        return preference_regression(x, x.logps_BG, target=0.5)

    torch.testing.assert_close(gradient(loss, theta_A), grad(detach=True), rtol=0, atol=1e-9)
    assert float((grad(detach=True) - grad(detach=False)).abs().max()) > 1e-3


def test_target_attainment() -> None:
    """Invariant 20: E[h t]/E[t^2] equals E[h^2]/E[t^2] <= 1 at the optimum; 0 on the uniform cycle."""
    prefs_AA, sampler_A = random_preferences(4, 2), random_policy(4, 2).exp()
    best_A = (prefs_AA @ sampler_A).log_softmax(-1)  # A = 0 and 2c = 1
    x = enumerated(best_A, sampler_A=sampler_A, prefs_AA=prefs_AA)
    attained = preference_regression(x, best_A[None], target=0.5).metrics["target_attainment"].item()
    h_AA = best_A[:, None] - best_A[None]
    pairs_AA = sampler_A[:, None] * sampler_A[None]
    squares = (pairs_AA * h_AA.square()).sum() / (pairs_AA * (prefs_AA - 0.5).square()).sum()
    assert attained == pytest.approx(squares.item(), abs=1e-8) and 0 < attained < 1
    cycle_AA = torch.tensor([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]], dtype=torch.float64)
    uniform_A = torch.full((3,), 1 / 3, dtype=torch.float64)
    y = enumerated(uniform_A.log(), sampler_A=uniform_A, prefs_AA=cycle_AA)
    assert preference_regression(y, uniform_A.log()[None], target=0.5).metrics["target_attainment"].item() == 0


def test_best_against_worst_is_another_solution() -> None:
    """Invariant 21: selecting the best and worst of three draws, with its deterministic label, misses the closed form.

    Exact enumeration of 3 draws from 4 actions, Bradley-Terry, target c = 1, anchor 0. The record gives nine numbers
    but not its problem; six parameters reproduce all nine, so these are its rewards and its sampler, to the digits.
    """
    rewards_A = torch.tensor([1.9, 1.3, 0.6, 0.0], dtype=torch.float64)
    sampler_A = torch.tensor([0.221, 0.576, 0.133, 0.070], dtype=torch.float64)
    prefs_AA = (rewards_A[:, None] - rewards_A[None]).sigmoid()
    selected_AA = torch.zeros(4, 4, dtype=torch.float64)
    for draw in torch.cartesian_prod(*[torch.arange(4)] * 3):
        best, worst = draw[rewards_A[draw].argmax()], draw[rewards_A[draw].argmin()]
        selected_AA[best, worst] += sampler_A[draw].prod()

    def all_pairs(logps_A: Tensor) -> f.LossOutput:
        x = enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG, target=1.0)

    def best_worst(targets_AA: Tensor) -> Callable[[Tensor], f.LossOutput]:
        def loss(logps_A: Tensor) -> f.LossOutput:
            h_AA = logps_A[:, None] - logps_A[None]
            loss_B = (selected_AA * (h_AA - targets_AA).square()).sum()[None]
            return f.LossOutput(loss_B=loss_B, weight_B=torch.ones_like(loss_B))

        return loss

    def centred(loss: Callable[[Tensor], f.LossOutput]) -> list[float]:
        logps_A = minimiser(loss, 4)
        return (logps_A - logps_A.mean()).tolist()

    closed_A = 2 * prefs_AA @ sampler_A
    assert centred(all_pairs) == pytest.approx((closed_A - closed_A.mean()).tolist(), abs=1e-6)
    assert centred(all_pairs) == pytest.approx([0.424, 0.149, -0.171, -0.403], abs=1e-3)
    assert centred(best_worst(2 * prefs_AA - 1)) == pytest.approx([0.414, 0.146, -0.174, -0.386], abs=1e-3)
    hard_AA = torch.ones(4, 4, dtype=torch.float64)
    assert centred(best_worst(hard_AA)) == pytest.approx([0.886, 0.167, -0.492, -0.560], abs=1e-3)


def test_target_attainment_of_hard_labels() -> None:
    """Invariant 20: t = c for the winner of each pair, so mean(h t)/mean(t^2) = mean(h)/c; here two pairs of three.

    h of the labelled pairs (0, 1) and (2, 0) is 1 - 2 = -1 and 4 - 1 = 3, their mean 1, c = 2: attained 1/2.
    """
    prefs_AA = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, torch.nan], [1.0, torch.nan, 0.5]], dtype=torch.float64)
    advantages_A = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    x = enumerated(advantages_A, sampler_A=None, prefs_AA=prefs_AA)
    attained = preference_regression(x, advantages_A[None], target=2.0).metrics["target_attainment"]
    assert attained.item() == pytest.approx(0.5, abs=1e-12) and not attained.requires_grad


def test_the_regression_by_hand() -> None:
    """Two labelled pairs as above, h -1 and 3 against c = 2: ((-1 - 2)^2 + (3 - 2)^2) / 2 = 5, from either order."""
    prefs_AA = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, torch.nan], [1.0, torch.nan, 0.5]], dtype=torch.float64)
    advantages_A = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    x = enumerated(advantages_A, sampler_A=None, prefs_AA=prefs_AA)
    assert preference_regression(x, advantages_A[None], target=2.0).loss_B.item() == pytest.approx(5.0, abs=1e-12)


@pytest.mark.parametrize("is_enumerated", [True, False])
def test_relabelling_a_pair_changes_nothing(is_enumerated: bool) -> None:
    """Invariant 16, for the core: swap two responses and with them P -> 1 - P, in both forms of the regression."""
    prefs_AA, logps_A, anchor_A = random_preferences(4, 6), random_policy(4, 6), random_policy(4, 7)
    sampler_A = random_policy(4, 8).exp() if is_enumerated else None
    order = torch.tensor([2, 1, 0, 3])
    values = []
    for o in (torch.arange(4), order):
        chosen_A = None if sampler_A is None else sampler_A[o]
        x = enumerated(logps_A[o], sampler_A=chosen_A, prefs_AA=prefs_AA[o][:, o], wins_A=prefs_AA[o, 3])
        for loss in (preference_regression, win_regression):
            values.append(loss(x, x.logps_BG - anchor_A[o], target=0.8).loss_B.item())
    assert values[:2] == pytest.approx(values[2:], abs=1e-12)


def test_repeated_tokens_double_the_differences() -> None:
    """Invariant 19: sums over tokens double, so (h - t) becomes (2h - t); per token the loss stays.

    One hard pair, h = 1.3 and c = 1: (1.3 - 1)^2 = .09, (2.6 - 1)^2 = 2.56.
    """
    lengths = torch.tensor([[3, 2]])
    for repeats, summed in ((1, 0.09), (2, 2.56)):
        x = pair_inputs(logps=[-4.0 * repeats, -5.0 * repeats], ref=[-4.5 * repeats, -4.2 * repeats])
        ratios_BG = x.logps_BG - x.anchor("ref")
        assert preference_regression(x, ratios_BG, target=1.0).loss_B.item() == pytest.approx(summed, abs=1e-12)
        means_BG = f.per_token(ratios_BG, lengths * repeats)
        expected = (0.5 / 3 + 0.8 / 2 - 1) ** 2
        assert preference_regression(x, means_BG, target=1.0).loss_B.item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_pair_weights_are_probabilities(size: int, is_enumerated: bool, seed: int) -> None:
    """Symmetric, sum to 1 where there is a pair, never on the diagonal for samples."""
    sampler_A = random_policy(size, seed).exp() if is_enumerated else None
    x = enumerated(random_policy(size, seed), sampler_A=sampler_A)
    weights_GG = f.pair_weights(x)[0]
    has_pair = is_enumerated or size > 1
    assert weights_GG.sum().item() == pytest.approx(float(has_pair), abs=1e-12)
    torch.testing.assert_close(weights_GG, weights_GG.T, rtol=0, atol=1e-15)
    if not is_enumerated:
        assert float(weights_GG.diagonal().abs().max()) == 0


@given(st.integers(2, 5), st.integers(0, 1000))
def test_comparison_weights_share_one(size: int, seed: int) -> None:
    """The probabilities of all labelled outcomes sum to 1, asked or not; one labelled pair has it all."""
    prefs_AA = random_preferences(size, seed)
    prefs_AA[0, 1] = prefs_AA[1, 0] = torch.nan
    x = enumerated(random_policy(size, seed), sampler_A=None, prefs_AA=prefs_AA)
    wins_BGG, weight_B = f.comparison_weights(x)
    expected = float(size > 2)
    assert wins_BGG.sum().item() == pytest.approx(expected, abs=1e-12) and weight_B.item() == expected
    pair_GG, _ = f.comparison_weights(pair_inputs(logps=[-1.0, -2.0]))
    assert pair_GG[0].tolist() == [[0.0, 1.0], [0.0, 0.0]]


@given(st.integers(2, 6), st.integers(0, 1000))
def test_ranks_are_a_permutation(size: int, seed: int) -> None:
    """1 for the highest score; padding comes last; ties keep input order."""
    scores_BG = random_policy(size, seed)[None]
    valid_BG = torch.ones(1, size, dtype=torch.bool)
    ranks_BG = f.ranks(scores_BG, valid_BG)
    assert sorted(ranks_BG[0].tolist()) == list(range(1, size + 1))
    assert ranks_BG[0, scores_BG.argmax()] == 1
    valid_BG[0, scores_BG.argmax()] = False
    assert f.ranks(scores_BG, valid_BG)[0, scores_BG.argmax()] == size
    assert f.ranks(torch.zeros(1, size), torch.ones(1, size, dtype=torch.bool))[0].tolist() == list(range(1, size + 1))


@given(st.floats(-700.0, -1e-9))
def test_log1mexp(a: float) -> None:
    """Against mpmath-free arithmetic: log(-expm1(a)) is exact near 0, log1p(-exp(a)) far away."""
    leaf = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    value = f.log1mexp(leaf)
    expected = math.log(-math.expm1(a)) if a > -0.7 else math.log1p(-math.exp(a))
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-300)
    # d/da log(1 - e^a) = -e^a / (1 - e^a) = e^a / expm1(a)
    (slope,) = torch.autograd.grad(value, leaf)
    assert slope.item() == pytest.approx(math.exp(a) / math.expm1(a), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [0.0, -0.0, -1e-300, -1e-30, -1e-12, -1e-5])
def test_log1mexp_at_zero_is_finite(a: float, dtype: torch.dtype) -> None:
    """Invariant 72, the orpo part: value and gradient at 0, at -0, and at what is next to it in either precision."""
    leaf = torch.tensor([a], dtype=dtype, requires_grad=True)
    value = f.log1mexp(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert value.isfinite().all() and grad.isfinite().all()


@given(st.floats(-50.0, 50.0))
def test_softplus(z: float) -> None:
    """log(1 + e^z) to the last digits; torch's own switches to the identity at 20."""
    assert f.softplus(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(
        max(z, 0.0) + math.log1p(math.exp(-abs(z))), rel=1e-14
    )


@pytest.mark.parametrize("z", [-1e4, -800.0, 800.0, 1e4])
def test_softplus_does_not_overflow(z: float) -> None:
    """Its value tends to max(0, z) and its slope to 0 or 1, where e^z is inf or 0."""
    leaf = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    value = f.softplus(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    assert value.item() == max(z, 0.0) and slope.item() == float(z > 0)


@given(st.integers(1, 5), st.integers(0, 1000), st.booleans(), st.booleans())
def test_group_wins_average_to_one_half(size: int, seed: int, is_enumerated: bool, include_self: bool) -> None:
    """P + P^T = 1, so what one response gains another loses; with probabilities the mean is theirs. Padding is out.

    Tolerance: a sum of at most 25 numbers below 1.
    """
    prefs_BGG = torch.full((1, size + 1, size + 1), torch.nan, dtype=torch.float64)
    prefs_BGG[:, :size, :size] = random_preferences(size, seed)
    valid_BG = torch.tensor([[True] * size + [False]])
    weights_BG = torch.nn.functional.pad(random_policy(size, seed).exp(), (0, 1))[None] if is_enumerated else None
    wins_BG = f.group_wins(prefs_BGG, valid_BG, weights_BG, include_self=include_self)[:, :size]
    mean = (wins_BG * weights_BG[:, :size]).sum() if weights_BG is not None else wins_BG.mean()
    assert mean.item() == pytest.approx(0.5, abs=1e-14)
    assert bool(((wins_BG >= 0) & (wins_BG <= 1)).all())
    swapped_BG = f.group_wins(1 - prefs_BGG, valid_BG, weights_BG, include_self=include_self)[:, :size]
    torch.testing.assert_close(swapped_BG - 0.5, 0.5 - wins_BG, rtol=0, atol=1e-14)
    for i in range(size):  # the definition, spelt out
        others = [j for j in range(size) if is_enumerated or include_self or j != i]
        weights = [1.0 if weights_BG is None else float(weights_BG[0, j]) for j in others]
        total = sum(weight * float(prefs_BGG[0, i, j]) for j, weight in zip(others, weights, strict=True))
        assert wins_BG[0, i].item() == pytest.approx(total / sum(weights) if others else 0.5, abs=1e-14)


@given(st.integers(2, 5), st.integers(0, 1000), st.booleans())
def test_unasked_pairs_and_padding_have_no_weight(size: int, seed: int, is_enumerated: bool) -> None:
    """The weight of what was not asked goes to what was, in proportion; a mask with nothing in it gives 0, not nan."""
    generator = torch.Generator().manual_seed(seed)
    asked_GG = torch.rand(size, size, generator=generator) > 0.5
    asked_GG = asked_GG | asked_GG.T
    valid_BG = torch.rand(1, size, generator=generator) > 0.3
    x = enumerated(random_policy(size, seed), sampler_A=random_policy(size, seed).exp() if is_enumerated else None)
    x = replace(x, valid_BG=valid_BG)
    all_GG, some_GG = f.pair_weights(x)[0], f.pair_weights(x, asked_GG[None])[0]
    usable_GG = asked_GG & valid_BG[0][:, None] & valid_BG[0]
    assert float(some_GG[~usable_GG].abs().sum()) == 0
    torch.testing.assert_close(some_GG, some_GG.T, rtol=0, atol=1e-15)
    kept = all_GG[usable_GG].sum()
    assert some_GG.sum().item() == pytest.approx(1.0 if kept > 0 else 0.0, abs=1e-12)
    torch.testing.assert_close(some_GG * kept, torch.where(usable_GG, all_GG, 0.0) * (kept > 0), rtol=0, atol=1e-15)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_enumerated_expectations_are_sums_over_the_policy(size: int, seed: int) -> None:
    """With probabilities as weights the average over responses is an expectation, and pairs are independent draws."""
    policy_A = random_policy(size, seed).exp()
    x = enumerated(random_policy(size, seed + 1), sampler_A=policy_A)
    torch.testing.assert_close(f.response_weights(x)[0], policy_A, rtol=0, atol=1e-15)
    torch.testing.assert_close(f.pair_weights(x)[0], policy_A[:, None] * policy_A, rtol=0, atol=1e-15)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_ranks_agree_with_a_stable_sort(scores: list[int]) -> None:
    """Many ties: the earlier of two equal scores ranks first, as in Python's stable sort."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    expected = [order.index(i) + 1 for i in range(len(scores))]
    found = f.ranks(torch.tensor([scores], dtype=torch.float64), torch.ones(1, len(scores), dtype=torch.bool))
    assert found[0].tolist() == expected


def test_win_regression_equals_preference_regression_in_a_group() -> None:
    """R3 with mu = s has R's minimiser: the gradients agree where both opponents are the sampler."""
    prefs_AA, sampler_A, theta_A = random_preferences(4, 4), random_policy(4, 4).exp(), random_policy(4, 5)

    def by_prefs(logps_A: Tensor) -> object:
        x = enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA)
        return preference_regression(x, x.logps_BG, target=0.7)

    def by_wins(logps_A: Tensor) -> object:
        x = enumerated(logps_A, sampler_A=sampler_A, wins_A=prefs_AA @ sampler_A)
        return win_regression(x, x.logps_BG, target=0.7)

    torch.testing.assert_close(gradient(by_prefs, theta_A), gradient(by_wins, theta_A), rtol=0, atol=1e-12)


def test_an_expected_comparison_by_hand() -> None:
    """Three responses, pairs (0, 1) at P = .8 and (0, 2) at P = .25, (1, 2) not asked, where the loss is infinite.

    Each pair has probability 1/2: (.8 * 1 + .2 * 2 + .25 * 3 + .75 * 4) / 2 = 2.475; gradients stay finite.
    """
    nan, inf = torch.nan, torch.inf
    prefs_AA = torch.tensor([[0.5, 0.8, 0.25], [0.2, 0.5, nan], [0.75, nan, 0.5]], dtype=torch.float64)
    x = enumerated(random_policy(3, 0), sampler_A=None, prefs_AA=prefs_AA)
    loss_BGG = torch.tensor([[[inf, 1.0, 3.0], [2.0, nan, inf], [4.0, -inf, 0.0]]], dtype=torch.float64)
    loss_BGG.requires_grad_()
    output = f.comparison_loss(x, loss_BGG)
    assert output.loss_B.item() == pytest.approx(2.475, abs=1e-12) and output.weight_B.item() == 1
    (grad_BGG,) = torch.autograd.grad(output.loss_B.sum(), loss_BGG)
    expected_GG = torch.tensor([[0, 0.4, 0.125], [0.1, 0, 0], [0.375, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(grad_BGG[0], expected_GG, rtol=0, atol=1e-12)


def test_a_policy_gradient_differentiates_log_probs_alone() -> None:
    """loss = -sum_i w_i R_i log pi_i: the gradient in log pi_i is -w_i R_i though w and R depend on pi (invariant 15).

    A group whose responses are all padding has loss 0, weight 0 and gradient 0.
    """
    logps_A = random_policy(3, 1).requires_grad_()
    x = enumerated(logps_A, sampler_A=logps_A.exp())
    returns_BG = x.logps_BG * 2 + 1
    output = f.policy_gradient_loss(x, returns_BG)
    (grad_A,) = torch.autograd.grad(output.loss_B.sum(), logps_A)
    torch.testing.assert_close(grad_A, -(logps_A.exp() * (2 * logps_A + 1)).detach(), rtol=0, atol=1e-12)
    assert output.weight_B.item() == 1
    empty = replace(x, valid_BG=torch.zeros(1, 3, dtype=torch.bool))
    nothing = f.policy_gradient_loss(empty, returns_BG)
    assert nothing.loss_B.item() == nothing.weight_B.item() == 0


def hard_feedback() -> Feedback:
    return Feedback(prefs_KBGG=torch.tensor([[[[0.5, 1.0], [0.0, 0.5]]]]))


def test_preference_metrics() -> None:
    """Hand values: h = 1 - (-.3) = 1.3 > 0, so accuracy .8 at P = .8; margin (2 * .8 - 1) 1.3; nan without a pair."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], preference=0.8)
    metrics = f.preference_metrics(x)
    assert metrics["accuracy"].item() == pytest.approx(0.8)
    assert metrics["margin"].item() == pytest.approx(0.6 * 1.3)
    assert metrics["chosen_logps"].item() == pytest.approx(0.8 * -4 + 0.2 * -5)
    assert metrics["rejected_logps"].item() == pytest.approx(0.8 * -5 + 0.2 * -4)
    # delta = 1 > 0 for the winner of probability .8; seen from the other label delta_ref = .3 > delta = -1.
    assert metrics["accuracy_absolute"].item() == pytest.approx(0.8) and metrics["undesirable"].item() == 0
    assert not any(value_B.requires_grad for value_B in metrics.values())
    # delta = -1 lies between delta_ref = -3 and 0: in the undesirable set, though the relative accuracy is 1.
    wrong = f.preference_metrics(pair_inputs(logps=[-5.0, -4.0], ref=[-6.0, -3.0], preference=1.0))
    assert (wrong["accuracy"].item(), wrong["accuracy_absolute"].item(), wrong["undesirable"].item()) == (1, 0, 1)
    # Per token -5/10 beats -4/2, as -6/10 beat -3/2: with another measure of likelihood nothing is wrong.
    wrong = f.preference_metrics(
        replace(pair_inputs(logps=[-5.0, -4.0], ref=[-6.0, -3.0], preference=1.0), lengths_BG=torch.tensor([[10, 2]]))
    )
    assert (wrong["accuracy_absolute_per_token"].item(), wrong["undesirable_per_token"].item()) == (1, 0)
    for lengths, expected in (([2, 5], 1.0), ([5, 2], math.nan), ([5, 5], math.nan)):
        sized = replace(x, lengths_BG=torch.tensor([lengths]), feedback=hard_feedback())
        metrics = f.preference_metrics(sized)
        assert metrics["length_difference"].item() == lengths[0] - lengths[1]
        assert metrics["accuracy_of_shorter"].item() == pytest.approx(expected, nan_ok=True)
    without_ref = f.preference_metrics(pair_inputs(logps=[-4.0, -5.0], preference=0.8))
    assert without_ref["margin"].item() == pytest.approx(0.6 * 1.0)
    tied = f.preference_metrics(pair_inputs(logps=[-4.0, -4.0], preference=0.8))
    assert tied["accuracy"].item() == pytest.approx(0.5) and tied["margin"].item() == 0
    lonely = enumerated(random_policy(1, 0), sampler_A=None, prefs_AA=random_preferences(1, 0))
    assert all(value_B.isnan().all() for value_B in f.preference_metrics(lonely).values())
    several = replace(x, feedback=Feedback(prefs_KBGG=torch.full((2, 1, 2, 2), 0.5)))
    assert f.preference_metrics(several) == f.preference_metrics(replace(x, feedback=Feedback())) == {}


def test_a_group_without_a_pair_has_no_loss() -> None:
    """One response: weight 0, loss 0, no nan."""
    x = enumerated(random_policy(1, 0), sampler_A=None, prefs_AA=random_preferences(1, 0))
    output = regression_loss(x, x.logps_BG, torch.zeros(1, 1, 1, dtype=torch.float64), None)
    assert output.loss_B.item() == output.weight_B.item() == 0
