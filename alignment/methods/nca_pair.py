"""Noise Contrastive Alignment on pairs: tell responses of the optimum from responses of the reference."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def nca_pair_loss(ell_w: Tensor, ell_l: Tensor, *, beta: float) -> Tensor:
    """The chosen response against both responses as noise.

    arXiv 2402.05369 [code TRL]:
    ``-log sigmoid(b_w) - log sigmoid(-b_w) / 2 - log sigmoid(-b_l) / 2``, ``b = beta log pi/ref``.

    Args:
        ell_w: ``log pi/ref`` of the chosen response, in nats; any shape.
        ell_l: the same of the rejected response.
        beta: inverse temperature, the paper's alpha.

    Returns:
        The loss in nats; 2 log 2 at pi = ref.
    """
    b_w, b_l = beta * ell_w, beta * ell_l
    return softplus(-b_w) + 0.5 * softplus(b_w) + 0.5 * softplus(b_l)


@dataclass(frozen=True, slots=True, kw_only=True)
class NCAPair(Options):
    """NCA on pairs: offline, one reference; keeps the chosen likelihood from falling, which DPO does not."""

    beta: float = option(
        paper="the paper uses 0.01 (its alpha; 2402.05369, app. C, as given by TRL)", above=0, usual=(0.01, 0.01)
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
        authors="Chen, Huayu and He, Guande and Yuan, Lifan and Cui, Ganqu and Su, Hang and Zhu, Jun",
        year=2024,
        arxiv="2402.05369",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss over the labelled pairs of each prompt."""
        ell_BG = x.logps_BG - x.anchor("ref")
        return comparison_loss(x, nca_pair_loss(ell_BG[:, :, None], ell_BG[:, None, :], beta=self.beta))


METHOD = NCAPair
