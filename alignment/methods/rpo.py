"""DPO plus cross-entropy of the chosen response: the loss of Iterative Reasoning Preference Optimization.

Differs from the paper: there the weight alpha is on the DPO term, here (as in TRL) w is on the cross-entropy. At the
paper's value, 1, both are the same; otherwise ``w = 1 / alpha``, up to a factor.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def rpo_loss(h: Tensor, nll_w: Tensor, *, beta: float, nll_weight: float) -> Tensor:
    """DPO's loss of a pair, plus cross-entropy.

    arXiv 2404.19733, the DPO+NLL loss: ``-log sigmoid(beta h) + w NLL(yw)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        nll_w: minus the log-prob per token of the chosen response, in nats; broadcasts with ``h``.
        beta: inverse temperature of the implicit score.
        nll_weight: w.

    Returns:
        The loss in nats, non-negative, shape of ``h``.
    """
    return dpo_loss(h, beta=beta) + nll_weight * nll_w


@dataclass(frozen=True, slots=True, kw_only=True)
class RPO(Options):
    """DPO+NLL: offline, one reference; the chosen response does not lose probability together with the rejected one."""

    beta: float = option(paper="0.1 (2404.19733)", above=0, usual=(0.1, 0.1))
    nll_weight: float = option(paper="1 (2404.19733)", at_least=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Iterative Reasoning Preference Optimization",
        authors="Pang, Richard Yuanzhe and Yuan, Weizhe and Cho, Kyunghyun and He, He and Sukhbaatar, Sainbayar and "
        "Weston, Jason",
        year=2024,
        arxiv="2404.19733",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt, plus cross-entropy of the winners."""
        nll_BG1 = -per_token(x.logps_BG, x.lengths_BG)[:, :, None]
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, rpo_loss(h_BGG, nll_BG1, beta=self.beta, nll_weight=self.nll_weight))


METHOD = RPO
