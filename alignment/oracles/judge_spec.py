"""What an ``oracle:`` block may say of a judge behind an endpoint."""

import re
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from alignment.oracles.endpoint import EndpointSpec, check_client
from alignment.oracles.ledger import Accounts
from alignment.oracles.specs import OracleSpec, ordered
from alignment.oracles.templates import read_template
from alignment.oracles.verdicts import ARENA_HARD, ArenaHardReader, LabelReader, LogprobReader, Reader
from alignment.types import Oracle

_READS = {"label": ("labels", "pattern"), "logprobs": ("labels", "top_logprobs"), "arena_hard": ("probabilities",)}
_REPLY_TOKENS = {"label": 16, "logprobs": 1, "arena_hard": 2048}
_SHIPPED = {"label": "pair", "logprobs": "pair", "arena_hard": "arena_hard"}


class JudgeSpec(EndpointSpec, OracleSpec):
    """A language model behind an OpenAI-compatible endpoint; ``template`` is a file.

    Attributes:
        template: ``None`` for the shipped one of the verdict.
        verdict: how the reply becomes a probability, see :mod:`alignment.oracles.verdicts`.
        labels: for left, right and, with ``verdict: label``, a tie.
        pattern: a regular expression that finds the label.
        top_logprobs: tokens whose log-probabilities are asked for.
        probabilities: of Arena-Hard's labels.
        max_tokens: of the reply; ``None`` for what the verdict needs.
        unparsable: what becomes of a reply without a verdict: a counted tie, an error, or one more request and then a
            counted tie.
    """

    template: str | None = None
    verdict: Literal["label", "logprobs", "arena_hard"] = "label"
    labels: list[str] = Field(default=["A", "B"], min_length=2, max_length=3)
    pattern: str | None = None
    top_logprobs: int = Field(default=5, ge=2, le=20)
    probabilities: dict[Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"], float] | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    unparsable: Literal["tie", "error", "retry"] = "tie"

    @model_validator(mode="after")
    def _keys_fit_the_verdict(self) -> Self:
        read = _READS[self.verdict]
        every = {key for keys in _READS.values() for key in keys}
        unread = sorted(self.model_fields_set & every - set(read))
        if unread:
            raise ValueError(f"expected only {', '.join(read)} with verdict: {self.verdict}, got {', '.join(unread)}")
        if len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise ValueError(f"expected labels that differ, got {self.labels}")
        if self.verdict == "logprobs" and len(self.labels) != 2:
            raise ValueError(f"expected two labels with verdict: logprobs, got {self.labels}")
        wrong = {label: p for label, p in (self.probabilities or {}).items() if not 0.0 <= p <= 1.0}
        if wrong:
            raise ValueError(f"expected probabilities in [0, 1], got {wrong}")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression as pattern, got {self.pattern!r} ({error})") from None
        return self

    def check(self) -> None:
        self.template_text()
        check_client("oracle.kind: 'judge'")

    def template_text(self) -> str:
        """What is asked, without prompt and answers."""
        return read_template(self.template, shipped=_SHIPPED[self.verdict])

    def content(self) -> bytes:
        return self.template_text().encode()

    @property
    def reply_tokens(self) -> int:
        """The longest reply."""
        return self.max_tokens or _REPLY_TOKENS[self.verdict]

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        oracle = self.open(
            accounts,
            template=self.template_text(),
            max_tokens=self.reply_tokens,
            reader=self._reader(),
            reads=self._reads(),
            unparsable=self.unparsable,
            ledger=True if self.ledger is None else self.ledger,
        )
        return ordered(oracle, self, oracle.account)

    def _reader(self) -> Reader:
        match self.verdict:
            case "label":
                return LabelReader(self.labels, self.pattern)
            case "logprobs":
                return LogprobReader(self.labels, top=self.top_logprobs)
            case "arena_hard":
                return ArenaHardReader(self._probabilities)

    @property
    def _probabilities(self) -> dict[str, float]:
        return {**ARENA_HARD, **{str(label): p for label, p in (self.probabilities or {}).items()}}

    def _reads(self) -> dict[str, Any]:
        """All that decides how a reply is read, also where it is the default."""
        keys = {key: value for key, value in self.model_dump(mode="json").items() if key in _READS[self.verdict]}
        if self.verdict == "arena_hard":
            keys["probabilities"] = self._probabilities
        return {"verdict": self.verdict, **keys}
