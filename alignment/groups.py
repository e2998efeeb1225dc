"""Several oracles as one, while a policy trains: the state of a welfare function, moved once a step.

Shape letters: ``K`` oracles, ``B`` prompts, ``G`` completions of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignment.data import EncodedRow, prompt_text
from alignment.errors import UserError
from alignment.oracles import PanelOracle
from alignment.stages import Annotated
from alignment.types import Needs, Oracle


def check_panel(needs: Needs, oracle: Oracle | None) -> None:
    """A method of several oracles gets a panel, and no other method does: it would read a mean that nobody asked for.

    Raises:
        UserError: if not.
    """
    is_panel = isinstance(oracle, PanelOracle)
    if needs.num_oracles == "many" and not is_panel:
        raise UserError("the method reads several oracles: expected a panel (oracle.kind: panel), got one oracle")
    if needs.num_oracles == "one" and is_panel:
        raise UserError("the method reads one oracle: expected no panel; kind: mixture is the mean of its members")


def calibrate(panel: PanelOracle, answered: Sequence[EncodedRow]) -> None:
    """Put the rewards of a panel on one scale, by their spread over two answers to each prompt."""
    prompts: list[str] = [prompt_text(item.row) for item in answered]
    first, second = ([item.row.responses[g] for item in answered] for g in (0, 1))
    for member in panel.uncalibrated:
        member.calibrate(prompts, first, second)


class GroupWelfare:
    """The welfare function of a method with its state.

    Args:
        needs: with a welfare function.
        num_oracles: K.
    """

    def __init__(self, needs: Needs, num_oracles: int) -> None:
        assert needs.welfare is not None
        self.welfare = needs.welfare
        self.state = self.welfare.init(num_oracles)

    def combine(
        self, batches: Sequence[Annotated], total: Callable[[Tensor], Tensor], *, moves: bool
    ) -> list[Annotated]:
        """The micro-batches of a step with the feedback of one oracle.

        Args:
            batches: with feedback of K oracles against the reference.
            total: sums a tensor over ranks.
            moves: whether the state stays where this batch moves it; an evaluation leaves it.
        """
        sums_K1 = torch.stack([_utility_sums(item) for item in batches]).sum(0)
        sums_K1 = total(sums_K1)
        state = self.welfare.update(self.state, (sums_K1[:-1] / sums_K1[-1]).cpu())
        if moves:
            self.state = state
        return [replace(item, feedback=self.welfare.combine(item.feedback, state)) for item in batches]


def _utility_sums(item: Annotated) -> Tensor:
    """Sums over prompts of each oracle's mean utility under the sampler, and their weight, [K + 1], float32."""
    wins_KBG = item.feedback.wins_KBG
    assert wins_KBG is not None, "a method of several oracles reads wins"
    valid_BG = item.completions.valid_BG
    weights_BG = valid_BG / valid_BG.sum(-1, keepdim=True) if item.weights_BG is None else item.weights_BG
    means_KB = torch.einsum("kbg,bg->kb", wins_KBG.nan_to_num().float(), weights_BG.float())
    row_weight_B = item.row_weight_B.float()
    return torch.cat([means_KB @ row_weight_B, row_weight_B.sum()[None]])
