"""Welfare functions: bounds, limits, and how their state moves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.types import Feedback, Welfare
from alignment.welfare import GroupArgmin, MirrorWeights, SampleMin, ces

utilities = st.lists(st.floats(0.05, 3.0), min_size=2, max_size=4)


@given(utilities, st.floats(-20.0, 1.0), st.floats(-20.0, 1.0))
def test_ces_rises_with_rho(values: list[float], first: float, second: float) -> None:
    """Invariant 105: non-decreasing in rho; between the minimum and the mean."""
    u_KN = torch.tensor(values, dtype=torch.float64)[:, None]
    weights_K = torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    low, high = sorted((first, second))
    assert ces(u_KN, weights_K, rho=low).item() <= ces(u_KN, weights_K, rho=high).item() + 1e-9
    assert min(values) - 1e-9 <= ces(u_KN, weights_K, rho=low).item() <= sum(values) / len(values) + 1e-9


@given(utilities)
def test_nash_is_the_limit_and_below_the_mean(values: list[float]) -> None:
    """Invariants 105, 106: rho -> 0 is the weighted product; nash <= utilitarian, equal iff all are."""
    u_KN = torch.tensor(values, dtype=torch.float64)[:, None]
    weights_K = torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    nash = ces(u_KN, weights_K, rho=0.0).item()
    assert ces(u_KN, weights_K, rho=1e-7).item() == pytest.approx(nash, rel=1e-6)
    assert nash <= ces(u_KN, weights_K, rho=1.0).item() + 1e-12
    same = ces(torch.full_like(u_KN, 0.7), weights_K, rho=0.0).item()
    assert same == pytest.approx(0.7, abs=1e-12)


def test_ces_bound_and_published_excess() -> None:
    """Invariant 105: at rho -50, equal weights, one utility lowest: min * K^(1/50): 1.014, 1.022, 1.033."""
    for count, excess in ((2, 1.014), (3, 1.022), (5, 1.033)):
        u_KN = torch.tensor([[1.0], *[[50.0]] * (count - 1)], dtype=torch.float64)
        weights_K = torch.full((count,), 1 / count, dtype=torch.float64)
        value = ces(u_KN, weights_K, rho=-50.0).item()
        assert value == pytest.approx(excess, abs=1e-3) and 1.0 <= value <= count ** (1 / 50) + 1e-12


def test_one_hot_weights_and_zero_utilities() -> None:
    """Invariant 106: one-hot weights are that utility; the gradient at 0 is finite."""
    u_KN = torch.tensor([[0.3], [0.8]], dtype=torch.float64, requires_grad=True)
    one_hot_K = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert ces(u_KN, one_hot_K, rho=0.0).item() == pytest.approx(0.8, abs=1e-12)
    zero_KN = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    (grad_KN,) = torch.autograd.grad(ces(zero_KN, torch.tensor([0.5, 0.5]).double(), rho=0.0).sum(), zero_KN)
    assert grad_KN.isfinite().all()


@given(utilities, st.floats(-60.0, -0.01), st.integers(0, 1000))
def test_ces_lies_between_the_minimum_and_its_bound(values: list[float], rho: float, seed: int) -> None:
    """Invariant 105, any weights, rho < 0: w_min min^rho <= sum w u^rho <= min^rho, then the root."""
    generator = torch.Generator().manual_seed(seed)
    weights_K = torch.rand(len(values), generator=generator, dtype=torch.float64).add(0.05)
    weights_K = weights_K / weights_K.sum()
    value = ces(torch.tensor(values, dtype=torch.float64)[:, None], weights_K, rho=rho).item()
    assert min(values) * (1 - 1e-9) <= value <= min(values) * float(weights_K.min()) ** (1 / rho) * (1 + 1e-9)


@pytest.mark.parametrize("rho", [-3.0, -1.0, 0.5, 1.0, 2.0])
def test_ces_is_what_it_says(rho: float) -> None:
    """(sum w u^rho)^(1/rho), written out; rho 1 is the weighted mean."""
    u_KN = torch.tensor([[0.3, 2.0], [0.8, 0.1]], dtype=torch.float64)
    weights_K = torch.tensor([0.25, 0.75], dtype=torch.float64)
    expected_N = (weights_K @ u_KN**rho) ** (1 / rho)
    torch.testing.assert_close(ces(u_KN, weights_K, rho=rho), expected_N, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rho", [1e-2, 1e-3, 1.001e-3, 0.999e-3, 1e-5, 1e-9, 1e-12, -1e-3, -1e-9])
def test_ces_near_zero_keeps_its_digits(rho: float) -> None:
    """d log CES / d rho at 0 is Var(log u)/2: (log 2)^2/8 for u = (1, 2) and equal weights; log CES(0) = log 2/2.

    The two expressions of the code meet at |rho| = .001. The next term of the series is -(rho^3/192)(log 2)^4 (the
    fourth cumulant, rho^3/24 times -2 (log 2 / 2)^4), below 1e-8 at .01.
    """
    u_KN, weights_K = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    log2 = math.log(2)
    expected = log2 / 2 + rho * log2**2 / 8 - rho**3 * log2**4 / 192
    assert math.log(ces(u_KN, weights_K, rho=rho).item()) == pytest.approx(expected, abs=1e-12)


def test_nash_is_below_the_mean_unless_all_are_equal() -> None:
    """Invariant 106, both directions, and the gap by hand: (1, 4) has nash 2 and mean 2.5."""
    half_K = torch.full((2,), 0.5, dtype=torch.float64)
    apart_KN = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    assert ces(apart_KN, half_K, rho=0.0).item() == pytest.approx(2.0, abs=1e-12)
    assert ces(apart_KN, half_K, rho=1.0).item() == pytest.approx(2.5, abs=1e-12)
    for rho in (-2.0, 0.0, 1.0):
        assert ces(torch.full((2, 1), 1.7, dtype=torch.float64), half_K, rho=rho).item() == pytest.approx(
            1.7, abs=1e-12
        )


@pytest.mark.parametrize("rho", [-2.0, 0.0, 1e-6, 0.5, 1.0])
def test_one_hot_weights_pick_one_utility(rho: float) -> None:
    """Invariant 106: weights (0, 1), whatever rho, value and gradient of the other utility included."""
    u_KN = torch.tensor([[0.3], [0.8]], dtype=torch.float64, requires_grad=True)
    value_N = ces(u_KN, torch.tensor([0.0, 1.0], dtype=torch.float64), rho=rho)
    (grad_KN,) = torch.autograd.grad(value_N.sum(), u_KN)
    assert value_N.item() == pytest.approx(0.8, abs=1e-12)
    assert grad_KN.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-9)


@pytest.mark.parametrize("rho", [-2.0, -0.5, 0.0, 1e-6, 0.5])
def test_a_zero_utility_has_a_finite_gradient(rho: float) -> None:
    """Invariant 106: eps stands in for 0."""
    u_KN = torch.tensor([[0.0], [0.8]], dtype=torch.float64, requires_grad=True)
    (grad_KN,) = torch.autograd.grad(ces(u_KN, torch.full((2,), 0.5, dtype=torch.float64), rho=rho).sum(), u_KN)
    assert grad_KN.isfinite().all()


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_the_minimum_is_concave_and_lipschitz(seed: int, share: float) -> None:
    """Invariant 102: of a mixture at least the mixture of minima; no change is larger than the largest of the inputs.

    And E[min_k u_k] <= min_k E[u_k], for any distribution over responses.
    """
    generator = torch.Generator().manual_seed(seed)
    one_KBG, two_KBG = (torch.rand(3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def lowest(wins_KBG: torch.Tensor) -> torch.Tensor:
        found = SampleMin().combine(Feedback(wins_KBG=wins_KBG), SampleMin().init(3)).wins_KBG
        assert found is not None and found.shape == (1, 2, 4)
        return found[0]

    mixed = share * lowest(one_KBG) + (1 - share) * lowest(two_KBG)
    assert bool((lowest(share * one_KBG + (1 - share) * two_KBG) >= mixed - 1e-12).all())
    change = (lowest(one_KBG) - lowest(two_KBG)).abs()
    assert bool((change <= (one_KBG - two_KBG).abs().amax(0) + 1e-12).all())
    policy_BG = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    policy_BG = policy_BG / policy_BG.sum()
    assert float((policy_BG * lowest(one_KBG)).sum()) <= float((policy_BG * one_KBG).sum((1, 2)).min()) + 1e-12


def feedback() -> Feedback:
    return Feedback(wins_KBG=torch.tensor([[[0.2, 0.9]], [[0.7, 0.4]]], dtype=torch.float64))


def test_sample_min_is_below_group_argmin() -> None:
    """Invariant 102: E[min_k u_k] <= min_k E[u_k]; the minimum is concave and 1-Lipschitz in the largest change."""
    lowest = SampleMin().combine(feedback(), SampleMin().init(2)).wins_KBG
    assert lowest is not None and lowest.tolist() == [[[0.2, 0.4]]]
    wins_KBG = feedback().wins_KBG
    assert wins_KBG is not None
    assert lowest.mean() <= wins_KBG.mean((1, 2)).min()
    moved = (wins_KBG + 0.05).amin(0)
    assert float((moved - wins_KBG.amin(0)).abs().max()) <= 0.05 + 1e-12


def test_group_argmin_follows_the_running_mean() -> None:
    """The first batch sets the mean; later ones move it by 1 - ema; the worst oracle alone speaks."""
    welfare = GroupArgmin(ema=0.75)
    state = welfare.update(welfare.init(2), torch.tensor([0.6, 0.4]))
    combined = welfare.combine(feedback(), state).wins_KBG
    assert combined is not None and combined.tolist() == [[[0.7, 0.4]]]
    state = welfare.update(state, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(state, torch.tensor([0.45, 0.5], dtype=torch.float64), rtol=0, atol=1e-7)
    combined = welfare.combine(feedback(), state).wins_KBG
    assert combined is not None and combined.tolist() == [[[0.2, 0.9]]]


def test_mirror_weights_move_to_the_worst() -> None:
    """w_k ~ exp(-step u_k): ratio e^{step (u_0 - u_1)}; they stay in the simplex."""
    welfare = MirrorWeights(step=2.0)
    assert welfare.init(4).tolist() == [0.25] * 4
    state = welfare.update(welfare.init(2), torch.tensor([0.6, 0.4], dtype=torch.float64))
    assert state.sum().item() == pytest.approx(1.0)
    assert (state[1] / state[0]).log().item() == pytest.approx(0.4)
    combined = welfare.combine(feedback(), state).wins_KBG
    assert combined is not None
    torch.testing.assert_close(combined[0, 0, 0], state[0] * 0.2 + state[1] * 0.7)


def test_weighted_feedback_stays_a_preference() -> None:
    """A mean of oracles has P + P^T = 1 and diagonal 1/2 as each has; SampleMin drops preferences, which would not."""
    prefs_KBGG = torch.stack([torch.tensor([[[0.5, p], [1 - p, 0.5]]], dtype=torch.float64) for p in (0.9, 0.2)])
    combined = MirrorWeights(step=1.0).combine(
        Feedback(prefs_KBGG=prefs_KBGG), torch.tensor([0.25, 0.75], dtype=torch.float64)
    )
    assert combined.prefs_KBGG is not None and combined.wins_KBG is None
    assert combined.prefs_KBGG[0, 0, 0].tolist() == pytest.approx([0.5, 0.25 * 0.9 + 0.75 * 0.2])
    torch.testing.assert_close(
        combined.prefs_KBGG + combined.prefs_KBGG.mT, torch.ones(1, 1, 2, 2, dtype=torch.float64)
    )
    assert SampleMin().combine(Feedback(prefs_KBGG=prefs_KBGG), SampleMin().init(2)).kinds() == ()


@pytest.mark.parametrize("welfare", [GroupArgmin(ema=0.9), SampleMin(), MirrorWeights(step=0.3)])
def test_one_oracle_is_itself(welfare: Welfare) -> None:
    """Invariant 100: with K = 1 every welfare function is the identity, whatever its state went through."""
    wins_KBG = torch.tensor([[[0.2, 0.9], [0.4, 0.1]]], dtype=torch.float64)
    state = welfare.init(1)
    for mean in (0.3, 0.8):
        state = welfare.update(state, torch.tensor([mean], dtype=torch.float64))
    combined = welfare.combine(Feedback(wins_KBG=wins_KBG, scores_KBG=wins_KBG), state)
    assert combined.wins_KBG is not None and combined.scores_KBG is not None
    assert torch.equal(combined.wins_KBG, wins_KBG) and torch.equal(combined.scores_KBG, wins_KBG)
    assert isinstance(welfare, Welfare)
