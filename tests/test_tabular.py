"""The reference loop itself: rows, averages, samples, and what it refuses."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games import (
    PreferenceGame,
    conflicting_panel,
    geometric_mixture,
    hedge_update,
    random_games,
    rock_paper_scissors,
)
from alignment.methods import build_method
from alignment.methods.spo import SPO
from alignment.tabular import run_tabular
from alignment.types import Ema, Frozen, LossInputs, LossOutput, Needs, Past, Previous

GAME = rock_paper_scissors(tau=0.1)
ANCHORS = (Frozen("ref"), Previous("prev"), Past("past", window=2), Ema("target", decay=0.25))


@dataclass
class Spy:
    """A method that pushes the first action up and remembers what it was shown."""

    needs: Needs
    solution: str = "none"
    iterate: str = "last"
    paper: Any = None
    seen: list[LossInputs] = field(default_factory=list)

    def loss(self, x: LossInputs) -> LossOutput:
        self.seen.append(x)
        return LossOutput(loss_B=-x.logps_BG[:, 0], weight_B=torch.ones_like(x.logps_BG[:, 0]))

    def policies(self) -> list[Tensor]:
        """The policy [A] at every gradient, in logs."""
        return [x.logps_BG.detach()[0] for x in self.seen]

    def anchors(self, name: str) -> list[Tensor]:
        """The anchor [A] at every gradient, in logs."""
        return [x.anchor(name)[0] for x in self.seen]


def watch(needs: Needs, iterations: int, **arguments: Any) -> Spy:
    spy = Spy(needs)
    run_tabular(spy, GAME, lr=0.4, iterations=iterations, **arguments)  # type: ignore[arg-type]
    return spy


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_row_zero_is_the_start_and_rows_follow_iterations() -> None:
    """Gap of the start, then one row per iteration; the average leaves the start out."""
    game = rock_paper_scissors(tau=0.1)
    run = run_tabular(build_method({"name": "egpo", "tau": 0.1}), game, lr=0.05, iterations=3)
    assert run.gap_IX.shape == run.average_gap_IX.shape == (4, 1)
    torch.testing.assert_close(run.gap_IX[0], game.duality_gap(game.ref_XA))
    torch.testing.assert_close(run.gap_IX[3], game.duality_gap(run.policy_XA))
    torch.testing.assert_close(run.average_gap_IX[3], game.duality_gap(run.average_XA))
    one = run_tabular(build_method({"name": "egpo", "tau": 0.1}), game, lr=0.05, iterations=1)
    torch.testing.assert_close(one.average_XA, one.policy_XA)


def test_contexts_do_not_share_a_step() -> None:
    """Losses are summed over contexts, so a game in company moves as it does alone."""
    games = random_games(3, num_actions=4, tau=0.1, seed=0)
    method = build_method({"name": "omd", "tau": 0.1})
    together = run_tabular(method, games, lr=0.1, iterations=5)
    for x in range(3):
        alone = PreferenceGame(prefs_XAA=games.prefs_XAA[x : x + 1], ref_XA=games.ref_XA[x : x + 1], tau=0.1)
        run = run_tabular(method, alone, lr=0.1, iterations=5)
        torch.testing.assert_close(run.policy_XA[0], together.policy_XA[x], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "dpo", "beta": 1.0},
        {"name": "egpo", "tau": 0.3},
        {"name": "spo", "kappa_ref": 0.3},
        {"name": "online_ipo", "tau": 0.3},
        {"name": "lipo", "beta": 1.0},
        {"name": "kto", "beta": 1.0, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"name": "nash_md", "tau": 0.3, "mix": 0.125},
    ],
)
def test_samples_estimate_the_exact_step(spec: dict[str, object]) -> None:
    """One step from 20,000 sampled rows lands near the step with exact expectations, and far from the start."""
    game = rock_paper_scissors(tau=0.3)
    start_XA = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    method = build_method(spec)
    # Uniform behaviour where rows exclude y = y': for a pair loss that only rescales the step, by the same factor.
    exact, sampled = (
        run_tabular(method, game, lr=0.2, iterations=1, init_XA=start_XA, samples=samples, seed=0)
        for samples in (None, 20_000)
    )
    moved = exact.policy_XA - start_XA
    assert float(moved.abs().max()) > 1e-3
    cosine = torch.nn.functional.cosine_similarity(sampled.policy_XA - start_XA, moved)
    assert float(cosine) > 0.99


def test_refusals() -> None:
    """Samples need a seed; losses that couple a batch have no exact expectation; players are run in turn."""
    game = rock_paper_scissors(tau=0.1)
    with pytest.raises(UserError, match="seed"):
        run_tabular(build_method({"name": "egpo", "tau": 0.1}), game, lr=0.1, iterations=1, samples=4)
    with pytest.raises(UserError, match="no exact expectation"):
        run_tabular(build_method({"name": "aot", "beta": 1.0}), game, lr=0.1, iterations=1)
    players = {
        "name": "mnpo",
        "eta": 1.0,
        "ref_weight": 0.0,
        "opponents": "heterogeneous",
        "player_weights": {"b": 1.0},
    }
    with pytest.raises(UserError, match="another player"):
        run_tabular(build_method(players), game, lr=0.1, iterations=1)


def test_offline_ipo_on_the_published_toy() -> None:
    """Invariant 30: cyclic 5/9, uniform reference, pairs from (.6, .3, .1), tau .1: (.3656, .2478, .3865)."""
    from alignment.games import cyclic

    behaviour_XA = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    method = build_method({"name": "ipo", "tau": 0.1})
    run = run_tabular(
        method,
        cyclic(3, strength=1 / 9, tau=0.0),
        lr=0.2,
        iterations=400,
        behaviour_XA=behaviour_XA,
        optimizer="natural",
    )
    expected_XA = torch.tensor([[0.3656, 0.2478, 0.3865]], dtype=torch.float64)
    torch.testing.assert_close(run.policy_XA, expected_XA, rtol=0, atol=1e-4)


def test_anchors_advance_once_an_iteration() -> None:
    """Two inner steps each: prev and past_0 are the policy at the start of the iteration, past_1 of the one before.

    The history is filled with the start. target <- .25 target + .75 policy, in parameters, at the end of an iteration;
    the reference never moves.
    """
    spy = watch(Needs(feedback="prefs", anchors=ANCHORS, schedule="iterative", inner_steps=2), iterations=3)
    policies = spy.policies()
    assert len(policies) == 6
    target_A = policies[0]
    for gradient in range(6):
        start = gradient - gradient % 2
        assert same(spy.anchors("prev")[gradient], policies[start])
        assert same(spy.anchors("past_0")[gradient], policies[start])
        assert same(spy.anchors("past_1")[gradient], policies[max(start - 2, 0)])
        assert same(spy.anchors("ref")[gradient], GAME.ref_XA[0].log())
        if start == gradient and gradient > 0:
            target_A = (0.25 * target_A + 0.75 * policies[gradient]).log_softmax(-1)
        assert same(spy.anchors("target")[gradient].log_softmax(-1), target_A)
    assert not same(policies[0], policies[1])


def test_two_fits_start_from_the_centre() -> None:
    """ONPO's round: fit 1 starts at the centre and ends at the new centre, from which fit 2 starts.

    The next round's fit 1 starts at that centre again, not at the policy that fit 2 left.
    """
    spy = watch(Needs(feedback="prefs", anchors=(Previous("prev"),), schedule="iterative", sampler="prev", fits=2), 2)
    first, second, third, fourth = spy.policies()
    assert same(spy.anchors("prev")[0], first) and same(spy.anchors("prev")[1], second)
    assert not same(second, first)
    assert same(third, second) and same(spy.anchors("prev")[2], second)
    assert same(spy.anchors("prev")[3], fourth) and not same(fourth, third)
    # One data set a round: pairs of the policy that the round before ended with, in both fits.
    weights = [x.weights_BG[0] for x in spy.seen if x.weights_BG is not None]
    assert same(weights[0], first.exp()) and same(weights[1], first.exp())
    assert same(weights[2], weights[3]) and not same(weights[2], third.exp())


def test_two_stages_take_their_gradient_at_the_start() -> None:
    """EGPO: the opponent of stage 1 is the look-ahead policy, the log-probs are those of stage 0, bit for bit."""
    spy = watch(Needs(feedback="wins", opponent="fresh", full_support=True, schedule="online", stages=2), iterations=1)
    assert torch.equal(*spy.policies())
    ahead_A = (spy.policies()[0] + 0.4 * (torch.tensor([1.0, 0, 0]) - spy.policies()[0].exp())).softmax(-1)
    wins = [x.wins_BG[0] for x in spy.seen]
    assert same(wins[0], GAME.prefs_XAA[0] @ spy.policies()[0].exp())
    assert same(wins[1], GAME.prefs_XAA[0] @ ahead_A)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"sampler": "dataset"}, "ref"),
        ({"sampler": "policy", "schedule": "online"}, "policy"),
        ({"sampler": "prev", "schedule": "iterative"}, "start"),
        ({"sampler": "mixture", "mix": 0.25, "schedule": "online"}, "mixture"),
        ({"sampler": "enumerate"}, "uniform"),
        ({"sampler": "policy", "full_support": True, "schedule": "online"}, "uniform"),
    ],
)
def test_who_samples(needs: dict[str, Any], expected: str) -> None:
    """Exact expectations weigh every action by the sampler's probability; here at the second of two inner steps."""
    spy = watch(Needs(feedback="prefs", inner_steps=2, **needs), 1, init_XA=torch.tensor([[0.5, 0.2, 0.3]]).double())
    policy_XA = spy.policies()[1].exp()[None]
    sampler_XA = {
        "ref": GAME.ref_XA,
        "policy": policy_XA,
        "start": spy.policies()[0].exp()[None],
        "mixture": geometric_mixture(policy_XA, GAME.ref_XA, mix=0.25),
        "uniform": torch.full((1, 3), 1 / 3, dtype=torch.float64),
    }[expected]
    assert spy.seen[1].weights_BG is not None and same(spy.seen[1].weights_BG, sampler_XA)
    behaviour_XA = torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64)
    given = watch(Needs(feedback="prefs", **needs), 1, behaviour_XA=behaviour_XA)
    assert given.seen[0].weights_BG is not None and same(given.seen[0].weights_BG, behaviour_XA)


@pytest.mark.parametrize("opponent", ["fresh", "target", "mixture", "ref", "past", "group"])
def test_whom_a_response_is_compared_with(opponent: Any) -> None:
    """Exact win rates P mu; "past" is the mean of the history, "group" the sampler."""
    needs = Needs(
        feedback="wins", anchors=ANCHORS, sampler="policy", opponent=opponent, mix=0.25, schedule="online", stages=1
    )
    spy = watch(needs, 3)
    policies = [policy_A.exp() for policy_A in spy.policies()]
    mu_A = {
        "fresh": policies[2],
        "group": policies[2],
        "target": spy.anchors("target")[2].softmax(-1),
        "mixture": geometric_mixture(policies[2][None], GAME.ref_XA, mix=0.25)[0],
        "ref": GAME.ref_XA[0],
        "past": (policies[2] + policies[1]) / 2,
    }[opponent]
    assert same(spy.seen[2].wins_BG[0], GAME.prefs_XAA[0] @ mu_A)


def test_natural_steps_of_a_policy_gradient_are_hedge() -> None:
    """pi exp(eta P(. > pi)), exactly: the gradient -pi (u - mean u) divided by pi, the constant aside."""
    start_XA = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    run = run_tabular(SPO(), GAME, lr=0.3, iterations=1, init_XA=start_XA, optimizer="natural")
    torch.testing.assert_close(
        run.policy_XA, hedge_update(GAME, start_XA.log(), start_XA, eta=0.3).exp(), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("name", ["sgd", "natural"])
def test_either_metric_closes_the_gap(name: Any) -> None:
    """Theorem, for each: online IPO on the cycle ends with a hundredth of its gap. (Adam orbits a saddle point.)"""
    method = build_method({"name": "online_ipo", "tau": 0.1})
    lr = {"sgd": 0.1, "natural": 0.02}[name]
    gap_I = run_tabular(method, GAME, lr=lr, iterations=200, optimizer=name).gap_IX[:, 0]
    assert float(gap_I[-1]) < 0.01 * float(gap_I[0])


def test_samples_repeat_with_their_seed() -> None:
    """The same seed gives the same run, another one does not, and the global generator is left alone."""
    method = build_method({"name": "egpo", "tau": 0.1})

    def run(seed: int) -> Tensor:
        return run_tabular(method, GAME, lr=0.05, iterations=3, samples=8, seed=seed).policy_XA

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = run(1)
    assert torch.rand(1) == expected
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))


def test_progress_counts_iterations_and_none_is_fine() -> None:
    """Called after each, whatever stages and inner steps there are; zero iterations return the start."""
    calls: list[int] = []
    method = build_method({"name": "nash_mp", "tau": 0.1, "eta": 0.5, "inner_steps": 3})
    run_tabular(method, GAME, lr=0.1, iterations=4, progress=calls.append)
    assert calls == [1, 2, 3, 4]
    idle = run_tabular(method, GAME, lr=0.1, iterations=0)
    assert idle.gap_IX.shape == (1, 1) and same(idle.policy_XA, GAME.ref_XA)


def test_a_panel_has_no_duality_gap() -> None:
    """Several oracles define no symmetric game, so the gap is nan rather than that of some average."""
    method = build_method({"name": "maxmin", "base": {"name": "spo", "kappa_ref": 0.1}})
    run = run_tabular(method, conflicting_panel(tau=0.1), lr=0.1, iterations=2)
    assert run.gap_IX.isnan().all() and run.average_gap_IX.isnan().all()
    with pytest.raises(UserError, match=r"expected a game with many oracle\(s\), got PreferenceGame"):
        run_tabular(method, GAME, lr=0.1, iterations=1)
