"""Binary Classifier Optimization on pairs: is a response a chosen or a rejected one?

Differs from the paper: TRL's pair form, without the running-mean reward shift of its unpaired form.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def bco_pair_loss(ell_w: Tensor, ell_l: Tensor, *, beta: float) -> Tensor:
    """Cross-entropy of a classifier with logit ``beta log pi/ref``, for both responses of a pair.

    arXiv 2404.04656 [code TRL]: ``-log sigmoid(beta ell_w) - log sigmoid(-beta ell_l)``.

    Args:
        ell_w: ``log pi/ref`` of the chosen response, in nats; any shape.
        ell_l: the same of the rejected response.
        beta: inverse temperature.

    Returns:
        The loss in nats; 2 log 2 at pi = ref.
    """
    return softplus(-beta * ell_w) + softplus(beta * ell_l)


@dataclass(frozen=True, slots=True, kw_only=True)
class BCOPair(Options):
    """BCO on pairs: offline, one reference; without normalisation ``beta ell(y)`` would be the logit of P(y > s)."""

    beta: float = option(paper="the paper uses 0.01 (2404.04656, app. C, as given by TRL)", above=0, usual=(0.01, 0.01))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Binary Classifier Optimization for Large Language Model Alignment",
        authors="Jung, Seungjae and others",
        year=2024,
        arxiv="2404.04656",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected cross-entropy over the labelled pairs of each prompt."""
        ell_BG = x.logps_BG - x.anchor("ref")
        return comparison_loss(x, bco_pair_loss(ell_BG[:, :, None], ell_BG[:, None, :], beta=self.beta))


METHOD = BCOPair
