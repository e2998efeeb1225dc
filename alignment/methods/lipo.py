"""LiPO: listwise preference optimization, with LambdaRank weights from the model's own ranking.

Differs from the paper: its Eq. 8 sums over pairs with a logarithm of unstated base; its experiments ran RAX, whose
reduction (base 2, times the list size, mean over all valid pairs of the batch) is our default. The list size is the
number of valid responses, not the padded width. Its Eq. 11 (``softmax``) omits the minus sign. In ``list_mle``,
responses with equal labels do not compete.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.functional import differences, ranks, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def lambda_weights(psi_BG: Tensor, ranks_BG: Tensor, *, log_base: Literal[2, "e"]) -> Tensor:
    """What swapping i and j would change in the discounted cumulative gain, [B, G, G]; no gradient.

    arXiv 2402.01878, eq. 8: ``|2^psi_i - 2^psi_j| |1/log(1 + rank_i) - 1/log(1 + rank_j)|``.

    Args:
        psi_BG: labels, in [0, 1].
        ranks_BG: 1-based positions by the model's current scores, highest first.
        log_base: of the discount.
    """
    discounts_BG = 1.0 / torch.log1p(ranks_BG.to(psi_BG.dtype))
    if log_base == 2:
        discounts_BG = discounts_BG * math.log(2.0)
    return differences(torch.exp2(psi_BG)).abs() * differences(discounts_BG).abs()


def pair_logistic_loss(z: Tensor) -> Tensor:
    """``-log sigmoid(s_i - s_j)`` (DPO on every pair of the list)."""
    return softplus(-z)


def pair_hinge_loss(z: Tensor) -> Tensor:
    """``max(0, 1 - (s_i - s_j))`` (SLiC-norm)."""
    return (1.0 - z).clamp(min=0.0)


def list_mle_loss(s_BG: Tensor, psi_BG: Tensor, listed_BG: Tensor) -> Tensor:
    """Plackett-Luce negative log-likelihood of the order of the labels (DPO_PL), [B].

    ``sum_k (log sum_{j behind k} e^s_j - s_k)``, where j is behind k if ``psi_j < psi_k`` or j is k.
    """
    behind_BGG = (differences(psi_BG) > 0) & listed_BG[:, :, None] & listed_BG[:, None, :]
    behind_BGG = behind_BGG | torch.eye(s_BG.shape[1], dtype=torch.bool, device=s_BG.device)
    return (_logsumexp(s_BG[:, None, :].expand_as(behind_BGG), behind_BGG) - s_BG).sum(1)


def softmax_loss(s_BG: Tensor, psi_BG: Tensor, listed_BG: Tensor) -> Tensor:
    """``-sum_j psi_j log softmax(s)_j / sum_j psi_j``, [B]; 0 where all labels are 0."""
    shares_BG = psi_BG / psi_BG.sum(1, keepdim=True).clamp(min=torch.finfo(psi_BG.dtype).tiny)
    return (shares_BG * (_logsumexp(s_BG, listed_BG)[:, None] - s_BG)).sum(1)


def point_mse_loss(s: Tensor, psi: Tensor) -> Tensor:
    """``(psi - s)^2``."""
    return (psi - s).square()


def point_sigmoid_loss(s: Tensor, psi: Tensor) -> Tensor:
    """``-psi log sigmoid(s) - (1 - psi) log(1 - sigmoid(s))``."""
    return psi * softplus(-s) + (1.0 - psi) * softplus(s)


def _logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Over the last axis where the mask is true; finite, with gradient 0, where it is nowhere true."""
    return torch.where(mask, values, torch.finfo(values.dtype).min).logsumexp(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiPO(Options):
    """LiPO: offline, labelled lists, one reference; scores ``s = beta log pi/ref``, labels psi in [0, 1].

    Attributes:
        objective: the ranking loss; ``lambda`` is the paper's proposal, the others are its baselines.
        reduction: ``rax``: mean over all terms (pairs, lists or items) of the batch; ``sum``: over a prompt's terms.
        log_base: of the discount; ``lambda`` only.
        scale_by_list_size: multiply by the number of responses, as RAX does; ``lambda`` only.
    """

    beta: float = option(paper="the paper uses 0.05 (2402.01878)", above=0, example=0.05, usual=(0.05, 0.05))
    objective: Literal["lambda", "list_mle", "pair_logistic", "pair_hinge", "softmax", "point_mse", "point_sigmoid"] = (
        option(default="lambda", paper="lambda (2402.01878, eq. 8)")
    )
    reduction: Literal["rax", "sum"] = option(default="rax", paper="rax in the experiments, sum in eq. 8 (2402.01878)")
    log_base: Literal[2, "e"] = option(default=2, paper="2 in the experiments (RAX; 2402.01878, app. B)")
    scale_by_list_size: bool = option(default=True, paper="true in the experiments (RAX; 2402.01878, app. B)")

    # 2e-5 with Adafactor, which scales its steps by the weights; 5e-7 and more are usual with Adam.
    usual_learning_rate: ClassVar[tuple[float, float]] = (3e-7, 2e-5)
    needs: ClassVar[Needs] = Needs(feedback="scores", anchors=(Frozen("ref"),))
    paper: ClassVar[Paper] = Paper(
        title="LiPO: Listwise Preference Optimization through Learning-to-Rank",
        authors="Liu, Tianqi and others",
        year=2024,
        arxiv="2402.01878",
    )

    @property
    def solution(self) -> Solution:
        """On lists of two with labels (1, 0), ``softmax`` and the likelihood losses are multiples of DPO."""
        return "bt_optimum" if self.objective in ("lambda", "list_mle", "pair_logistic", "softmax") else "numeric"

    def loss(self, x: LossInputs) -> LossOutput:
        """The ranking loss of each prompt's list; ``weight_B`` is the number of terms that it averages."""
        scores_BG = x.scores_BG
        listed_BG = x.valid_BG & ~scores_BG.isnan()
        psi_BG = torch.where(listed_BG, scores_BG, 0.0)
        if ((psi_BG < 0) | (psi_BG > 1)).any():
            raise UserError(
                "method 'lipo': expected labels in [0, 1], got a score outside: "
                "set scores_as: win_rates in the data source, or rank the lists"
            )
        s_BG = self.beta * torch.where(listed_BG, x.logps_BG - x.anchor("ref"), 0.0)
        total_B, terms_B = self._total(s_BG, psi_BG, listed_BG)
        if self.reduction == "sum":
            return LossOutput(loss_B=total_B, weight_B=(terms_B > 0).to(s_BG.dtype))
        return LossOutput(loss_B=total_B / terms_B.clamp(min=1), weight_B=terms_B.to(s_BG.dtype))

    def _total(self, s_BG: Tensor, psi_BG: Tensor, listed_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over a prompt's terms, and their number [B]."""
        pairs_BGG = (differences(psi_BG) > 0) & listed_BG[:, :, None] & listed_BG[:, None, :]
        num_pairs_B = pairs_BGG.sum((1, 2))
        z_BGG = differences(s_BG)
        match self.objective:
            case "lambda":
                weights_BGG = lambda_weights(psi_BG, ranks(s_BG, listed_BG), log_base=self.log_base)
                if self.scale_by_list_size:
                    weights_BGG = weights_BGG * listed_BG.sum(1)[:, None, None]
                return (pairs_BGG * weights_BGG * pair_logistic_loss(z_BGG)).sum((1, 2)), num_pairs_B
            case "pair_logistic":
                return (pairs_BGG * pair_logistic_loss(z_BGG)).sum((1, 2)), num_pairs_B
            case "pair_hinge":
                return (pairs_BGG * pair_hinge_loss(z_BGG)).sum((1, 2)), num_pairs_B
            case "list_mle":
                return list_mle_loss(s_BG, psi_BG, listed_BG), (num_pairs_B > 0).long()
            case "softmax":
                return softmax_loss(s_BG, psi_BG, listed_BG), (psi_BG.sum(1) > 0).long()
            case "point_mse":
                return (listed_BG * point_mse_loss(s_BG, psi_BG)).sum(1), listed_BG.sum(1)
            case "point_sigmoid":
                return (listed_BG * point_sigmoid_loss(s_BG, psi_BG)).sum(1), listed_BG.sum(1)


METHOD = LiPO
