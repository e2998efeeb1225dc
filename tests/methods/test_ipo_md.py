"""IPO-MD: online IPO at mix 0; its stationary mixture is the equilibrium of a colder game."""

import pytest
import torch
from torch import Tensor

from alignment.games import PreferenceGame, cyclic
from alignment.games.updates import geometric_mixture
from alignment.methods.ipo_md import IPOMD
from alignment.methods.online_ipo import OnlineIPO
from alignment.tabular import run_tabular
from tests.methods.regression import enumerated, random_policy, random_preferences

OPTIONS = {"tau": 0.1, "mix": 0.125}


def fixed_point(game: PreferenceGame, method: IPOMD) -> Tensor:
    """pi ~ ref exp(P(. > m)/tau), where m is the equilibrium at tau / (1 - mix) (2403.08635, prop. 5.2)."""
    mixture_XA = game.with_tau(method.tau / (1 - method.mix)).solve(1e-12).policy_XA
    return (game.ref_XA.log() + game.win_probability(mixture_XA) / method.tau).softmax(-1)


def test_mix_zero_is_online_ipo() -> None:
    """Invariant 28: the same value and sampler."""
    x = enumerated(
        random_policy(4, 0),
        sampler_A=random_policy(4, 1).exp(),
        prefs_AA=random_preferences(4, 0),
        ref=random_policy(4, 2),
    )
    assert IPOMD(tau=0.3, mix=0.0).loss(x).loss_B.item() == OnlineIPO(tau=0.3).loss(x).loss_B.item()
    assert IPOMD(tau=0.3, mix=0.0).solution == "kl_nash"


def test_mix_zero_walks_as_online_ipo() -> None:
    """Invariant 28, with the sampler: the geometric mixture at 0 is the policy, so 20 steps coincide (1e-14: it is
    normalised once more); at mix .5 they do not.
    """
    game = PreferenceGame(prefs_XAA=random_preferences(4, 1)[None], ref_XA=random_policy(4, 1).exp()[None], tau=0.3)
    start_XA = random_policy(4, 5).exp()[None]
    ends = [
        run_tabular(method, game, lr=0.1, iterations=20, init_XA=start_XA).policy_XA
        for method in (OnlineIPO(tau=0.3), IPOMD(tau=0.3, mix=0.0), IPOMD(tau=0.3, mix=0.5))
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-14)
    assert float((ends[2] - ends[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("mix", [0.125, 0.5, 0.9])
def test_the_mixture_solves_the_game_at_a_higher_temperature(mix: float) -> None:
    """Invariant 29: at the stationary point the mixture with ref is the equilibrium at tau / (1 - mix).

    pi ~ ref exp(P(. > m)/tau) gives m = pi^(1-mix) ref^mix ~ ref exp((1 - mix) P(. > m)/tau), which is (FP) for m.
    """
    game = PreferenceGame(prefs_XAA=random_preferences(4, 4)[None], ref_XA=random_policy(4, 4).exp()[None], tau=0.2)
    run = run_tabular(IPOMD(tau=0.2, mix=mix), game, lr=0.3, iterations=1500)
    mixture_XA = geometric_mixture(run.policy_XA, game.ref_XA, mix=mix)
    star_XA = game.with_tau(0.2 / (1 - mix)).solve(1e-14).policy_XA
    torch.testing.assert_close(mixture_XA, star_XA, rtol=0, atol=1e-10)
    # Before its last steps it was elsewhere: this is where it went, not where it started.
    assert float((geometric_mixture(game.ref_XA, game.ref_XA, mix=mix) - star_XA).abs().max()) > 1e-3


def test_uniform_cycle_ends_uniform() -> None:
    """Invariant 31: cyclic 5/9, uniform reference, tau .1, any mix, from (.6, .3, .1)."""
    game = cyclic(3, strength=1 / 9, tau=0.1)
    start_XA = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    for mix in (0.0, 0.125, 0.5):
        run = run_tabular(IPOMD(tau=0.1, mix=mix), game, lr=0.3, iterations=400, init_XA=start_XA)
        torch.testing.assert_close(run.policy_XA, torch.full_like(start_XA, 1 / 3), rtol=0, atol=1e-6)
