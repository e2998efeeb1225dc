"""Online IPO: the IPO regression on pairs of the current policy, whose stationary point is the equilibrium.

Differs from the paper: the regression form ``(h - (P - 1/2)/tau)^2`` replaces the ordered pair; the two differ by a
constant (Lemma R in docs/methods/README.md). Equations of the paper are [second-hand].
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import preference_regression
from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def online_ipo_loss(x: LossInputs, ref_BG: Tensor, *, tau: float) -> LossOutput:
    """Regression of log-ratio differences on ``(P(y > y') - 1/2) / tau``.

    arXiv 2403.08635. Its gradient is -4/tau times that of regularised self-play [derived, checked], 0 at the
    equilibrium.

    Args:
        x: log-probs, masks, and preferences between responses of the current policy.
        ref_BG: log-probs under the reference.
        tau: KL strength towards the reference.
    """
    return preference_regression(x, x.logps_BG - ref_BG, target=0.5 / tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineIPO(Options):
    """Online IPO: pairs from the policy itself, one gradient step each."""

    tau: float = option(paper="the paper chose 1 from {0.1, 0.5, 1, 5, 10} (2403.08635)", above=0, usual=(0.1, 10))

    needs: ClassVar[Needs] = Needs(
        feedback="prefs", anchors=(Frozen("ref"),), sampler="policy", opponent="none", schedule="online"
    )
    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = papers.ONLINE_IPO

    def loss(self, x: LossInputs) -> LossOutput:
        """The regression over all pairs of each prompt."""
        return online_ipo_loss(x, x.anchor("ref"), tau=self.tau)


METHOD = OnlineIPO
