"""Kahneman-Tversky Optimization: single responses, good or bad, against a reference point shared by the batch.

Differs from the paper's released code: the completion that estimates the reference point is that of the next row with
another prompt, the same in every epoch; a label may be a probability of being desirable.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.errors import MissingFeedbackError, UserError
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def kto_loss(
    ell: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """One minus the value of a gain or of a loss.

    arXiv 2402.01306 [code HALOs, TRL]: ``w_D sigmoid(-beta (ell - z0))`` for a desirable response and
    ``w_U sigmoid(beta (ell - z0))`` for an undesirable one.

    Args:
        ell: ``log pi/ref``, in nats; any shape.
        desirable: 1 or 0 (or a probability), shape of ``ell``.
        reference_point: z0, in nats; carries no gradient.
        beta: inverse temperature.
        desirable_weight: w_D.
        undesirable_weight: w_U.

    Returns:
        The loss, shape of ``ell``, between 0 and the larger weight.
    """
    gain = beta * (ell - reference_point.detach())
    lost_gain = desirable_weight * torch.sigmoid(-gain)
    unwanted_gain = undesirable_weight * torch.sigmoid(gain)
    return desirable * lost_gain + (1.0 - desirable) * unwanted_gain


def reference_point(x: LossInputs) -> Tensor:
    """z0: an estimate of KL(pi || ref) from completions of other prompts, at least 0, in nats; no gradient."""
    if x.mismatched_logps_B is None:
        raise MissingFeedbackError("expected log-probs of mismatched completions, got none: the card sets mismatched")
    present_B = x.valid_BG[:, 0]
    ell_B = torch.where(present_B, x.mismatched_logps_B.detach() - x.mismatched_anchor("ref"), 0.0)
    return x.batch_mean(ell_B.sum() / present_B.sum().clamp(min=1)).clamp(min=0.0).detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO(Options):
    """KTO: offline, one labelled response per row, one reference.

    Attributes:
        desirable_weight: w_D; raise it where desirable rows are rare.
        undesirable_weight: w_U.
    """

    beta: float = option(paper="the paper uses 0.1 (2402.01306)", above=0, usual=(0.1, 0.1))
    desirable_weight: float = option(
        paper="the paper keeps w_D n_D / (w_U n_U) in [1, 4/3]; 1 for balanced labels (2402.01306)", above=0
    )
    undesirable_weight: float = option(
        paper="the paper keeps w_D n_D / (w_U n_U) in [1, 4/3]; 1 for balanced labels (2402.01306)", above=0
    )

    needs: ClassVar[Needs] = Needs(
        feedback="scores", anchors=(Frozen("ref"),), mismatched=True, micro_batch_statistics=True
    )
    solution: ClassVar[Solution] = "none"
    no_solution: ClassVar[str] = (
        "the expected loss of a response is linear in one sigmoid, so it falls until mostly undesirable responses have "
        "probability 0"
    )
    paper: ClassVar[Paper] = Paper(
        title="KTO: Model Alignment as Prospect Theoretic Optimization",
        authors="Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe",
        year=2024,
        arxiv="2402.01306",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """The loss of each row's single response."""
        if x.logps_BG.shape[1] != 1:
            raise UserError(f"method 'kto': expected one response per row, got {x.logps_BG.shape[1]}: split the groups")
        desirable_B = x.scores_BG[:, 0]
        asked_B = x.valid_BG[:, 0] & ~desirable_B.isnan()
        desirable_B = torch.where(asked_B, desirable_B, 0.0)
        if ((desirable_B < 0) | (desirable_B > 1)).any():
            raise UserError(
                "method 'kto': expected scores 1 (desirable) or 0 (undesirable), got a value outside [0, 1]"
            )
        z0 = reference_point(x)
        loss_B = kto_loss(
            (x.logps_BG - x.anchor("ref"))[:, 0],
            desirable_B,
            z0,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return LossOutput(
            loss_B=torch.where(asked_B, loss_B, 0.0),
            weight_B=asked_B.to(loss_B.dtype),
            metrics={"reference_point": z0.expand_as(loss_B)},
        )


METHOD = KTO
