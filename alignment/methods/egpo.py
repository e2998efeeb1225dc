"""Extragradient Preference Optimization: online IPO against a frozen opponent, taken twice from the same point.

Differs from the paper's released code: log-probs are summed, not averaged over tokens, because the target
``Delta P / tau`` is a quantity of whole sequences; both stages use the same prompts.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import win_regression
from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def egpo_loss(x: LossInputs, ref_BG: Tensor, *, tau: float) -> LossOutput:
    """Regression of log-ratio differences on win-rate differences over tau.

    arXiv 2503.08942, the loss of both stages [derived from the released code, checked]:
    ``(ell(y) - ell(y') - (P(y > mu) - P(y' > mu)) / tau)^2``, ``ell = log pi/ref``; y, y' from any full-support
    sampler, mu the frozen current (stage 0) or look-ahead (stage 1) policy. With y, y' uniform over n actions one SGD
    step of size lr is the mirror-descent step ``games.updates.master_update`` with a = 4 lr / n.

    Args:
        x: log-probs, masks, and wins [B, G] against samples of mu.
        ref_BG: log-probs under the reference.
        tau: KL strength towards the reference.
    """
    return win_regression(x, x.logps_BG - ref_BG, target=0.5 / tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class EGPO(Options):
    """EGPO: last-iterate linear convergence to the regularised equilibrium, for twice the gradients."""

    tau: float = option(
        paper="the released code uses 0.1 for language models, 0.01 for games (2503.08942)", above=0, usual=(0.1, 0.1)
    )

    needs: ClassVar[Needs] = Needs(
        feedback="wins",
        anchors=(Frozen("ref"),),
        sampler="policy",
        full_support=True,
        opponent="fresh",
        schedule="online",
        stages=2,
    )
    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = papers.EGPO

    def loss(self, x: LossInputs) -> LossOutput:
        """The same regression in both stages; the loop supplies each stage's opponent."""
        return egpo_loss(x, x.anchor("ref"), tau=self.tau)


METHOD = EGPO
