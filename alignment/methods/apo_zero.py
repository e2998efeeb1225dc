"""Anchored Preference Optimization, zero: push the chosen response up and the rejected one down.

For data whose chosen responses are better than the model's own; otherwise ``apo_down``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.functional import comparison_loss
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def apo_zero_loss(ell_w: Tensor, ell_l: Tensor, *, beta: float) -> Tensor:
    """Two sigmoids, each anchored at the reference.

    arXiv 2408.06266, eq. 7 as cited by TRL [code TRL]: ``1 - sigmoid(beta ell_w) + sigmoid(beta ell_l)``.

    Args:
        ell_w: ``log pi/ref`` of the chosen response, in nats; any shape.
        ell_l: the same of the rejected response.
        beta: inverse temperature.

    Returns:
        The loss, in [0, 2]; 1 at pi = ref.
    """
    return torch.sigmoid(-beta * ell_w) + torch.sigmoid(beta * ell_l)


@dataclass(frozen=True, slots=True, kw_only=True)
class APOZero(Options):
    """APO-zero: offline, one reference, bounded loss."""

    beta: float = option(paper="the paper uses 0.1 (2408.06266, sec. 5.2, as given by TRL)", above=0, usual=(0.1, 0.1))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "none"
    no_solution: ClassVar[str] = (
        "the expected loss of a response is linear in one sigmoid, so it falls until every response that loses more "
        "than half of its comparisons has probability 0"
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
        return comparison_loss(x, apo_zero_loss(ell_BG[:, :, None], ell_BG[:, None, :], beta=self.beta))


METHOD = APOZero
