"""CPO-SimPO: SimPO's loss with contrastive CPO's cross-entropy of the chosen response.

There is no paper: the combination is from the repository fe1ixxu/CPO_SIMPO by the first author of contrastive CPO,
whose paper we cite.

Differs from the repository's formula: cross-entropy is averaged over tokens, as in TRL [code].
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token
from alignment.methods._card import Options, option
from alignment.methods.contrastive_cpo import ContrastiveCPO
from alignment.methods.simpo import simpo_loss
from alignment.types import LossInputs, LossOutput, Needs, Paper, Solution


def cpo_simpo_loss(delta_mean: Tensor, nll_w: Tensor, *, beta: float, gamma: float, nll_weight: float) -> Tensor:
    """SimPO's loss of a pair, plus cross-entropy.

    arXiv 2405.14734 and 2401.08417: ``-log sigmoid(beta (lp_w / |yw| - lp_l / |yl|) - gamma) + w NLL(yw)``.

    Args:
        delta_mean: difference of log-probs per token, chosen minus rejected, in nats per token; any shape.
        nll_w: minus the log-prob per token of the chosen response, in nats; broadcasts with ``delta_mean``.
        beta: scale of the implicit score.
        gamma: margin of the scaled score.
        nll_weight: w.

    Returns:
        The loss in nats, non-negative, shape of ``delta_mean``.
    """
    return simpo_loss(delta_mean, beta=beta, gamma=gamma) + nll_weight * nll_w


@dataclass(frozen=True, slots=True, kw_only=True)
class CPOSimPO(Options):
    """CPO-SimPO: offline, no reference."""

    beta: float = option(paper="no paper; SimPO uses 2 to 10 (2405.14734, released recipes)", above=0, usual=(2, 10))
    gamma: float = option(paper="no paper; SimPO uses 0.1 to 0.8 times beta (2405.14734)", at_least=0)
    nll_weight: float = option(paper="no paper; the repository's formula has 1 (fe1ixxu/CPO_SIMPO)", at_least=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs")
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = ContrastiveCPO.paper

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss of the labelled pairs of each prompt."""
        mean_logps_BG = per_token(x.logps_BG, x.lengths_BG)
        loss_BGG = cpo_simpo_loss(
            differences(mean_logps_BG),
            -mean_logps_BG[:, :, None],
            beta=self.beta,
            gamma=self.gamma,
            nll_weight=self.nll_weight,
        )
        return comparison_loss(x, loss_BGG)


METHOD = CPOSimPO
