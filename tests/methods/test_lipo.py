"""LiPO: lambda weights by hand, two-response limits of every ranking loss, ragged lists, reductions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck

from alignment.errors import UserError
from alignment.functional import group_wins
from alignment.methods.dpo import dpo_loss
from alignment.methods.lipo import LiPO, lambda_weights
from alignment.types import Feedback, LossInputs

OPTIONS = {"beta": 1.0}

SCORES, LABELS = [0.2, 0.9, -0.3], [1.0, 0.5, 0.0]
PAIRWISE = ["lambda", "list_mle", "pair_logistic", "pair_hinge"]


def lists(scores: list[list[float]], labels: list[list[float]], valid: list[list[bool]] | None = None) -> LossInputs:
    """Prompts whose responses have log-ratios ``scores`` and labels ``labels``."""
    ref_BG = torch.full((len(scores), len(scores[0])), -3.0, dtype=torch.float64)
    return LossInputs(
        logps_BG=(torch.tensor(scores, dtype=torch.float64) - 3.0).requires_grad_(),
        lengths_BG=torch.ones_like(ref_BG, dtype=torch.int64),
        valid_BG=torch.ones_like(ref_BG, dtype=torch.bool) if valid is None else torch.tensor(valid),
        feedback=Feedback(scores_KBG=torch.tensor([labels], dtype=torch.float64)),
        anchors={"ref": ref_BG},
    )


def value_and_gradient(card: LiPO, x: LossInputs) -> tuple[Tensor, Tensor]:
    loss_B = card.loss(x).loss_B
    return loss_B.detach(), grad(loss_B.sum(), x.logps_BG)[0]


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


@pytest.mark.parametrize("scores", [[0.4, -0.3], [-0.3, 0.4]])
@pytest.mark.parametrize(
    ("labels", "options", "factor"),
    [
        ([1.0, 0.0], {"scale_by_list_size": False}, 0.3690702),
        ([1.0, 0.0], {"scale_by_list_size": False, "log_base": "e"}, 0.5324558),
        ([1.0, 0.0], {}, 2 * 0.3690702),
        ([0.75, 0.25], {"scale_by_list_size": False}, 0.1817987),
    ],
)
def test_two_responses(scores: list[float], labels: list[float], options: dict[str, Any], factor: float) -> None:
    """Invariant 86: C dpo, C = (2^psi_w - 2^psi_l)(1 - 1/log2 3), whichever response ranks first now.

    log2 3 = 1.5849625, 1/log2 3 = .6309298; in natural logs 1/log 2 - 1/log 3 = .5324558; 2^.75 - 2^.25 = .4925857.
    """
    beta = 0.7
    loss_B = LiPO(beta=beta, **options).loss(lists([scores], [labels])).loss_B
    assert loss_B.item() == pytest.approx(factor * softplus(-beta * (scores[0] - scores[1])), abs=1e-7)


def test_three_responses() -> None:
    """Invariant 87: gains 1, 2^.5 - 1, 0; ranks 2, 1, 3, so discounts 1/log2 3, 1, 1/2.

    (1, 2): .5857864 x .3690702 x softplus(.7)  = .2161963 x 1.1031860
    (1, 3): 1        x .1309298 x softplus(-.5) = .1309298 x .4740770
    (2, 3): .4142136 x .5       x softplus(-1.2) = .2071068 x .2632825
    """
    by_hand = (
        (2 - math.sqrt(2)) * (1 - 1 / math.log2(3)) * softplus(0.7)
        + (1 / math.log2(3) - 0.5) * softplus(-0.5)
        + (math.sqrt(2) - 1) * 0.5 * softplus(-1.2)
    )
    x = lists([SCORES], [LABELS])
    plain = LiPO(beta=1.0, reduction="sum", scale_by_list_size=False).loss(x)
    assert plain.loss_B.item() == pytest.approx(by_hand, abs=1e-12)
    assert plain.loss_B.item() == pytest.approx(0.3551032, abs=1e-7)
    assert plain.weight_B.item() == 1
    rax = LiPO(beta=1.0).loss(x)  # times 3 responses, divided by 3 pairs
    assert rax.loss_B.item() == pytest.approx(0.3551032, abs=1e-7)
    assert rax.weight_B.item() == 3


def test_rax_is_the_mean_over_the_pairs_of_the_batch() -> None:
    """Lists with 3 and 1 pairs: the weighted mean of the trainer counts every pair once."""
    x = lists([SCORES, [0.5, 0.1, 7.0]], [LABELS, [0.0, 1.0, 0.5]], [[True] * 3, [True, True, False]])
    output = LiPO(beta=1.0, objective="pair_logistic").loss(x)
    mean = (output.weight_B * output.loss_B).sum() / output.weight_B.sum()
    by_hand = [softplus(0.7), softplus(-0.5), softplus(-1.2), softplus(0.4)]
    assert mean.item() == pytest.approx(sum(by_hand) / 4, abs=1e-12)


def test_unit_weights_are_pair_logistic() -> None:
    """Invariant 88: DPO on every pair."""
    loss_B = LiPO(beta=1.0, objective="pair_logistic", reduction="sum").loss(lists([SCORES], [LABELS])).loss_B
    differences = torch.tensor([-0.7, 0.5, 1.2], dtype=torch.float64)
    assert loss_B.item() == pytest.approx(dpo_loss(differences, beta=1.0).sum().item(), abs=1e-12)


@pytest.mark.parametrize("reduction", ["rax", "sum"])
@pytest.mark.parametrize("objective", PAIRWISE)
def test_equal_labels_say_nothing(objective: Any, reduction: Any) -> None:
    """Invariant 88: loss 0, gradient 0, weight 0, no nan; also where nothing is labelled."""
    x = lists([SCORES, SCORES], [[0.5, 0.5, 0.5], [math.nan] * 3])
    card = LiPO(beta=1.0, objective=objective, reduction=reduction)
    value_B, slope_BG = value_and_gradient(card, x)
    assert value_B.tolist() == [0, 0]
    assert slope_BG.abs().max() == 0
    assert card.loss(x).weight_B.tolist() == [0, 0]


@pytest.mark.parametrize("objective", [*PAIRWISE, "softmax", "point_mse", "point_sigmoid"])
def test_order_of_the_list_is_immaterial(objective: Any) -> None:
    """Invariant 89, with a tie among the labels: the gradient moves with its response."""
    card = LiPO(beta=0.5, objective=objective)
    scores, labels, order = [0.2, 0.9, -0.3, 0.4], [1.0, 0.5, 0.0, 0.5], [2, 0, 3, 1]
    value_B, slope_BG = value_and_gradient(card, lists([scores], [labels]))
    permuted = lists([[scores[k] for k in order]], [[labels[k] for k in order]])
    permuted_B, permuted_slope_BG = value_and_gradient(card, permuted)
    torch.testing.assert_close(permuted_B, value_B, rtol=0, atol=1e-12)
    torch.testing.assert_close(permuted_slope_BG, slope_BG[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", [*PAIRWISE, "softmax", "point_mse", "point_sigmoid"])
def test_a_shift_of_a_prompt(objective: Any) -> None:
    """Invariants 17 and 89: changes nothing, except for the point losses."""
    card = LiPO(beta=0.5, objective=objective)
    loss = card.loss(lists([SCORES], [LABELS])).loss_B.item()
    shifted = card.loss(lists([[score + 2 for score in SCORES]], [LABELS])).loss_B.item()
    assert (abs(shifted - loss) < 1e-12) == (not objective.startswith("point"))


def test_weights_carry_no_gradient() -> None:
    """Invariant 89: the gradient is that of the pair losses with the weights held fixed."""
    _, slope_BG = value_and_gradient(
        LiPO(beta=1.0, reduction="sum", scale_by_list_size=False), lists([SCORES], [LABELS])
    )
    weights = lambda_weights(torch.tensor([LABELS]).double(), torch.tensor([[2, 1, 3]]), log_base=2)[0]
    push = {(i, j): weights[i, j].item() / (1 + math.exp(SCORES[i] - SCORES[j])) for i, j in ((0, 1), (0, 2), (1, 2))}
    by_hand = [-push[0, 1] - push[0, 2], push[0, 1] - push[1, 2], push[0, 2] + push[1, 2]]
    assert slope_BG[0].tolist() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("objective", ["list_mle", "pair_logistic", "softmax"])
def test_two_responses_are_dpo(objective: Any) -> None:
    """Invariant 90, and the sign that Eq. 11 omits: -log softmax(s)_w = softplus(-(s_w - s_l)) with labels (1, 0)."""
    loss_B = LiPO(beta=0.7, objective=objective).loss(lists([[-0.3, 0.4]], [[1.0, 0.0]])).loss_B
    assert loss_B.item() == pytest.approx(softplus(0.7 * 0.7), abs=1e-12)


def test_two_responses_are_hinge() -> None:
    """Invariant 90: max(0, 1 - beta h), on both sides of the kink."""
    card = LiPO(beta=0.5, objective="pair_hinge")
    assert card.loss(lists([[0.4, -0.4]], [[1.0, 0.0]])).loss_B.item() == pytest.approx(0.6, abs=1e-12)
    assert card.loss(lists([[2.0, -0.4]], [[1.0, 0.0]])).loss_B.item() == 0


def test_list_mle_of_three() -> None:
    """Plackett-Luce: e^s1 / (e^s1 + e^s2 + e^s3) times e^s2 / (e^s2 + e^s3), in the order of the labels."""
    e1, e2, e3 = (math.exp(score) for score in SCORES)
    likelihood = e1 / (e1 + e2 + e3) * e2 / (e2 + e3)
    loss_B = LiPO(beta=1.0, objective="list_mle").loss(lists([SCORES], [LABELS])).loss_B
    assert loss_B.item() == pytest.approx(-math.log(likelihood), abs=1e-12)


@pytest.mark.parametrize("objective", ["list_mle", "softmax"])
def test_a_list_loss_counts_lists(objective: Any) -> None:
    """One term per list that says something; ``softmax`` without a positive label says nothing."""
    x = lists([SCORES, SCORES], [LABELS, [0.0, 0.0, 0.0]])
    output = LiPO(beta=1.0, objective=objective).loss(x)
    assert output.weight_B.tolist() == [1, 0]
    assert output.loss_B[1].item() == 0


def test_point_losses_and_softmax_by_hand() -> None:
    """s = log 3 and -log 3 have sigmoids 3/4, 1/4; softmax of (log 3, -log 3) is (9, 1)/10."""
    log3 = math.log(3.0)
    x = lists([[log3, -log3]], [[0.75, 0.5]])
    values = {
        objective: LiPO(beta=1.0, objective=objective, reduction="sum").loss(x).loss_B.item()  # type: ignore[arg-type]
        for objective in ("point_mse", "point_sigmoid", "softmax")
    }
    assert values["point_mse"] == pytest.approx((0.75 - log3) ** 2 + (0.5 + log3) ** 2, abs=1e-12)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert values["point_sigmoid"] == pytest.approx(entropy + 0.5 * math.log(4) + 0.5 * math.log(4 / 3), abs=1e-12)
    assert values["softmax"] == pytest.approx(0.6 * math.log(10 / 9) + 0.4 * math.log(10), abs=1e-12)
    assert LiPO(beta=1.0, objective="point_mse").loss(x).weight_B.item() == 2


def test_labels_from_ranks() -> None:
    """Invariant 91: psi_k = (1/G) sum_i P(y_k > y_i), the diagonal 1/2 included: 5/6, 1/2, 1/6 for ranks 1, 2, 3."""
    prefs_BGG = torch.tensor([[[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]], dtype=torch.float64)
    labels_BG = group_wins(prefs_BGG, torch.ones(1, 3, dtype=torch.bool), None, include_self=True)
    assert labels_BG[0].tolist() == pytest.approx([5 / 6, 1 / 2, 1 / 6], abs=1e-12)


@pytest.mark.parametrize("objective", [*PAIRWISE, "softmax", "point_mse", "point_sigmoid"])
@pytest.mark.parametrize("reduction", ["rax", "sum"])
def test_padding_changes_nothing(objective: Any, reduction: Any) -> None:
    """Invariant 92: the list size is the number of valid responses, not the width; an unlabelled one is no item."""
    card = LiPO(beta=0.5, objective=objective, reduction=reduction)
    value_B, slope_BG = value_and_gradient(card, lists([SCORES], [LABELS]))
    padded = lists([[9.0, *SCORES, 4.0]], [[0.9, *LABELS, math.nan]], [[False, True, True, True, True]])
    padded_B, padded_slope_BG = value_and_gradient(card, padded)
    torch.testing.assert_close(padded_B, value_B, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded_slope_BG[:, 1:4], slope_BG, rtol=0, atol=1e-12)
    assert padded_slope_BG[:, [0, 4]].abs().max() == 0
    assert torch.equal(card.loss(padded).weight_B, card.loss(lists([SCORES], [LABELS])).weight_B)


@pytest.mark.parametrize("objective", ["lambda", "list_mle", "pair_logistic", "softmax", "point_mse", "point_sigmoid"])
def test_gradient_inside_one_ordering(objective: Any) -> None:
    """Invariant 93: where no two scores cross, the gradient is that of the value."""
    x = lists([SCORES], [LABELS])
    card = LiPO(beta=0.5, objective=objective)

    def loss(logps_BG: Tensor) -> Tensor:
        return card.loss(
            LossInputs(
                logps_BG=logps_BG,
                lengths_BG=x.lengths_BG,
                valid_BG=x.valid_BG,
                feedback=x.feedback,
                anchors=x.anchors,
            )
        ).loss_B

    assert gradcheck(loss, x.logps_BG.detach().requires_grad_())


def test_jump_where_two_scores_cross() -> None:
    """Invariant 93: the lambda weights follow the ranks, so the loss is discontinuous there (and only there)."""
    card = LiPO(beta=1.0)
    below, above, further = (
        card.loss(lists([[score, 0.5, -0.3]], [LABELS])).loss_B.item() for score in (0.4999, 0.5001, 0.5003)
    )
    assert abs(above - below) > 1e-2
    assert abs(further - above) < 1e-3


@pytest.mark.parametrize(
    ("objective", "solution"), [("lambda", "bt_optimum"), ("softmax", "bt_optimum"), ("point_mse", "numeric")]
)
def test_solution_depends_on_the_ranking_loss(objective: Any, solution: str) -> None:
    assert LiPO(beta=1.0, objective=objective).solution == solution


def test_labels_outside_the_unit_interval_are_refused() -> None:
    """Rewards are no labels: 2^reward would weigh them out of all proportion."""
    with pytest.raises(UserError, match="labels in"):
        LiPO(beta=1.0).loss(lists([SCORES], [[3.0, 1.0, -2.0]]))


# The losses of methods/lipo.py once more, list by list and pair by pair in plain Python, from 2402.01878's formulas.


def brute_force(s: list[float], psi: list[float], objective: str, frozen: list[float]) -> float:
    """The sum over the terms of one list; ``frozen`` are the scores that the lambda weights are computed at."""
    size = len(s)
    pairs = [(i, j) for i in range(size) for j in range(size) if psi[i] > psi[j]]
    if objective == "lambda":
        rank = [1 + sum(other > own for other in frozen) for own in frozen]
        total = 0.0
        for i, j in pairs:
            gain = abs((2 ** psi[i] - 1) - (2 ** psi[j] - 1))
            discount = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j]))
            total += size * gain * discount * softplus(-(s[i] - s[j]))
        return total
    if objective == "pair_logistic":
        return sum(softplus(-(s[i] - s[j])) for i, j in pairs)
    if objective == "pair_hinge":
        return sum(max(0.0, 1 - (s[i] - s[j])) for i, j in pairs)
    if objective == "softmax":
        log_total = math.log(sum(math.exp(score) for score in s))
        return -sum(label / sum(psi) * (score - log_total) for label, score in zip(psi, s, strict=True))
    if objective == "point_mse":
        return sum((label - score) ** 2 for label, score in zip(psi, s, strict=True))
    assert objective == "point_sigmoid"
    return sum(label * softplus(-score) + (1 - label) * softplus(score) for label, score in zip(psi, s, strict=True))


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize(
    "objective", ["lambda", "pair_logistic", "pair_hinge", "softmax", "point_mse", "point_sigmoid"]
)
def test_every_loss_equals_its_formula_by_brute_force(objective: Any, size: int) -> None:
    """Twenty random lists with tied labels: value to 1e-12, gradient to 1e-7 of central differences of the formula."""
    generator = torch.Generator().manual_seed(size)
    for _ in range(20):
        scores = torch.randn(size, generator=generator, dtype=torch.float64).tolist()
        labels = (torch.randint(0, 5, (size,), generator=generator) / 4).tolist()
        if len(set(labels)) == 1:
            labels[0] = 1.0 if labels[0] < 0.5 else 0.0
        beta = 0.7
        s = [beta * score for score in scores]
        card = LiPO(beta=beta, objective=objective, reduction="rax")
        output = card.loss(lists([scores], [labels]))
        total = (output.loss_B * output.weight_B).item()
        assert total == pytest.approx(brute_force(s, labels, objective, s), rel=1e-12, abs=1e-12)
        _, slope_BG = value_and_gradient(card, lists([scores], [labels]))
        step = 1e-6
        for g in range(size):
            up, down = ([*s[:g], s[g] + sign * step, *s[g + 1 :]] for sign in (1, -1))
            difference = brute_force(up, labels, objective, s) - brute_force(down, labels, objective, s)
            expected = beta * difference / (2 * step) / output.weight_B.item()
            assert slope_BG[0, g].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_list_mle_equals_its_formula_by_brute_force(size: int) -> None:
    """Labels without ties, whose order is one: -sum_k log(e^{s_(k)} / sum_{j >= k} e^{s_(j)})."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(size, generator=generator, dtype=torch.float64).tolist()
    labels = (torch.randperm(size, generator=generator) / size).tolist()
    s = [0.7 * scores[g] for g in sorted(range(size), key=lambda g: -labels[g])]
    expected = -sum(s[k] - math.log(sum(math.exp(other) for other in s[k:])) for k in range(size))
    output = LiPO(beta=0.7, objective="list_mle").loss(lists([scores], [labels]))
    assert (output.loss_B * output.weight_B).item() == pytest.approx(expected, rel=1e-12)
