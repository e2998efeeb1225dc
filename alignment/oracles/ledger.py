"""What an oracle answered, and what that cost: an SQLite file that runs and processes share.

A verdict stands under a hash of the oracle's identity (kind, model, version, template, decoding) and of the texts in
the order shown, so another judge, template or temperature never reads it. It is committed as it arrives. What a run
spent stands in a row for each oracle: a call is reserved there at its upper bound before it is made, and corrected
afterwards, so the figures of a process that was killed include the calls that it had in flight.
"""

import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.data import PromptText
from alignment.errors import BudgetError, UserError

LEDGER_FILE = "oracle.sqlite"
_FORMAT = 1
# Another process may hold the file while it commits; one that holds it longer is stuck.
_BUSY_SECONDS = 60.0
# SQLite takes a limited number of parameters in one statement.
_KEYS_AT_ONCE = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS oracles (oracle TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, oracle TEXT NOT NULL, prompt TEXT NOT NULL, shown_first TEXT NOT NULL,
    shown_second TEXT NOT NULL, probability REAL, reply TEXT
);
"""


class Budget(BaseModel):
    """What a run may spend on an oracle, over all its continuations.

    Attributes:
        calls: requests sent, or questions that a local model answers.
        tokens: of prompts and replies.
        money: in the currency of the prices.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    calls: int | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    money: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.calls is None and self.tokens is None and self.money is None:
            raise ValueError("expected calls, tokens or money, got none of them")
        return self


class Prices(BaseModel):
    """Of a million tokens.

    Attributes:
        prompt: what the judge reads.
        completion: what it writes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is counted of an oracle in a run.

    Attributes:
        questions: distinct ones of each batch, in the order shown; equal answers are a tie that nobody is asked about.
        hits: of these, answered from the ledger.
        unparsable: of these, without a verdict that could be read.
        empty: of these, with an answer that has no text.
        calls: requests sent, or questions that a local model answered.
        retries: calls that repeat one that failed.
        prompt_tokens: as the server counts them; at most so many where it does not say.
        completion_tokens: the same of replies.
        money: at the prices given.
        seconds: that calls took, all together.
        pairs: questions that were asked in both orders.
        inconsistency: ``|P(l, r) + P(r, l) - 1|``, summed over these.
    """

    questions: int = 0
    hits: int = 0
    unparsable: int = 0
    empty: int = 0
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0
    pairs: int = 0
    inconsistency: float = 0.0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(**{name: a + b for name, a, b in zip(_COUNTED, astuple(self), astuple(other), strict=True)})

    def __sub__(self, other: "Figures") -> "Figures":
        return Figures(**{name: a - b for name, a, b in zip(_COUNTED, astuple(self), astuple(other), strict=True)})

    @property
    def tokens(self) -> int:
        """Of prompts and replies."""
        return self.prompt_tokens + self.completion_tokens

    def describe(self) -> str:
        """What is not zero, in one line."""
        said = {
            f"{self.questions:,} questions": self.questions,
            f"{self.hits:,} of them from the ledger": self.hits,
            f"{self.unparsable:,} unparsable": self.unparsable,
            f"{self.empty:,} with an empty answer": self.empty,
            f"{self.calls:,} calls": self.calls,
            f"{self.retries:,} of them retries": self.retries,
            f"{self.tokens:,} tokens": self.tokens,
            f"{self.money:.4f} spent": self.money,
            f"{self.seconds / max(self.calls, 1):.2f} s a call": self.seconds,
            f"orders inconsistent by {self.inconsistency / max(self.pairs, 1):.4f} on average": self.pairs,
        }
        return ", ".join(text for text, is_said in said.items() if is_said)

    def as_numbers(self) -> dict[str, float]:
        """The counts by name, with means in place of what only sums up to them."""
        numbers = {name: value for name, value in zip(_COUNTED, astuple(self), strict=True) if name != "inconsistency"}
        numbers["seconds_per_call"] = self.seconds / max(self.calls, 1)
        return numbers | ({"inconsistency": self.inconsistency / self.pairs} if self.pairs else {})


_COUNTED = tuple(spec.name for spec in fields(Figures))


@dataclass(frozen=True, slots=True)
class Question:
    """Which of two answers is better, ``left`` shown first; or how good ``left`` is, where there is no other."""

    prompt: str
    left: str
    right: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """In the order shown."""
        return (self.left,) if self.right is None else (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer to a question.

    Attributes:
        probability: that ``left`` wins, or the grade of a single answer; ``None`` where the reply could not be read.
        reply: what the judge wrote, where it writes.
    """

    probability: float | None
    reply: str | None = None


class Ledger:
    """The file.

    Args:
        path: where it is or will be; ``None`` keeps it in memory.

    Raises:
        UserError: if the file cannot be opened or is something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: every statement below is a transaction of its own.
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            found = self._connection.execute("PRAGMA user_version").fetchone()[0]
            # Readers do not wait for writers; a commit survives the process, whatever ends it.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            counted = ", ".join(f"{name} NUMERIC NOT NULL DEFAULT 0" for name in _COUNTED)
            self._connection.executescript(
                f"{_TABLES} CREATE TABLE IF NOT EXISTS spending "
                f"(run TEXT NOT NULL, oracle TEXT NOT NULL, {counted}, PRIMARY KEY (run, oracle));"
            )
            if found == 0:
                self._connection.execute(f"PRAGMA user_version = {_FORMAT}")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"oracle.ledger: expected a ledger or a new file at '{path}', found {error}") from None
        if found not in (0, _FORMAT):
            raise UserError(f"oracle.ledger: expected a ledger of format {_FORMAT} at '{path}', found format {found}")

    def enter(self, oracle: str, identity: str, run: str) -> None:
        """Make room for an oracle and for what a run spends on it."""
        self._execute("INSERT OR IGNORE INTO oracles VALUES (?, ?)", [oracle, identity])
        self._execute("INSERT OR IGNORE INTO spending (run, oracle) VALUES (?, ?)", [run, oracle])

    def find(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Verdicts on the questions that were answered."""
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            chunk = keys[start : start + _KEYS_AT_ONCE]
            marks = ", ".join("?" * len(chunk))
            rows = self._execute(f"SELECT key, probability, reply FROM verdicts WHERE key IN ({marks})", chunk)
            found |= {key: Verdict(probability, reply) for key, probability, reply in rows}
        return found

    def store(self, oracle: str, answered: Sequence[tuple[str, Question, Verdict]]) -> None:
        """Keep verdicts by their keys. Of two processes that asked the same, the later one is kept."""
        rows = [
            (key, oracle, str(question.prompt), question.left, question.right or "", verdict.probability, verdict.reply)
            for key, question, verdict in answered
        ]
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def add(self, run: str, oracle: str, figures: Figures, budget: Budget | None = None) -> bool:
        """Add to what a run spent, unless that would exceed a budget.

        Returns:
            Whether it was added. Test and addition are one: processes that share the file share the budget.
        """
        limits = [math.inf if budget is None or limit is None else limit for limit in _limits(budget)]
        sums = ", ".join(f"{name} = {name} + ?" for name in _COUNTED)
        with self._lock:
            cursor = self._connection.execute(
                f"UPDATE spending SET {sums} WHERE run = ? AND oracle = ? "
                "AND calls <= ? AND prompt_tokens + completion_tokens <= ? AND money <= ?",
                [
                    *astuple(figures),
                    run,
                    oracle,
                    limits[0] - figures.calls,
                    limits[1] - figures.tokens,
                    limits[2] - figures.money,
                ],
            )
            return cursor.rowcount == 1

    def spent(self, run: str, oracle: str) -> Figures:
        """What a run spent on an oracle so far."""
        names = ", ".join(_COUNTED)
        (row,) = self._execute(f"SELECT {names} FROM spending WHERE run = ? AND oracle = ?", [run, oracle])
        return Figures(**dict(zip(_COUNTED, row, strict=True)))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _execute(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, parameters).fetchall()


def _limits(budget: Budget | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if budget is None else (budget.calls, budget.tokens, budget.money)


class Account:
    """What one oracle answers and costs in one run.

    Args:
        ledger: where it is written.
        run: the run's name there.
        identity: of the oracle; everything that decides its answers.
        budget: what may be spent; ``None`` for no limit.
    """

    def __init__(self, ledger: Ledger, run: str, identity: Mapping[str, Any], budget: Budget | None) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.ledger, self.run, self.identity, self.budget = ledger, run, dict(identity), budget
        self.oracle = hashlib.sha256(text.encode()).hexdigest()
        self._settled = threading.Condition()
        self._in_flight = 0
        ledger.enter(self.oracle, text, run)

    def key(self, question: Question) -> str:
        """A hash of the oracle and of what it reads."""
        prompt = question.prompt
        # The turns, too: an oracle may render them by a template of its own.
        turns = [[turn.role, turn.content] for turn in prompt.turns] if isinstance(prompt, PromptText) else None
        texts = [self.oracle, [["user", str(prompt)]] if turns is None else turns, question.left, question.right]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def find(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """What was answered before."""
        return self.ledger.find(keys)

    def store(self, answered: Sequence[tuple[str, Question, Verdict]]) -> None:
        """Keep verdicts, now."""
        self.ledger.store(self.oracle, answered)

    def reserve(self, most: Figures) -> None:
        """Set aside what a call costs at most; :meth:`settle` must follow.

        Where calls in flight hold back what would suffice, their settling is waited for.

        Raises:
            BudgetError: if the budget does not allow the call.
        """
        with self._settled:
            while not self.ledger.add(self.run, self.oracle, most, self.budget):
                if not self._in_flight:
                    raise BudgetError(self._exceeded(most))
                self._settled.wait()
            self._in_flight += 1

    def settle(self, most: Figures, actual: Figures) -> None:
        """Put what a call cost in the place of what was reserved for it."""
        with self._settled:
            self.ledger.add(self.run, self.oracle, actual - most)
            self._in_flight -= 1
            self._settled.notify_all()

    def add(self, figures: Figures) -> None:
        """Count what costs nothing."""
        self.ledger.add(self.run, self.oracle, figures)

    def note_inconsistency(self, excesses: list[float]) -> None:
        """Count what both orders of questions miss of adding up to one."""
        self.add(Figures(pairs=len(excesses), inconsistency=math.fsum(excesses)))

    @property
    def spent(self) -> Figures:
        """In this run, with its continuations."""
        return self.ledger.spent(self.run, self.oracle)

    @property
    def name(self) -> str:
        """For people."""
        what = self.identity.get("model") or self.identity.get("rule") or self.identity.get("path")
        return f"{self.identity['kind']} {what}"

    def _exceeded(self, most: Figures) -> str:
        assert self.budget is not None
        spent = self.spent
        named: dict[str, tuple[float, float]] = {
            "calls": (spent.calls, most.calls),
            "tokens": (spent.tokens, most.tokens),
            "money": (spent.money, most.money),
        }
        limits = {key: limit for key, limit in self.budget.model_dump().items() if limit is not None}
        reached = [key for key, limit in limits.items() if named[key][0] + named[key][1] > limit]
        said = ", ".join(f"{key} ({named[key][0]:,.6g} of {limits[key]:,.6g} used)" for key in reached)
        kept = "in memory" if self.ledger.path is None else f"in {self.ledger.path}"
        return (
            f"oracle.budget: the next question to {self.name} would exceed {said}; raise "
            f"{', '.join(f'budget.{key}' for key in reached)} and run again: all verdicts so far are kept {kept} and "
            "are not paid for again"
        )


class Accounts:
    """The accounts of a run's oracles.

    Args:
        folder: the run folder, where a ledger stands unless it is elsewhere; ``None`` keeps it in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._ledgers: dict[Path | None, Ledger] = {}
        self._accounts: list[Account] = []

    def open(self, identity: Mapping[str, Any], *, ledger: bool | str, budget: Budget | None = None) -> Account:
        """An account for an oracle.

        Args:
            identity: everything that decides the oracle's answers.
            ledger: a file; true for one in the run folder, false for none that outlives the process.
            budget: what may be spent.

        Raises:
            UserError: if several processes would each have the budget.
        """
        path = (
            Path(ledger) if isinstance(ledger, str) else self.folder / LEDGER_FILE if ledger and self.folder else None
        )
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        if path is None and budget is not None and num_processes > 1:
            raise UserError(
                f"oracle.ledger: expected a file for a budget that {num_processes} processes share, got none, "
                "with which each of them would spend the whole"
            )
        if path not in self._ledgers:
            self._ledgers[path] = Ledger(path)
        # Relative to the ledger: a run that is moved with it stays the same run.
        run = "" if path is None or self.folder is None else os.path.relpath(self.folder, path.parent)
        account = Account(self._ledgers[path], run, identity, budget)
        self._accounts.append(account)
        return account

    @property
    def is_used(self) -> bool:
        """Whether any of the oracles was asked something that is counted."""
        return self.spent != Figures()

    @property
    def spent(self) -> Figures:
        """On all oracles."""
        return sum((account.spent for account in self._distinct()), Figures())

    def summary(self) -> list[dict[str, Any]]:
        """Who was asked, and what came of it, as JSON can hold it."""
        return [
            {
                "oracle": account.name,
                "identity": account.identity,
                "ledger": None if account.ledger.path is None else str(account.ledger.path),
                **account.spent.as_numbers(),
            }
            for account in self._distinct()
        ]

    def close(self) -> None:
        """Close the ledgers."""
        for ledger in self._ledgers.values():
            ledger.close()

    def _distinct(self) -> Iterator[Account]:
        """One account for each oracle: members of a crowd may be the same one, with other noise."""
        return iter({(account.ledger.path, account.oracle): account for account in self._accounts}.values())
