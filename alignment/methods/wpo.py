"""Weighted Preference Optimization: DPO in which likely pairs count more, as if the policy had sampled them."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.errors import MissingFeedbackError
from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def wpo_loss(h: Tensor, weights: Tensor, *, beta: float) -> Tensor:
    """DPO times the weight of the pair.

    arXiv 2406.11827, eq. 1: ``-w(yw) w(yl) log sigmoid(beta h)``, the weights detached.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        weights: ``w(yw) w(yl)``, shape of ``h``; carries no gradient.
        beta: inverse temperature of the implicit score.

    Returns:
        The loss in nats, shape of ``h``.
    """
    return weights.detach() * dpo_loss(h, beta=beta)


def confidence(x: LossInputs) -> Tensor:
    """Likelihood of each response under the policy, per token, against what the policy itself would sample.

    arXiv 2406.11827, eq. 2 ("sampled alignment"): ``w = exp(mean_t (log pi(y_t) - log sum_v pi(v)^2))``.

    Returns:
        w [B, G], positive, without gradient; a token sampled from pi has ``pi(y_t) / sum_v pi(v)^2 = 1`` on average.
    """
    if x.token_excess_BGT is None or x.token_mask_BGT is None:
        raise MissingFeedbackError("expected token_excess_BGT and token_mask_BGT, got none: the card sets confidence")
    mask_BGT = x.token_mask_BGT.bool() & x.valid_BG[..., None]
    excess_BG = torch.where(mask_BGT, x.token_excess_BGT, 0.0).sum(2) / mask_BGT.sum(2).clamp(min=1)
    return excess_BG.exp().detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class WPO(Options):
    """WPO: offline, one reference; the weights change the path of DPO and not where it ends under Bradley-Terry."""

    beta: float = option(paper="the paper uses 0.01 (2406.11827, sec. 4.1)", above=0, usual=(0.01, 0.01))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),), confidence=True)
    solution: ClassVar[Solution] = "bt_optimum"
    paper: ClassVar[Paper] = Paper(
        title="WPO: Enhancing RLHF with Weighted Preference Optimization",
        authors="Zhou, Wenxuan and Agrawal, Ravi and Zhang, Shujian and Indurthi, Sathish Reddy and Zhao, Sanqiang and "
        "Song, Kaiqiang and Xu, Silei and Zhu, Chenguang",
        year=2024,
        arxiv="2406.11827",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected weighted loss over the labelled pairs of each prompt."""
        weights_BG = confidence(x)
        weights_BGG = weights_BG[:, :, None] * weights_BG[:, None, :]
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        output = comparison_loss(x, wpo_loss(h_BGG, weights_BGG, beta=self.beta))
        return dataclasses.replace(output, metrics={"pair_weight": comparison_loss(x, weights_BGG).loss_B})


METHOD = WPO
