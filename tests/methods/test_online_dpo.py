"""Online DPO: DPO's loss, expected over the oracle."""

import pytest

from alignment.methods.dpo import DPO
from alignment.methods.online_dpo import OnlineDPO
from tests.methods.problem import pair_inputs

OPTIONS = {"beta": 1.0}


def test_it_is_the_expectation_of_dpo() -> None:
    """At P = .8: .8 of DPO's loss with one label and .2 with the other."""
    logps, ref = [-4.0, -5.0], [-4.5, -4.2]
    one = DPO(beta=0.3).loss(pair_inputs(logps=logps, ref=ref)).loss_B.item()
    other = DPO(beta=0.3).loss(pair_inputs(logps=logps, ref=ref, preference=0.0)).loss_B.item()
    soft = OnlineDPO(beta=0.3).loss(pair_inputs(logps=logps, ref=ref, preference=0.8)).loss_B.item()
    assert soft == pytest.approx(0.8 * one + 0.2 * other, abs=1e-12)
