"""Do K groups explain annotators better than one, on comparisons that neither has seen?

The likelihood of the fitted pairs cannot tell: it rises with every group that is added, whoever the annotators are. So
the rewards are fitted to one part of the pairs and judged on the other. For annotator h with held-out pairs D_h let

    g_h = 1/|D_h| sum_{D_h} [log sigmoid(margin under the group of h) - log sigmoid(margin under the one reward)],

in nats a pair. If there is nothing to separate, a group's reward is the one reward fitted to fewer pairs: it estimates
the same thing with more noise, and the mean of g_h over annotators is at or below zero. The test asks whether the mean
is above zero, by flipping the signs of the g_h at random: the p-value is the share of sign patterns whose mean is at
least the one seen (all 2^H patterns for few annotators, else ten thousand drawn ones).

What it assumes:
- Annotators are drawn independently; they, not pairs, are the units. Given the fitted rewards, the g_h are then
  independent. Where several annotators judge the same pairs, split by prompt, so that no held-out pair was fitted under
  another name; dependence that the shared held-out prompts leave is not accounted for.
- Under "nothing to separate" the g_h are symmetric about a centre at or below zero. Exact then, and otherwise good for
  large H, as any test of a mean.
- The two sides had equal training: as many passes over each pair (:func:`alignment.rewards.fit_single`).

With H annotators no p-value is below 2^-H, so fewer than five annotators can never reach 0.05: three annotators who
disagree are three opinions, not evidence of groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import permutation_test

from alignment.rewards.em import Component, Mixture, log_sigmoid

Pair = TypeVar("Pair")

LEVEL = 0.05
_NUM_PATTERNS = 10_000
# At most one pattern in 2^H is as extreme as the one seen.
_FEWEST = next(count for count in range(1, 64) if 2.0**-count <= LEVEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """What held-out pairs say about the groups.

    Attributes:
        gains: annotator -> g_h, nats a held-out pair.
        p_value: of the mean gain under "nothing to separate".
        accuracy: share of held-out pairs that the annotator's own group orders right; equal rewards count half.
        single_accuracy: the same of the one reward.
    """

    gains: Mapping[str, float]
    p_value: float
    accuracy: float
    single_accuracy: float

    @property
    def mean_gain(self) -> float:
        """Mean over annotators, nats a pair."""
        return float(np.mean(list(self.gains.values()))) if self.gains else 0.0

    @property
    def is_separable(self) -> bool:
        """Whether the groups predict better than one reward, at the level 0.05."""
        return self.p_value <= LEVEL

    def summary(self) -> str:
        """One line with the verdict and what it rests on."""
        verdict = "the groups differ" if self.is_separable else "nothing to separate"
        counted = f"{len(self.gains)} annotators with held-out pairs"
        few = f"; fewer than {_FEWEST} can never show groups" if len(self.gains) < _FEWEST else ""
        return (
            f"{verdict}: held-out gain over one reward {self.mean_gain:+.4f} nats a pair, p = {self.p_value:.4f} "
            f"({counted}{few}); accuracy {self.accuracy:.4f}, of one reward {self.single_accuracy:.4f}"
        )


def compare_held_out(
    mixture: Mixture[Pair], single: Component[Pair], pairs: Sequence[Pair], annotators: Sequence[str], *, seed: int = 0
) -> Separation:
    """Compare groups with one reward on held-out pairs.

    Args:
        mixture: groups, found without these pairs.
        single: one reward, fitted to the same pairs as the groups.
        pairs: held out.
        annotators: who compared each; those whom the mixture has not met are left out.
        seed: of the sign patterns.

    Returns:
        The verdict; with no known annotator the p-value is 1.
    """
    known = [(pair, name) for pair, name in zip(pairs, annotators, strict=True) if name in mixture.assignment]
    if not known:
        return Separation(gains={}, p_value=1.0, accuracy=float("nan"), single_accuracy=float("nan"))
    kept, names = [pair for pair, _ in known], [name for _, name in known]
    own_N, single_N = mixture.margins(kept, names), single.margins(kept)
    gain_N = log_sigmoid(own_N) - log_sigmoid(single_N)
    owner_N = np.array(names)
    gains = {name: float(gain_N[owner_N == name].mean()) for name in dict.fromkeys(names)}
    return Separation(
        gains=gains,
        # With everybody in one group both sides fit the same pairs, and what differs is rounding.
        p_value=_sign_flip(np.array(list(gains.values())), seed) if np.count_nonzero(mixture.sizes) > 1 else 1.0,
        accuracy=accuracy(own_N),
        single_accuracy=accuracy(single_N),
    )


def accuracy(margins_N: np.ndarray) -> float:
    """Share of pairs whose winner has the higher reward; equal rewards count half, in [0, 1]."""
    return float((0.5 + 0.5 * np.sign(margins_N)).mean())


def _sign_flip(gains_H: np.ndarray, seed: int) -> float:
    if len(gains_H) < 2 or not gains_H.any():
        # One annotator has two sign patterns, equal models have one value: neither can show anything.
        return 1.0
    test = permutation_test(
        (gains_H,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=_NUM_PATTERNS,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
