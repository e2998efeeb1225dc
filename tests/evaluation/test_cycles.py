"""Circles and their noise: planted oracles are told apart, and the gain of an equilibrium is bounded as promised."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from alignment.errors import UserError
from alignment.evaluation.cycles import diagnose_matrix
from alignment.evaluation.prompt_cycles import diagnose_prompts
from alignment.evaluation.win_matrix import WinMatrix, counted_matrix, exact_matrix, judged_matrix
from alignment.games import cyclic

Array = NDArray[np.float64]
RPS = np.array([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
STRENGTH_K = np.array([0.0, 0.3, 0.6, 0.9, 1.2])


def bradley_terry(strength_K: Array) -> Array:
    return np.asarray(expit(strength_K[:, None] - strength_K))


# 5 items each: a circle in which each beats the next two with .75; Bradley-Terry; Bradley-Terry whose verdicts are
# turned round one time in four, which is transitive and no longer Bradley-Terry.
PLANTED = {
    "circle": cyclic(5, strength=0.5, tau=0.0).prefs_XAA[0].numpy(),
    "bradley_terry": bradley_terry(STRENGTH_K),
    "noisy": 0.25 + 0.5 * bradley_terry(6.0 * STRENGTH_K),
}


def judged(rng: np.random.Generator, wins_KK: Array, num_prompts: int) -> WinMatrix:
    """One verdict on every pair of every prompt; prompts differ, and tilt all of the items that they favour."""
    size = len(wins_KK)
    first_E, second_E = np.triu_indices(size, 1)
    wins_PE = rng.random((num_prompts, len(first_E))) < wins_KK[first_E, second_E]
    prompts = np.repeat(np.arange(num_prompts), len(first_E)).tolist()
    first, second = np.tile(first_E, num_prompts).tolist(), np.tile(second_E, num_prompts).tolist()
    return judged_matrix([str(k) for k in range(size)], first, second, wins_PE.ravel().astype(float), prompts)


# Known tables


def test_paper_scissors_stone() -> None:
    """Known exactly: one circle of one triple, energy 1, the lottery in thirds, and all 50 points to gain."""
    found = diagnose_matrix(exact_matrix(["paper", "stone", "scissors"], RPS))
    assert found.kind == "cyclic" and found.consistence == 0.0 and found.num_triples == 1
    (circle,) = found.circles
    assert circle.names == ("paper", "stone", "scissors") and circle.is_certain and circle.frequency == 1.0
    # Logits of 0 and 1 are infinite.
    assert found.hodge is None and found.cyclic_energy is None and found.hodge_margins.curl == pytest.approx(1.0)
    assert found.lottery is not None and found.lottery.weights_K == pytest.approx([1 / 3] * 3)
    assert (found.gain.mean, found.gain.low, found.gain.high) == (0.5, 0.5, 0.5)
    assert found.fit.p_value == 0.0 and found.fit.max_error == pytest.approx(0.5)
    assert "settles on paper, which scissors beats" in found.sentence and "at most 50.0 [50.0, 50.0]" in found.sentence


def test_exact_bradley_terry() -> None:
    found = diagnose_matrix(exact_matrix("abcde", bradley_terry(STRENGTH_K)))
    assert found.kind == "bradley_terry" and found.circles == () and found.best == "e" and found.challenger is None
    assert found.cyclic_energy is not None and found.cyclic_energy.high == 0.0
    assert found.fit.p_value == 1.0 and found.fit.max_error < 1e-9
    assert (found.gain.mean, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)
    assert found.sentence.startswith("No sign that a Nash method helps")


def test_circles_below_a_winner_are_no_gain() -> None:
    """The first item beats everybody; the other three go in a circle: no equilibrium does better than the first."""
    wins_KK = np.full((4, 4), 0.9)
    wins_KK[:, 0], wins_KK[0, 0], wins_KK[1:, 1:] = 0.1, 0.5, RPS
    found = diagnose_matrix(exact_matrix("abcd", wins_KK))
    assert found.kind == "cyclic" and len(found.circles) == 1 and found.gain.high == 0.0
    assert "there are circles, but none that surely takes in a" in found.sentence


def test_a_gain_without_a_circle() -> None:
    """Bradley-Terry settles on the highest mean win rate, b; a beats it and everybody else, by little: a Condorcet
    winner that an equilibrium plays. Mean win rates: a .55, b (.45 + .95) / 2."""
    wins_KK = np.array([[0.5, 0.55, 0.55], [0.45, 0.5, 0.95], [0.45, 0.05, 0.5]])
    found = diagnose_matrix(exact_matrix("abc", wins_KK))
    assert found.circles == () and found.kind == "transitive" and (found.best, found.challenger) == ("b", "a")
    assert found.gain.mean == found.gain.low == found.gain.high == pytest.approx(0.05)
    assert found.lottery is not None and found.lottery.weights_K == pytest.approx([1.0, 0.0, 0.0])


def test_the_gain_is_that_of_the_choice_that_loses_least() -> None:
    """a and b share the highest mean win rate, .6; c beats a by .1, and nobody beats b. Bradley-Terry may settle on
    either, so that an equilibrium gains between nothing and .1."""
    wins_KK = np.array([[0.5, 0.5, 0.4, 0.9], [0.5, 0.5, 0.6, 0.7], [0.6, 0.4, 0.5, 0.5], [0.1, 0.3, 0.5, 0.5]])
    gain = diagnose_matrix(exact_matrix("abcd", wins_KK)).gain
    assert (gain.low, gain.high) == (0.0, pytest.approx(0.1))


def test_a_circle_of_few_verdicts_accuses_nobody() -> None:
    """Three of four verdicts round a circle: one in the table, and none for sure."""
    found = diagnose_matrix(counted_matrix("abc", [[0, 3, 1], [1, 0, 3], [3, 1, 0]]))
    assert len(found.circles) == 1 and not found.is_cyclic and found.kind == "bradley_terry"


@pytest.mark.parametrize(("p_value", "kind"), [(0.026, "bradley_terry"), (0.024, "transitive")])
def test_the_fit_has_half_of_the_error(p_value: float, kind: str) -> None:
    """The other 2.5 % are spent on circles."""
    found = diagnose_matrix(counted_matrix("abc", [[0, 3, 1], [1, 0, 3], [3, 1, 0]]))
    assert replace(found, fit=replace(found.fit, p_value=p_value)).kind == kind


def test_parts_that_never_met_have_strengths_of_their_own() -> None:
    """Two triangles, six pairs: each triangle has two free strengths, and one degree of freedom is left to each."""
    triangle_KK = np.array([[0, 6, 7], [4, 0, 5], [3, 5, 0]])
    one = diagnose_matrix(counted_matrix("abc", triangle_KK)).fit
    both = diagnose_matrix(counted_matrix("abcdef", np.kron(np.eye(2), triangle_KK))).fit
    assert (one.degrees, both.degrees) == (1, 2)
    assert one.g2 is not None and both.g2 == pytest.approx(2.0 * one.g2)


def test_nothing_is_said_without_a_triple() -> None:
    """Everybody met the baseline only, as in an arena with one opponent."""
    found = diagnose_matrix(counted_matrix(["base", "a", "b"], [[0, 40, 30], [60, 0, 0], [70, 0, 0]]))
    assert found.kind == "unknown" and found.num_triples == 0 and found.lottery is None
    assert found.sentence.startswith("Nothing can be said") and found.fit.degrees == 0


def test_pairs_that_were_not_compared_stay_open() -> None:
    """a is ahead of b, b of c, a of c; d met nobody but c and lost: d against a and b may be anything."""
    wins_KK = np.array([[0, 90, 90, 0], [10, 0, 90, 0], [10, 10, 0, 90], [0, 0, 10, 0]])
    found = diagnose_matrix(counted_matrix("abcd", wins_KK))
    assert found.num_triples == 1 and found.gain.low == 0.0 and found.gain.high == 0.5
    assert "pairs that nobody compared allowed for" in found.sentence


def test_the_fit_is_pearsons_test_for_independent_verdicts() -> None:
    """Counts, three items, one degree of freedom: the p-value is that of chi2, to the noise of 2,000 draws.

    P(chi2_1 > x) = erfc(sqrt(x / 2)).
    """
    wins_KK = np.array([[0, 60, 45], [40, 0, 60], [55, 40, 0]])
    found = diagnose_matrix(counted_matrix("abc", wins_KK))
    assert found.fit.g2 is not None and found.fit.degrees == 1
    assert found.fit.p_value == pytest.approx(math.erfc(math.sqrt(found.fit.g2 / 2)), abs=0.02)
    assert 0.0001 < found.fit.p_value < 0.05


def test_the_fits_own_variances_decide_where_wins_are_lopsided() -> None:
    """.97, .97 and .99 of 100: each residual is the same e, and with p = .97 - e and q = .99 + e of the fit Pearson's
    chi2 is 100 e^2 (2 / p (1 - p) + 1 / q (1 - q)). The table's own variance at .99 would be six times that at q."""
    found = diagnose_matrix(counted_matrix("abc", [[0, 97, 99], [3, 0, 97], [1, 3, 0]]))
    error = found.fit.max_error
    p, q = 0.97 - error, 0.99 + error
    chi2 = 100.0 * error**2 * (2.0 / (p * (1.0 - p)) + 1.0 / (q * (1.0 - q)))
    assert q == pytest.approx(float(expit(2.0 * math.log(p / (1.0 - p)))))
    assert found.fit.p_value == pytest.approx(math.erfc(math.sqrt(chi2 / 2.0)), abs=0.02)


def test_energy_is_read_with_its_noise() -> None:
    """The estimate is the plain share; the interval holds 0 for Bradley-Terry verdicts and leaves it for a circle."""
    rng = np.random.default_rng(0)
    for name, is_zero_in in (("bradley_terry", True), ("circle", False)):
        matrix = judged(rng, PLANTED[name], 300)
        found = diagnose_matrix(matrix)
        assert found.cyclic_energy is not None and found.hodge is not None
        assert found.cyclic_energy.mean == pytest.approx(found.hodge.cyclic)
        assert (found.cyclic_energy.low == 0.0) == is_zero_in
        assert found.cyclic_energy.low <= found.cyclic_energy.mean <= found.cyclic_energy.high


# Planted oracles


def test_planted_oracles_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    found = {name: diagnose_matrix(judged(rng, wins_KK, 400)) for name, wins_KK in PLANTED.items()}
    kinds = {name: diagnosis.kind for name, diagnosis in found.items()}
    assert kinds == {"circle": "cyclic", "bradley_terry": "bradley_terry", "noisy": "transitive"}
    assert found["circle"].gain.low > 0.1 and found["circle"].sentence.startswith("A Nash method can help")
    assert found["bradley_terry"].gain.low == found["noisy"].gain.low == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_prompts", [100, 400])
def test_false_alarms_are_rare(num_prompts: int) -> None:
    """500 data sets from each oracle: of those from Bradley-Terry 5 % at most are called anything else, of those with
    flipped verdicts 5 % at most a circle; and the intervals of the gain and of the energy hold the truth."""
    rng, num = np.random.default_rng(2), 500
    shares = {}
    for name, wins_KK in PLANTED.items():
        truth = diagnose_matrix(exact_matrix([str(k) for k in range(5)], wins_KK))
        assert truth.cyclic_energy is not None
        gain, energy = truth.gain.mean, truth.cyclic_energy.mean
        found = [diagnose_matrix(judged(rng, wins_KK, num_prompts)) for _ in range(num)]
        shares[name] = {
            **{
                kind: np.mean([item.kind == kind for item in found])
                for kind in ("cyclic", "transitive", "bradley_terry")
            },
            "helps": np.mean([item.gain.low > 0.0 for item in found]),
            "gain": np.mean([item.gain.low <= gain + 1e-9 and gain <= item.gain.high + 1e-9 for item in found]),
            "energy": np.mean(
                [item.cyclic_energy.low <= energy <= item.cyclic_energy.high for item in found if item.cyclic_energy]
            ),
        }
        print(num_prompts, name, {key: round(float(share), 4) for key, share in shares[name].items()})
    for name in ("bradley_terry", "noisy"):
        assert shares[name]["cyclic"] <= 0.05 and shares[name]["helps"] <= 0.05
    assert shares["bradley_terry"]["bradley_terry"] >= 0.95
    assert all(share["gain"] >= 0.93 and share["energy"] >= 0.93 for share in shares.values())
    if num_prompts == 400:
        assert shares["circle"]["cyclic"] > 0.95 and shares["circle"]["helps"] > 0.95
        assert shares["noisy"]["transitive"] > 0.95


# Responses of one prompt


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000), st.integers(3, 6), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_number_of_circles_bounds_the_gain(seed: int, size: int, sharpness: float) -> None:
    """``e + 2 e^2 <= E[circles]`` on random tables, e that of the item with the highest mean win rate."""
    rng = np.random.default_rng(seed)
    upper_KK = np.triu(expit(sharpness * rng.normal(size=(size, size))), 1)
    wins_KK = upper_KK + np.tril(1 - upper_KK.T, -1) + 0.5 * np.eye(size)
    best = wins_KK.sum(1).argmax()
    gain = wins_KK[:, best].max() - 0.5
    circles = sum(
        wins_KK[i, j] * wins_KK[j, k] * wins_KK[k, i] + wins_KK[j, i] * wins_KK[k, j] * wins_KK[i, k]
        for i, j, k in itertools.combinations(range(size), 3)
    )
    assert gain + 2 * gain**2 <= circles + 1e-12
    found = diagnose_prompts([wins_KK] * 3)
    assert found.gain is not None and found.gain.mean >= gain - 1e-12


def test_the_bound_is_met() -> None:
    """b beats j always, ties with i in the mean, and loses to i by e: with e = .25, .75 * 1 * .5 = .25 + 2 * .0625."""
    wins_KK = np.array([[0.5, 0.25, 1.0], [0.75, 0.5, 0.5], [0.0, 0.5, 0.5]])
    found = diagnose_prompts([wins_KK, wins_KK])
    assert found.circles is not None and found.circles.mean == pytest.approx(0.375)
    assert found.gain is not None and found.gain.mean == pytest.approx(0.25)


def test_single_verdicts_do_not_bias_the_number_of_circles() -> None:
    """All 8 outcomes of three verdicts with their probabilities: the mean is the expected number, ties a half each."""
    a, b, c = 0.9, 0.6, 0.7
    expected = a * b * c + (1 - a) * (1 - b) * (1 - c)
    mean = 0.0
    for verdicts in itertools.product([0.0, 1.0], repeat=3):
        chance = math.prod(p if y else 1 - p for p, y in zip((a, b, c), verdicts, strict=True))
        x, y, z = verdicts
        table = np.array([[0.5, x, 1 - z], [1 - x, 0.5, y], [z, 1 - y, 0.5]])
        found = diagnose_prompts([table, table]).circles
        assert found is not None
        mean += chance * found.mean
    assert mean == pytest.approx(expected)


def test_prompts_tell_circles_from_coin_tosses() -> None:
    """Each of 100 prompts: the verdicts of coins, of an order, and of a circle that is kept nine times in ten."""
    rng = np.random.default_rng(3)

    def tables(wins_KK: Array) -> list[Array]:
        drawn = (rng.random((100, 3, 3)) < wins_KK).astype(float)
        upper = np.triu(drawn, 1)
        return list(upper + np.tril(1 - upper.transpose(0, 2, 1), -1) + 0.5 * np.eye(3))

    coins = diagnose_prompts(tables(np.full((3, 3), 0.5)))
    order = diagnose_prompts(tables(bradley_terry(np.array([3.0, 0.0, -3.0]))))
    circle = diagnose_prompts(tables(0.1 + 0.8 * RPS))
    assert (coins.kind, order.kind, circle.kind) == ("transitive", "transitive", "cyclic")
    assert order.gain is not None and order.gain.high < 0.2
    assert circle.sentence.startswith("A Nash method may help") and coins.sentence.startswith("No sign")
    assert diagnose_prompts([np.full((2, 2), 0.5)]).sentence.startswith("Nothing can be said")
    with pytest.raises(UserError, match="comparisons of one prompt at least"):
        diagnose_prompts([])
