"""Oracles made of oracles: mixtures of annotators, noise, ties, verdicts instead of probabilities."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignment.errors import UserError
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
        super().__init__(list(members.values()))
        self.names = tuple(members)


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
