"""Welfare functions: how the feedback of K oracles becomes that of one, and what state that takes.

Shape letters: ``K`` oracles, ``B`` prompts, ``G`` completions of a prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.types import Feedback


def _weighted(feedback: Feedback, weights_K: Tensor) -> Feedback:
    """Mean of the oracles with the given weights, as one oracle; exact for probabilities and for rewards."""

    def mean(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return torch.einsum("k,k...->...", weights_K.to(tensor), tensor)[None]

    return Feedback(
        prefs_KBGG=mean(feedback.prefs_KBGG), wins_KBG=mean(feedback.wins_KBG), scores_KBG=mean(feedback.scores_KBG)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupArgmin:
    """The oracle of lowest running mean utility (2402.08925, alg. 1 [second-hand]; the running mean is ours).

    Attributes:
        ema: decay of the running mean; 0 uses the batch alone.
    """

    ema: float

    def init(self, num_oracles: int) -> Tensor:
        """No mean yet: nan."""
        return torch.full((num_oracles,), torch.nan, dtype=torch.float64)

    def update(self, state: Tensor, group_means_K: Tensor) -> Tensor:
        """Running mean after a batch."""
        means_K = group_means_K.to(state)
        return torch.where(state.isnan(), means_K, self.ema * state + (1.0 - self.ema) * means_K)

    def combine(self, feedback: Feedback, state: Tensor) -> Feedback:
        """The worst oracle alone."""
        weights_K = torch.nn.functional.one_hot(state.argmin(), len(state))
        return _weighted(feedback, weights_K.to(torch.float64))


@dataclass(frozen=True, slots=True)
class SampleMin:
    """The lowest oracle of each response: a lower bound of the worst group's mean (released code of 2402.08925)."""

    def init(self, num_oracles: int) -> Tensor:
        """No state."""
        return torch.empty(0)

    def update(self, state: Tensor, group_means_K: Tensor) -> Tensor:
        """No state."""
        return state

    def combine(self, feedback: Feedback, state: Tensor) -> Feedback:
        """Minimum over oracles of wins and scores; preferences have no such minimum and are dropped."""

        def lowest(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.amin(0, keepdim=True)

        return Feedback(wins_KBG=lowest(feedback.wins_KBG), scores_KBG=lowest(feedback.scores_KBG))


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorWeights:
    """Multiplicative weights on the oracles: ``w_k <- w_k exp(-step mean u_k) / Z`` (ours; a smooth minimum).

    Attributes:
        step: of the multiplicative update, per unit of utility.
    """

    step: float

    def init(self, num_oracles: int) -> Tensor:
        """Equal weights."""
        return torch.full((num_oracles,), 1.0 / num_oracles, dtype=torch.float64)

    def update(self, state: Tensor, group_means_K: Tensor) -> Tensor:
        """Weights after a batch; they sum to 1."""
        return (state.log() - self.step * group_means_K.to(state)).softmax(0)

    def combine(self, feedback: Feedback, state: Tensor) -> Feedback:
        """The weighted mean of the oracles."""
        return _weighted(feedback, state)


def ces(utilities_KN: Tensor, weights_K: Tensor, *, rho: float) -> Tensor:
    """Constant elasticity of substitution, [N]: ``(sum_k w_k u_k^rho)^(1/rho)``; rho 1 is the mean, 0 the Nash product.

    Non-decreasing in rho. For ``rho < 0``: ``min <= CES <= min * w_min^(1/rho)``.

    Args:
        utilities_KN: positive; clipped below at the smallest normal number, so that gradients stay finite at 0.
        weights_K: positive, sum to 1.
        rho: exponent; tends to the minimum as it falls.
    """
    logs_KN = utilities_KN.clamp(min=torch.finfo(utilities_KN.dtype).eps).log()
    weights_K1 = weights_K[:, None].to(utilities_KN)
    mean_log_N = (weights_K1 * logs_KN).sum(0)
    if rho == 0:
        return mean_log_N.exp()
    if abs(rho) < 1e-3:
        # log(sum w u^rho) is about rho, and dividing by rho would lose what is left of it.
        return (mean_log_N + torch.log1p((weights_K1 * torch.expm1(rho * (logs_KN - mean_log_N))).sum(0)) / rho).exp()
    return (torch.logsumexp(rho * logs_KN + weights_K1.log(), dim=0) / rho).exp()
