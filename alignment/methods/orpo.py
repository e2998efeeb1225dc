"""ORPO: supervised fine-tuning on the chosen response plus the log of an odds ratio, without a reference."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, log1mexp, per_token, softplus
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Solution


def orpo_loss(mean_logps_w: Tensor, mean_logps_l: Tensor, *, weight: float) -> Tensor:
    """Cross-entropy of the chosen response, plus the weighted odds-ratio loss.

    arXiv 2403.07691: ``-a_w + weight * -log sigmoid(log odds(a_w) - log odds(a_l))``, ``a = lp / |y|``,
    ``log odds(a) = a - log(1 - e^a)``.

    Args:
        mean_logps_w: log-prob per token of the chosen response, in nats; any shape, at most 0.
        mean_logps_l: the same of the rejected response; broadcasts with ``mean_logps_w``.
        weight: of the odds-ratio loss (lambda in the paper).

    Returns:
        The loss in nats, non-negative; finite, with a finite gradient, also where a response has probability 1.
    """
    log_odds_ratio = (mean_logps_w - log1mexp(mean_logps_w)) - (mean_logps_l - log1mexp(mean_logps_l))
    return -mean_logps_w + weight * softplus(-log_odds_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO(Options):
    """ORPO: offline, no reference; fine-tuning and preference in one stage, so it may start from a base model."""

    weight: float = option(paper="lambda: 0.1 in the released code (2403.07691)", at_least=0, usual=(0.1, 0.1))

    needs: ClassVar[Needs] = Needs(feedback="pairs")
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="ORPO: Monolithic Preference Optimization without Reference Model",
        authors="Hong, Jiwoo and Lee, Noah and Thorne, James",
        year=2024,
        arxiv="2403.07691",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss of the labelled pairs of each prompt."""
        mean_logps_BG = per_token(x.logps_BG, x.lengths_BG)
        loss_BGG = orpo_loss(mean_logps_BG[:, :, None], mean_logps_BG[:, None, :], weight=self.weight)
        return comparison_loss(x, loss_BGG)


METHOD = ORPO
