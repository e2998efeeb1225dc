"""HyPO: DPO where the reference agrees with the label, reference-free where it does not."""

import math

import numpy as np
import pytest

from alignment.methods.contrastive_cpo import ContrastiveCPO
from alignment.methods.dpo import DPO
from alignment.methods.hypo import HyPO
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0}

LOGPS, REF = [-4.0, -5.0], [-4.5, -4.2]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """E[-log sigmoid(delta - max(0, delta_ref))], differences of log pi and log ref; beta 1."""
    log_ref_A = np.log(problem.ref_A)
    delta_ref_AA = np.maximum(0.0, np.subtract.outer(log_ref_A, log_ref_A))
    return problem.expect_pairs(np.logaddexp(0, delta_ref_AA - np.subtract.outer(log_pi_A, log_pi_A)))


def test_value_where_the_reference_disagrees() -> None:
    """delta = 1, delta_ref = -4.5 + 4.2 = -.3, clipped to 0: log(1 + e^-1), not DPO's log(1 + e^-1.3)."""
    loss = HyPO(beta=1.0).loss(pair_inputs(logps=LOGPS, ref=REF)).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-12)


def test_value_where_the_reference_agrees() -> None:
    """delta = 1, delta_ref = .3: log(1 + e^-.7)."""
    loss = HyPO(beta=1.0).loss(pair_inputs(logps=LOGPS, ref=REF[::-1])).loss_B
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.7)), abs=1e-12)


@pytest.mark.parametrize("delta_ref", [0.0, 0.3, 4.0])
def test_dpo_where_the_reference_agrees(delta_ref: float) -> None:
    """Invariant 70, first half."""
    x = pair_inputs(logps=LOGPS, ref=[-2.0, -2.0 - delta_ref])
    assert HyPO(beta=0.3).loss(x).loss_B.item() == pytest.approx(DPO(beta=0.3).loss(x).loss_B.item(), abs=1e-12)


@pytest.mark.parametrize("delta_ref", [-0.3, -4.0])
def test_reference_free_where_the_reference_disagrees(delta_ref: float) -> None:
    """Invariant 70, second half."""
    x = pair_inputs(logps=LOGPS, ref=[-2.0, -2.0 - delta_ref])
    free = ContrastiveCPO(beta=0.3, nll_weight=0.0).loss(x).loss_B.item()
    assert HyPO(beta=0.3).loss(x).loss_B.item() == pytest.approx(free, abs=1e-12)


def test_a_small_loss_means_the_chosen_response_leads() -> None:
    """DPO is content (loss < log 2) at delta = -2 once delta_ref = -4; HyPO is not."""
    x = pair_inputs(logps=[-4.0, -2.0], ref=[-6.0, -2.0])
    assert DPO(beta=1.0).loss(x).loss_B.item() < math.log(2) < HyPO(beta=1.0).loss(x).loss_B.item()


def test_relabelling_changes_nothing() -> None:
    """Invariant 16: swap the responses and P -> 1 - P."""
    original = pair_inputs(logps=LOGPS, ref=REF, preference=0.7)
    swapped = pair_inputs(logps=LOGPS[::-1], ref=REF[::-1], preference=0.3)
    card = HyPO(**OPTIONS)
    assert card.loss(swapped).loss_B.item() == pytest.approx(card.loss(original).loss_B.item(), abs=1e-12)
