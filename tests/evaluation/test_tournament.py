"""Round robins: known tables, clones, and coverage of strengths and exploitabilities."""

import numpy as np
import pytest
from scipy.special import expit, stdtr

from alignment.errors import UserError
from alignment.evaluation.intervals import holm
from alignment.evaluation.lottery import maximal_lottery
from alignment.evaluation.tournament import ELO, analyse_tournament
from alignment.evaluation.win_matrix import WinMatrix, exact_matrix, judged_matrix
from tests.evaluation.test_win_matrix import round_robin

RPS = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])


def cloned(matrix_wins_PE: np.ndarray, size: int, item: int) -> WinMatrix:
    """The same verdicts with one more policy, whose texts are those of another: they tie, and meet the rest alike."""
    first_E, second_E = np.triu_indices(size, 1)
    table_PKK = np.full((len(matrix_wins_PE), size, size), 0.5)
    table_PKK[:, first_E, second_E] = matrix_wins_PE
    table_PKK[:, second_E, first_E] = 1.0 - matrix_wins_PE
    order = [*range(size), item]
    table_PKK = table_PKK[:, order][:, :, order]
    first_E, second_E = np.triu_indices(size + 1, 1)
    num_prompts = len(table_PKK)
    return judged_matrix(
        [str(k) for k in range(size + 1)],
        np.tile(first_E, num_prompts).tolist(),
        np.tile(second_E, num_prompts).tolist(),
        table_PKK[:, first_E, second_E].ravel(),
        np.repeat(np.arange(num_prompts), len(first_E)).tolist(),
    )


def test_a_known_circle() -> None:
    """Elo sees nothing, the lottery is in thirds, and every pure policy loses all to somebody."""
    found = analyse_tournament(exact_matrix("abc", RPS))
    assert [item.weight for item in found.standings] == pytest.approx([1 / 3] * 3)
    assert [item.exploitability.mean for item in found.standings] == [0.5] * 3
    assert [item.elo.mean for item in found.standings if item.elo] == pytest.approx([0.0] * 3, abs=1e-9)
    assert found.lottery_exploitability.high == pytest.approx(0.0, abs=1e-9)


def test_a_pair_that_nobody_judged_is_named() -> None:
    with pytest.raises(UserError, match="expected verdicts on every pair, found none on 1, first on 'a' and 'c'"):
        analyse_tournament(judged_matrix(["a", "b", "c"], [0, 1], [1, 2], [1.0, 0.0], ["p", "p"]))


def test_elo_is_the_logit_of_the_win_rate() -> None:
    """Two policies at .76: 400 log10(.76 / .24) = 200.2 points apart, and the interval is that of the logit.

    To first order the error of the logit is that of the rate over p (1 - p); both strengths move by half of it. The
    rate's is that of 78 wins in 104, two wins and two losses more: sqrt(.75 * .25 / 100).
    """
    wins = np.array([1.0] * 76 + [0.0] * 24)
    found = analyse_tournament(judged_matrix(["a", "b"], [0] * 100, [1] * 100, wins, range(100)))
    (a, b) = [item.elo for item in found.standings]
    assert a is not None and b is not None
    assert a.mean - b.mean == pytest.approx(400.0 * np.log10(0.76 / 0.24)) and a.mean == pytest.approx(-b.mean)
    step = 1.98421695 * np.sqrt(0.75 * 0.25 / 100) / (0.76 * 0.24)
    assert a.high - a.mean == pytest.approx(0.5 * ELO * step, rel=1e-6)
    assert found.table.kind == "bradley_terry" and found.table.sentence.startswith("No sign")


def test_matches_are_tests_with_holms_correction() -> None:
    """A pair's test is Student's, of its win rate against 1/2 at the variance that a mean of 1/2 would have: of m = 8.5
    of 12 with variance v of the mean, |m - 1/2| against sqrt(d / 48) with d = 12 v / (m (1 - m))."""
    rng = np.random.default_rng(0)
    matrix = round_robin(rng, np.array([0.8, 0.3, 0.0]) + rng.normal(size=(60, 3)))
    matches = analyse_tournament(matrix).matches
    assert [match.names for match in matches] == [("0", "1"), ("0", "2"), ("1", "2")]
    assert [match.adjusted for match in matches] == pytest.approx(holm([match.p_value for match in matches]).tolist())
    wins_P = np.array([1.0] * 8 + [0.0] * 3 + [0.5])
    (match,) = analyse_tournament(judged_matrix(["a", "b"], [0] * 12, [1] * 12, wins_P, range(12))).matches
    mean = 8.5 / 12
    pivot = (mean - 0.5) / np.sqrt(wins_P.var() / (mean * (1.0 - mean)) / 48)
    assert match.p_value == pytest.approx(2.0 * stdtr(11, -pivot))


def test_a_policy_that_always_wins_has_no_elo() -> None:
    found = analyse_tournament(judged_matrix(["a", "b"], [0] * 30, [1] * 30, [1.0] * 30, range(30)))
    assert [item.elo for item in found.standings] == [None, None]
    (winner, loser) = found.standings
    assert winner.weight == 1.0 and winner.exploitability.mean == 0.0 and loser.exploitability.mean == 0.5
    assert loser.exploitability.low < 0.5
    # Played alone, the winner is the lottery: both have the same losses.
    assert found.lottery_exploitability == winner.exploitability


@pytest.mark.parametrize("seed", range(4))
def test_a_clone_moves_neither_weights_nor_skills(seed: int) -> None:
    """Estimated from verdicts: the family of the clone keeps its weight, every exploitability and skill stays."""
    rng = np.random.default_rng(seed)
    wins_PE = rng.integers(0, 3, (50, 6)) / 2
    names = [str(k) for k in range(4)]
    first_E, second_E = np.triu_indices(4, 1)
    alone = judged_matrix(
        names,
        np.tile(first_E, 50).tolist(),
        np.tile(second_E, 50).tolist(),
        wins_PE.ravel(),
        np.repeat(range(50), 6).tolist(),
    )
    item = int(maximal_lottery(alone.wins_KK).weights_K.argmax())
    before, after = analyse_tournament(alone).standings, analyse_tournament(cloned(wins_PE, 4, item)).standings
    for k in range(4):
        assert after[k].skill == pytest.approx(before[k].skill, abs=1e-9)
        assert after[k].exploitability.mean == pytest.approx(before[k].exploitability.mean)
        family = after[k].weight + (after[4].weight if k == item else 0.0)
        assert family == pytest.approx(before[k].weight, abs=1e-9)
    assert after[4].weight == pytest.approx(after[item].weight)
    # The mean win rate counts the clone as one more opponent.
    assert any(after[k].ranked.score.mean != pytest.approx(before[k].ranked.score.mean, abs=1e-6) for k in range(4))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_strengths_and_exploitabilities_are_covered() -> None:
    """600 tournaments of 4 policies on 100 prompts: 95 % intervals of Elo, policy by policy, cover 93 to 97 % (the
    simulation is good to .4 points over 4 policies); those of exploitabilities and of the lottery's 93 % at least."""
    mean_K = np.array([0.6, 0.3, 0.0, -0.6])
    many_PK = mean_K + np.random.default_rng(1).normal(size=(400_000, 4))
    truth_KK = np.array([[expit(many_PK[:, i] - many_PK[:, j]).mean() for j in range(4)] for i in range(4)])
    truth = analyse_tournament(exact_matrix([str(k) for k in range(4)], 0.5 + 0.5 * (truth_KK - truth_KK.T)))
    rng, num = np.random.default_rng(4), 600
    elo, exploited, lottery = np.zeros(4), 0, 0
    for _ in range(num):
        found = analyse_tournament(round_robin(rng, mean_K + rng.normal(size=(100, 4))))
        for k, (item, true) in enumerate(zip(found.standings, truth.standings, strict=True)):
            assert item.elo is not None and true.elo is not None
            elo[k] += item.elo.low <= true.elo.mean <= item.elo.high
        exploited += all(
            item.exploitability.low - 1e-3 <= true.exploitability.mean <= item.exploitability.high + 1e-3
            for item, true in zip(found.standings, truth.standings, strict=True)
        )
        weights_K = np.array([item.weight for item in found.standings])
        true_loss = float(((truth_KK - 0.5) @ weights_K).max())
        lottery += found.lottery_exploitability.low - 1e-3 <= true_loss <= found.lottery_exploitability.high + 1e-3
    print(f"Elo {elo / num}, exploitabilities at once {exploited / num:.4f}, of the lottery {lottery / num:.4f}")
    assert 0.93 <= elo.mean() / num <= 0.97
    assert exploited / num >= 0.93 and lottery / num >= 0.93
