"""DiscoPOP, the log-ratio modulated loss: logistic below the margin of the reference, exponential above it.

Trap [derived]: the loss is not monotone. At pi = ref it pushes the margin the wrong way whenever
``temp < (1 - log 2) / 3 = 0.1023``, the paper's 0.05 included, and near ``beta h = -0.12`` it has a local minimum.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def discopop_loss(h: Tensor, *, beta: float, temp: float) -> Tensor:
    """A blend of the logistic and the exponential loss.

    arXiv 2406.08414, eq. 5 as cited by TRL [code TRL]: ``(1 - m) log(1 + e^-z) + m e^-z``, ``z = beta h``,
    ``m = sigmoid(z / temp)``. The released model uses ``m = sigmoid(h)``, that is ``temp = beta``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature of the implicit score.
        temp: width of the blend, in units of ``z``; the paper's tau.

    Returns:
        The loss, shape of ``h``; (1 + log 2)/2 at ``h = 0``.
    """
    z = beta * h
    # m e^-z as one exponential: 0 * inf would be nan where z is very negative.
    exponential = torch.exp(-z - softplus(-z / temp))
    return torch.sigmoid(-z / temp) * softplus(-z) + exponential


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoPOP(Options):
    """DiscoPOP: offline, one reference; a loss found by a language model.

    Attributes:
        temp: width of the blend. Above 1 the loss grows exponentially for badly ranked pairs.
    """

    beta: float = option(
        paper="the paper uses 0.05 (2406.08414, app. B.1, as given by TRL)", above=0, usual=(0.05, 0.05)
    )
    temp: float = option(paper="the paper uses 0.05 (its tau; 2406.08414, app. E, as given by TRL)", above=0, at_most=1)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Discovering Preference Optimization Algorithms with and for Large Language Models",
        authors="Lu, Chris and others",
        year=2024,
        arxiv="2406.08414",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss over the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, discopop_loss(h_BGG, beta=self.beta, temp=self.temp))


METHOD = DiscoPOP
