"""Anchored Preference Optimization, down: push both responses down, the rejected one more.

For data whose chosen responses are worse than the model's own; otherwise ``apo_zero``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.functional import comparison_loss
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def apo_down_loss(ell_w: Tensor, ell_l: Tensor, *, beta: float) -> Tensor:
    """One sigmoid anchored at the reference, one that compares.

    arXiv 2408.06266, eq. 8 as cited by TRL [code TRL]: ``sigmoid(beta ell_w) + 1 - sigmoid(beta (ell_w - ell_l))``.

    Args:
        ell_w: ``log pi/ref`` of the chosen response, in nats; any shape.
        ell_l: the same of the rejected response.
        beta: inverse temperature.

    Returns:
        The loss, in [0, 2]; 1 at pi = ref.
    """
    return torch.sigmoid(beta * ell_w) + torch.sigmoid(-beta * (ell_w - ell_l))


@dataclass(frozen=True, slots=True, kw_only=True)
class APODown(Options):
    """APO-down: offline, one reference, bounded loss."""

    beta: float = option(paper="the paper uses 0.1 (2408.06266, sec. 5.2, as given by TRL)", above=0, usual=(0.1, 0.1))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "none"
    no_solution: ClassVar[str] = (
        "both terms are bounded and for beta < 1 the loss falls faster than linearly as the probability of a mostly "
        "rejected response goes to 0"
    )
    paper: ClassVar[Paper] = Paper(
        title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
        authors="D'Oosterlinck, Karel and others",
        year=2024,
        arxiv="2408.06266",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss over the labelled pairs of each prompt."""
        ell_BG = x.logps_BG - x.anchor("ref")
        return comparison_loss(x, apo_down_loss(ell_BG[:, :, None], ell_BG[:, None, :], beta=self.beta))


METHOD = APODown
