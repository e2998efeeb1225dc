"""Self-Play Preference Optimization with hard labels: regress the log-ratios of a pair on +eta/2 and -eta/2.

Differs from the paper: offline, ``ref`` stands for the policy that sampled the data, and a pair's winner and loser
count as win rates 1 and 0. The iterative method with win rates is ``sppo``.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def sppo_hard_loss(ell_w: Tensor, ell_l: Tensor, *, eta: float) -> Tensor:
    """Squared errors of both log-ratios.

    arXiv 2405.00675, eq. 4.7 with hard labels, as cited by TRL [code TRL]:
    ``(ell_w - eta/2)^2 + (ell_l + eta/2)^2``.

    Args:
        ell_w: ``log pi/ref`` of the chosen response, in nats; any shape.
        ell_l: the same of the rejected response.
        eta: step size, in nats; the beta of TRL and of the released code is 1/eta.

    Returns:
        The loss in nats squared; eta^2/2 at pi = ref.
    """
    return (ell_w - 0.5 * eta).square() + (ell_l + 0.5 * eta).square()


@dataclass(frozen=True, slots=True, kw_only=True)
class SPPOHard(Options):
    """SPPO on labelled pairs; without normalisation ``log pi/ref (y)`` would be ``eta (P(y > s) - 1/2)``."""

    eta: float = option(
        paper="the released code uses 1000 (its beta = 1/eta = 0.001; 2405.00675)", above=0, usual=(1000, 1000)
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Self-Play Preference Optimization for Language Model Alignment",
        authors="Wu, Yue and Sun, Zhiqing and Yuan, Huizhuo and Ji, Kaixuan and Yang, Yiming and Gu, Quanquan",
        year=2024,
        arxiv="2405.00675",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected squared error over the labelled pairs of each prompt."""
        ell_BG = x.logps_BG - x.anchor("ref")
        return comparison_loss(x, sppo_hard_loss(ell_BG[:, :, None], ell_BG[:, None, :], eta=self.eta))


METHOD = SPPOHard
