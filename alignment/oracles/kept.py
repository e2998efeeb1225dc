"""An oracle whose verdicts are kept: asked once in a lifetime, and never beyond its budget."""

from collections.abc import Callable, Mapping, Sequence
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
        differing = [question for question in questions if question.left != question.right]
        answers = iter([verdict.probability for verdict in self.verdicts(differing)])
        probabilities = [next(answers) if question.left != question.right else 0.5 for question in questions]
        return torch.tensor([0.5 if p is None else p for p in probabilities], dtype=torch.float64)

    def verdicts(self, questions: Sequence[Question]) -> list[Verdict]:
        """What the ledger holds on each question, or else what is answered now; equal questions are one.

        Raises:
            UserError: as :meth:`prefer`.
            BudgetError: likewise.
        """
        keys = [self.account.key(question) for question in questions]
        wanted = dict(zip(keys, questions, strict=True))
        found = self.account.find(list(wanted))
        self._count(wanted, found, hits=len(found))
        missing = [(key, question) for key, question in wanted.items() if key not in found]

        def deliver(verdicts: Sequence[tuple[int, Verdict]]) -> None:
            self.account.store([(*missing[n], verdict) for n, verdict in verdicts])
            arrived = {missing[n][0]: verdict for n, verdict in verdicts}
            found.update(arrived)
            self._count(wanted, arrived, hits=0)

        if missing:
            self.asker.answer([question for _, question in missing], deliver)
        return [found[key] for key in keys]

    def _count(self, questions: Mapping[str, Question], answers: Mapping[str, Verdict], *, hits: int) -> None:
        asked = [questions[key] for key in answers]
        unread = [questions[key] for key, verdict in answers.items() if verdict.probability is None]
        empty = sum("" in question.answers for question in asked)
        self.account.add(Figures(questions=len(asked), hits=hits, unparsable=len(unread), empty=empty))
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
        order = sorted(range(len(questions)), key=lambda n: sum(map(len, questions[n].answers)))
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            calls = Figures(calls=len(places))
            self.account.reserve(calls)
            try:
                texts = [(questions[n].prompt, *questions[n].answers) for n in places]
                # Checked first: what is no probability is not kept.
                answers_N = answers_of(self.oracle, *zip(*texts, strict=True))
            finally:
                self.account.settle(calls, calls)
            deliver([(n, Verdict(float(p))) for n, p in zip(places, answers_N.tolist(), strict=True)])
