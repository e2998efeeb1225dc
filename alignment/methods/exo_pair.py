"""Efficient Exact Optimization on pairs: the reverse KL from the policy's choice to the smoothed label.

DPO minimises the forward KL of the same two distributions.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def exo_pair_loss(h: Tensor, *, beta: float, eps: float) -> Tensor:
    """KL of Bernoulli(q) from Bernoulli(1 - eps), ``q = sigmoid(beta h)``.

    arXiv 2402.00856, eq. 16 as cited by TRL [code TRL]:
    ``q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature.
        eps: label smoothing; at 0 the loss is infinite everywhere.

    Returns:
        The loss in nats, shape of ``h``; 0 at ``beta h = log((1 - eps) / eps)``.
    """
    z = beta * h
    chosen = torch.sigmoid(z) * (-softplus(-z) - math.log1p(-eps))
    return chosen + torch.sigmoid(-z) * (-softplus(z) - math.log(eps))


@dataclass(frozen=True, slots=True, kw_only=True)
class EXOPair(Options):
    """EXO on pairs: offline, one reference; mode-seeking.

    Attributes:
        eps: label smoothing. Bounds ``beta h`` by ``log((1 - eps) / eps)``.
    """

    beta: float = option(
        paper="the paper uses 0.1 (its beta_r; 2402.00856, app. B, as given by TRL)", above=0, usual=(0.1, 0.1)
    )
    eps: float = option(paper="the paper uses 0.001 (2402.00856, as given by TRL)", above=0, below=0.5)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    # For two responses beta h = (2P - 1) log((1 - eps) / eps); these are not additive, so no closed form for more.
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Towards Efficient Exact Optimization of Language Model Alignment",
        authors="Ji, Haozhe and others",
        year=2024,
        arxiv="2402.00856",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected reverse KL of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, exo_pair_loss(h_BGG, beta=self.beta, eps=self.eps))


METHOD = EXOPair
