"""Alignment via Optimal Transport, paired: the margins of a batch should dominate the reference's margins.

Differs from the paper's released code: sorting leaves no pair its own loss, so every row carries the mean over the
micro-batch. Row weights of the data therefore have no effect.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def aot_loss(deltas_B: Tensor, ref_deltas_B: Tensor, *, beta: float, eps: float) -> Tensor:
    """DPO with smoothed labels on the quantiles of two margin distributions.

    arXiv 2406.05882, sec. 3 [code TRL]: with both sorted, ``h_k = delta_(k) - delta_ref_(k)``,
    ``-(1 - eps) log sigmoid(beta h_k) - eps log sigmoid(-beta h_k)``.

    Args:
        deltas_B: ``log pi(yw) - log pi(yl)`` of the pairs of a batch, in nats.
        ref_deltas_B: the same under the reference.
        beta: inverse temperature.
        eps: label smoothing.

    Returns:
        The loss in nats [B], in order of rank, not of pair.
    """
    h_B = deltas_B.sort().values - ref_deltas_B.sort().values
    return (1.0 - eps) * dpo_loss(h_B, beta=beta) + eps * dpo_loss(-h_B, beta=beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class AOT(Options):
    """AOT on pairs: offline, one reference; a micro-batch of one pair is DPO.

    Attributes:
        eps: probability that a label is wrong.
    """

    beta: float = option(paper="not given by the paper; TRL's default is 0.1 (2406.05882)", above=0, usual=(0.1, 0.1))
    eps: float = option(default=0.0, paper="0: the paper has no label smoothing (2406.05882)", at_least=0, below=0.5)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),), micro_batch_statistics=True)
    solution: ClassVar[Solution] = "none"
    no_solution: ClassVar[str] = (
        "it compares the margins of a batch and not of a pair, and with hard labels, as it needs, no finite margin is "
        "large enough"
    )
    paper: ClassVar[Paper] = Paper(
        title="Distributional Preference Alignment of LLMs via Optimal Transport",
        authors="Melnyk, Igor and others",
        year=2024,
        arxiv="2406.05882",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """The mean over the micro-batch, on every row that has a comparison."""
        if x.logps_BG.shape[1] != 2:
            raise UserError(f"method 'aot': expected groups of two responses, got {x.logps_BG.shape[1]}: use pairs")
        prefs_B = x.prefs_BGG[:, 0, 1]
        asked_B = ~prefs_B.isnan()
        prefs_B = prefs_B[asked_B]
        if ((prefs_B != 0) & (prefs_B != 1)).any():
            raise UserError(
                "method 'aot': expected hard labels (0 or 1), got a probability: round or sample the labels"
            )
        sign_B = 2.0 * prefs_B - 1.0
        ref_BG = x.anchor("ref")
        losses = aot_loss(
            sign_B * (x.logps_BG[:, 0] - x.logps_BG[:, 1])[asked_B],
            sign_B * (ref_BG[:, 0] - ref_BG[:, 1])[asked_B],
            beta=self.beta,
            eps=self.eps,
        )
        mean = losses.sum() / max(1, losses.numel())
        return LossOutput(loss_B=torch.where(asked_B, mean, 0.0), weight_B=asked_B.to(mean.dtype))


METHOD = AOT
