"""Asking an oracle: in which order, and with its answer checked.

Shape letters: ``N`` questions, ``B`` prompts, ``G`` completions of a prompt.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.rules import RuleOracle
from alignment.types import Oracle

# Rules and matrices are exact; what they miss by rounding in float32 is below this.
_TOLERANCE = 1e-6


def ask(oracle: Oracle, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Tensor:
    """Probabilities [N] that ``left`` beats ``right``, both presentation orders averaged, float64.

    Averaging makes the answer antisymmetric for any oracle: ``ask(l, r) + ask(r, l) = 1``. An oracle built from a
    recipe has its order settled already and is asked once.

    Raises:
        UserError: if the oracle answers something that is not a probability, or a rule or a matrix gives two orders
            that do not add up to one; the question is quoted.
    """
    settled = settle(oracle)
    settled.num_questions += len(prompts)
    return answers_of(settled, prompts, left, right)


def settle(oracle: Oracle) -> "SettledOracle":
    """The oracle with both presentation orders averaged; one that is settled stays as it is.

    Raises:
        UserError: for what is no oracle.
    """
    if isinstance(oracle, SettledOracle):
        return oracle
    if not isinstance(oracle, Oracle):
        raise UserError(
            f"oracle: expected an object with prefer(prompts, left, right), got {type(oracle).__name__}; "
            "RuleOracle(function) makes one of a function that is asked about one question"
        )
    return SettledOracle(BothOrders(oracle, is_exact=isinstance(oracle, RuleOracle | MatrixOracle)))


def preference_matrix(oracle: Oracle, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Tensor:
    """``P(y_i > y_j | x)`` among the responses of each prompt, [B, G, G]; diagonal 1/2. Each pair is asked once."""
    num_completions = len(responses[0])
    first, second = torch.triu_indices(num_completions, num_completions, offset=1).tolist()
    prefs_BGG = torch.full((len(prompts), num_completions, num_completions), 0.5, dtype=torch.float64)
    if not first:
        return prefs_BGG
    answers_BN = ask(
        oracle,
        [prompt for prompt in prompts for _ in first],
        [group[i] for group in responses for i in first],
        [group[j] for group in responses for j in second],
    ).reshape(len(prompts), len(first))
    prefs_BGG[:, first, second] = answers_BN
    prefs_BGG[:, second, first] = 1.0 - answers_BN
    return prefs_BGG


class SettledOracle:
    """An oracle whose two orders add up to one by construction: asking one of them says everything.

    Args:
        oracle: made of :class:`BothOrders` or :class:`OneOrder`, and of what keeps the sum.

    Attributes:
        num_questions: how many :func:`ask` has put to it.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.num_questions = 0

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        return self.oracle.prefer(prompts, left, right)


class BothOrders:
    """Both presentation orders, asked together and averaged: a taste for a position cancels.

    Args:
        oracle: who answers.
        is_exact: it promises ``P(l, r) + P(r, l) = 1``, so that anything else is a mistake in it.
        on_inconsistency: is told ``|P(l, r) + P(r, l) - 1|`` of every question.
    """

    def __init__(
        self, oracle: Oracle, *, is_exact: bool = False, on_inconsistency: Callable[[list[float]], None] | None = None
    ) -> None:
        self.oracle, self.is_exact, self.on_inconsistency = oracle, is_exact, on_inconsistency

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``.

        Raises:
            UserError: for an answer that is no probability, and where an exact oracle breaks its promise.
        """
        answers = answers_of(self.oracle, [*prompts, *prompts], [*left, *right], [*right, *left])
        forward_N, backward_N = answers[: len(prompts)], answers[len(prompts) :]
        excess_N = (forward_N + backward_N - 1.0).abs()
        if self.is_exact and (excess_N > _TOLERANCE).any():
            n = int(excess_N.argmax())
            raise UserError(
                f"oracle: expected probabilities of both orders that add up to 1, got {forward_N[n].item():g} + "
                f"{backward_N[n].item():g} for {_quote(prompts[n], left[n], right[n])}; correct the oracle, or "
                "with symmetrize: false it is asked in one order only"
            )
        if self.on_inconsistency is not None:
            self.on_inconsistency(excess_N.tolist())
        return 0.5 * (forward_N + 1.0 - backward_N)


class OneOrder:
    """One presentation order for each question, at half the price of both.

    The order is a hash of the question: the same in every run, and the same question the other way round is answered
    from the same order, so ``P(l, r) + P(r, l) = 1``. A taste for a position is noise, not a bias, over questions.

    Args:
        oracle: who answers.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        turned = [_is_turned(*question) for question in zip(prompts, left, right, strict=True)]
        pairs = [(b, a) if turn else (a, b) for a, b, turn in zip(left, right, turned, strict=True)]
        answers_N = answers_of(self.oracle, prompts, [a for a, _ in pairs], [b for _, b in pairs])
        answers_N = torch.where(torch.tensor(turned), 1.0 - answers_N, answers_N)
        is_same_N = torch.tensor([a == b for a, b in pairs])
        return torch.where(is_same_N, 0.5, answers_N)


def answers_of(oracle: Oracle, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Tensor:
    """What the oracle says, [N], float64 on the CPU, in the order given.

    Raises:
        UserError: if something of it is not a probability; the question is quoted.
    """
    answers = oracle.prefer(list(prompts), list(left), list(right))
    try:
        answers_N = torch.as_tensor(answers, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"oracle: expected {len(prompts)} probabilities, got {type(answers).__name__}") from None
    if list(answers_N.shape) != [len(prompts)]:
        raise UserError(f"oracle: expected {len(prompts)} probabilities, got shape {list(answers_N.shape)}")
    # Written so that nan fails as well.
    wrong_N = ~((answers_N >= 0) & (answers_N <= 1))
    if wrong_N.any():
        n = int(wrong_N.nonzero()[0])
        raise UserError(
            f"oracle: expected a probability in [0, 1], got {answers_N[n].item()} for "
            f"{_quote(prompts[n], left[n], right[n])}"
        )
    return answers_N


def _quote(prompt: str, left: str, right: str) -> str:
    return f"prompt {prompt!r}, left {left!r}, right {right!r}"


def _is_turned(prompt: str, left: str, right: str) -> bool:
    first, second = sorted((left, right))
    shows_second_first = hashlib.sha256(repr((str(prompt), first, second)).encode()).digest()[0] & 1 == 1
    return shows_second_first == (left == first)
