"""An oracle whose verdicts are kept: asked once in a lifetime, and never beyond its budget."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.oracles.base import answers_of
from alignment.oracles.ledger import Account, Figures, Question, Verdict
from alignment.types import Oracle

# Questions to a local model between two commits.
_AT_ONCE = 64
# A share of unparsable verdicts is a share of at least so many.
_ENOUGH = 20

Deliver = Callable[[Sequence[tuple[int, Verdict]]], None]
"""Takes verdicts with the places of their questions, from whatever thread."""


class Asker(Protocol):
    """Who is asked what the ledger does not know."""

    def answer(self, questions: Sequence[Question], deliver: Deliver) -> None:
        """Deliver a verdict on every question, as they arrive; reserve what it costs before."""
        ...


class KeptOracle:
    """Answers what the ledger holds, has the rest answered, and stores every verdict as it arrives.

    Args:
        asker: who answers the rest.
        account: where verdicts and costs are kept.
        unparsable: what becomes of a reply without a verdict: a tie, which is counted, or an error.
        max_unparsable: the largest share of such replies; beyond it the run stops.
    """

    def __init__(
        self,
        asker: Asker,
        account: Account,
        *,
        unparsable: Literal["tie", "error"] = "error",
        max_unparsable: float = 0.0,
    ) -> None:
        self.asker, self.account = asker, account
        self.unparsable, self.max_unparsable = unparsable, max_unparsable

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``; equal answers are a tie, and equal questions are one.

        Raises:
            UserError: if a reply, or too large a share of them, has no verdict.
            BudgetError: if what is not known yet would exceed the budget. What was answered is kept.
        """
        questions = [Question(*texts) for texts in zip(prompts, left, right, strict=True)]
        keys = [None if question.left == question.right else self.account.key(question) for question in questions]
        wanted = {key: question for key, question in zip(keys, questions, strict=True) if key is not None}
        found = self.account.find(list(wanted))
        self._count({key: wanted[key] for key in found}, found, hits=len(found))
        missing = [(key, question) for key, question in wanted.items() if key not in found]

        def deliver(verdicts: Sequence[tuple[int, Verdict]]) -> None:
            self.account.store([(*missing[n], verdict) for n, verdict in verdicts])
            arrived = {missing[n][0]: verdict.probability for n, verdict in verdicts}
            found.update(arrived)
            self._count({key: wanted[key] for key in arrived}, arrived, hits=0)

        if missing:
            self.asker.answer([question for _, question in missing], deliver)
        answers = [0.5 if key is None else found[key] for key in keys]
        return torch.tensor([0.5 if answer is None else answer for answer in answers], dtype=torch.float64)

    def _count(self, questions: dict[str, Question], answers: dict[str, float | None], *, hits: int) -> None:
        unread = [questions[key] for key, probability in answers.items() if probability is None]
        empty = sum(not (question.left and question.right) for question in questions.values())
        self.account.add(Figures(questions=len(questions), hits=hits, unparsable=len(unread), empty=empty))
        if not unread:
            return
        if self.unparsable == "error":
            raise UserError(
                f"oracle.unparsable: expected a verdict from {self.account.name}, found a reply without one on "
                f"{unread[0]!r}; the ledger holds the reply. Ask in a clearer template, or count such replies as ties "
                "(unparsable: tie)"
            )
        spent = self.account.spent
        if spent.unparsable > self.max_unparsable * max(spent.questions, _ENOUGH):
            raise UserError(
                f"oracle.max_unparsable: expected a share of at most {self.max_unparsable:g} of replies without a "
                f"verdict from {self.account.name}, found {spent.unparsable} of {spent.questions}; the ledger holds "
                "them. Ask in a clearer template, allow longer replies (max_tokens), or allow a larger share"
            )


class LocalAsker:
    """An oracle that answers here, in batches; a question is a call.

    Args:
        oracle: who answers.
        account: where its calls are counted.
    """

    def __init__(self, oracle: Oracle, account: Account) -> None:
        self.oracle, self.account = oracle, account

    def answer(self, questions: Sequence[Question], deliver: Deliver) -> None:
        """Deliver verdicts batch by batch."""
        # Texts of similar length waste little on padding.
        order = sorted(range(len(questions)), key=lambda n: len(questions[n].left) + len(questions[n].right))
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            calls = Figures(calls=len(places))
            self.account.reserve(calls)
            try:
                texts = [(questions[n].prompt, questions[n].left, questions[n].right) for n in places]
                # Checked first: what is no probability is not kept.
                answers_N = answers_of(self.oracle, *zip(*texts, strict=True))
            finally:
                self.account.settle(calls, calls)
            deliver([(n, Verdict(float(p))) for n, p in zip(places, answers_N.tolist(), strict=True)])
