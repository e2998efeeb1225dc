"""Online DPO: DPO on pairs of the current policy. No equilibrium claim; the RLHF optimum under Bradley-Terry."""

from dataclasses import dataclass
from typing import ClassVar

from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineDPO(Options):
    """Online DPO with expected (soft) labels."""

    beta: float = option(paper="2403.08635 chose 5 for online DPO; 2402.04792 uses 0.1", above=0, usual=(0.1, 5))

    needs: ClassVar[Needs] = Needs(
        feedback="prefs", anchors=(Frozen("ref"),), sampler="policy", opponent="none", schedule="online"
    )
    solution: ClassVar[Solution] = "bt_optimum"
    paper: ClassVar[Paper] = Paper(
        title="Direct Language Model Alignment from Online AI Feedback",
        authors="Guo, Shangmin and Zhang, Biao and Liu, Tianlin and Liu, Tianqi and Khalman, Misha and others",
        year=2024,
        arxiv="2402.04792",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """DPO's loss, expected over the oracle's label."""
        return comparison_loss(x, dpo_loss(differences(x.logps_BG - x.anchor("ref")), beta=self.beta))


METHOD = OnlineDPO
