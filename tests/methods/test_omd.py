"""OMD: EGPO's loss, one stage."""

import torch

from alignment.methods.egpo import EGPO
from alignment.methods.omd import OMD
from alignment.optim import ExtraGradient
from tests.methods.regression import enumerated, random_policy, random_preferences

OPTIONS = {"tau": 0.1}


def test_it_is_egpo_with_one_stage() -> None:
    """Same loss on the same inputs; the cards differ in the number of stages only."""
    wins_A = random_preferences(4, 0) @ random_policy(4, 1).exp()
    x = enumerated(random_policy(4, 2), sampler_A=None, wins_A=wins_A, ref=random_policy(4, 3))
    assert OMD(tau=0.3).loss(x).loss_B.item() == EGPO(tau=0.3).loss(x).loss_B.item()
    assert OMD(tau=0.3).needs.feedback == EGPO(tau=0.3).needs.feedback
    assert OMD(tau=0.3).needs.stages == 1 and EGPO(tau=0.3).needs.stages == 2


def test_extragradient_without_a_half_step_is_mirror_descent() -> None:
    """Invariant 42: with lr 0 in stage 0 the opponent of stage 1 is the policy itself; five iterations, exactly."""
    prefs_AA, ref_A, start_A = random_preferences(4, 1), random_policy(4, 1), random_policy(4, 2)

    def walk(half_lr: float | None) -> torch.Tensor:
        theta_A = torch.nn.Parameter(start_A.clone())
        optimizer = ExtraGradient(torch.optim.SGD([theta_A], lr=0.3))
        for _ in range(5):
            for stage in (1,) if half_lr is None else (0, 1):
                optimizer.stage = None if half_lr is None else stage
                optimizer.param_groups[0]["lr"] = half_lr if stage == 0 else 0.3
                wins_A = prefs_AA @ theta_A.detach().softmax(-1)
                optimizer.rewind()
                x = enumerated(
                    theta_A.log_softmax(-1), sampler_A=torch.full_like(ref_A, 0.25), wins_A=wins_A, ref=ref_A
                )
                optimizer.zero_grad()
                EGPO(tau=0.3).loss(x).loss_B.sum().backward()
                optimizer.step()
        return theta_A.detach()

    assert torch.equal(walk(0.0), walk(None))
    assert float((walk(0.3) - walk(None)).abs().max()) > 1e-3
