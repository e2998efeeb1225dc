"""A lower bound on how far a policy can be exploited, from samples: what an adversary reaches is reached.

The exploitability of a policy, ``max_mu P(mu > policy) - 1/2`` in the unregularised game, is at least what any one
adversary wins. Two adversaries are common: the best of n answers, chosen prompt by prompt, and a policy that was
trained against the frozen one and answers held-out prompts. Either may win by luck of the choice, so what chooses must
not be what is counted: the policy's answers are divided, candidates are chosen by their wins against one half and
counted against the other, both ways round. The expected count is then at most the candidate's true win rate, which is
at most the best response's.

What it does not say: that nobody could do better, or how far the policy is from the equilibrium of the game with a KL
penalty.

Shape letters: ``P`` prompts, ``N`` candidates of a prompt, ``M`` answers of the policy to a prompt. NumPy float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alignment.errors import UserError
from alignment.evaluation.intervals import LEVEL, Array, Estimate, ends
from alignment.evaluation.matches import points
from alignment.oracles import ask
from alignment.types import Oracle


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What an adversary has shown.

    Attributes:
        exploitability: of the policy at the hands of this adversary, in win rate above 1/2, with its two-sided 95 %
            interval over prompts.
        bound: the policy's exploitability is at least this, wrong with 5 % at most; never below 0.
        num_candidates: answers of the adversary to a prompt, of which one is chosen.
        num_answers: answers of the policy to a prompt.
        num_judgements: pairs that were judged.
    """

    exploitability: Estimate
    bound: float
    num_candidates: int
    num_answers: int
    num_judgements: int

    @property
    def sentence(self) -> str:
        """The bound, and what it was bought with."""
        adversary = (
            f"the best of {self.num_candidates} answers, chosen by {self.num_answers} of the policy's,"
            if self.num_candidates > 1
            else "an adversary"
        )
        return (
            f"Exploitability at least {100.0 * self.bound:.1f} points of 50 with 95 %: {adversary} wins by "
            f"{self.exploitability.describe(100.0, 1)} points on {self.exploitability.num_prompts:,} prompts, "
            f"{self.num_judgements:,} judgements."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploited:
    """What an adversary has shown of a policy.

    Attributes:
        policy: whose exploitability it is.
        adversary: who attacked it.
        best_of: answers of the adversary to a prompt, of which one was chosen; ``None`` where none was.
        num_answers: answers of the policy to a prompt.
        training_verdicts: that the adversary's run was given; ``None`` for the policy itself, or if nothing says it.
        certificate: the bound.
    """

    policy: str
    adversary: str
    best_of: int | None
    num_answers: int
    training_verdicts: int | None
    certificate: Certificate

    @property
    def sentence(self) -> str:
        """The bound, and what it was bought with."""
        said = f"{self.policy}, attacked by {self.adversary}: {self.certificate.sentence}"
        if self.training_verdicts is None:
            return said
        return f"{said} {self.adversary} was trained with {self.training_verdicts:,} verdicts."

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, in points of 50."""
        return {
            "policy": self.policy,
            "adversary": self.adversary,
            "bound": 100.0 * self.certificate.bound,
            **points(self.certificate.exploitability, "exploitability"),
            "best_of": self.best_of,
            "num_answers": self.num_answers,
            "num_prompts": self.certificate.exploitability.num_prompts,
            "num_judgements": self.certificate.num_judgements,
            "training_verdicts": self.training_verdicts,
        }


def certify(wins_PNM: ArrayLike) -> Certificate:
    """A lower bound on the exploitability of a policy.

    Args:
        wins_PNM: how candidate n fared against answer m of the policy: 1, 1/2, 0, or a probability. The answers of the
            policy are independent draws; candidates come from anywhere, as long as they were not chosen by these
            judgements. With one candidate nothing is chosen, and all judgements count.

    Raises:
        UserError: for values outside [0, 1], and for several candidates with fewer than two answers of the policy.

    Example:
        >>> found = certify(np.ones((20, 1, 3)))
        >>> found.exploitability.mean, 0.3 < found.bound < 0.5
        (0.5, True)
    """
    wins_PNM = np.asarray(wins_PNM, dtype=np.float64)
    if wins_PNM.ndim != 3 or wins_PNM.size == 0 or not ((wins_PNM >= 0.0) & (wins_PNM <= 1.0)).all():
        raise UserError(
            f"certificate: expected wins in [0, 1] of shape [prompts, candidates, answers], got {list(wins_PNM.shape)}"
        )
    num_prompts, num_candidates, num_answers = wins_PNM.shape
    if num_candidates > 1 and num_answers < 2:
        raise UserError(
            "certificate: expected two answers of the policy to a prompt at least, one to choose by and one to count, "
            f"got {num_answers}"
        )
    wins_P = wins_PNM.mean((1, 2)) if num_candidates == 1 else _cross_fitted(wins_PNM)
    mean, variance = np.array([wins_P.mean()]), np.array([wins_P.var() / num_prompts])
    low, high = ends(mean, variance, [num_prompts], LEVEL)
    # One-sided.
    bound, _ = ends(mean, variance, [num_prompts], 2.0 * LEVEL)
    return Certificate(
        exploitability=Estimate(
            mean=float(mean[0]) - 0.5, low=float(low[0]) - 0.5, high=float(high[0]) - 0.5, num_prompts=num_prompts
        ),
        bound=max(float(bound[0]) - 0.5, 0.0),
        num_candidates=num_candidates,
        num_answers=num_answers,
        num_judgements=wins_PNM.size,
    )


def _cross_fitted(wins_PNM: Array) -> Array:
    """Wins of the candidate that one half of the answers chooses, against the other half, mean of both ways, [P]."""
    half = wins_PNM.shape[2] // 2
    halves = wins_PNM[:, :, :half].mean(2), wins_PNM[:, :, half:].mean(2)
    rows = np.arange(len(wins_PNM))
    ways = [counts_PN[rows, chooses_PN.argmax(1)] for chooses_PN, counts_PN in (halves, halves[::-1])]
    return np.asarray((ways[0] + ways[1]) / 2.0)


def adversary_wins(
    oracle: Oracle, prompts: Sequence[str], candidates: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> Array:
    """Every candidate against every answer of the policy, [P, N, M], as the oracle judges them.

    Args:
        oracle: who judges.
        prompts: P texts.
        candidates: N of each prompt.
        answers: M of the policy to each prompt.

    Raises:
        UserError: where prompts have different numbers of candidates or answers.
    """
    sizes = {(len(group), len(rivals)) for group, rivals in zip(candidates, answers, strict=True)}
    if len(sizes) != 1 or len(prompts) != len(candidates):
        raise UserError(
            f"certificate: expected as many candidates and as many answers for each of {len(prompts)} prompts, got "
            f"{sorted(sizes)}"
        )
    asked = [
        (prompt, candidate, answer)
        for prompt, group, rivals in zip(prompts, candidates, answers, strict=True)
        for candidate in group
        for answer in rivals
    ]
    texts = [list(column) for column in zip(*asked, strict=True)]
    return np.asarray(ask(oracle, *texts).numpy().reshape(len(prompts), *sizes.pop()))
