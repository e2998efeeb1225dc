"""The preference game of Nash learning from human feedback, exact and in float64.

Shapes: ``X`` contexts (prompts), ``A`` actions (responses). Contexts are independent games.

With ``P(y > y')`` the probability that ``y`` is preferred and ``tau`` the strength of the KL penalty towards ``ref``::

    J(pi, mu) = P(pi > mu) - tau KL(pi || ref) + tau KL(mu || ref)

Its symmetric equilibrium is unique for ``tau > 0`` and satisfies ``pi ~ ref exp(P(. > pi) / tau)`` (2312.00886).
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games.solver import solve_regularized, solve_unregularized
from alignment.shapes import check_shapes

# Probabilities may come in float32; games are then made exact, policies are taken as they are.
GAME_TOLERANCE = 1e-6
POLICY_TOLERANCE = 1e-6
# Win rates closer than this are the same number, computed in two orders.
TIE_TOLERANCE = 1e-12
# A batched product starts threads even for ten 10 x 10 matrices; a sum of this size stays on one thread. On a busy
# machine that is a factor of 100.
SMALL_PRODUCT = 32_768


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An equilibrium together with the evidence for it.

    Attributes:
        policy_XA: the policy, rows sum to one.
        gap_X: its exact duality gap, computed from the policy after it was found; at most ``tolerance``.
        tolerance: what was asked for.
        iterations_X: the number of linear systems that were solved.
    """

    policy_XA: Tensor
    gap_X: Tensor
    tolerance: float
    iterations_X: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceGame:
    """A batch of symmetric two-player games with a KL penalty towards a reference.

    Attributes:
        prefs_XAA: ``P(y > y')`` in [0, 1], with ``P + P^T = 1``. Asymmetries up to 1e-9 are taken for rounding and
            removed, so that ``J(pi, pi)`` is 1/2 exactly.
        ref_XA: the reference as positive probabilities.
        tau: the strength of the KL penalty; 0 is the unregularised game.

    Raises:
        UserError: if a tensor is not what its name promises.

    Example:
        >>> import torch
        >>> prefs_XAA = torch.tensor([[[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]])
        >>> game = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=torch.full((1, 3), 1 / 3, dtype=torch.float64), tau=0.1)
        >>> [round(p, 6) for p in game.solve().policy_XA[0].tolist()]
        [0.333333, 0.333333, 0.333333]
    """

    prefs_XAA: Tensor
    ref_XA: Tensor
    tau: float

    def __post_init__(self) -> None:
        prefs_XAA = self.prefs_XAA.detach().to(torch.float64)
        ref_XA = self.ref_XA.detach().to(torch.float64)
        check_axes(prefs_XAA=prefs_XAA, ref_XA=ref_XA)
        check_preferences(prefs_XAA, name="prefs_XAA")
        check_reference(ref_XA)
        check_tau(self.tau)
        object.__setattr__(self, "prefs_XAA", 0.5 + 0.5 * (prefs_XAA - prefs_XAA.mT))
        object.__setattr__(self, "ref_XA", ref_XA / ref_XA.sum(-1, keepdim=True))

    def win_probability(self, mu_XA: Tensor) -> Tensor:
        """``P(y > mu)`` of every action, [X, A] in [0, 1]."""
        mu_XA = check_policy(mu_XA, like_XA=self.ref_XA, name="mu_XA")
        return _expected_over(self.prefs_XAA, mu_XA)

    def value(self, pi_XA: Tensor, mu_XA: Tensor) -> Tensor:
        """``J(pi, mu)``, [X]: the probability that ``pi`` beats ``mu`` and the two KL penalties."""
        pi_XA = check_policy(pi_XA, like_XA=self.ref_XA, name="pi_XA")
        mu_XA = check_policy(mu_XA, like_XA=self.ref_XA, name="mu_XA")
        value_X = (pi_XA * self.win_probability(mu_XA)).sum(-1)
        if self.tau == 0.0:
            return value_X
        return value_X + self.tau * (kl_divergence(mu_XA, self.ref_XA) - kl_divergence(pi_XA, self.ref_XA))

    def best_response(self, mu_XA: Tensor) -> Tensor:
        """The policy with the highest value against ``mu``, [X, A].

        ``ref exp(P(. > mu) / tau)``; at ``tau = 0`` the uniform policy over the actions that are within 1e-12 of the
        best.
        """
        wins_XA = self.win_probability(mu_XA)
        if self.tau == 0.0:
            best_XA = (wins_XA >= wins_XA.amax(-1, keepdim=True) - TIE_TOLERANCE).to(torch.float64)
            return best_XA / best_XA.sum(-1, keepdim=True)
        return log_normalize(self.ref_XA.log() + wins_XA / self.tau).exp()

    def duality_gap(self, pi_XA: Tensor) -> Tensor:
        """``J(BR(pi), pi) - J(pi, BR(pi))``, [X]; zero at the equilibrium and nowhere else.

        Equal to ``2 (tau log sum ref exp(P(. > pi) / tau) + tau KL(pi || ref) - 1/2)``, but computed as ``2 tau KL(pi
        || BR(pi))``, a sum of terms that are not negative: that form has digits left where the other cancels to 1e-16.
        At ``tau = 0`` it is ``2 (max P(. > pi) - 1/2)``, which rounding may leave a few ulps below zero.
        """
        pi_XA = check_policy(pi_XA, like_XA=self.ref_XA, name="pi_XA")
        edge_XA = _expected_over(self.prefs_XAA - 0.5, pi_XA)
        if self.tau == 0.0:
            return 2.0 * edge_XA.amax(-1)
        log_response_XA = log_normalize(self.ref_XA.log() + edge_XA / self.tau)
        return 2.0 * self.tau * _kl_terms(pi_XA, log_response_XA).sum(-1)

    def solve(self, tolerance: float = 1e-10) -> Solution:
        """The symmetric equilibrium of every context, with its certificate.

        At ``tau = 0`` there may be many equilibria; one inside their set is returned.

        Args:
            tolerance: the largest duality gap that is accepted.

        Raises:
            RuntimeError: if some context did not reach the tolerance. An uncertified policy is never returned.
        """
        if not tolerance > 0.0:
            raise UserError(f"tolerance: expected a positive number, got {tolerance}")
        prefs_XAA, ref_XA = self.prefs_XAA.cpu().numpy(), self.ref_XA.cpu().numpy()
        found = [
            solve_unregularized(prefs_AA, tolerance=tolerance)
            if self.tau == 0.0
            else solve_regularized(prefs_AA, ref_A, tau=self.tau, tolerance=tolerance)
            for prefs_AA, ref_A in zip(prefs_XAA, ref_XA, strict=True)
        ]
        logits_XA = torch.stack([torch.from_numpy(equilibrium.log_policy_A) for equilibrium in found])
        policy_XA = logits_XA.to(self.ref_XA.device).softmax(-1)
        gap_X = self.duality_gap(policy_XA)
        worst = int(gap_X.argmax())
        if not bool((gap_X <= tolerance).all()):
            raise RuntimeError(
                f"context {worst}: expected a duality gap of at most {tolerance:.3g}, reached "
                f"{float(gap_X[worst]):.3g} after {found[worst].iterations} linear systems; raise the tolerance or tau "
                f"(now {self.tau})"
            )
        iterations_X = torch.tensor([equilibrium.iterations for equilibrium in found])
        return Solution(policy_XA=policy_XA, gap_X=gap_X, tolerance=tolerance, iterations_X=iterations_X)

    def with_tau(self, tau: float) -> Self:
        """The same game with another KL strength."""
        return replace(self, tau=tau)

    def with_ref(self, ref_XA: Tensor) -> Self:
        """The same game with another reference."""
        return replace(self, ref_XA=ref_XA)


def _expected_over(payoff_XAA: Tensor, mu_XA: Tensor) -> Tensor:
    if payoff_XAA.numel() <= SMALL_PRODUCT:
        return (payoff_XAA * mu_XA[:, None, :]).sum(-1)
    return torch.matmul(payoff_XAA, mu_XA[:, :, None])[:, :, 0]


def log_normalize(logits_XA: Tensor) -> Tensor:
    """Log-probabilities in float64. `torch.log_softmax` is the same, but starts threads for the smallest batch."""
    logits_XA = logits_XA.to(torch.float64)
    return logits_XA - logits_XA.logsumexp(-1, keepdim=True)


def kl_divergence(p_XA: Tensor, q_XA: Tensor) -> Tensor:
    """``KL(p || q)``, [X] in nats; infinite where ``p`` has mass that ``q`` lacks.

    Summed as ``p log(p/q) - p + q``, whose terms are not negative, so that close policies keep their digits.
    """
    check_shapes(p_XA=p_XA, q_XA=q_XA)
    return _kl_terms(p_XA.to(torch.float64), q_XA.to(torch.float64).log()).sum(-1)


def _kl_terms(p_XA: Tensor, log_q_XA: Tensor) -> Tensor:
    empty_XA = p_XA == 0.0
    ratio_XA = log_q_XA - torch.where(empty_XA, 1.0, p_XA).log()
    near_XA = p_XA * (torch.expm1(ratio_XA.clamp(max=1.0)) - ratio_XA)
    far_XA = log_q_XA.exp() - p_XA - p_XA * ratio_XA
    return torch.where(empty_XA, log_q_XA.exp(), torch.where(ratio_XA < 1.0, near_XA, far_XA))


def check_axes(**tensors: Tensor | None) -> None:
    """Raise unless tensors that a user gave have the axes of their names."""
    try:
        check_shapes(**tensors)
    except ValueError as error:
        raise UserError(f"{error}; an axis for each letter of the name: K oracles, X contexts, A actions") from None


def check_policy(pi_XA: Tensor, *, like_XA: Tensor, name: str) -> Tensor:
    """The policy in float64, after a check that its rows are probabilities (to 1e-6) of the right shape."""
    check_axes(ref_XA=like_XA, **{name: pi_XA})
    pi_XA = pi_XA.to(torch.float64)
    error = float((pi_XA.detach().sum(-1) - 1.0).abs().max())
    lowest = float(pi_XA.detach().min())
    if not (lowest >= 0.0 and error <= POLICY_TOLERANCE):
        raise UserError(
            f"{name}: expected rows of probabilities that sum to 1, got a smallest entry of {lowest:.3g} and a sum "
            f"that is off by {error:.3g}; pass probabilities, not logits or log-probabilities"
        )
    return pi_XA


def check_preferences(prefs_XAA: Tensor, *, name: str) -> None:
    """Raise unless the last two axes hold preferences in [0, 1] with ``P + P^T = 1``."""
    if prefs_XAA.numel() == 0:
        raise UserError(f"{name}: expected at least one context and one action, got shape {list(prefs_XAA.shape)}")
    if not bool(prefs_XAA.isfinite().all()):
        raise UserError(f"{name}: expected finite probabilities, got nan or inf")
    lowest, highest = float(prefs_XAA.min()), float(prefs_XAA.max())
    if lowest < 0.0 or highest > 1.0:
        raise UserError(f"{name}: expected probabilities in [0, 1], got entries from {lowest:.6g} to {highest:.6g}")
    diagonal = float((prefs_XAA.diagonal(dim1=-2, dim2=-1) - 0.5).abs().max())
    if diagonal > GAME_TOLERANCE:
        raise UserError(f"{name}: expected 1/2 on the diagonal, got an entry that is off by {diagonal:.3g}")
    error = float((prefs_XAA + prefs_XAA.mT - 1.0).abs().max())
    if error > GAME_TOLERANCE:
        raise UserError(
            f"{name}: expected P + P^T = 1 to {GAME_TOLERANCE:g}, got an error of {error:.3g}; average the two "
            "presentation orders, (P + 1 - P^T) / 2, in float64"
        )


def check_reference(ref_XA: Tensor) -> None:
    """Raise unless every row is a positive probability vector, to 1e-6."""
    lowest = float(ref_XA.min())
    if not lowest > 0.0:
        raise UserError(f"ref_XA: expected positive probabilities, got a smallest entry of {lowest:.3g}")
    error = float((ref_XA.sum(-1) - 1.0).abs().max())
    if not error <= GAME_TOLERANCE:
        raise UserError(f"ref_XA: expected rows that sum to 1, got a sum off by {error:.3g}; take a softmax in float64")


def check_tau(tau: float) -> None:
    """Raise unless ``tau`` is a finite number that is not negative."""
    if not (math.isfinite(tau) and tau >= 0.0):
        raise UserError(f"tau: expected a finite number >= 0, got {tau}")
