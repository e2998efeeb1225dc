"""SimPO: the mean log-prob per token as implicit score, a target margin, no reference.

Differs from the released code: it takes the ratio gamma/beta; we take gamma, as the paper's formula does.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token, softplus
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Solution


def simpo_loss(delta_mean: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Negative log-likelihood of a pair with a target margin.

    arXiv 2405.14734: ``-log sigmoid(beta (lp_w / |yw| - lp_l / |yl|) - gamma)``.

    Args:
        delta_mean: difference of log-probs per token, chosen minus rejected, in nats per token; any shape.
        beta: scale of the implicit score.
        gamma: margin of the scaled score; ``ratio * beta`` for the ratios in the released recipes.

    Returns:
        The loss in nats, shape of ``delta_mean``.
    """
    return softplus(gamma - beta * delta_mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPO(Options):
    """SimPO: offline, no reference."""

    beta: float = option(
        paper="2 to 10; 2.5 for Llama3-Instruct (2405.14734, released recipes)", above=0, usual=(2, 10)
    )
    gamma: float = option(
        paper="0.1 to 0.8 times beta; 1.375 for Llama3-Instruct (2405.14734, released recipes)", at_least=0
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs")
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
        authors="Meng, Yu and Xia, Mengzhou and Chen, Danqi",
        year=2024,
        arxiv="2405.14734",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        delta_BGG = differences(per_token(x.logps_BG, x.lengths_BG))
        return comparison_loss(x, simpo_loss(delta_BGG, beta=self.beta, gamma=self.gamma))


METHOD = SimPO
