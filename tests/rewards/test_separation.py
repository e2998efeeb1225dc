"""The verdict: groups that are there are seen, groups that are not are denied, and three annotators never suffice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignment.data import read_rows
from alignment.rewards import LinearBradleyTerry, Mixture, compare_held_out, fit_mixture
from tests.rewards.planted import fit, judge, judge_planted, judge_quarter, judge_text, plant, plant_shared

PANDALM = "preferences/pandalm_testset_v1.jsonl.gz"


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_seen(seed: int) -> None:
    """Three groups gain eighteen points of accuracy on average; p is far below the level in each seed."""
    verdict = judge_planted(seed, num_groups=3)
    assert verdict.is_separable and verdict.p_value < 0.01
    assert verdict.accuracy - verdict.single_accuracy > 0.08
    assert verdict.summary().startswith("the groups differ")


@pytest.mark.parametrize("seed", range(10))
def test_one_group_stays_one(seed: int) -> None:
    """Three groups sought among one: denied, and the loss in accuracy is within noise.

    300 held-out pairs at an accuracy near 0.88 have a standard error of 0.019; the bound is three of them.
    """
    verdict = judge_planted(seed, num_groups=1)
    assert not verdict.is_separable and "nothing to separate" in verdict.summary()
    assert verdict.accuracy > verdict.single_accuracy - 3 * 0.019


@pytest.mark.slow
def test_the_test_keeps_its_level() -> None:
    """At most five in a hundred worlds of one group are declared several, and the mean loss is below two points.

    Measured: one of sixty, as groups that are none predict worse than one reward; mean loss 0.9 points, worst 4.7.
    """
    verdicts = [judge_planted(seed, num_groups=1) for seed in range(60)]
    assert sum(verdict.is_separable for verdict in verdicts) <= 3
    shared = [judge_quarter(plant_shared(seed, num_groups=1)) for seed in range(60)]
    assert sum(verdict.is_separable for verdict in shared) <= 3
    assert np.mean([verdict.accuracy - verdict.single_accuracy for verdict in verdicts]) > -0.02


def test_three_annotators_cannot_show_groups() -> None:
    """Even three who disagree outright: 2^-3 is above the level."""
    data = plant(0, num_groups=3, num_annotators=60)
    first = {group: next(name for name, own in data.groups.items() if own == group) for group in "012"}
    kept = data.part([i for i, name in enumerate(data.annotators) if name in first.values()])
    verdict = judge(kept, kept)
    assert not verdict.is_separable and verdict.p_value >= 0.125
    assert "fewer than 5 can never show groups" in verdict.summary()


def test_the_p_value_of_five_equal_gains_is_one_pattern_in_32() -> None:
    """All five annotators gain the same: of the 32 sign patterns only the one seen has so high a mean."""
    pairs = [np.array([sign]) for sign in (1.0, -1.0, 1.0, -1.0, 1.0)]
    names = list("abcde")
    mixture = fit_two(pairs, names)
    verdict = compare_held_out(mixture, LinearBradleyTerry(1, ridge=1.0), pairs, names, names)
    assert len(set(np.round(list(verdict.gains.values()), 6))) == 1 and verdict.mean_gain > 0
    assert verdict.p_value == pytest.approx(1 / 32)
    assert (verdict.accuracy, verdict.single_accuracy) == (1.0, 0.5)


def fit_two(pairs: list[np.ndarray], names: list[str]) -> Mixture[np.ndarray]:
    mixture = fit_mixture(pairs, names, lambda: LinearBradleyTerry(1, ridge=1.0), num_groups=2, max_iterations=5)
    # The same size of reward on both sides, so that the gains are equal.
    for component, weight in zip(mixture.components, (1.0, -1.0), strict=True):
        component.restore(np.array([weight]))
    return mixture


def test_one_group_that_took_everybody_shows_nothing() -> None:
    """Ten annotators of one mind end in one group; that it gains ten times out of ten over a poorer fit is no group."""
    one = [np.array(pair) for pair in ([1.0, 0.0], [1.0, 0.5], [-1.0, 0.0])]
    pairs, names = one * 10, [name for name in "abcdefghij" for _ in one]
    ridges = iter((1.0, 20.0))
    mixture = fit_mixture(
        pairs, names, lambda: LinearBradleyTerry(2, ridge=next(ridges)), num_groups=2, max_iterations=3
    )
    assert sorted(mixture.sizes) == [0, 10]
    single = LinearBradleyTerry(2, ridge=1.0)
    single.restore(np.array([1.0, -1.0]))
    verdict = compare_held_out(mixture, single, pairs, names, names)
    assert min(verdict.gains.values()) > 0
    assert (verdict.annotator_p_value, verdict.prompt_p_value) == (1.0, 1.0)


def test_unknown_annotators_are_left_out() -> None:
    data = plant(0, num_groups=3)
    single = LinearBradleyTerry(8, ridge=1.0)
    verdict = compare_held_out(fit(data, num_starts=1), single, data.pairs[:1], ["a stranger"], ["a prompt"])
    assert verdict.p_value == 1.0 and not verdict.gains and "0 annotators" in verdict.summary()


def test_strangers_leave_the_others_their_prompts() -> None:
    """The five above behind four strangers, who all judged one prompt: still five prompts, and one pattern in 32."""
    pairs, names = [np.array([sign]) for sign in (1.0, -1.0, 1.0, -1.0, 1.0)], list("abcde")
    verdict = compare_held_out(
        fit_two(pairs, names),
        LinearBradleyTerry(1, ridge=1.0),
        [np.array([1.0])] * 4 + pairs,
        [*"wxyz", *names],
        ["one"] * 4 + names,
    )
    assert (verdict.annotator_p_value, verdict.prompt_p_value) == pytest.approx((1 / 32, 1 / 32))


@pytest.mark.parametrize("num_groups", [2, 3])
def test_pandalm_has_nothing_to_separate(num_groups: int, real_data: Callable[[str], Path]) -> None:
    """Three annotators of 939 pairs, by length and a hashed bag of words: they largely agree, and are three."""
    rows = read_rows(
        real_data(PANDALM),
        columns={
            "prompt": ["instruction", "input"],
            "responses": ["response1", "response2"],
            "label": ["annotator1", "annotator2", "annotator3"],
        },
        labels={"1": "left", "2": "right", "0": "tie"},
        prompt_role="user",
    ).rows
    verdict = judge_text(rows, num_groups=num_groups, seed=0)
    assert not verdict.is_separable and len(verdict.gains) == 3
    # The features say something about these pairs, or the verdict would be empty.
    assert verdict.single_accuracy > 0.55
    assert abs(verdict.mean_gain) < 0.02
