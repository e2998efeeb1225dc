"""The same question where items do not come up under a second prompt: circles among the answers to each one.

Shape letters: ``X`` prompts, ``K`` items or ``G`` responses of a prompt. NumPy float64.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import UserError
from alignment.evaluation.cycles import Kind
from alignment.evaluation.intervals import Array, Estimate, mean_interval

# Three annotators who toss coins go in a circle so often, and so does no more often any triple that satisfies moderate
# stochastic transitivity.
CHANCE_OF_A_CIRCLE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDiagnosis:
    """What comparisons among the responses of each prompt say, where no response comes up under a second prompt.

    Attributes:
        num_prompts: prompts with three responses at least that were all compared with one another.
        num_triples: triples of responses there.
        circles: share of cyclic triples, mean over prompts; a tie is half of either way.
        gain: how much an equilibrium can raise the worst-case win rate at most, mean over prompts: an upper bound, and
            0 as the lower one.
    """

    num_prompts: int
    num_triples: int
    circles: Estimate | None
    gain: Estimate | None

    @property
    def kind(self) -> Kind:
        """``cyclic`` if more triples than coin tosses make go in a circle."""
        if self.circles is None:
            return "unknown"
        return "cyclic" if self.circles.low > CHANCE_OF_A_CIRCLE else "transitive"

    @property
    def sentence(self) -> str:
        """Can a method that looks for an equilibrium help here, and how much at most."""
        if self.circles is None or self.gain is None:
            return (
                "Nothing can be said about a Nash method: no prompt has three responses that were all compared with "
                "one another, and nothing names the systems that wrote them."
            )
        bound = (
            f"of the triples of a prompt's responses {self.circles.describe(100.0, 1)} % go in a circle (coin tosses: "
            f"25 %), and an equilibrium raises the worst-case win rate by at most {100.0 * self.gain.mean:.1f} points "
            f"of 50 ({100.0 * self.gain.high:.1f} with 95 %)."
        )
        return f"{'A Nash method may help' if self.kind == 'cyclic' else 'No sign that a Nash method helps'}: {bound}"


def diagnose_prompts(tournaments: Sequence[Array]) -> PromptDiagnosis:
    """Circles among the responses of each prompt, from verdicts that are independent given the prompt.

    For a triple with verdicts y in [0, 1], ``y_ij y_jk y_ki + (1 - y_ij)(1 - y_jk)(1 - y_ki)`` is the chance of a
    circle: linear in each verdict, so noise does not bias it. Under moderate stochastic transitivity it is at most 1/4.
    With e the exploitability of a prompt's item of highest mean win rate, the expected number of circles among its
    responses is at least ``e + 2 e^2``, so their mean number c bounds the mean of e by ``(sqrt(1 + 8c) - 1) / 4``.

    Proof of the bound [derived]: let b be that item, i its worst case, and for another item j let ``u = P(b beats j)``
    and ``a = u - P(i beats j)``. A circle of b, i and j has the probability ``(1/2 + e) u (1 - u + a) + (1/2 - e)(1 -
    u)(u - a)``, which is concave in u and at both ends of its range at least ``(1/2 + e) a``. b has the mean win rate
    of i at least, so the a add up to ``2e`` at least.

    Args:
        tournaments: a table [G, G] for each prompt: P(row beats column) as judged, nan where nobody compared.

    Raises:
        UserError: for no prompt at all.
    """
    if not tournaments:
        raise UserError("diagnose: expected comparisons of one prompt at least, found none")
    complete = [wins_GG for wins_GG in tournaments if len(wins_GG) > 2 and not np.isnan(wins_GG).any()]
    if not complete:
        return PromptDiagnosis(num_prompts=0, num_triples=0, circles=None, gain=None)
    sizes = [math.comb(len(wins_GG), 3) for wins_GG in complete]
    counts = [_expected_circles(wins_GG) for wins_GG in complete]
    number = mean_interval(counts, highest=float(max(sizes)))
    return PromptDiagnosis(
        num_prompts=len(complete),
        num_triples=sum(sizes),
        circles=mean_interval([count / size for count, size in zip(counts, sizes, strict=True)]),
        gain=Estimate(
            mean=_largest_gain(number.mean), low=0.0, high=_largest_gain(number.high), num_prompts=len(counts)
        ),
    )


def _expected_circles(wins_GG: Array) -> float:
    first, second, third = np.array(list(itertools.combinations(range(len(wins_GG)), 3))).T
    a, b, c = wins_GG[first, second], wins_GG[second, third], wins_GG[third, first]
    return float((a * b * c + (1.0 - a) * (1.0 - b) * (1.0 - c)).sum())


def _largest_gain(circles: float) -> float:
    return min((math.sqrt(1.0 + 8.0 * circles) - 1.0) / 4.0, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class GamesDiagnosis:
    """What known tables of several prompts say, each a game of its own.

    Attributes:
        num_prompts: tables.
        num_cyclic: of these, with a cyclic triple.
        circles: share of cyclic triples, mean over prompts.
        gain: how much an equilibrium raises the worst-case win rate of the choice with the highest mean win rate at
            most, mean over prompts, with the interval of other prompts like these.
    """

    num_prompts: int
    num_cyclic: int
    circles: Estimate
    gain: Estimate

    @property
    def kind(self) -> Kind:
        """``cyclic`` if any prompt has a circle."""
        return "cyclic" if self.num_cyclic else "transitive"

    @property
    def sentence(self) -> str:
        """Can a method that looks for an equilibrium help here, and how much at most."""
        verdict = "A Nash method can help" if self.gain.mean > 1e-9 else "A Nash method cannot help"
        return (
            f"{verdict}: {self.num_cyclic} of {self.num_prompts} prompts have circles, and an equilibrium raises the "
            f"worst-case win rate of a Bradley-Terry reward's choice by at most {self.gain.describe(100.0, 1)} points "
            "of 50, mean over prompts."
        )


def diagnose_games(prefs_XKK: Array) -> GamesDiagnosis:
    """Circles and gains of known tables, one of each prompt.

    Args:
        prefs_XKK: P(row beats column) of each prompt, three items at least.
    """
    size = prefs_XKK.shape[-1]
    ahead_XKK = (prefs_XKK > 0.5 + 1e-9).astype(np.float64)
    circles_X = np.einsum("xij,xji->x", ahead_XKK @ ahead_XKK, ahead_XKK) / 3.0
    best_X = prefs_XKK.sum(-1).argmax(-1)
    gains_X = prefs_XKK[np.arange(len(prefs_XKK)), :, best_X].max(-1) - 0.5
    return GamesDiagnosis(
        num_prompts=len(prefs_XKK),
        num_cyclic=int((circles_X > 0.5).sum()),
        circles=mean_interval(circles_X / math.comb(size, 3)),
        gain=mean_interval(gains_X, highest=0.5),
    )
