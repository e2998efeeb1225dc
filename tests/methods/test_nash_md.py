"""Nash-MD-PG: its gradient against exact enumeration of a two-token model."""

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor

from alignment.games import PreferenceGame
from alignment.methods.nash_md import NashMD
from alignment.methods.spo import SPO
from alignment.tabular import run_tabular
from alignment.types import Feedback, LossInputs
from tests.methods.regression import enumerated, gradient, random_policy, random_preferences
from tests.methods.test_ipo_md import fixed_point as ipo_md_fixed_point

OPTIONS = {"tau": 0.1, "mix": 0.125}

SYMBOLS = 3
SEQUENCES = list(itertools.product(range(SYMBOLS), repeat=2))


def fixed_point(game: PreferenceGame, method: NashMD) -> Tensor:
    """That of IPO-MD: the two differ in whom they average over, not in where they rest."""
    return ipo_md_fixed_point(game, method)  # type: ignore[arg-type]


def token_logps(theta: Tensor) -> Tensor:
    """Per-token log-probs [9, 2] of all two-token sequences; ``theta`` [4, 3]: first token, then second given first."""
    first_V, second_VV = theta[0].log_softmax(-1), theta[1:].log_softmax(-1)
    return torch.stack([torch.stack([first_V[a], second_VV[a, b]]) for a, b in SEQUENCES])


def two_token_gradient(kl: Literal["reward_to_go", "sequence", "own_token"]) -> tuple[Tensor, Tensor]:
    """Gradient of the loss with respect to theta, and minus the exact one of ``P(pi > mu) - tau KL(pi || ref)``."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, SYMBOLS, generator=generator, dtype=torch.float64, requires_grad=True)
    ref_NT = token_logps(torch.randn(4, SYMBOLS, generator=generator, dtype=torch.float64))
    wins_N, tau = torch.rand(9, generator=generator, dtype=torch.float64), 0.3
    logps_NT = token_logps(theta)
    probability_N = logps_NT.sum(-1).exp()
    value = (probability_N * (wins_N - tau * (logps_NT - ref_NT).sum(-1))).sum()
    (exact,) = torch.autograd.grad(value, theta, retain_graph=True)
    if kl == "own_token":
        returns_NT = (wins_N - 0.5)[:, None] - tau * (logps_NT - ref_NT)
        loss = -(probability_N.detach()[:, None] * returns_NT.detach() * logps_NT).sum()
    else:
        x = LossInputs(
            logps_BG=logps_NT.sum(-1)[None],
            lengths_BG=torch.full((1, 9), 2),
            valid_BG=torch.ones(1, 9, dtype=torch.bool),
            feedback=Feedback(wins_KBG=wins_N[None, None]),
            weights_BG=probability_N.detach()[None],
            anchors={"ref": ref_NT.sum(-1)[None]},
            token_logps_BGT=logps_NT[None],
            token_mask_BGT=torch.ones(1, 9, 2, dtype=torch.bool),
            token_anchors={"ref": ref_NT[None]},
        )
        loss = NashMD(tau=tau, mix=0.125, kl=kl).loss(x).loss_B.sum()
    (grad,) = torch.autograd.grad(loss, theta)
    return grad, -exact


@pytest.mark.parametrize("kl", ["reward_to_go", "sequence"])
def test_the_gradient_is_that_of_the_sequence_game(kl: Literal["reward_to_go", "sequence"]) -> None:
    """Invariant 25: both forms equal the exact gradient of the regularised win rate, by enumeration."""
    grad, exact = two_token_gradient(kl)
    torch.testing.assert_close(grad, exact, rtol=0, atol=1e-12)


def test_own_token_credit_is_biased() -> None:
    """Invariant 25: crediting a token with its own log-ratio only, as trl's trainer did, is another gradient."""
    grad, exact = two_token_gradient("own_token")
    assert float((grad - exact).abs().max()) > 1e-3


def test_token_mixture_is_not_the_sequence_mixture() -> None:
    """Invariant 26: mixing next-token log-probs differs from the geometric mixture of whole sequences."""
    generator = torch.Generator().manual_seed(0)
    pi, ref = (torch.randn(4, SYMBOLS, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    by_token_N = token_logps(0.75 * pi.log_softmax(-1) + 0.25 * ref.log_softmax(-1)).sum(-1).exp()
    by_sequence_N = (0.75 * token_logps(pi).sum(-1) + 0.25 * token_logps(ref).sum(-1)).softmax(-1)
    assert 0.5 * float((by_token_N - by_sequence_N).abs().sum()) > 1e-3


def test_mix_zero_is_regularised_self_play() -> None:
    """Invariant 24: against its own frozen copy the gradient is SPO's with kappa_ref = tau."""
    prefs_AA, ref_A, theta_A = random_preferences(4, 0), random_policy(4, 0), random_policy(4, 1)
    wins_A = prefs_AA @ theta_A.exp()

    def grad(method: NashMD | SPO) -> Tensor:
        return gradient(
            lambda logps_A: method.loss(enumerated(logps_A, sampler_A=theta_A.exp(), wins_A=wins_A, ref=ref_A)), theta_A
        )

    torch.testing.assert_close(grad(NashMD(tau=0.2, mix=0.0)), grad(SPO(kappa_ref=0.2)), rtol=0, atol=1e-12)


def test_mix_one_responds_to_the_reference() -> None:
    """Invariant 24: at mix 1 the opponent is ref, whose best response ref exp(P(. > ref)/tau) is the fixed point."""
    game = PreferenceGame(prefs_XAA=random_preferences(4, 3)[None], ref_XA=random_policy(4, 3).exp()[None], tau=0.3)
    run = run_tabular(NashMD(tau=0.3, mix=1.0), game, lr=0.5, iterations=400, optimizer="natural")
    torch.testing.assert_close(run.policy_XA, game.best_response(game.ref_XA), rtol=0, atol=1e-12)
    assert float(game.duality_gap(run.policy_XA)) > 1e-4  # and not the equilibrium


def test_both_forms_are_one_for_single_tokens() -> None:
    """With one token the reward-to-go is the whole log-ratio: equal values and gradients."""
    ref_A, theta_A, wins_A = random_policy(4, 6), random_policy(4, 7), random_preferences(4, 6)[:, 0]

    def grad(kl: Literal["reward_to_go", "sequence"]) -> Tensor:
        method = NashMD(tau=0.2, mix=0.125, kl=kl)
        return gradient(
            lambda logps_A: method.loss(enumerated(logps_A, sampler_A=theta_A.exp(), wins_A=wins_A, ref=ref_A)), theta_A
        )

    torch.testing.assert_close(grad("reward_to_go"), grad("sequence"), rtol=0, atol=1e-15)
    assert NashMD(tau=0.2, mix=0.125).needs.per_token and not NashMD(tau=0.2, mix=0.125, kl="sequence").needs.per_token


def test_values_by_hand() -> None:
    """Two responses of two tokens, wins .9 and .3, tau .5, log-ratios per token (.2, -.4) and (.6, 1).

    Whole sequence: returns .4 - .5 * (-.2) = .5 and -.2 - .5 * 1.6 = -1; lp -3 and -2: -(.5 * -3 + 1 * 2)/2 = -.25.
    Reward-to-go: token 1 as above, token 2 .4 - .5 * (-.4) = .6 and -.2 - .5 * 1 = -.7; token log-probs (-1, -2) and
    (-1.5, -.5): loss -((.5 * -1 + .6 * -2) + (-1 * -1.5 + -.7 * -.5))/2 = -(-1.7 + 1.85)/2 = -.075. The baseline 1/2
    does not move the expected gradient, but it is there to keep the variance low: only a value shows its sign.
    """
    token_logps_BGT = torch.tensor([[[-1.0, -2.0], [-1.5, -0.5]]], dtype=torch.float64)
    ratios_BGT = torch.tensor([[[0.2, -0.4], [0.6, 1.0]]], dtype=torch.float64)
    x = LossInputs(
        logps_BG=token_logps_BGT.sum(-1),
        lengths_BG=torch.full((1, 2), 2),
        valid_BG=torch.ones(1, 2, dtype=torch.bool),
        feedback=Feedback(wins_KBG=torch.tensor([[[0.9, 0.3]]], dtype=torch.float64)),
        anchors={"ref": (token_logps_BGT - ratios_BGT).sum(-1)},
        token_logps_BGT=token_logps_BGT,
        token_mask_BGT=torch.ones(1, 2, 2, dtype=torch.bool),
        token_anchors={"ref": token_logps_BGT - ratios_BGT},
    )
    assert NashMD(tau=0.5, mix=0.0, kl="sequence").loss(x).loss_B.item() == pytest.approx(-0.25, abs=1e-12)
    assert NashMD(tau=0.5, mix=0.0).loss(x).loss_B.item() == pytest.approx(-0.075, abs=1e-12)
