"""Nash Mirror Prox: policy gradient towards a mirror step around a slow target, which is also the opponent.

The practical gradient is [derived] from the policy-space update; the paper's own description is [second-hand]. The
exact two half steps on a matrix game are ``games.updates.extragradient_update``.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import policy_gradient_loss
from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.types import Ema, Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def nash_mp_loss(x: LossInputs, ref_BG: Tensor, target_BG: Tensor, *, tau: float, eta: float) -> LossOutput:
    """Policy gradient of ``P(y > mu) - tau log pi/ref(y) - (tau/eta) log pi/target(y)``.

    arXiv 2505.19731 [derived]. With a fixed target and mu = target the gradient vanishes at
    ``target^(1-a) ref^a exp(a P(. > target)/tau)``, ``a = eta / (1 + eta)``: one mirror step.

    Args:
        x: log-probs, masks, and wins against mu (the target; for ``nash_prox`` the current policy).
        ref_BG: log-probs under the reference.
        target_BG: log-probs under the slow target.
        tau: KL strength towards the reference.
        eta: step of the outer loop.
    """
    penalty_BG = tau * (x.logps_BG - ref_BG) + (tau / eta) * (x.logps_BG - target_BG)
    return policy_gradient_loss(x, x.wins_BG - 0.5 - penalty_BG)


@dataclass(frozen=True, slots=True, kw_only=True)
class NashMP(Options):
    """Nash-MP: mirror prox against a slow target.

    Attributes:
        decay: of the slow target at every advance; 0 copies the policy.
        inner_steps: optimizer steps between two advances.
    """

    tau: float = option(paper="the paper's value is not known to us [unverified] (2505.19731)", above=0, example=0.01)
    eta: float = option(paper="the theory's rate is for eta = 2 tau [second-hand] (2505.19731)", above=0, example=0.02)
    decay: float = option(default=0.0, paper="about 1 - 1/inner_steps [derived] (2505.19731)", at_least=0, below=1)
    inner_steps: int = option(default=1, paper="not known to us [unverified] (2505.19731)", at_least=1)

    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = papers.NASH_MP

    @property
    def needs(self) -> Needs:
        return Needs(
            feedback="wins",
            anchors=(Frozen("ref"), Ema("target", decay=self.decay)),
            sampler="policy",
            opponent="target",
            schedule="online",
            inner_steps=self.inner_steps,
        )

    def loss(self, x: LossInputs) -> LossOutput:
        """The policy gradient with both penalties."""
        return nash_mp_loss(x, x.anchor("ref"), x.anchor("target"), tau=self.tau, eta=self.eta)


METHOD = NashMP
