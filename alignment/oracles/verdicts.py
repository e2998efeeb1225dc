"""How a judge's reply becomes the probability that the left answer, which it saw first, wins."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from alignment.errors import UserError


class Reader(Protocol):
    """Reads replies of one form.

    Attributes:
        request: what the request must ask for besides the text.
    """

    request: Mapping[str, Any]

    def read(self, choice: Any) -> float | None:
        """P(left wins), or ``None`` if the reply says nothing that can be read.

        Args:
            choice: of a chat completion.
        """
        ...


class LabelReader:
    """The first label that the reply says.

    Args:
        labels: for left, for right, and optionally for a tie.
        pattern: a regular expression whose first group (or whole match) is a label; ``None`` finds the labels where
            they stand alone, not inside a word.

    Example:
        >>> from types import SimpleNamespace as Reply
        >>> LabelReader(["A", "B"]).read(Reply(message=Reply(content="**B**. The other is a ramble.")))
        0.0
    """

    def __init__(self, labels: Sequence[str], pattern: str | None = None) -> None:
        either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
        self.pattern = re.compile(rf"(?<!\w)({either})(?!\w)" if pattern is None else pattern)
        self.values = dict(zip(labels, (1.0, 0.0, 0.5), strict=False))
        self.request: Mapping[str, Any] = MappingProxyType({})

    def read(self, choice: Any) -> float | None:
        """1, 0 or 1/2."""
        match = self.pattern.search(choice.message.content or "")
        return None if match is None else self.values.get(match[1] if self.pattern.groups else match[0])


class LogprobReader:
    """The share of the left label's probability in that of both, at the first token of the reply.

    The weighted verdict of AlpacaEval 2: of a label that is not among the top tokens the probability is 0, and without
    either there is no verdict. A label counts with and without space around it.

    Args:
        labels: for left and for right.
        top: how many tokens the server is asked for.
    """

    def __init__(self, labels: Sequence[str], *, top: int) -> None:
        self.labels = tuple(labels)
        self.request: Mapping[str, Any] = MappingProxyType({"logprobs": True, "top_logprobs": top})

    def read(self, choice: Any) -> float | None:
        """In [0, 1].

        Raises:
            UserError: if the server gave no log-probabilities.
        """
        if choice.logprobs is None or not choice.logprobs.content:
            raise UserError(
                "oracle.verdict: expected log-probabilities of the reply's first token, found none: this server does "
                "not give them; use verdict: label"
            )
        tokens = choice.logprobs.content[0].top_logprobs
        left, right = (
            math.fsum(math.exp(item.logprob) for item in tokens if item.token.strip() == label) for label in self.labels
        )
        return left / (left + right) if left + right > 0.0 else None


ARENA_HARD: Mapping[str, float] = MappingProxyType(
    {"A>>B": 1.0, "A>B": 2.0 / 3.0, "A=B": 0.5, "B>A": 1.0 / 3.0, "B>>A": 0.0}
)
"""Label -> P(left wins). Arena-Hard counts a strong verdict as three slight ones: so far are they from 1/2 here."""


class ArenaHardReader:
    """The last verdict of Arena-Hard's five labels in double brackets.

    Args:
        probabilities: label -> P(left wins), in place of some of :data:`ARENA_HARD`.
    """

    _PATTERN = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")

    def __init__(self, probabilities: Mapping[str, float] | None = None) -> None:
        self.values = {**ARENA_HARD, **(probabilities or {})}
        self.request: Mapping[str, Any] = MappingProxyType({})

    def read(self, choice: Any) -> float | None:
        """One of the five probabilities."""
        labels = self._PATTERN.findall(choice.message.content or "")
        return self.values[labels[-1]] if labels else None
