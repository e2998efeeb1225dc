"""Identity Preference Optimization: regression of the log-ratio difference on a finite target, 1 / (2 tau).

Differs from the paper: eq. 17 sums over tokens; by default we average, as the authors told TRL that they did [code].
The theory (a closed-form minimiser for any preference) belongs to the sum: ``length_normalize=False``.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token, preference_regression
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def ipo_loss(h: Tensor, *, tau: float) -> Tensor:
    """Squared distance of a pair from its target.

    arXiv 2310.12036, eq. 17: ``(h - 1/(2 tau))^2``. With i.i.d. pairs from s and summed log-probs the minimiser is
    ``ref exp(P(. > s) / tau)``, normalised, for any preference P.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats or nats per token; any shape.
        tau: KL strength towards the reference.

    Returns:
        The loss in squared nats, shape of ``h``; ``1/(4 tau^2)`` at ``h = 0``.
    """
    return (h - 0.5 / tau).square()


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO(Options):
    """IPO: offline, one reference; a target that deterministic labels cannot push to infinity."""

    tau: float = option(
        paper="the paper has no language model; TRL, which calls it beta, uses 0.1 (2310.12036)",
        above=0,
        usual=(0.1, 0.1),
    )
    length_normalize: bool = option(
        default=True, paper="a sum in eq. 17, a mean over tokens in the authors' runs (2310.12036)"
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
        authors="Azar, Mohammad Gheshlaghi and Rowland, Mark and Piot, Bilal and Guo, Daniel and Calandriello, Daniele "
        "and Valko, Michal and Munos, R{\\'e}mi",
        year=2023,
        arxiv="2310.12036",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected squared distance of the labelled pairs of each prompt, with ``target_attainment``."""
        logratios_BG = x.logps_BG - x.anchor("ref")
        if self.length_normalize:
            logratios_BG = per_token(logratios_BG, x.lengths_BG)
        output = comparison_loss(x, ipo_loss(differences(logratios_BG), tau=self.tau))
        return replace(output, metrics=preference_regression(x, logratios_BG, target=0.5 / self.tau).metrics)


METHOD = IPO
