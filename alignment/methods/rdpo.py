"""R-DPO, length-regularised DPO: the implicit score is credited for what length alone explains.

Not ``robust_dpo``. The sign of the length term is [derived]: the objective ``E[r - alpha |y|] - beta KL`` has the
optimum ``ref exp((r - alpha |y|) / beta)``, so ``r = beta log pi/ref + alpha |y| + const``, and a longer winner is
pushed less. Texts that print a minus reward length.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def rdpo_loss(h: Tensor, excess_length: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Negative log-likelihood of a pair under a reward that pays for length.

    arXiv 2403.19159: ``-log sigmoid(beta h + alpha (|yw| - |yl|))``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        excess_length: ``|yw| - |yl|``, in tokens, shape and dtype of ``h``.
        beta: inverse temperature of the implicit score.
        alpha: price of a token.

    Returns:
        The loss in nats, shape of ``h``.
    """
    return softplus(-(beta * h + alpha * excess_length))


@dataclass(frozen=True, slots=True, kw_only=True)
class RDPO(Options):
    """R-DPO: offline, one reference; under a Bradley-Terry oracle the optimum of ``r - alpha |y|``."""

    beta: float = option(
        paper="DPO's 0.1 is usual; the paper's value is not verified (2403.19159)", above=0, usual=(0.1, 0.1)
    )
    alpha: float = option(paper="0.005 to 1 is reported; the paper's grid is not verified (2403.19159)", at_least=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Disentangling Length from Quality in Direct Preference Optimization",
        authors="Park, Ryan and Rafailov, Rafael and Ermon, Stefano and Finn, Chelsea",
        year=2024,
        arxiv="2403.19159",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        # Integer lengths times alpha would be rounded to the default dtype, float32.
        excess_length_BGG = differences(x.lengths_BG).to(h_BGG.dtype)
        return comparison_loss(x, rdpo_loss(h_BGG, excess_length_BGG, beta=self.beta, alpha=self.alpha))


METHOD = RDPO
