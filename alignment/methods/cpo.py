"""Constrained Preference Optimization (2605.20834): DPO with a margin that grows where the reference is unlikely.

Not contrastive preference optimization, which TRL's CPOTrainer implements: that is ``contrastive_cpo``.

The equations are [second-hand]: three independent reproductions of the paper agree on them.

Differs from the paper:

- ``length_normalize`` (default true) divides log-probs by token counts in the logit and in the margin; inferred from
  the released checkpoint's name [unverified]. Without it the margin of a real sequence, ``1/ref``, is astronomic.
- ``margin: hard`` and ``margin_clip`` are ours. ``hard`` is not the paper's E-CPOC, whose formula we have not seen.
- Labels are noisy in our games and the margin follows the label; the paper's population minimiser,
  ``delta = delta_ref + (dr + Omega)/beta``, holds for pairs that are always labelled the same way.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.functional import comparison_loss, differences, softplus
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def cpo_loss(h: Tensor, margin: Tensor, *, beta: float) -> Tensor:
    """DPO that is satisfied only beyond a margin.

    arXiv 2605.20834, eq. 17 [second-hand]: ``-log sigmoid(beta h - Omega)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        margin: Omega, in units of ``beta h``, shape of ``h``; carries no gradient.
        beta: inverse temperature.

    Returns:
        The loss in nats, shape of ``h``.
    """
    return softplus(-(beta * h - margin.detach()))


def log_reference_margin(ref_w: Tensor, ref_l: Tensor, *, gamma: float) -> Tensor:
    """Log of ``gamma (1/ref(yw) + 1/ref(yl))``, from log-probs; ``-inf`` at ``gamma = 0``."""
    return torch.logaddexp(-ref_w, -ref_l) + (math.log(gamma) if gamma > 0 else -math.inf)


def reference_margin(ref_w: Tensor, ref_l: Tensor, *, gamma: float, margin_clip: float) -> Tensor:
    """``Omega = gamma (1/ref(yw) + 1/ref(yl))``, at most ``margin_clip``.

    arXiv 2605.20834, the margin of eq. 17 [second-hand].

    Args:
        ref_w: log-probs of the chosen response under the reference, in nats; per token where normalised.
        ref_l: the same of the rejected response.
        gamma: multiplier of the constraint.
        margin_clip: largest value.

    Returns:
        Omega, in [0, margin_clip].
    """
    # Clipped before the exponential: 1/ref overflows for any real sequence, at summed log-probs of -90 in float32.
    return log_reference_margin(ref_w, ref_l, gamma=gamma).clamp(max=math.log(margin_clip)).exp()


def hard_margin(margin: Tensor, delta_ref: Tensor, *, beta: float, m0: float) -> Tensor:
    """``max(Omega, beta (m0 - delta_ref))``: a loss of at most log 2 then implies ``delta >= m0`` (ours)."""
    return torch.maximum(margin, beta * (m0 - delta_ref))


@dataclass(frozen=True, slots=True, kw_only=True)
class CPO(Options):
    """Constrained CPO: offline, one reference.

    Attributes:
        gamma: multiplier of the constraint; 0 with the reference margin is DPO.
        margin: ``reference`` (the paper's) or ``hard`` (ours), which also demands ``delta >= m0``.
        m0: smallest margin of log-probs, in nats; read by ``hard`` only.
        length_normalize: log-probs per token, in the logit and in the margin.
        margin_clip: largest reference margin.
    """

    beta: float = option(
        paper="2.5 in the name of the released checkpoint, 0.1 in the analysis (2605.20834) [second-hand]",
        above=0,
        usual=(0.1, 2.5),
    )
    gamma: float = option(
        paper="0.25 ('alpha') in the name of the released checkpoint (2605.20834) [unverified]",
        at_least=0,
        usual=(0.25, 0.25),
    )
    margin: Literal["reference", "hard"] = option(default="reference", paper="reference (2605.20834, eq. 17)")
    m0: float = option(default=0.0, paper="ours, not the paper's", at_least=0)
    length_normalize: bool = option(default=True, paper="true, inferred from the checkpoint (2605.20834) [unverified]")
    margin_clip: float = option(default=10.0, paper="ours, not the paper's", above=0)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Conditional Equivalence of DPO and RLHF: Implicit Assumption, Failure Modes, and Provable Alignment",
        authors="Yang, Zhiqin and Zhang, Yonggang and Xue, Wei and Fang, Dong and Han, Bo and Guo, Yike",
        year=2026,
        arxiv="2605.20834",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected loss over the labelled pairs of each prompt, with the diagnostics of the paper's pathology."""
        logps_BG, ref_BG = x.logps_BG, x.anchor("ref")
        if self.length_normalize:
            lengths_BG = x.lengths_BG.clamp(min=1)
            logps_BG, ref_BG = logps_BG / lengths_BG, ref_BG / lengths_BG
        # The difference of log-ratios in this order is DPO's, bit for bit.
        h_BGG = differences(logps_BG - ref_BG)
        ref_w, ref_l = ref_BG[:, :, None], ref_BG[:, None, :]
        margin_BGG = reference_margin(ref_w, ref_l, gamma=self.gamma, margin_clip=self.margin_clip)
        clipped_BGG = log_reference_margin(ref_w, ref_l, gamma=self.gamma) > math.log(self.margin_clip)
        if self.margin == "hard":
            margin_BGG = hard_margin(margin_BGG, differences(ref_BG), beta=self.beta, m0=self.m0)
        output = comparison_loss(x, cpo_loss(h_BGG, margin_BGG, beta=self.beta))
        metrics = _diagnostics(x, logps_BG, ref_BG, margin_BGG, clipped_BGG, beta=self.beta)
        return dataclasses.replace(output, metrics=metrics)


@torch.no_grad()
def _diagnostics(
    x: LossInputs, logps_BG: Tensor, ref_BG: Tensor, margin_BGG: Tensor, clipped_BGG: Tensor, *, beta: float
) -> Mapping[str, Tensor]:
    """Expectations over labelled pairs [B] that show the pathology: a falling DPO loss on pairs still ranked wrongly.

    ``acc_abs``: delta > 0. ``acc_rel``: delta > delta_ref (what TRL calls the accuracy). ``u_rate``: in the paper's
    undesirable set, delta_ref < delta < 0. ``escaped / ref_misranked``: its escape rate. These use the log-probs of the
    loss, which may be per token; the mean of delta is given in both forms, as they often disagree in sign.
    """
    delta_BGG, delta_ref_BGG = differences(logps_BG), differences(ref_BG)
    values = {
        "dpo_loss": dpo_loss(delta_BGG - delta_ref_BGG, beta=beta),
        "acc_abs": delta_BGG > 0,
        "acc_rel": delta_BGG > delta_ref_BGG,
        "u_rate": (delta_ref_BGG < delta_BGG) & (delta_BGG < 0),
        "ref_misranked": delta_ref_BGG <= 0,
        "escaped": (delta_ref_BGG <= 0) & (delta_BGG > 0),
        "mean_omega": margin_BGG,
        "margin_clipped": clipped_BGG,
        "delta_summed": differences(x.logps_BG),
        "delta_normalized": differences(x.logps_BG / x.lengths_BG.clamp(min=1)),
    }
    return {name: comparison_loss(x, value_BGG.to(x.logps_BG.dtype)).loss_B for name, value_BGG in values.items()}


METHOD = CPO
