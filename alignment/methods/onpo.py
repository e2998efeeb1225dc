"""Optimistic Nash Policy Optimization: two regressions a round, on one set of pairs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import preference_regression
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Previous, Solution


def onpo_loss(x: LossInputs, prev_BG: Tensor, *, eta: float) -> LossOutput:
    """Regression of log-ratio differences on ``eta (P(y > y') - 1/2)``.

    arXiv 2502.16852: fit 1 with anchor pi'_t gives ``pi'_{t+1} = pi'_t exp(eta P(. > pi_t))``; fit 2 with anchor
    pi'_{t+1} and the same pairs gives the optimistic ``pi_{t+1} = pi'_{t+1} exp(eta P(. > pi_t))``.

    Args:
        x: log-probs, masks, and preferences between i.i.d. responses of pi_t.
        prev_BG: log-probs under the fit's anchor.
        eta: step size; the target is eta / 2 nats.
    """
    return preference_regression(x, x.logps_BG - prev_BG, target=0.5 * eta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ONPO(Options):
    """ONPO: unregularised; the last iterate converges linearly to a unique equilibrium for eta <= 1/8."""

    eta: float = option(
        paper="the paper chose 100 (1/eta = 0.01 from 0.1 to 0.005; 2502.16852 [second-hand])", above=0, usual=(10, 200)
    )

    needs: ClassVar[Needs] = Needs(
        feedback="prefs", anchors=(Previous("prev"),), sampler="prev", schedule="iterative", fits=2
    )
    solution: ClassVar[Solution] = "nash"
    paper: ClassVar[Paper] = Paper(
        title="Improving LLM General Preference Alignment via Optimistic Online Mirror Descent",
        authors="Zhang, Yuheng and Yu, Dian and Ge, Tao and Song, Linfeng and Zeng, Zhichen and Mi, Haitao and Jiang, "
        "Nan and Yu, Dong",
        year=2025,
        arxiv="2502.16852",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """The regression of either fit; the loop binds ``prev``."""
        return onpo_loss(x, x.anchor("prev"), eta=self.eta)


METHOD = ONPO
