"""Direct Preference Optimization: a classifier of pairs whose logit is the difference of two log-ratios."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def dpo_loss(h: Tensor, *, beta: float) -> Tensor:
    """Negative log-likelihood of a pair.

    arXiv 2305.18290, eq. 7: ``-log sigmoid(beta h)``, ``h = log pi(yw)/ref(yw) - log pi(yl)/ref(yl)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature of the implicit score.

    Returns:
        The loss in nats, shape of ``h``; log 2 at ``h = 0``.
    """
    return softplus(-beta * h)


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(Options):
    """DPO: offline, one reference, the RLHF optimum under a Bradley-Terry oracle."""

    beta: float = option(
        paper="the paper uses 0.1, and 0.5 for summarisation (2305.18290, app. B); 2405.14734 uses 0.01",
        above=0,
        usual=(0.01, 0.5),
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "bt_optimum"
    paper: ClassVar[Paper] = Paper(
        title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        authors="Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. "
        "and Finn, Chelsea",
        year=2023,
        arxiv="2305.18290",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, dpo_loss(h_BGG, beta=self.beta))


METHOD = DPO
