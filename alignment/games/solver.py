"""Equilibria of finite symmetric games, to machine precision, with the gap that certifies them.

Shapes: ``A`` actions, ``K`` oracles, ``X`` contexts. NumPy float64; one game at a time, except the maxmin problems,
whose contexts share their weights.

Throughout, ``S = P - 1/2`` is the antisymmetric part of the preferences. It may replace ``P`` everywhere, because the
weights of a policy sum to one. Every solver returns the gap it reached; whether that is enough is decided by the
caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from scipy.optimize import linprog

Array = NDArray[np.float64]

MAX_STEPS = 600
# Actions with less mass than this are left out of a linear system: they cannot move a win rate by one ulp.
NEGLIGIBLE_MASS = 1e-30
# Entropy weight at which the path starts. Win rates differ by at most 1, so the first policy is within e^2 of its
# reference.
FIRST_TAU = 0.5
# A point of the path is good enough as the next start when its gap is below this share of its entropy weight.
PATH_ACCURACY = 0.3
# A Newton step shorter than this means that the entropy weight fell too fast.
SHORTEST_PATH_STEP = 0.125
SHORTEST_STEP = 1e-6
FASTEST_DECREASE = 0.5
SLOWEST_DECREASE = 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Equilibrium:
    """A policy, the exact duality gap it has, and the number of linear systems that were solved."""

    log_policy_A: Array
    gap: float
    iterations: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxMinPoint:
    """A policy and dual weights of a maxmin problem; their gap is computed by the caller."""

    policy_XA: Array
    weights_K: Array


def solve_regularized(prefs_AA: Array, ref_A: Array, *, tau: float, tolerance: float) -> Equilibrium:
    """The equilibrium of the game with a KL penalty: ``log pi = log ref + P pi / tau + const``.

    Newton's method on the logits along a path of decreasing entropy weight ``t``. The path keeps ``tau log ref`` fixed,
    as a linear bonus, while ``t`` falls from 1/2 to ``tau``, so that an extreme reference is no harder than a flat one.
    After the tolerance is met, one more quadratically convergent step is taken, so that the policy is accurate and not
    only its gap.

    Args:
        prefs_AA: ``P``, antisymmetric around 1/2.
        ref_A: positive, sums to one.
        tau: positive.
        tolerance: the duality gap to reach.

    Returns:
        The policy in logs (small weights underflow otherwise), with the gap it reached.
    """
    skew_AA = prefs_AA - 0.5
    log_ref_A = np.log(ref_A)
    weight = max(tau, FIRST_TAU)
    solved_weight, solved_A = weight, _log_normalize(tau * log_ref_A / weight)
    point_A = solved_A
    decrease = FASTEST_DECREASE
    steps = 0
    while True:
        log_prior_A = log_ref_A if weight == tau else tau * log_ref_A / weight
        last = weight == tau
        # 1e-16 in KL is 1e-8 in the logits: the step after it lands on machine precision.
        target = min(tolerance, 1e-16 * tau) if last else PATH_ACCURACY * weight
        gap = _regularized_gap(skew_AA, log_prior_A, weight, point_A)
        retreat = False
        while gap > target and steps < MAX_STEPS:
            step_A = _newton_step(skew_AA, log_prior_A, weight, point_A)
            steps += 1
            length, new_A, new_gap = _line_search(skew_AA, log_prior_A, weight, point_A, step_A, gap)
            if (
                length < SHORTEST_PATH_STEP
                and weight < solved_weight
                and decrease < SLOWEST_DECREASE
                and gap > tolerance
            ):
                retreat = True
                break
            if length < SHORTEST_STEP or (gap <= tolerance and new_gap >= gap):
                break
            point_A, gap = new_A, new_gap
        if last and not retreat:
            break
        if steps >= MAX_STEPS:
            break
        if retreat:
            decrease = decrease**0.5
        else:
            solved_weight, solved_A = weight, point_A
            decrease = max(decrease * decrease, FASTEST_DECREASE)
        weight = max(tau, solved_weight * decrease)
        point_A = _predict(skew_AA, log_ref_A, tau, solved_A, solved_weight, weight)
    gap = _regularized_gap(skew_AA, log_ref_A, tau, point_A)
    if 0.0 < gap <= tolerance and steps < MAX_STEPS:
        polished_A = _log_normalize(point_A + _newton_step(skew_AA, log_ref_A, tau, point_A))
        steps += 1
        polished_gap = _regularized_gap(skew_AA, log_ref_A, tau, polished_A)
        if polished_gap < gap:
            point_A, gap = polished_A, polished_gap
    return Equilibrium(log_policy_A=point_A, gap=gap, iterations=steps)


def _log_normalize(logits_A: Array) -> Array:
    top = logits_A.max()
    return np.asarray(logits_A - (top + np.log(np.exp(logits_A - top).sum())))


def _regularized_gap(skew_AA: Array, log_prior_A: Array, weight: float, log_policy_A: Array) -> float:
    """``2 weight KL(pi || best response)``: a sum of terms that are not negative, so that nothing cancels."""
    policy_A = np.exp(log_policy_A)
    log_response_A = _log_normalize(log_prior_A + skew_AA @ policy_A / weight)
    ratio_A = log_response_A - log_policy_A
    near_A = policy_A * (np.expm1(np.minimum(ratio_A, 1.0)) - ratio_A)
    far_A = np.exp(log_response_A) - policy_A - policy_A * ratio_A
    return float(2.0 * weight * np.where(ratio_A < 1.0, near_A, far_A).sum())


def _newton_step(skew_AA: Array, log_prior_A: Array, weight: float, log_policy_A: Array) -> Array:
    """Newton's direction in the logits.

    Scaled by the square root of the policy, the matrix is ``weight I`` minus a skew part: its condition number is at
    most 1 / weight, whatever the policy. Rows without mass follow from the others without a solve.
    """
    policy_A = np.exp(log_policy_A)
    residual_A = skew_AA @ policy_A - weight * (log_policy_A - log_prior_A)
    active = np.flatnonzero(policy_A > NEGLIGIBLE_MASS)
    root = np.sqrt(policy_A[active])
    matrix = skew_AA[np.ix_(active, active)] if len(active) < len(policy_A) else skew_AA.copy()
    matrix *= -root[:, None]
    matrix *= root
    matrix[np.diag_indices(len(active))] += weight
    factors = lu_factor(matrix, overwrite_a=True, check_finite=False)
    solved = lu_solve(factors, np.stack([root * residual_A[active], root], axis=1), check_finite=False)
    multiplier = (root @ solved[:, 0]) / (root @ solved[:, 1])
    change = root * (solved[:, 0] - multiplier * solved[:, 1])
    spread = np.zeros_like(policy_A)
    spread[active] = change
    return np.asarray((residual_A - multiplier + skew_AA @ spread) / weight)


def _line_search(
    skew_AA: Array, log_prior_A: Array, weight: float, log_policy_A: Array, step_A: Array, gap: float
) -> tuple[float, Array, float]:
    """The longest of the steps 1, 1/2, 1/4, ... that shrinks the gap or the largest error in the logits.

    The gap does not see an action that rises from a mass of e^-200 to e^-100; the error in the logits does.
    """
    error = _logit_error(skew_AA, log_prior_A, weight, log_policy_A)
    length = 1.0
    while True:
        new_A = _move(log_policy_A, length * step_A, weight)
        new_gap = _regularized_gap(skew_AA, log_prior_A, weight, new_A)
        share = 1.0 - 0.1 * length
        if new_gap < share * gap or length < SHORTEST_STEP:
            return length, new_A, new_gap
        if _logit_error(skew_AA, log_prior_A, weight, new_A) < share * error:
            return length, new_A, new_gap
        length *= 0.5


def _logit_error(skew_AA: Array, log_prior_A: Array, weight: float, log_policy_A: Array) -> float:
    return float(np.ptp(log_policy_A - log_prior_A - skew_AA @ np.exp(log_policy_A) / weight))


def _move(log_policy_A: Array, step_A: Array, weight: float) -> Array:
    """Follow a step as each weight would: in the logits while it is small or falls, linearly once it is large and
    rises.

    The equation is linear in the logit below a mass of about ``weight`` and linear in the mass above it; an exponential
    of a long upward step would overshoot.
    """
    rise_A = np.maximum(step_A, 0.0)
    free_A = np.minimum(rise_A, np.maximum(np.log(weight) - log_policy_A, 0.0))
    return _log_normalize(log_policy_A + np.minimum(step_A, 0.0) + free_A + np.log1p(rise_A - free_A))


def _predict(
    skew_AA: Array, log_ref_A: Array, tau: float, log_policy_A: Array, old_weight: float, new_weight: float
) -> Array:
    """The start at the next entropy weight: the old policy, or the response to it, whichever has the smaller gap."""
    log_prior_A = log_ref_A if new_weight == tau else tau * log_ref_A / new_weight
    sharpened_A = _log_normalize(log_policy_A * (old_weight / new_weight))
    gaps = [_regularized_gap(skew_AA, log_prior_A, new_weight, start_A) for start_A in (log_policy_A, sharpened_A)]
    return sharpened_A if gaps[1] < gaps[0] else log_policy_A


def solve_unregularized(prefs_AA: Array, *, tolerance: float) -> Equilibrium:
    """A symmetric equilibrium of the game without a KL penalty: no action beats the policy.

    A primal-dual interior-point method with Mehrotra's predictor and corrector on ``S x + w = level``, ``sum x = 1``,
    ``x w = barrier``. The problem is its own dual, so there is one set of variables; the start is feasible. Of many
    equilibria it finds one in the relative interior of their set.

    Args:
        prefs_AA: ``P``, antisymmetric around 1/2.
        tolerance: the duality gap to reach.

    Returns:
        The policy in logs, with its gap ``2 max S pi``.
    """
    skew_AA = prefs_AA - 0.5
    num_actions = len(skew_AA)
    x_A = np.full(num_actions, 1.0 / num_actions)
    payoff_A = skew_AA @ x_A
    # Any level above the largest payoff is feasible; a margin keeps the first slacks from being tiny.
    level = payoff_A.max() + 0.1 * (payoff_A.max() - payoff_A.min()) + 1e-3
    slack_A = level - payoff_A
    best_A, best_gap = x_A, float(2.0 * payoff_A.max())
    previous_gap = np.inf
    steps = 0
    # Below the tolerance the steps converge superlinearly: they go on for as long as each still gains a digit.
    while best_gap > 1e-15 and steps < MAX_STEPS and (best_gap > tolerance or best_gap < 0.1 * previous_gap):
        previous_gap = best_gap
        x_A, slack_A, level = _interior_point_step(skew_AA, x_A, slack_A, level)
        steps += 1
        if not (np.isfinite(x_A).all() and x_A.min() > 0.0 and slack_A.min() > 0.0):
            break
        policy_A = x_A / x_A.sum()
        gap = float(2.0 * (skew_AA @ policy_A).max())
        if gap < best_gap:
            best_A, best_gap = policy_A, gap
    return Equilibrium(log_policy_A=np.log(best_A), gap=best_gap, iterations=steps)


def _interior_point_step(skew_AA: Array, x_A: Array, slack_A: Array, level: float) -> tuple[Array, Array, float]:
    num_actions = len(x_A)
    scale_A = np.sqrt(x_A / slack_A)
    matrix = -(scale_A[:, None] * skew_AA * scale_A)
    matrix[np.diag_indices(num_actions)] += 1.0
    factors = lu_factor(matrix, overwrite_a=True, check_finite=False)
    border_A = lu_solve(factors, scale_A, check_finite=False)
    row_error_A = skew_AA @ x_A + slack_A - level
    sum_error = x_A.sum() - 1.0

    def direction(complement_A: Array) -> tuple[Array, Array, float]:
        inner_A = lu_solve(factors, scale_A * (row_error_A + complement_A / x_A), check_finite=False)
        level_change = float((scale_A @ inner_A + sum_error) / (scale_A @ border_A))
        x_change_A = scale_A * (inner_A - level_change * border_A)
        return x_change_A, level_change - skew_AA @ x_change_A - row_error_A, level_change

    product_A = x_A * slack_A
    barrier = product_A.mean()
    x_change_A, slack_change_A, _ = direction(-product_A)
    length = _longest_step(x_A, x_change_A, slack_A, slack_change_A, 1.0)
    predicted = ((x_A + length * x_change_A) * (slack_A + length * slack_change_A)).mean()
    target = barrier * (predicted / barrier) ** 3
    x_change_A, slack_change_A, level_change = direction(target - product_A - x_change_A * slack_change_A)
    length = _longest_step(x_A, x_change_A, slack_A, slack_change_A, max(0.99, 1.0 - barrier))
    return x_A + length * x_change_A, slack_A + length * slack_change_A, level + length * level_change


def _longest_step(x_A: Array, x_change_A: Array, slack_A: Array, slack_change_A: Array, share: float) -> float:
    """``share`` of the way to the boundary of the positive orthant, at most a full step."""
    most = max(float((-x_change_A / x_A).max()), float((-slack_change_A / slack_A).max()))
    return 1.0 if most <= share else share / most


def solve_maxmin_regularized(utilities_KXA: Array, ref_XA: Array, *, tau: float, tolerance: float) -> MaxMinPoint:
    """Weights of the oracles that minimise ``tau E_x log sum_y ref exp(w.u / tau)``, and the policy they induce.

    The convex dual of maxmin with a KL penalty, in ``K`` variables. Damped Newton steps with a logarithmic barrier; the
    entropy weight and the barrier decrease together. At a barrier ``m`` the duality gap is at most ``K m``.

    Args:
        utilities_KXA: the utility of each action to each oracle.
        ref_XA: positive, rows sum to one.
        tau: positive.
        tolerance: the duality gap that the caller will ask for.
    """
    num_oracles = len(utilities_KXA)
    bonus_XA = tau * np.log(ref_XA)
    span = float(np.ptp(utilities_KXA, axis=2).max())
    weights_K = np.full(num_oracles, 1.0 / num_oracles)
    weight = max(tau, span)
    barrier = max(span, tolerance)
    # A gap below 1e-16 of the utilities' span cannot be told from rounding.
    smallest_barrier = max(1e-2 * tolerance, 1e-16 * span) / num_oracles
    while num_oracles > 1:
        weights_K = _minimize_barrier(utilities_KXA, bonus_XA, weight, barrier, weights_K)
        if weight == tau and barrier == smallest_barrier:
            break
        weight = max(tau, 0.5 * weight)
        barrier = max(smallest_barrier, 0.3 * barrier)
    return MaxMinPoint(policy_XA=_tilted_policy(utilities_KXA, bonus_XA, tau, weights_K), weights_K=weights_K)


def _tilted_policy(utilities_KXA: Array, bonus_XA: Array, weight: float, weights_K: Array) -> Array:
    """The policy proportional to ``exp((bonus + w.u) / weight)``."""
    logits_XA = (bonus_XA + np.tensordot(weights_K, utilities_KXA, axes=1)) / weight
    mass_XA = np.exp(logits_XA - logits_XA.max(axis=1, keepdims=True))
    return np.asarray(mass_XA / mass_XA.sum(axis=1, keepdims=True))


def _minimize_barrier(utilities_KXA: Array, bonus_XA: Array, weight: float, barrier: float, weights_K: Array) -> Array:
    """Newton's method with a line search on the slope: values differ by less than an ulp long before slopes do."""

    def gradient(candidate_K: Array) -> Array:
        policy_XA = _tilted_policy(utilities_KXA, bonus_XA, weight, candidate_K)
        return np.asarray((utilities_KXA * policy_XA).sum(axis=2).mean(axis=1) - barrier / candidate_K)

    for _ in range(60):
        # Steps keep the sum of the weights, so only differences between oracles matter; what they share would drown
        # them.
        gradient_K = gradient(weights_K)
        gradient_K = gradient_K - weights_K @ gradient_K
        if np.abs(weights_K * gradient_K).max() < 0.1 * barrier:
            break
        policy_XA = _tilted_policy(utilities_KXA, bonus_XA, weight, weights_K)
        centred_KXA = utilities_KXA - np.tensordot(weights_K, utilities_KXA, axes=1)
        centred_KXA = centred_KXA - (centred_KXA * policy_XA).sum(axis=2, keepdims=True)
        flat = (centred_KXA * np.sqrt(policy_XA / (weight * len(policy_XA)))).reshape(len(weights_K), -1)
        # In the scaled variable step / w the barrier's part of the matrix is barrier I, however small a weight is.
        hessian = weights_K[:, None] * (flat @ flat.T) * weights_K
        hessian[np.diag_indices(len(weights_K))] += barrier
        solved = np.linalg.solve(hessian, np.stack([weights_K * gradient_K, weights_K], axis=1))
        multiplier = (weights_K @ solved[:, 0]) / (weights_K @ solved[:, 1])
        step_K = weights_K * (multiplier * solved[:, 1] - solved[:, 0])
        step_K = step_K - weights_K * step_K.sum()
        slope = float(gradient_K @ step_K)
        length = min(1.0, 0.95 / max(float((-step_K / weights_K).max()), 1e-300))
        while (
            abs(_slope(gradient, weights_K + length * step_K, step_K)) > (1.0 - 0.1 * length) * -slope
            and length > 1e-12
        ):
            length *= 0.5
        if length <= 1e-12:
            break
        weights_K = weights_K + length * step_K
        weights_K = weights_K / weights_K.sum()
    return weights_K


def _slope(gradient: Callable[[Array], Array], weights_K: Array, step_K: Array) -> float:
    gradient_K = gradient(weights_K)
    return float((gradient_K - gradient_K.mean()) @ step_K)


def solve_maxmin_unregularized(utilities_KXA: Array) -> MaxMinPoint:
    """Maxmin without a KL penalty, as the linear programme ``max level`` with ``E_x E_pi u_k >= level`` for every
    ``k``.

    The weights are the multipliers of the ``K`` constraints.
    """
    num_oracles, num_contexts, num_actions = utilities_KXA.shape
    cells = num_contexts * num_actions
    cost = np.append(np.zeros(cells), -1.0)
    below = np.hstack([-utilities_KXA.reshape(num_oracles, cells) / num_contexts, np.ones((num_oracles, 1))])
    rows = np.hstack([np.kron(np.eye(num_contexts), np.ones(num_actions)), np.zeros((num_contexts, 1))])
    bounds = [(0.0, None)] * cells + [(None, None)]
    answer = linprog(
        cost,
        A_ub=below,
        b_ub=np.zeros(num_oracles),
        A_eq=rows,
        b_eq=np.ones(num_contexts),
        bounds=bounds,
        method="highs",
    )
    if answer.x is None:
        raise RuntimeError(f"the linear programme of the maxmin problem was not solved: {answer.message}")
    # HiGHS meets its constraints to 1e-7 only: the point is put back on the simplex before its gap is computed.
    policy_XA = np.maximum(answer.x[:-1].reshape(num_contexts, num_actions), 0.0)
    weights_K = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0)
    return MaxMinPoint(
        policy_XA=policy_XA / policy_XA.sum(axis=1, keepdims=True), weights_K=weights_K / weights_K.sum()
    )
