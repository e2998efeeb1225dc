"""Each game of the zoo has the property that it is there for."""

import pytest
import torch

from alignment.errors import UserError
from alignment.games import (
    bradley_terry,
    condorcet_panel,
    conflicting_panel,
    cyclic,
    omd_threshold,
    random_games,
    rock_paper_scissors,
)


def test_random_games_are_those_of_the_record() -> None:
    """[45] Seed 42, tau .01: the recorded stability thresholds of one-step mirror descent, rounded to four decimals.

    They depend on every number drawn, so they fix the order in which P and ref are drawn.
    """
    game = random_games(tau=0.01, seed=42)
    threshold_X = omd_threshold(game, game.solve().policy_XA)
    recorded = [0.0220, 0.0065, 0.0157, 0.0486, 0.0078, 0.0307, 0.0088, 0.0046, 0.0832, 0.0469]
    torch.testing.assert_close(threshold_X, torch.tensor(recorded, dtype=torch.float64), atol=5e-5, rtol=0)


def test_random_games_are_stable_at_a_larger_temperature() -> None:
    """[45] At tau .1 all thresholds of the same ten games are above .49."""
    game = random_games(tau=0.1, seed=42)
    assert (omd_threshold(game, game.solve().policy_XA) > 0.49).all()


def test_cyclic_by_hand() -> None:
    """n = 3: each beats the next. n = 4: reach 1, opposite actions tie. n = 5: reach 2. strength 1/9 gives 5/9."""
    assert cyclic(3, tau=0.1).prefs_XAA.tolist() == [[[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]]
    assert cyclic(4, tau=0.1).prefs_XAA[0, 0].tolist() == [0.5, 1.0, 0.5, 0.0]
    assert cyclic(5, tau=0.1).prefs_XAA[0, 0].tolist() == [0.5, 1.0, 1.0, 0.0, 0.0]
    assert float(cyclic(3, strength=1 / 9, tau=0.1).prefs_XAA[0, 0, 1]) == pytest.approx(5 / 9)
    torch.testing.assert_close(cyclic(5, tau=0.1).prefs_XAA.sum(-1), torch.full((1, 5), 2.5, dtype=torch.float64))


def test_rock_paper_scissors_has_its_reference() -> None:
    """ref = softmax(.5, 0, -.2): the log-ratios are .5 and .2."""
    log_ref_A = rock_paper_scissors().ref_XA[0].log()
    assert float(log_ref_A[0] - log_ref_A[1]) == pytest.approx(0.5)
    assert float(log_ref_A[1] - log_ref_A[2]) == pytest.approx(0.2)
    assert rock_paper_scissors().tau == 0.05


def test_bradley_terry_is_transitive_with_additive_log_odds() -> None:
    """logit P(a > c) = logit P(a > b) + logit P(b > c); without a penalty the equilibrium is the best action."""
    rewards_XA = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 0.5]])
    game = bradley_terry(rewards_XA, torch.full((2, 3), 1 / 3, dtype=torch.float64), tau=0.0)
    logit_XAA = game.prefs_XAA.logit()
    torch.testing.assert_close(logit_XAA[:, 0, 2], logit_XAA[:, 0, 1] + logit_XAA[:, 1, 2])
    assert (game.solve().policy_XA[:, 2] > 1.0 - 1e-9).all()


@pytest.mark.parametrize("num_actions", [3, 4, 7])
@pytest.mark.parametrize("sharpness", [0.5, 2.0, 20.0])
def test_condorcet_panel_is_transitive_one_by_one_and_cyclic_together(num_actions: int, sharpness: float) -> None:
    """Each annotator's strict preferences form an order: row scores are all different and sorting by them explains P.

    The average of the rotations is a circulant matrix in the hidden order: every action beats exactly one action more
    directly than all others beat it, and following "whom do I beat best" visits all actions.
    """
    panel = condorcet_panel(num_actions=num_actions, num_contexts=3, sharpness=sharpness, seed=1, tau=0.1)
    for k in range(num_actions):
        prefs_XAA = panel.player(k).prefs_XAA
        for prefs_AA in prefs_XAA:
            order = prefs_AA.sum(-1).argsort(descending=True)
            upper = prefs_AA[order][:, order].triu(1)
            assert bool((upper[upper != 0] > 0.5).all())
            assert int((upper > 0.5).sum()) == num_actions * (num_actions - 1) // 2
    for prefs_AA in panel.majority().prefs_XAA:
        action, visited = 0, []
        for _ in range(num_actions):
            visited.append(action)
            following = int((prefs_AA[action] - 0.5 > 1e-12).to(torch.float64).mul(prefs_AA[action]).argmax())
            assert float(prefs_AA[action, following]) > 0.5
            action = following
        assert action == 0
        assert sorted(visited) == list(range(num_actions))
    pi_XA = panel.majority().with_tau(0.0).solve().policy_XA
    torch.testing.assert_close(pi_XA, torch.full_like(pi_XA, 1 / num_actions), atol=1e-8, rtol=0)


def test_condorcet_majority_goes_the_way_of_the_rotation() -> None:
    """Favourites 0, 1, 2, ... of the annotators in turn are neighbours in the circle, the earlier ahead of the later.

    All annotators but the one whose favourite is the later of the two rank the earlier one first.
    """
    panel = condorcet_panel(num_actions=5, tau=0.1)
    favourites = [int(panel.player(k).prefs_XAA[0].sum(-1).argmax()) for k in range(5)]
    majority_AA = panel.majority().prefs_XAA[0]
    assert sorted(favourites) == list(range(5))
    assert all(float(majority_AA[favourites[k], favourites[(k + 1) % 5]]) > 0.5 for k in range(5))


def test_condorcet_panel_is_reproducible_and_shuffled_by_its_seed() -> None:
    """The same seed names the actions alike; another one does not."""
    first, again, other = (condorcet_panel(num_actions=6, num_contexts=4, seed=s, tau=0.1) for s in (0, 0, 1))
    assert torch.equal(first.majority().prefs_XAA, again.majority().prefs_XAA)
    assert not torch.equal(first.majority().prefs_XAA, other.majority().prefs_XAA)


def test_conflicting_panel_has_two_opposite_groups() -> None:
    """The minority's preferences are the transposed ones of the majority; three arms: rewards 1, 1/2, 0."""
    panel = conflicting_panel(num_actions=3, num_contexts=2, num_majority=3, num_minority=2, tau=0.1)
    assert panel.utilities_KXA.shape == (5, 2, 3)
    torch.testing.assert_close(panel.player(0).prefs_XAA, panel.player(4).prefs_XAA.mT)
    assert panel.player(0).prefs_XAA[0, 0].tolist() == [0.5, 0.75, 1.0]


def test_the_zoo_refuses_sizes_without_meaning() -> None:
    """Two actions cannot form a cycle, one cannot conflict, and a strength is a probability."""
    with pytest.raises(UserError, match="at least 3"):
        condorcet_panel(num_actions=2, tau=0.1)
    with pytest.raises(UserError, match="at least 2"):
        conflicting_panel(num_actions=1, tau=0.1)
    with pytest.raises(UserError, match="strength"):
        cyclic(3, strength=1.5, tau=0.1)
    with pytest.raises(UserError, match="num_games"):
        random_games(0, tau=0.1, seed=0)
    with pytest.raises(UserError, match="sharpness"):
        condorcet_panel(sharpness=0.0, tau=0.1)
