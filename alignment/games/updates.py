"""Closed-form policy updates, written independently of the losses that should realise them.

Shapes: ``X`` contexts, ``A`` actions. A log-policy may carry any constant per row; every update returns it normalised.

All updates with a reference are the master update ``U_a`` with some opponent ``mu``::

    U_a(pi; mu):  log pi+ = (1 - a) log pi + a (log ref + P(. > mu) / tau) + const

``a`` in (0, 1] is the step on one scale for all methods: ``eta tau`` in 2503.08942, ``eta / (1 + eta)`` in 2505.19731,
``tau / eta`` in 2407.00617.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games.game import PreferenceGame, check_policy, log_normalize
from alignment.shapes import check_shapes


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimisticPolicies:
    """The two sequences of optimistic mirror descent: the policy that plays and the centre of the steps."""

    log_pi_XA: Tensor
    log_centre_XA: Tensor


def master_update(game: PreferenceGame, log_pi_XA: Tensor, mu_XA: Tensor, *, a: float) -> Tensor:
    """``U_a(pi; mu)``, one mirror-descent step with the centre ``pi`` against ``mu``; [X, A] in logs.

    The online-mirror-descent step of INPO (2407.00617) is ``U_{tau/eta}(pi; pi)``.
    """
    _check_step(game, a)
    log_pi_XA = _check_logits(game, log_pi_XA)
    target_XA = game.ref_XA.log() + game.win_probability(mu_XA) / game.tau
    return log_normalize((1.0 - a) * log_pi_XA + a * target_XA)


def extragradient_update(game: PreferenceGame, log_pi_XA: Tensor, *, a: float) -> Tensor:
    """A half step against ``pi``, then the step from ``pi`` against the half step; [X, A] in logs.

    The tabular form of EGPO (2503.08942, ``a = eta tau``) and of Nash-MP (2505.19731, ``a = eta / (1 + eta)``).
    """
    half_XA = master_update(game, log_pi_XA, log_normalize(log_pi_XA).exp(), a=a)
    return master_update(game, log_pi_XA, half_XA.exp(), a=a)


def nash_md_update(game: PreferenceGame, log_pi_XA: Tensor, *, a: float) -> Tensor:
    """Nash-MD (2312.00886): ``m exp((a / tau) P(. > m))`` with ``m ~ pi^(1 - a) ref^a``; ``a = eta tau``.

    The mixture is the opponent as well as the centre. [X, A] in logs.
    """
    _check_step(game, a)
    log_pi_XA = _check_logits(game, log_pi_XA)
    log_mixture_XA = log_normalize((1.0 - a) * log_pi_XA + a * game.ref_XA.log())
    return hedge_update(game, log_mixture_XA, log_mixture_XA.exp(), eta=a / game.tau)


def hedge_update(game: PreferenceGame, log_pi_XA: Tensor, mu_XA: Tensor, *, eta: float) -> Tensor:
    """``pi exp(eta P(. > mu))``, [X, A] in logs: Hedge with rewards in [0, 1]; no reference.

    SPO (2401.04056) and SPPO (2405.00675) with ``mu = pi``. A step on ``S = 2P - 1`` is a step of half its size on
    ``P``.
    """
    if not eta > 0.0:
        raise UserError(f"eta: expected a positive step, got {eta}")
    return log_normalize(_check_logits(game, log_pi_XA) + eta * game.win_probability(mu_XA))


def optimistic_update(game: PreferenceGame, policies: OptimisticPolicies, *, eta: float) -> OptimisticPolicies:
    """One round of ONPO (2502.16852): the centre moves against ``pi``, then ``pi`` moves from it by the same
    prediction.
    """
    pi_XA = log_normalize(policies.log_pi_XA).exp()
    log_centre_XA = hedge_update(game, policies.log_centre_XA, pi_XA, eta=eta)
    return OptimisticPolicies(log_pi_XA=hedge_update(game, log_centre_XA, pi_XA, eta=eta), log_centre_XA=log_centre_XA)


def proximal_step(game: PreferenceGame, log_pi_XA: Tensor, *, eta: float, tolerance: float = 1e-10) -> Tensor:
    """The outer step of Nash Prox (2505.19731): both players pay an extra ``(tau / eta) KL(. || pi)``; [X, A] in logs.

    It is the equilibrium at ``tau (1 + eta) / eta`` with the reference ``(ref^eta pi)^(1 / (1 + eta))``.
    """
    if not eta > 0.0:
        raise UserError(f"eta: expected a positive step, got {eta}")
    _check_regularized(game)
    log_ref_XA = (eta * game.ref_XA.log() + _check_logits(game, log_pi_XA)) / (1.0 + eta)
    tau = game.tau * (1.0 + eta) / eta
    inner = PreferenceGame(prefs_XAA=game.prefs_XAA, ref_XA=log_normalize(log_ref_XA).exp(), tau=tau)
    wins_XA = inner.win_probability(inner.solve(tolerance).policy_XA)
    return log_normalize(log_ref_XA + wins_XA / tau)


def geometric_mixture(pi_XA: Tensor, ref_XA: Tensor, *, mix: float) -> Tensor:
    """``pi^(1 - mix) ref^mix``, normalised; [X, A] probabilities. An action without mass in ``pi`` has none before
    mix 1.
    """
    check_shapes(pi_XA=pi_XA, ref_XA=ref_XA)
    if not 0.0 <= mix <= 1.0:
        raise UserError(f"mix: expected a weight in [0, 1], got {mix}")
    pi_XA, ref_XA = pi_XA.to(torch.float64), ref_XA.to(torch.float64)
    weights = torch.tensor([1.0 - mix, mix], dtype=torch.float64, device=pi_XA.device)
    return (torch.xlogy(weights[0], pi_XA) + torch.xlogy(weights[1], ref_XA)).softmax(-1)


def log_ratio_span(p_XA: Tensor, q_XA: Tensor) -> Tensor:
    """The largest minus the smallest ``log(p/q)``, [X]: the span in which Nash-MP states its rate."""
    check_shapes(p_XA=p_XA, q_XA=q_XA)
    ratio_XA = p_XA.to(torch.float64).log() - q_XA.to(torch.float64).log()
    return ratio_XA.amax(-1) - ratio_XA.amin(-1)


def imaginary_spectrum(game: PreferenceGame, policy_XA: Tensor) -> Tensor:
    """Moduli of the eigenvalues of ``P (diag(pi) - pi pi^T)``, [X, A] in descending order.

    The product of a skew and a positive semidefinite matrix has only imaginary eigenvalues, in conjugate pairs. They
    are the singular values of the skew matrix ``Q sqrt(pi) S sqrt(pi) Q``, with ``Q`` the projection away from
    ``sqrt(pi)``.
    """
    policy_XA = check_policy(policy_XA, like_XA=game.ref_XA, name="policy_XA")
    root_XA = policy_XA.sqrt()
    skew_XAA = root_XA[:, :, None] * (game.prefs_XAA - 0.5) * root_XA[:, None, :]
    projection_XAA = torch.eye(root_XA.shape[-1], dtype=torch.float64, device=root_XA.device) - (
        root_XA[:, :, None] * root_XA[:, None, :]
    )
    spectrum: Tensor = torch.linalg.svdvals(projection_XAA @ skew_XAA @ projection_XAA)
    return spectrum


def omd_threshold(game: PreferenceGame, policy_XA: Tensor) -> Tensor:
    """The step below which ``U_a(pi; pi)`` is locally stable at the equilibrium, [X]: ``2 / (1 + (s / tau)^2)``.

    ``s`` is the largest entry of `imaginary_spectrum`; the values lie in (0, 2].
    """
    _check_regularized(game)
    return 2.0 / (1.0 + (imaginary_spectrum(game, policy_XA)[:, 0] / game.tau).square())


def extragradient_is_stable(game: PreferenceGame, policy_XA: Tensor, *, a: float) -> Tensor:
    """Whether the extragradient update is locally stable at the equilibrium, bool [X].

    ``|1 - a + a z/tau (1 - a + a z/tau)| < 1`` for every eigenvalue ``z`` of `imaginary_spectrum`.
    """
    _check_step(game, a)
    return _extragradient_radius(imaginary_spectrum(game, policy_XA) / game.tau, a) < 1.0


def extragradient_threshold(game: PreferenceGame, policy_XA: Tensor) -> Tensor:
    """The largest locally stable step of the extragradient update, [X] in (0, 1], by bisection to 1e-6."""
    _check_regularized(game)
    scaled_XA = imaginary_spectrum(game, policy_XA) / game.tau
    stable_X = torch.zeros_like(scaled_XA[:, 0])
    unstable_X = torch.ones_like(stable_X)
    always_X = _extragradient_radius(scaled_XA, unstable_X[:, None]) < 1.0
    # The smallest thresholds are of the order of (tau / s)^2, so the midpoint is halved until it resolves those as
    # well.
    for _ in range(40):
        middle_X = 0.5 * (stable_X + unstable_X)
        holds_X = _extragradient_radius(scaled_XA, middle_X[:, None]) < 1.0
        stable_X = torch.where(holds_X, middle_X, stable_X)
        unstable_X = torch.where(holds_X, unstable_X, middle_X)
    return torch.where(always_X, torch.ones_like(stable_X), stable_X)


def _extragradient_radius(scaled_XA: Tensor, a: Tensor | float) -> Tensor:
    """The largest modulus over the spectrum for eigenvalues ``i scaled``; with real and imaginary part spelt out."""
    real_XA = 1.0 - a - (a * scaled_XA) ** 2
    imaginary_XA = a * scaled_XA * (1.0 - a)
    return torch.hypot(real_XA, imaginary_XA).amax(-1)


def _check_logits(game: PreferenceGame, log_pi_XA: Tensor) -> Tensor:
    check_shapes(ref_XA=game.ref_XA, log_pi_XA=log_pi_XA)
    if not bool(log_pi_XA.isfinite().all()):
        raise UserError("log_pi_XA: expected finite log-probabilities, got nan or inf; every action needs some mass")
    return log_pi_XA.to(torch.float64)


def _check_step(game: PreferenceGame, a: float) -> None:
    _check_regularized(game)
    if not 0.0 < a <= 1.0:
        raise UserError(f"a: expected a mixing weight in (0, 1], got {a}")


def _check_regularized(game: PreferenceGame) -> None:
    if game.tau == 0.0:
        raise UserError("this update needs a game with tau > 0, got tau = 0; use hedge_update or optimistic_update")
