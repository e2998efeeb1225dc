"""HyPO: DPO that ignores the reference where it prefers the rejected response."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def hypo_loss(delta: Tensor, delta_ref: Tensor, *, beta: float) -> Tensor:
    """Negative log-likelihood of a pair, the reference's margin clipped at zero.

    arXiv 2602.11902, abstract: ``-log sigmoid(beta (delta - max(0, delta_ref)))``, ``delta = log pi(yw) - log pi(yl)``.

    Args:
        delta: difference of log-probs, chosen minus rejected, in nats; any shape.
        delta_ref: the same under the reference.
        beta: inverse temperature of the implicit score.

    Returns:
        The loss in nats, shape of ``delta``; at most log 2 only where ``delta >= 0``.
    """
    return softplus(-beta * (delta - delta_ref.clamp(min=0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HyPO(Options):
    """HyPO: offline, one reference, consulted only where it agrees with the label."""

    beta: float = option(paper="not verified; DPO's 0.1 is usual (2602.11902)", above=0, usual=(0.1, 0.1))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Mitigating Mismatch within Reference-based Preference Optimization",
        authors="Yuan, Suqin and Yu, Xingrui and Zheng, Jiyang and Feng, Lei and Wang, Dadong and Tsang, Ivor and "
        "Liu, Tongliang",
        year=2026,
        arxiv="2602.11902",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        delta_ref_BGG = differences(x.anchor("ref"))
        return comparison_loss(x, hypo_loss(differences(x.logps_BG), delta_ref_BGG, beta=self.beta))


METHOD = HyPO
