"""DPO-Positive (Smaug): DPO with a penalty where the chosen response falls below its reference probability.

The penalty stands inside the factor beta, as two independent accounts give the paper's equation [second-hand].
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def dpop_loss(h: Tensor, logratios_w: Tensor, *, beta: float, weight: float) -> Tensor:
    """Negative log-likelihood of a pair whose margin is charged for what the chosen response lost.

    arXiv 2402.13228, eq. 3: ``-log sigmoid(beta (h - w max(0, -ell_w)))``, ``ell_w = log pi(yw)/ref(yw)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        logratios_w: log-ratio of the chosen response, in nats; broadcasts with ``h``.
        beta: inverse temperature of the implicit score.
        weight: w (lambda in the paper).

    Returns:
        The loss in nats, shape of ``h``; log 2 at the reference.
    """
    return softplus(-beta * (h - weight * (-logratios_w).clamp(min=0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOP(Options):
    """DPOP: offline, one reference; the chosen response keeps its probability, also where a pair differs little."""

    beta: float = option(paper="0.3 is reported (2402.13228)", above=0, usual=(0.3, 0.3))
    weight: float = option(paper="lambda: 50; 5 to 500 in the ablation, as reported (2402.13228)", at_least=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        authors="Pal, Arka and Karkhanis, Deep and Dooley, Samuel and Roberts, Manley and Naidu, Siddartha and "
        "White, Colin",
        year=2024,
        arxiv="2402.13228",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        logratios_BG = x.logps_BG - x.anchor("ref")
        loss_BGG = dpop_loss(differences(logratios_BG), logratios_BG[:, :, None], beta=self.beta, weight=self.weight)
        return comparison_loss(x, loss_BGG)


METHOD = DPOP
