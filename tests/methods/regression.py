"""Tools for the regression core (Lemma R in docs/methods/README.md): random games, enumerated inputs, minimisers."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignment.types import Feedback, LossInputs, LossOutput


def random_preferences(num_actions: int, seed: int) -> Tensor:
    """``P`` [A, A] with P + P^T = 1."""
    generator = torch.Generator().manual_seed(seed)
    lower_AA = torch.rand(num_actions, num_actions, generator=generator, dtype=torch.float64).tril(-1)
    return lower_AA + (1 - lower_AA).T.triu(1) + 0.5 * torch.eye(num_actions, dtype=torch.float64)


def random_policy(num_actions: int, seed: int) -> Tensor:
    """Log-probs [A]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(num_actions, generator=generator, dtype=torch.float64).log_softmax(-1)


def enumerated(
    logps_A: Tensor,
    *,
    sampler_A: Tensor | None,
    prefs_AA: Tensor | None = None,
    wins_A: Tensor | None = None,
    **anchors: Tensor,
) -> LossInputs:
    """One context with all its actions; ``sampler_A=None`` makes them plain samples."""
    logps_BG = logps_A[None]
    return LossInputs(
        logps_BG=logps_BG,
        lengths_BG=torch.ones_like(logps_BG),
        valid_BG=torch.ones_like(logps_BG, dtype=torch.bool),
        feedback=Feedback(
            prefs_KBGG=None if prefs_AA is None else prefs_AA[None, None],
            wins_KBG=None if wins_A is None else wins_A[None, None],
        ),
        weights_BG=None if sampler_A is None else sampler_A[None],
        anchors={name: anchor_A[None] for name, anchor_A in anchors.items()},
        token_logps_BGT=logps_BG[..., None],
        token_mask_BGT=torch.ones_like(logps_BG, dtype=torch.bool)[..., None],
        token_anchors={name: anchor_A[None, :, None] for name, anchor_A in anchors.items()},
    )


def gradient(loss: Callable[[Tensor], LossOutput], logits_A: Tensor) -> Tensor:
    """Gradient [A] of an expected loss with respect to softmax logits."""
    logits_A = logits_A.detach().clone().requires_grad_()
    (grad_A,) = torch.autograd.grad(loss(logits_A.log_softmax(-1)).loss_B.sum(), logits_A)
    return grad_A


def minimiser(loss: Callable[[Tensor], LossOutput], num_actions: int) -> Tensor:
    """Log-probs [A] at which a smooth convex expected loss is smallest, by L-BFGS from zero."""
    logits_A = torch.zeros(num_actions, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [logits_A], lr=1, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(logits_A.log_softmax(-1)).loss_B.sum()
        value.backward()
        return value

    solver.step(closure)
    return logits_A.detach().log_softmax(-1)
