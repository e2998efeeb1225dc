"""Lower bounds on exploitability: not above the exact one beyond the error rate, in simulation."""

import numpy as np
import pytest
from numpy.typing import NDArray

from alignment.errors import UserError
from alignment.evaluation.certificates import adversary_wins, certify
from alignment.evaluation.intervals import mean_interval
from alignment.games import random_games
from alignment.oracles import RuleOracle
from alignment.oracles.rules import shorter

Array = NDArray[np.float64]


def drawn_wins(
    rng: np.random.Generator, prefs_XAA: Array, policy_XA: Array, candidates_XN: NDArray[np.int64], *, num_answers: int
) -> Array:
    """Verdicts of 0 or 1 of candidates against answers drawn from the policy, [X, N, M]."""
    num_contexts, size = policy_XA.shape
    answers_XM = np.stack([rng.choice(size, num_answers, p=policy_A) for policy_A in policy_XA])
    rows = np.arange(num_contexts)[:, None, None]
    return (
        rng.random((num_contexts, candidates_XN.shape[1], num_answers))
        < prefs_XAA[rows, candidates_XN[:, :, None], answers_XM[:, None, :]]
    ).astype(float)


def test_one_candidate_is_the_mean_over_prompts() -> None:
    wins_PM = (np.random.default_rng(0).random((40, 5)) < 0.7).astype(float)
    found, plain = certify(wins_PM[:, None]), mean_interval(wins_PM.mean(1))
    assert found.exploitability.mean == pytest.approx(plain.mean - 0.5)
    assert found.exploitability.low == pytest.approx(plain.low - 0.5)
    assert plain.low - 0.5 < found.bound < plain.mean - 0.5
    assert "200 judgements" in found.sentence and "an adversary wins by" in found.sentence


def test_the_choice_is_not_counted() -> None:
    """By hand: two candidates, two answers. The first answer chooses candidate 0 (1 against 0), which loses to the
    second (0); the second chooses candidate 1 (1 against 0), which loses to the first: a win rate of 0."""
    found = certify(np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2))
    assert found.exploitability.mean == -0.5 and found.bound == 0.0
    steady = certify(np.array([[[1.0, 1.0], [0.0, 0.0]]] * 2))
    assert steady.exploitability.mean == 0.5


def test_coin_tosses_certify_nothing() -> None:
    """A policy at the equilibrium: every candidate wins one time in two. Of 500 certificates by the best of 8 at most
    5 % are above 0; counted by what chose, nearly all would be."""
    rng, num = np.random.default_rng(1), 500
    found, leaking = 0, 0
    for _ in range(num):
        wins_PNM = (rng.random((100, 8, 4)) < 0.5).astype(float)
        found += certify(wins_PNM).bound > 0.0
        leaking += mean_interval(wins_PNM.mean(2).max(1)).low > 0.5
    assert found / num <= 0.05
    assert leaking / num > 0.99


def test_the_bound_stays_below_the_exact_exploitability() -> None:
    """100 random games of 10 actions, policies of all kinds, the best of 4 actions: 100 certificates.

    With the best response among the candidates the truth is nearly reached, which is the hardest case.
    """
    rng, num, above, reached = np.random.default_rng(2), 100, 0, []
    game = random_games(100, num_actions=10, tau=0.0, seed=0)
    prefs_XAA = game.prefs_XAA.numpy()
    for n in range(num):
        policy_XA = rng.dirichlet(np.full(10, [0.2, 1.0, 5.0][n % 3]), 100)
        wins_XA = np.einsum("xab,xb->xa", prefs_XAA, policy_XA)
        exact = float(wins_XA.max(1).mean()) - 0.5
        candidates_XN = np.argsort(-wins_XA, axis=1)[:, :4]
        found = certify(drawn_wins(rng, prefs_XAA, policy_XA, candidates_XN, num_answers=8))
        above += found.bound > exact
        reached.append(found.bound / exact)
    assert above / num <= 0.05
    assert np.mean(reached) > 0.6


def test_all_pairs_are_asked() -> None:
    candidates, answers = [["ab", "abcd"], ["a", "abc"]], [["abc"], ["ab"]]
    wins_PNM = adversary_wins(RuleOracle(shorter), ["p", "q"], candidates, answers)
    expected = [
        [[1 / (1 + np.exp((len(c) - len(a)) / 20)) for a in rivals] for c in group]
        for group, rivals in zip(candidates, answers, strict=True)
    ]
    assert wins_PNM == pytest.approx(np.array(expected))


def test_what_cannot_be_certified_is_refused() -> None:
    with pytest.raises(UserError, match="one to choose by and one to count, got 1"):
        certify(np.ones((3, 2, 1)))
    with pytest.raises(UserError, match=r"expected wins in \[0, 1\] of shape"):
        certify(np.full((3, 2, 2), 1.5))
    with pytest.raises(UserError, match="as many candidates and as many answers"):
        adversary_wins(RuleOracle(shorter), ["p", "q"], [["a"], ["b", "c"]], [["d"], ["e"]])
