"""KTO: values, the reference point, labels."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from alignment.errors import MissingFeedbackError, UserError
from alignment.methods.kto import KTO
from alignment.types import Feedback, LossInputs

OPTIONS = {"beta": 1.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
LOG3 = math.log(3.0)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def rows(ell: list[float], scores: list[float], mismatched: list[float]) -> LossInputs:
    """Single responses with log-ratios ``ell``; the mismatched completions have log-ratios ``mismatched``."""
    ref_BG = torch.full((len(ell), 1), -2.0, dtype=torch.float64)
    return LossInputs(
        logps_BG=(column(ell) - 2.0).requires_grad_(),
        lengths_BG=torch.ones(len(ell), 1, dtype=torch.int64),
        valid_BG=torch.ones(len(ell), 1, dtype=torch.bool),
        feedback=Feedback(scores_KBG=column(scores)[None]),
        anchors={"ref": ref_BG},
        mismatched_logps_B=(column(mismatched)[:, 0] - 5.0).requires_grad_(),
        mismatched_anchors={"ref": torch.full((len(ell),), -5.0, dtype=torch.float64)},
    )


def test_at_the_reference() -> None:
    """Invariant 67: half of each weight."""
    card = KTO(beta=0.1, desirable_weight=1.2, undesirable_weight=1.5)
    loss_B = card.loss(rows([0.0, 0.0], [1, 0], [0.0, 0.0])).loss_B
    torch.testing.assert_close(loss_B, torch.tensor([0.6, 0.75], dtype=torch.float64))


def test_by_hand() -> None:
    """beta (ell - z0) = log 3 with z0 = 0: 1 - 3/4 if desirable, w_U 3/4 if not; z0 = ell gives 1/2."""
    card = KTO(beta=0.5, desirable_weight=1.0, undesirable_weight=2.0)
    loss_B = card.loss(rows([2 * LOG3, 2 * LOG3], [1, 0], [0.0, 0.0])).loss_B
    torch.testing.assert_close(loss_B, torch.tensor([0.25, 1.5], dtype=torch.float64))
    loss_B = card.loss(rows([2 * LOG3, 2 * LOG3], [1, 0], [LOG3, 3 * LOG3])).loss_B
    torch.testing.assert_close(loss_B, torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_direction() -> None:
    """At the reference the slope is -w_D beta/4 for a desirable and +w_U beta/4 for an undesirable response."""
    x = rows([0.0, 0.0], [1, 0], [0.0, 0.0])
    (slope_BG,) = grad(KTO(beta=0.4, desirable_weight=1.0, undesirable_weight=2.0).loss(x).loss_B.sum(), x.logps_BG)
    torch.testing.assert_close(slope_BG, column([-0.1, 0.2]))


def test_reference_point_has_no_gradient_and_is_not_negative() -> None:
    """Invariant 72: z0 = max(0, mean of the mismatched log-ratios), detached."""
    card = KTO(**OPTIONS)
    x = rows([0.3, -0.2], [1, 0], [0.5, 0.1])
    output = card.loss(x)
    (slope_B,) = grad(output.loss_B.sum(), x.mismatched_logps_B, allow_unused=True)
    assert slope_B is None
    torch.testing.assert_close(output.metrics["reference_point"], torch.full((2,), 0.3, dtype=torch.float64))
    assert card.loss(rows([0.3, -0.2], [1, 0], [-0.5, 0.1])).metrics["reference_point"].tolist() == [0, 0]


def test_reference_point_is_averaged_over_ranks() -> None:
    """The clamp comes after the mean over ranks: another rank may lift a negative estimate above 0."""
    x = dataclasses.replace(rows([0.3], [1], [-0.5]), batch_mean=lambda mean: (mean + 0.9) / 2)
    assert KTO(**OPTIONS).loss(x).metrics["reference_point"].item() == pytest.approx(0.2, abs=1e-12)


def test_padded_and_unlabelled_rows_do_not_count() -> None:
    """An unlabelled row (nan) has weight 0; a padded one does not enter the reference point either."""
    x = dataclasses.replace(
        rows([0.3, 0.1, 0.2], [1, math.nan, 1], [0.2, 0.4, 9.0]), valid_BG=torch.tensor([[True], [True], [False]])
    )
    output = KTO(**OPTIONS).loss(x)
    assert output.weight_B.tolist() == [1, 0, 0]
    assert output.loss_B[1:].tolist() == [0, 0]
    assert output.metrics["reference_point"][0].item() == pytest.approx(0.3, abs=1e-12)


def test_a_probability_is_a_mixture_of_labels() -> None:
    """Labels known with probability p give the expectation over both labels."""
    card = KTO(beta=0.7, desirable_weight=1.0, undesirable_weight=1.2)
    good, bad, mixed = card.loss(rows([0.4, 0.4, 0.4], [1, 0, 0.3], [0.1, 0.1, 0.1])).loss_B
    torch.testing.assert_close(mixed, 0.3 * good + 0.7 * bad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feedback": Feedback(scores_KBG=column([1, 7.5])[None])}, UserError, "outside"),
        ({"mismatched_logps_B": None}, MissingFeedbackError, "mismatched"),
    ],
)
def test_what_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    x = dataclasses.replace(rows([0.3, -0.2], [1, 0], [0.5, 0.1]), **change)
    with pytest.raises(error, match=message):
        KTO(**OPTIONS).loss(x)


def test_groups_are_refused() -> None:
    x = LossInputs(
        logps_BG=torch.zeros(1, 2),
        lengths_BG=torch.ones(1, 2, dtype=torch.int64),
        valid_BG=torch.ones(1, 2, dtype=torch.bool),
        feedback=Feedback(scores_KBG=torch.ones(1, 1, 2)),
    )
    with pytest.raises(UserError, match="one response per row, got 2"):
        KTO(**OPTIONS).loss(x)
