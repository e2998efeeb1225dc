"""MaxMin-RLHF: a base method on the feedback of several oracles, combined so that the worst group counts.

Differs from the paper: the running mean in ``group_argmin`` and the ``mirror`` mode are ours; group utilities are win
probabilities against the reference, already on one scale. Against the group's own samples every oracle's mean win rate
is 1/2, and a minimum over them would mean nothing. The paper's equations are [second-hand].
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from alignment.errors import UserError
from alignment.methods._card import Options, build_method, option
from alignment.types import LossInputs, LossOutput, Method, Needs, Paper, Solution, Welfare
from alignment.welfare import GroupArgmin, MirrorWeights, SampleMin


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxMin(Options):
    """MaxMin: maximise the worst group's mean utility, less the KL of the base method.

    Attributes:
        base: a ``method:`` block; one that reads wins, e.g. ``{name: spo, kappa_ref: 0.05}``.
        mode: ``group_argmin`` (paper): the oracle whose mean utility is lowest; ``sample_min`` (released code): the
            lowest oracle of each response; ``mirror``: multiplicative weights on the oracles.
        ema: decay of the running mean of group utilities, for ``group_argmin``.
        step: of the multiplicative weights, for ``mirror``.
    """

    base: Mapping[str, Any] = option(
        paper="the paper's base is PPO with a KL penalty (2402.08925, alg. 1)",
        example={"name": "spo", "kappa_ref": 0.05},
    )
    mode: Literal["group_argmin", "sample_min", "mirror"] = option(
        default="group_argmin", paper="group_argmin; sample_min in the released code (2402.08925)"
    )
    ema: float = option(default=0.9, paper="ours; the paper has no running mean (2402.08925)", at_least=0, below=1)
    step: float = option(default=0.1, paper="ours; the paper has no multiplicative weights (2402.08925)", above=0)

    solution: ClassVar[Solution] = "maxmin"
    paper: ClassVar[Paper] = Paper(
        title="MaxMin-RLHF: Alignment with Diverse Human Preferences",
        authors="Chakraborty, Souradip and Qiu, Jiahao and Yuan, Hui and Koppel, Alec and Huang, Furong and Manocha, "
        "Dinesh and Bedi, Amrit Singh and Wang, Mengdi",
        year=2024,
        arxiv="2402.08925",
    )

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        base = self.base_method()
        if base.needs.feedback != "wins" or base.needs.schedule != "online":
            raise UserError(
                f"method 'maxmin': expected a base that reads wins online (spo, egpo, nash_md, ...), got "
                f"'{self.base['name']}', which reads {base.needs.feedback} {base.needs.schedule}"
            )

    def base_method(self) -> Method:
        """The base method, built from its block."""
        return build_method(self.base)

    def welfare(self) -> Welfare:
        """How the oracles become one."""
        if self.mode == "group_argmin":
            return GroupArgmin(ema=self.ema)
        return SampleMin() if self.mode == "sample_min" else MirrorWeights(step=self.step)

    @property
    def needs(self) -> Needs:
        return replace(self.base_method().needs, opponent="ref", num_oracles="many", welfare=self.welfare())

    @property
    def iterate(self) -> Literal["last", "average"]:
        # Alternating best responses orbit the saddle point; the convex-concave theory is for averages.
        return "average"

    def loss(self, x: LossInputs) -> LossOutput:
        """The base's loss on combined feedback."""
        return self.base_method().loss(x)


METHOD = MaxMin
