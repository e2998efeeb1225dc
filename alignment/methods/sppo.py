"""Self-Play Preference Optimization: regress each response's log-ratio on its win rate against the last policy.

Differs from the paper's released code: every response of the group contributes, not only the best and the worst; the
comparison of a response with itself is left out (``include_self`` puts it back).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from alignment.functional import response_weights
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Previous, Solution


def sppo_loss(x: LossInputs, prev_BG: Tensor, wins_BG: Tensor, *, eta: float) -> LossOutput:
    """Squared error of ``log pi/prev (y)`` against ``eta (P(y > prev) - 1/2)``.

    arXiv 2405.00675 [second-hand]; 1/2 stands for ``log Z / eta``. A regression form of ``prev exp(eta P(. > prev))``.

    Args:
        x: log-probs and masks.
        prev_BG: log-probs under the policy at the start of the round, which sampled the responses.
        wins_BG: win probabilities against it.
        eta: step size; the paper's beta is 1/eta.
    """
    error_BG = x.logps_BG - prev_BG - eta * (wins_BG - 0.5)
    weights_BG = response_weights(x)
    loss_B = (weights_BG * error_BG.square()).sum(1)
    return LossOutput(loss_B=loss_B, weight_B=(weights_BG.sum(1) > 0).to(loss_B.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class SPPO(Options):
    """SPPO: unregularised; its guarantee is for the average policy.

    Attributes:
        include_self: count each response's comparison with itself, as the released code does: for sampled groups the
            centred win rate is then multiplied by (G - 1) / G.
    """

    eta: float = option(
        paper="the released code uses 1000 (its beta = 1/eta = 0.001; 2405.00675)", above=0, usual=(1000, 1000)
    )
    include_self: bool = option(default=False, paper="True in the released code (2405.00675)")

    needs: ClassVar[Needs] = Needs(
        feedback="wins", anchors=(Previous("prev"),), sampler="prev", opponent="group", schedule="iterative"
    )
    solution: ClassVar[Solution] = "nash"
    paper: ClassVar[Paper] = Paper(
        title="Self-Play Preference Optimization for Language Model Alignment",
        authors="Wu, Yue and Sun, Zhiqing and Yuan, Huizhuo and Ji, Kaixuan and Yang, Yiming and Gu, Quanquan",
        year=2024,
        arxiv="2405.00675",
    )

    @property
    def iterate(self) -> Literal["last", "average"]:
        return "average"

    def loss(self, x: LossInputs) -> LossOutput:
        """The pointwise regression over all responses of each prompt."""
        wins_BG = x.wins_BG
        if self.include_self and x.weights_BG is None:
            num_BG = x.valid_BG.sum(1, keepdim=True).to(wins_BG.dtype)
            wins_BG = 0.5 + (wins_BG - 0.5) * (num_BG - 1.0) / num_BG.clamp(min=1.0)
        return sppo_loss(x, x.anchor("prev"), wins_BG, eta=self.eta)


METHOD = SPPO
