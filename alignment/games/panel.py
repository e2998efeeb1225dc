"""A panel of oracles that want different things, and the policy that serves the worst-off best.

Shapes: ``K`` oracles, ``X`` contexts, ``A`` actions.

Maxmin alignment (2402.08925) asks for ``max_pi min_k E_x E_pi u_k - tau E_x KL(pi || ref)``. The problem is concave, so
it is solved here exactly through its convex dual, ``min_w tau E_x log sum_y ref exp(w.u / tau)`` over the simplex.

Differs from the paper: the utilities of preference oracles are win probabilities against the reference, because the
mean win rate of a policy against itself is 1/2 for every oracle.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games.game import (
    PreferenceGame,
    check_axes,
    check_policy,
    check_preferences,
    check_reference,
    check_tau,
    kl_divergence,
)
from alignment.games.solver import solve_maxmin_regularized, solve_maxmin_unregularized


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxMinSolution:
    """The maxmin policy of a panel together with the evidence for it.

    Attributes:
        policy_XA: the policy, rows sum to one.
        value: its objective, the worst oracle's mean utility minus the KL penalty.
        weights_K: the dual weights of the oracles, in the simplex; an oracle with weight is a worst-off one.
        gap: the dual value at the weights minus ``value``; the true optimum lies between the two.
    """

    policy_XA: Tensor
    value: float
    weights_K: Tensor
    gap: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PanelGame:
    """``K`` oracles over the same contexts and actions: give either their preferences or their scores.

    Attributes:
        prefs_KXAA: ``P_k(y > y')`` as in `PreferenceGame`.
        scores_KXA: real-valued utilities, on one scale for all oracles.
        ref_XA: the reference as positive probabilities.
        tau: the strength of the KL penalty; 0 is the unregularised problem.

    Raises:
        UserError: if a tensor is not what its name promises, or not exactly one of the two is given.

    Example:
        >>> import torch
        >>> scores_KXA = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> panel = PanelGame(scores_KXA=scores_KXA, ref_XA=torch.tensor([[0.5, 0.5]]), tau=0.0)
        >>> round(panel.maxmin().value, 6)
        0.5
    """

    prefs_KXAA: Tensor | None = None
    scores_KXA: Tensor | None = None
    ref_XA: Tensor
    tau: float

    def __post_init__(self) -> None:
        ref_XA = self.ref_XA.detach().to(torch.float64)
        if (self.prefs_KXAA is None) == (self.scores_KXA is None):
            given = "neither" if self.prefs_KXAA is None else "both"
            raise UserError(f"PanelGame: expected exactly one of prefs_KXAA and scores_KXA, got {given}")
        check_axes(prefs_KXAA=self.prefs_KXAA, scores_KXA=self.scores_KXA, ref_XA=ref_XA)
        if self.prefs_KXAA is not None:
            prefs_KXAA = self.prefs_KXAA.detach().to(torch.float64)
            check_preferences(prefs_KXAA, name="prefs_KXAA")
            object.__setattr__(self, "prefs_KXAA", 0.5 + 0.5 * (prefs_KXAA - prefs_KXAA.mT))
        if self.scores_KXA is not None:
            scores_KXA = self.scores_KXA.detach().to(torch.float64)
            if scores_KXA.numel() == 0 or not bool(scores_KXA.isfinite().all()):
                raise UserError("scores_KXA: expected finite scores of at least one oracle, context and action")
            object.__setattr__(self, "scores_KXA", scores_KXA)
        check_reference(ref_XA)
        check_tau(self.tau)
        object.__setattr__(self, "ref_XA", ref_XA / ref_XA.sum(-1, keepdim=True))

    @property
    def utilities_KXA(self) -> Tensor:
        """The scores, or ``P_k(y > ref)`` in [0, 1]."""
        if self.scores_KXA is not None:
            return self.scores_KXA
        return torch.einsum("kxab,xb->kxa", self._preferences(), self.ref_XA)

    def group_values(self, pi_XA: Tensor) -> Tensor:
        """The mean utility of the policy to every oracle, [K], averaged over contexts."""
        pi_XA = check_policy(pi_XA, like_XA=self.ref_XA, name="pi_XA")
        return torch.einsum("kxa,xa->kx", self.utilities_KXA, pi_XA).mean(-1)

    def objective(self, pi_XA: Tensor) -> Tensor:
        """What maxmin maximises, a scalar: the lowest entry of `group_values` minus ``tau`` times the mean KL."""
        worst = self.group_values(pi_XA).amin()
        return worst if self.tau == 0.0 else worst - self.tau * kl_divergence(pi_XA, self.ref_XA).mean()

    def maxmin(self, tolerance: float = 1e-8) -> MaxMinSolution:
        """The policy that maximises `objective`, all contexts jointly, with its duality gap.

        Args:
            tolerance: the largest gap that is accepted, in units of utility.

        Raises:
            RuntimeError: if the gap is larger. An uncertified policy is never returned.
        """
        if not tolerance > 0.0:
            raise UserError(f"tolerance: expected a positive number, got {tolerance}")
        utilities_KXA, ref_XA = self.utilities_KXA, self.ref_XA
        if self.tau == 0.0:
            point = solve_maxmin_unregularized(utilities_KXA.cpu().numpy())
        else:
            point = solve_maxmin_regularized(
                utilities_KXA.cpu().numpy(), ref_XA.cpu().numpy(), tau=self.tau, tolerance=tolerance
            )
        policy_XA = torch.from_numpy(point.policy_XA).to(ref_XA.device)
        weights_K = torch.from_numpy(point.weights_K).to(ref_XA.device)
        value = float(self.objective(policy_XA))
        gap = float(self._dual_value(weights_K)) - value
        if not gap <= tolerance:
            raise RuntimeError(
                f"expected a maxmin gap of at most {tolerance:.3g}, reached {gap:.3g}; raise the tolerance or tau "
                f"(now {self.tau})"
            )
        return MaxMinSolution(policy_XA=policy_XA, value=value, weights_K=weights_K, gap=gap)

    def majority(self, weights_K: Tensor | None = None) -> PreferenceGame:
        """The game of the average oracle.

        Args:
            weights_K: non-negative weights, normalised here; equal ones if not given.
        """
        prefs_KXAA = self._preferences()
        if weights_K is None:
            weights_K = torch.ones(len(prefs_KXAA), dtype=torch.float64, device=prefs_KXAA.device)
        check_axes(prefs_KXAA=prefs_KXAA, weights_K=weights_K)
        weights_K = weights_K.to(torch.float64)
        if not (bool((weights_K >= 0.0).all()) and 0.0 < float(weights_K.sum()) < float("inf")):
            raise UserError(f"weights_K: expected non-negative weights, not all zero, got {weights_K.tolist()}")
        prefs_XAA = torch.einsum("k,kxab->xab", weights_K / weights_K.sum(), prefs_KXAA)
        return PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=self.ref_XA, tau=self.tau)

    def player(self, k: int) -> PreferenceGame:
        """The game of oracle ``k`` alone."""
        prefs_KXAA = self._preferences()
        if not 0 <= k < len(prefs_KXAA):
            raise UserError(f"k: expected an oracle from 0 to {len(prefs_KXAA) - 1}, got {k}")
        return PreferenceGame(prefs_XAA=prefs_KXAA[k], ref_XA=self.ref_XA, tau=self.tau)

    def _preferences(self) -> Tensor:
        if self.prefs_KXAA is None:
            raise UserError("expected a panel with prefs_KXAA, got one with scores_KXA: scores do not define a game")
        return self.prefs_KXAA

    def _dual_value(self, weights_K: Tensor) -> Tensor:
        weighted_XA = torch.einsum("k,kxa->xa", weights_K, self.utilities_KXA)
        if self.tau == 0.0:
            return weighted_XA.amax(-1).mean()
        return self.tau * (self.ref_XA.log() + weighted_XA / self.tau).logsumexp(-1).mean()
