"""SLiC-HF: a margin between the log-probs of a pair, without a reference, and cross-entropy to stay near good text.

Differs from the paper: the cross-entropy is that of the chosen response, as in HALOs [code]; the paper's is that of
a supervised target, which a batch of pairs does not hold.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Solution


def slic_loss(delta: Tensor, nll_w: Tensor, *, margin: float, nll_weight: float) -> Tensor:
    """Shortfall of a pair from its margin, plus cross-entropy.

    arXiv 2305.10425: ``max(0, d - delta) + w NLL(yw)``, ``delta = log pi(yw) - log pi(yl)``.

    Args:
        delta: difference of log-probs, chosen minus rejected, in nats; any shape.
        nll_w: minus the log-prob of the chosen response, summed over its tokens, in nats; broadcasts with ``delta``.
        margin: d, in nats.
        nll_weight: w.

    Returns:
        The loss in nats, non-negative, shape of ``delta``.
    """
    return (margin - delta).clamp(min=0) + nll_weight * nll_w


@dataclass(frozen=True, slots=True, kw_only=True)
class SLiC(Options):
    """SLiC-HF: offline, no reference."""

    margin: float = option(paper="HALOs' code uses 1.0 (2305.10425)", above=0, usual=(1, 1))
    nll_weight: float = option(paper="HALOs' code uses 0.1 (2305.10425)", at_least=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs")
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
        authors="Zhao, Yao and Joshi, Rishabh and Liu, Tianqi and Khalman, Misha and Saleh, Mohammad and Liu, Peter J.",
        year=2023,
        arxiv="2305.10425",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected shortfall of the labelled pairs of each prompt, plus cross-entropy of the winners."""
        nll_BG1 = -x.logps_BG[:, :, None]
        loss_BGG = slic_loss(differences(x.logps_BG), nll_BG1, margin=self.margin, nll_weight=self.nll_weight)
        return comparison_loss(x, loss_BGG)


METHOD = SLiC
