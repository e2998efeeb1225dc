"""What the contract test and the tests of single methods share: a small exact problem, and the inputs of a loss.

Every ``tests/methods/test_<name>.py`` defines ``OPTIONS``, the options with which the contract test builds the method;
where the card's solution is "numeric" it also defines ``expected_loss(log_pi_A, problem)``: the expected loss in NumPy,
written from the formula and not from our code, which the contract test minimises with SciPy.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.types import Feedback, LossInputs

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One context with A actions, known exactly.

    Attributes:
        prefs_AA: P(i > j).
        ref_A: reference probabilities.
        sampler_A: probabilities with which both responses of a pair are drawn, independently.
        lengths_A: number of tokens of each action.
    """

    prefs_AA: Array
    ref_A: Array
    sampler_A: Array
    lengths_A: Array

    def expect_pairs(self, loss_AA: Array) -> float:
        """Expectation of ``loss_AA[winner, loser]`` over i.i.d. pairs labelled by the oracle (i = j included)."""
        pairs_AA = np.outer(self.sampler_A, self.sampler_A)
        return float((2 * pairs_AA * self.prefs_AA * loss_AA).sum())


def pair_inputs(
    *,
    logps: list[float],
    ref: list[float] | None = None,
    lengths: list[int] | None = None,
    preference: float = 1.0,
    **anchors: list[float],
) -> LossInputs:
    """One prompt with two responses, float64; the first is chosen with probability ``preference``."""
    columns = dict(anchors) if ref is None else {"ref": ref, **anchors}
    return LossInputs(
        logps_BG=_row(logps).requires_grad_(),
        lengths_BG=torch.tensor([lengths or [1, 1]]),
        valid_BG=torch.ones(1, 2, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.tensor([[[[0.5, preference], [1 - preference, 0.5]]]], dtype=torch.float64)),
        anchors={name: _row(values) for name, values in columns.items()},
    )


def _row(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)
