"""Oracles made of oracles: mixtures of annotators, noise, ties, verdicts instead of probabilities."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.oracles.base import SettledOracle, answers_of, settle
from alignment.types import Oracle


class MixtureOracle:
    """A crowd: a question goes to annotator k with probability ``w_k``, so ``P = sum_k w_k P_k``.

    A mixture of transitive annotators may be intransitive (Condorcet). With equal weights it is an ensemble.

    Args:
        members: at least one.
        weights: positive; only their ratios count. ``None`` for equal ones.
    """

    def __init__(self, members: Sequence[Oracle], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(members) if weights is None else list(weights)
        if not members or len(weights) != len(members) or not all(0.0 < w < math.inf for w in weights):
            raise UserError(f"oracle: expected a positive weight for each of {len(members)} members, found {weights}")
        self.members = tuple(members)
        self.weights = [weight / sum(weights) for weight in weights]

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        answers = [member.prefer(prompts, left, right).to(torch.float64).cpu() for member in self.members]
        return torch.stack([w * answer_N for w, answer_N in zip(self.weights, answers, strict=True)]).sum(0)


class PanelOracle(MixtureOracle):
    """K oracles that are asked one by one, for a method that reads each of them; asked as one, their plain mean.

    Args:
        members: name -> oracle.
    """

    def __init__(self, members: Mapping[str, Oracle]) -> None:
        super().__init__([settle(member) for member in members.values()])
        self.names = tuple(members)

    @property
    def uncalibrated(self) -> tuple["CalibratedOracle", ...]:
        """Members whose scale is not known yet."""
        return tuple(member for member in self.members if isinstance(member, CalibratedOracle) and member.sd is None)


def num_questions(oracle: Oracle | None) -> int:
    """How many questions a settled oracle has been asked, or the members of a panel all together."""
    members = oracle.members if isinstance(oracle, PanelOracle) else (oracle,)
    return sum(member.num_questions for member in members if isinstance(member, SettledOracle))


class CalibratedOracle(SettledOracle):
    """A reward's preferences in units of its own spread: ``sigmoid((r(left) - r(right)) / sd)``.

    Rewards of several models have no common unit: the one of the largest numbers would decide every minimum. They have
    one in units of the standard deviation of the rewards of two answers of the reference to one prompt (z-scores; a
    constant cancels in the difference). The paper's code takes the minimum of raw scores (2402.08925).

    Args:
        oracle: ``sigmoid(r(left) - r(right))``, as a reward model answers.
    """

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self.sd: float | None = None

    def calibrate(self, prompts: list[str], first: list[str], second: list[str]) -> None:
        """Learn the spread from pairs of independent answers of the reference.

        Raises:
            UserError: if the reward is the same for all of them.
        """
        differences_N = _logits(answers_of(self.oracle, prompts, first, second))
        # Twice the variance is the mean square of a difference.
        sd = float((differences_N.square().mean() / 2.0).sqrt())
        if not sd > 0.0:
            raise UserError(
                "oracle: expected a reward that tells answers of the reference apart, found the same for both answers "
                f"to each of {len(prompts)} prompts; it has no scale (oracle.calibrate: false takes it as it is)"
            )
        self.sd = sd

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        if self.sd is None:
            raise UserError("oracle: expected a reward whose spread is known; call calibrate first")
        return torch.sigmoid(_logits(answers_of(self.oracle, prompts, left, right)) / self.sd)


def _logits(answers_N: Tensor) -> Tensor:
    # Rewards that differ by more than 34 count as 34: nearer to 1 a probability is 1, and its logit infinite.
    return answers_N.clamp(min=1e-15, max=1.0 - 1e-15).logit()


class NoisyOracle:
    """Labels flipped with a probability: ``P' = (1 - 2 flip) P + flip``.

    Args:
        oracle: who answers.
        flip: in [0, 1/2].
    """

    def __init__(self, oracle: Oracle, *, flip: float) -> None:
        if not 0.0 <= flip <= 0.5:
            raise UserError(f"oracle.flip: expected a probability in [0, 0.5], found {flip}")
        self.oracle, self.flip = oracle, flip

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        answers_N = self.oracle.prefer(prompts, left, right).to(torch.float64)
        return (1.0 - 2.0 * self.flip) * answers_N + self.flip


class TiedOracle:
    """Answers near one half become ties: ``|P - 1/2| < width`` is 1/2.

    Args:
        oracle: who answers.
        width: in [0, 1/2].
    """

    def __init__(self, oracle: Oracle, *, width: float) -> None:
        if not 0.0 <= width <= 0.5:
            raise UserError(f"oracle.ties: expected a width in [0, 0.5], found {width}")
        self.oracle, self.width = oracle, width

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        answers_N = self.oracle.prefer(prompts, left, right).to(torch.float64)
        return torch.where((answers_N - 0.5).abs() < self.width, 0.5, answers_N)


class VerdictOracle:
    """One annotator's verdict, 0 or 1, drawn from the probability: what a person or a single judgement gives.

    The draw is a hash of the seed and the question, so the same question has the same verdict in every run, and the
    opposite one in the other order.

    Args:
        oracle: whose probabilities are drawn from.
        seed: another seed, another annotator.
    """

    def __init__(self, oracle: Oracle, *, seed: int = 0) -> None:
        self.oracle, self.seed = oracle, seed

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Verdicts [N]: 1 where ``left`` wins."""
        answers_N = self.oracle.prefer(prompts, left, right).to(torch.float64).cpu()
        verdicts = [
            self._draw(prompt, a, b, probability)
            for prompt, a, b, probability in zip(prompts, left, right, answers_N.tolist(), strict=True)
        ]
        return torch.tensor(verdicts, dtype=torch.float64)

    def _draw(self, prompt: str, left: str, right: str, probability: float) -> float:
        if left == right:
            return 0.5
        first, second = sorted((left, right))
        digest = hashlib.sha256(repr((self.seed, prompt, first, second)).encode()).digest()
        uniform = int.from_bytes(digest[:8], "big") / 2**64
        # The same number decides both orders: first wins if it lies below P(first beats second).
        of_first = probability if left == first else 1.0 - probability
        return float((uniform < of_first) == (left == first))
