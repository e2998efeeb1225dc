"""MNPO: INPO with several anchors, what its regression really finds, and the mistakes that its release lets pass."""

from functools import partial

import pytest
import torch

from alignment.errors import MissingAnchorError, UserError
from alignment.games import PreferenceGame, hedge_update
from alignment.methods.inpo import INPO
from alignment.methods.ipo import IPO
from alignment.methods.mnpo import MNPO, mnpo_loss
from alignment.types import LossOutput
from tests.methods.problem import pair_inputs
from tests.methods.regression import enumerated, gradient, minimiser, random_policy, random_preferences

OPTIONS = {"eta": 0.4, "ref_weight": 0.25, "history_weights": [0.5, 0.25]}


def test_one_reference_anchor_is_ipo() -> None:
    """Invariant 56: anchor ref with weight 1 is offline IPO at temperature eta, unnormalised."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], preference=0.8)
    mine = MNPO(eta=0.5, ref_weight=1.0).loss(x).loss_B.item()
    # Soft labels: IPO's two-sided form and the regression differ by a constant, c^2 (1 - (2P - 1)^2) with c = 1.
    ipo = IPO(tau=0.5, length_normalize=False).loss(x).loss_B.item()
    assert ipo - mine == pytest.approx(1 - 0.6**2, abs=1e-12)


def test_inpo_is_a_special_case() -> None:
    """Invariant 57: anchors {ref: tau/eta, prev: 1 - tau/eta} give INPO's loss."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], prev=[-4.4, -4.6], past_0=[-4.4, -4.6], preference=0.7)
    mnpo = MNPO(eta=0.5, ref_weight=0.4, history_weights=(0.6,)).loss(x).loss_B.item()
    assert mnpo == pytest.approx(INPO(eta=0.5, tau=0.2).loss(x).loss_B.item(), abs=1e-12)


def test_the_minimiser_is_not_the_average_over_opponents() -> None:
    """Invariant 58: the fit is the anchor times exp(P(. > s)/eta); opponents act through the anchor only.

    Invariant 59: drawing both responses from the opponents' mixture gives the averaged preference instead.
    """
    prefs_AA, eta = random_preferences(4, 1), 0.2
    policies = {f"past_{j}": random_policy(4, 20 + j) for j in range(3)}
    weights = {"past_0": 0.5, "past_1": 0.3, "past_2": 0.2}
    anchors = {name: log_A[None] for name, log_A in policies.items()}
    anchor_A = torch.stack([weight * policies[name] for name, weight in weights.items()]).sum(0)
    mixture_A = torch.stack([weight * policies[name].exp() for name, weight in weights.items()]).sum(0)
    fits = {}
    for name, sampler_A in (("prev", policies["past_0"].exp()), ("mixture", mixture_A)):

        def loss(logps_A: torch.Tensor, sampler_A: torch.Tensor = sampler_A) -> object:
            return mnpo_loss(enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA), anchors, weights, eta=eta)

        fits[name] = minimiser(loss, 4)
        closed_A = (anchor_A + prefs_AA @ sampler_A / eta).log_softmax(-1)
        torch.testing.assert_close(fits[name], closed_A, rtol=0, atol=1e-6)
    # The paper's update averages over the opponents; the practical loss with pairs from prev is far from there.
    averaged_A = (anchor_A + prefs_AA @ mixture_A / eta).log_softmax(-1)
    assert float((fits["prev"] - averaged_A).abs().max()) > 0.1
    sampler_A = policies["past_0"].exp()

    def practical(logps_A: torch.Tensor) -> LossOutput:
        return mnpo_loss(enumerated(logps_A, sampler_A=sampler_A, prefs_AA=prefs_AA), anchors, weights, eta=eta)

    assert float(gradient(practical, fits["prev"]).abs().max()) < 1e-6
    assert float(gradient(practical, averaged_A).abs().max()) > 1e-2


def test_equal_anchors_give_a_hedge_step() -> None:
    """Invariant 60: all anchors prev, whatever their weights: prev exp(P(. > prev)/eta), where the gradient is 0."""
    prefs_AA, prev_A = random_preferences(4, 2), random_policy(4, 2)
    game = PreferenceGame(prefs_XAA=prefs_AA[None], ref_XA=random_policy(4, 3).exp()[None], tau=0.0)
    hedge_A = hedge_update(game, prev_A[None], prev_A.exp()[None], eta=1 / 0.6)[0]
    method = MNPO(eta=0.6, ref_weight=0.0, history_weights=(0.7, 0.2, 0.1))

    def loss(logps_A: torch.Tensor) -> LossOutput:
        history = {f"past_{j}": prev_A for j in range(3)}
        return method.loss(enumerated(logps_A, sampler_A=prev_A.exp(), prefs_AA=prefs_AA, **history))

    assert float(gradient(loss, hedge_A).abs().max()) < 1e-12
    assert float(gradient(loss, prev_A).abs().max()) > 1e-3


def test_permuting_anchors_with_their_weights_changes_nothing() -> None:
    """Invariant 18: exchanging two anchors and their weights together; exchanging the weights alone does."""
    one, two = [-4.4, -4.6], [-5.0, -3.9]
    x = pair_inputs(logps=[-4.0, -5.0], past_0=one, past_1=two)
    exchanged = pair_inputs(logps=[-4.0, -5.0], past_0=two, past_1=one)
    method = MNPO(eta=0.5, ref_weight=0.0, history_weights=(0.7, 0.3))
    other = MNPO(eta=0.5, ref_weight=0.0, history_weights=(0.3, 0.7))
    torch.testing.assert_close(other.loss(exchanged).loss_B, method.loss(x).loss_B, rtol=0, atol=1e-12)
    assert abs(other.loss(x).loss_B.item() - method.loss(x).loss_B.item()) > 1e-3


def test_splitting_an_anchor_changes_nothing() -> None:
    """Invariant 18: one anchor with weight 1, or twice the same one with halves."""
    x = pair_inputs(logps=[-4.0, -5.0], past_0=[-4.4, -4.6], past_1=[-4.4, -4.6])
    one = MNPO(eta=0.5, ref_weight=0.0, history_weights=(1.0,)).loss(x).loss_B
    two = MNPO(eta=0.5, ref_weight=0.0, history_weights=(0.5, 0.5)).loss(x).loss_B
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_missing_history_and_wrong_weights_are_errors() -> None:
    """Invariant 62: the released code trains on with zeros, so that its anchors do not sum to 1."""
    with pytest.raises(MissingAnchorError, match=r"'past_0'.*has ref"):
        MNPO(eta=0.5, ref_weight=0.5, history_weights=(0.5,)).loss(pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2]))
    with pytest.raises(UserError, match=r"sum to 1, got ref 0\.5, past_0 0\.4"):
        MNPO(eta=0.5, ref_weight=0.5, history_weights=(0.4,))
    with pytest.raises(UserError, match="player_weights exactly where"):
        MNPO(eta=0.5, ref_weight=1.0, opponents="heterogeneous")


def test_players_are_anchors_by_name() -> None:
    """Invariant 61, the loss part: with players equal to past policies the two forms are one loss."""
    x = pair_inputs(logps=[-4.0, -5.0], a=[-4.5, -4.2], b=[-4.4, -4.6], past_0=[-4.5, -4.2], past_1=[-4.4, -4.6])
    players = MNPO(eta=0.5, ref_weight=0.0, opponents="heterogeneous", player_weights={"a": 0.5, "b": 0.5})
    history = MNPO(eta=0.5, ref_weight=0.0, history_weights=(0.5, 0.5))
    assert players.needs.anchor_columns() == ("a", "b")
    torch.testing.assert_close(players.loss(x).loss_B, history.loss(x).loss_B, rtol=0, atol=1e-12)


def test_identical_players_stay_identical() -> None:
    """Invariant 61: three players with one oracle and one start, each anchored to the other two, walk together.

    Every round each player's fit is (prod of the others)^(1/2) exp(P(. > pi_i)/eta). With all three equal that is the
    homogeneous step exp(P(. > pi)/eta) pi, the time-dependent form with its history filled with pi.
    """
    prefs_AA, eta = random_preferences(4, 3), 0.8
    players = {name: random_policy(4, 3) for name in "abc"}
    single_A = players["a"]
    homogeneous = MNPO(eta=eta, ref_weight=0.0, history_weights=(0.5, 0.5))
    for _ in range(5):
        fitted = {}
        for name, own_A in players.items():
            others = {other: log_A for other, log_A in players.items() if other != name}
            method = MNPO(
                eta=eta, ref_weight=0.0, opponents="heterogeneous", player_weights={other: 0.5 for other in others}
            )
            fitted[name] = (sum(others.values()) / 2 + prefs_AA @ own_A.exp() / eta).log_softmax(-1)
            x_of = partial(enumerated, sampler_A=own_A.exp(), prefs_AA=prefs_AA, **others)
            slope_A = gradient(lambda logps_A, method=method, x_of=x_of: method.loss(x_of(logps_A)), fitted[name])
            assert float(slope_A.abs().max()) < 1e-12
        x_of = partial(enumerated, sampler_A=single_A.exp(), prefs_AA=prefs_AA, past_0=single_A, past_1=single_A)
        single_A = (single_A + prefs_AA @ single_A.exp() / eta).log_softmax(-1)
        slope_A = gradient(lambda logps_A, x_of=x_of: homogeneous.loss(x_of(logps_A)), single_A)
        assert float(slope_A.abs().max()) < 1e-12
        players = fitted
        for log_A in players.values():
            torch.testing.assert_close(log_A, single_A, rtol=0, atol=1e-12)
