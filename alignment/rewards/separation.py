"""Do K groups explain annotators better than one, on comparisons that neither has seen?

The likelihood of the fitted pairs cannot tell: it rises with every group that is added, whoever the annotators are. So
the rewards are fitted to one part of the pairs and judged on the other. Let a held-out pair have the gain

    g = log sigmoid(s m_u) - log sigmoid(t m),      in nats,

m_u the margin under its annotator's group, m under the one reward. The scales s and t are each side's best on the
held-out pairs: one number a side, so that neither wins by being bolder or shyer, which says nothing about groups.

If there is nothing to separate, a group's reward is the one reward fitted to fewer pairs: it estimates the same order
with more noise, and the mean gain is at or below zero. The test flips signs: the p-value is the share of sign patterns
whose mean is at least the one seen (all 2^U patterns of few units, else ten thousand drawn ones). Gains are not
independent: an annotator has a mind of their own, and a prompt that several annotators judged is one accident. So the
test is made twice, on means by annotator and on means by prompt, and the larger p-value is the verdict's, as
Clark (J. Verbal Learning and Verbal Behavior 12, 1973) asks of people and words.

What it assumes: annotators and prompts are drawn independently; under "nothing to separate" the means are symmetric
about a centre at or below zero (exact then, and otherwise good for many units); no held-out prompt was fitted; both
sides passed as often over each pair (:func:`alignment.rewards.fit_single`). Of 40 simulated worlds of one group, with
and without shared prompts, at most 5 % were rejected at the level 0.05; by annotators alone up to 10 %, and without the
scales up to 35 %.

With H annotators no p-value is below 2^-H, so fewer than five can never reach 0.05: three annotators who disagree are
three opinions, not evidence of groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import permutation_test

from alignment.rewards.em import Component, Mixture, log_sigmoid

Pair = TypeVar("Pair")
Array = np.ndarray[Any, np.dtype[Any]]

LEVEL = 0.05
_NUM_PATTERNS = 10_000
# Below this count not even the most extreme of the 2^U sign patterns is rare enough.
_FEWEST = next(count for count in range(1, 64) if 2.0**-count <= LEVEL)
# Of the logarithm of a scale: a thousandth to a thousand times the fitted margins.
_LOG_SCALES = (-7.0, 7.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """What held-out pairs say about the groups.

    Attributes:
        gains: annotator -> mean gain, nats a held-out pair.
        annotator_p_value: of the mean gain under "nothing to separate", annotators as units.
        prompt_p_value: the same, prompts as units.
        accuracy: share of held-out pairs that the annotator's own group orders right; equal rewards count half.
        single_accuracy: the same of the one reward.
    """

    gains: Mapping[str, float]
    annotator_p_value: float
    prompt_p_value: float
    accuracy: float
    single_accuracy: float

    @property
    def mean_gain(self) -> float:
        """Mean over annotators, nats a pair."""
        return float(np.mean(list(self.gains.values()))) if self.gains else 0.0

    @property
    def p_value(self) -> float:
        """The larger one."""
        return max(self.annotator_p_value, self.prompt_p_value)

    @property
    def is_separable(self) -> bool:
        """Whether the groups predict better than one reward, at the level 0.05."""
        return self.p_value <= LEVEL

    def summary(self) -> str:
        """One line with the verdict and what it rests on."""
        verdict = "the groups differ" if self.is_separable else "nothing to separate"
        few = f" (fewer than {_FEWEST} can never show groups)" if len(self.gains) < _FEWEST else ""
        return (
            f"{verdict}: held-out gain over one reward {self.mean_gain:+.4f} nats a pair, p = "
            f"{self.annotator_p_value:.4f} by {len(self.gains)} annotators{few}, {self.prompt_p_value:.4f} by prompts; "
            f"accuracy {self.accuracy:.4f}, of one reward {self.single_accuracy:.4f}"
        )


def compare_held_out(
    mixture: Mixture[Pair],
    single: Component[Pair],
    pairs: Sequence[Pair],
    annotators: Sequence[str],
    prompts: Sequence[str],
    *,
    seed: int = 0,
) -> Separation:
    """Compare groups with one reward on held-out pairs.

    Args:
        mixture: groups, found without these pairs.
        single: one reward, fitted to the same pairs as the groups.
        pairs: held out.
        annotators: who compared each; pairs of those whom the mixture has not met are left out.
        prompts: what names the prompt of each.
        seed: of the sign patterns.

    Returns:
        The verdict; with no known annotator the p-values are 1.
    """
    known = [n for n, name in enumerate(annotators) if name in mixture.assignment]
    if not known:
        nan = float("nan")
        return Separation(gains={}, annotator_p_value=1.0, prompt_p_value=1.0, accuracy=nan, single_accuracy=nan)
    kept, names = [pairs[n] for n in known], [annotators[n] for n in known]
    own_N, single_N = mixture.margins(kept, names), single.margins(kept)
    gain_N = log_sigmoid(_scaled(own_N)) - log_sigmoid(_scaled(single_N))
    gains = _means(gain_N, names)
    by_prompt = _means(gain_N, [prompts[n] for n in known])
    # With everybody in one group both sides fit the same pairs, and what differs is rounding.
    is_one = np.count_nonzero(mixture.sizes) == 1
    return Separation(
        gains=gains,
        annotator_p_value=1.0 if is_one else _sign_flip(list(gains.values()), seed),
        prompt_p_value=1.0 if is_one else _sign_flip(list(by_prompt.values()), seed),
        accuracy=accuracy(own_N),
        single_accuracy=accuracy(single_N),
    )


def accuracy(margins_N: Array) -> float:
    """Share of pairs whose winner has the higher reward; equal rewards count half, in [0, 1].

    Example:
        >>> accuracy(np.array([2.0, 0.0, -1.0, 1.0]))
        0.625
    """
    return float((0.5 + 0.5 * np.sign(margins_N)).mean())


def _scaled(margins_N: Array) -> Array:
    found = minimize_scalar(
        lambda log_scale: -log_sigmoid(np.exp(log_scale) * margins_N).sum(), bounds=_LOG_SCALES, method="bounded"
    )
    return np.exp(found.x) * margins_N


def _means(gain_N: Array, units: Sequence[str]) -> dict[str, float]:
    place = {unit: u for u, unit in enumerate(dict.fromkeys(units))}
    index_N = np.array([place[unit] for unit in units])
    means_U = np.bincount(index_N, weights=gain_N) / np.bincount(index_N)
    return dict(zip(place, means_U.tolist(), strict=True))


def _sign_flip(gains: Sequence[float], seed: int) -> float:
    if len(gains) < 2 or not np.any(gains):
        # scipy wants two units; equal rewards have one pattern.
        return 1.0
    test = permutation_test(
        (np.array(gains),),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=_NUM_PATTERNS,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
