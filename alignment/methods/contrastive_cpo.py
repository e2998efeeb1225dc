"""Contrastive Preference Optimization: DPO with a uniform reference, plus cross-entropy of the chosen response.

What TRL and SimPO's tables call "CPO"; not ``cpo``, the constrained method.

Differs from the paper: cross-entropy is averaged over tokens, as in TRL [code].
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token, softplus
from alignment.methods._card import Options, option
from alignment.types import LossInputs, LossOutput, Needs, Paper, Solution


def contrastive_cpo_loss(delta: Tensor, nll_w: Tensor, *, beta: float, nll_weight: float) -> Tensor:
    """Negative log-likelihood of a pair, plus cross-entropy.

    arXiv 2401.08417: ``-log sigmoid(beta delta) + w NLL(yw)``, ``delta = log pi(yw) - log pi(yl)``.

    Args:
        delta: difference of log-probs, chosen minus rejected, in nats; any shape.
        nll_w: minus the log-prob per token of the chosen response, in nats; broadcasts with ``delta``.
        beta: scale of the implicit score.
        nll_weight: w.

    Returns:
        The loss in nats, non-negative, shape of ``delta``.
    """
    return softplus(-beta * delta) + nll_weight * nll_w


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveCPO(Options):
    """Contrastive CPO: offline, no reference."""

    beta: float = option(paper="0.1 (2401.08417, released code)", above=0, usual=(0.1, 0.1))
    nll_weight: float = option(paper="1 (2401.08417, released code)", at_least=0, usual=(1, 1))

    needs: ClassVar[Needs] = Needs(feedback="pairs")
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        authors="Xu, Haoran and Sharaf, Amr and Chen, Yunmo and Tan, Weiting and Shen, Lingfeng and "
        "Van Durme, Benjamin and Murray, Kenton and Kim, Young Jin",
        year=2024,
        arxiv="2401.08417",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt, plus cross-entropy of the winners."""
        nll_BG1 = -per_token(x.logps_BG, x.lengths_BG)[:, :, None]
        delta_BGG = differences(x.logps_BG)
        return comparison_loss(x, contrastive_cpo_loss(delta_BGG, nll_BG1, beta=self.beta, nll_weight=self.nll_weight))


METHOD = ContrastiveCPO
