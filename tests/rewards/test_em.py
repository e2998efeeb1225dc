"""Hard EM finds planted groups, never lowers the likelihood, and leaves alone what it has no data for."""

from collections.abc import Sequence

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.rewards import LinearBradleyTerry, agreement, fit_mixture, fit_single
from alignment.rewards.em import log_sigmoid
from tests.rewards.planted import NUM_FEATURES, fit, plant


@pytest.mark.parametrize("seed", range(10))
def test_planted_groups_are_found(seed: int) -> None:
    """Invariant 101: 60 annotators, 20 pairs each, a tenth of the labels wrong: 57 or more placed well, any seed."""
    data = plant(seed, num_groups=3)
    found = fit(data)
    assert agreement(found.assignment, data.groups) >= 0.95
    assert found.is_converged and sum(found.sizes) == 60 and min(found.sizes) > 0
    steps = np.diff(found.log_likelihoods)
    assert (steps >= 0).all() and found.log_likelihoods[0] == pytest.approx(1200 * np.log(0.5))


def test_starts_are_judged_by_their_likelihood() -> None:
    """More starts end no worse, and the round robin is always the first of them."""
    data = plant(5, num_groups=3)
    one, many = fit(data, num_starts=1), fit(data, num_starts=6)
    assert many.start_log_likelihoods[0] == one.log_likelihoods[-1]
    assert many.log_likelihoods[-1] == max(many.start_log_likelihoods) >= one.log_likelihoods[-1]


class Scripted:
    """A reward that is one number; the margin of a pair is that number times the pair. ``fit`` plays a script."""

    def __init__(self, value: float, script: Sequence[float] = ()) -> None:
        self.value, self.script, self.fitted = value, list(script), []

    def fit(self, pairs: Sequence[float]) -> None:
        self.fitted.append(list(pairs))
        if self.script:
            self.value = self.script.pop(0)

    def margins(self, pairs: Sequence[float]) -> np.ndarray:
        return self.value * np.array(pairs)

    def parameters(self) -> float:
        return self.value

    def restore(self, parameters: float) -> None:
        self.value = parameters


def test_all_pairs_of_an_annotator_decide() -> None:
    """Invariant 101: Ann agrees twice slightly, not at all once: by count she is in group 0, by likelihood in 1.

    sum log sigmoid under +1: 2 log s(1) + log s(-4) = -4.645; under -1: 2 log s(-1) + log s(4) = -2.645.
    """
    makers = iter([Scripted(1.0), Scripted(-1.0)])
    found = fit_mixture(
        [1.0, 1.0, -4.0, 1.0], ["Ann"] * 3 + ["Bob"], lambda: next(makers), num_groups=2, max_iterations=1
    )
    assert found.assignment == {"Ann": 1, "Bob": 0}
    assert found.log_likelihoods[-1] == pytest.approx(-2.645 + log_sigmoid(np.array(1.0)), abs=1e-3)


def test_a_step_that_lowers_the_likelihood_is_taken_back() -> None:
    """Invariant 101: the first fit of group 0 goes the wrong way, that of group 1 to nan; both are undone."""
    makers = iter([Scripted(1.0, [-1.0]), Scripted(-1.0, [np.nan])])
    found = fit_mixture([1.0, -1.0], ["Ann", "Bob"], lambda: next(makers), num_groups=2, max_iterations=5)
    assert [component.value for component in found.components] == [1.0, -1.0]  # type: ignore[attr-defined]
    assert found.num_rejected == 2 and found.is_converged
    assert found.log_likelihoods[0] == found.log_likelihoods[1] == pytest.approx(2 * np.log(1 / (1 + np.exp(-1))))


def test_an_empty_group_keeps_its_reward() -> None:
    """Both annotators go to group 0 after one iteration; group 1 is then fitted to nothing, and is reported."""
    components = [Scripted(0.5, [1.0, 2.0, 3.0]), Scripted(0.0, [0.25])]
    makers = iter(components)
    found = fit_mixture([1.0, 1.0], ["Ann", "Bob"], lambda: next(makers), num_groups=2, max_iterations=3)
    assert found.assignment == {"Ann": 0, "Bob": 0} and found.sizes == (2, 0) and found.empty == (1,)
    assert components[1].fitted == [[1.0]] and components[1].value == 0.25
    # Warm start: the fits of group 0 go on from one another.
    assert components[0].fitted == [[1.0], [1.0, 1.0]] and components[0].value == 2.0


def test_equal_rewards_move_nobody() -> None:
    """Where all groups explain an annotator alike, the assignment stays and the iterations end."""
    found = fit_mixture([1.0] * 4, list("abcd"), lambda: Scripted(1.0), num_groups=2, max_iterations=9)
    assert found.assignment == {"a": 0, "b": 1, "c": 0, "d": 1} and found.num_iterations == 1


def test_one_reward_is_fitted_as_often_as_the_groups() -> None:
    """Each fit goes on from the one before; one that lowers the likelihood is taken back, and the next one is made."""
    single = Scripted(0.0, [1.0, -1.0, 2.0, 3.0])
    fit_single(single, [1.0, 1.0], num_fits=3)
    assert single.fitted == [[1.0, 1.0]] * 3 and single.value == 2.0


def test_margins_are_of_the_own_group() -> None:
    makers = iter([Scripted(1.0), Scripted(-2.0)])
    found = fit_mixture([1.0, -1.0], ["Ann", "Bob"], lambda: next(makers), num_groups=2, max_iterations=1)
    assert found.margins([3.0, 3.0, 1.0], ["Bob", "Ann", "Bob"]).tolist() == [-6.0, 3.0, -2.0]


def test_too_few_annotators_is_an_error() -> None:
    with pytest.raises(UserError, match=r"from 2 to the 2 annotators .* found 3"):
        fit_mixture([1.0, 1.0], ["Ann", "Bob"], lambda: Scripted(1.0), num_groups=3, max_iterations=1)


def test_agreement_is_free_of_names_and_ignores_the_unknown() -> None:
    """Invariant 101: groups are counted by who is in them, by hand."""
    assert agreement({"a": 2, "b": 2, "c": 0, "d": 1}, {"a": "x", "b": "x", "c": "y", "d": "y"}) == 0.75
    assert agreement({"a": 0, "b": 1}, {"a": "x"}) == 1.0


def test_linear_fit_reaches_the_minimum() -> None:
    """At the minimum the gradient sum_n sigmoid(-m_n) d_n - lambda w is zero, and a second fit stays."""
    data = plant(0, num_groups=1)
    model = LinearBradleyTerry(NUM_FEATURES, ridge=2.0)
    model.fit(data.pairs)
    margins = model.margins(data.pairs)
    pull = (1 / (1 + np.exp(margins))) @ np.stack(data.pairs)
    assert np.abs(pull - 2.0 * model.weights_D).max() < 0.05
    before = model.parameters()
    fit_single(model, data.pairs, num_fits=3)
    assert np.abs(model.weights_D - before).max() < 1e-3
    with pytest.raises(UserError, match="ridge"):
        LinearBradleyTerry(2, ridge=0.0)


def test_log_sigmoid_does_not_overflow() -> None:
    assert log_sigmoid(np.array([-1000.0, 0.0, 1000.0])) == pytest.approx([-1000.0, -np.log(2), 0.0])
