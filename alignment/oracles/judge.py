"""A language model behind an OpenAI-compatible endpoint, asked which of two answers is better."""

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import openai
from openai.types.chat import ChatCompletion

from alignment.errors import UserError
from alignment.oracles.kept import Deliver
from alignment.oracles.ledger import Account, Figures, Prices, Question, Verdict
from alignment.oracles.templates import PAIR, fill_template
from alignment.oracles.verdicts import Reader

_RETRIED = frozenset({429, 500, 502, 503, 504})
# A server that wants longer than this, in seconds, is better asked another day.
_LONGEST_WAIT = 120.0
# Role, separators and the beginning of the reply, around a text of which every byte is a token at most.
_CHAT_TOKENS = 64
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every request says.

    Attributes:
        model: the model's name at the server.
        template: of the question.
        temperature: of the reply.
        max_tokens: of the reply.
        placeholders: of the template.
    """

    model: str
    template: str
    temperature: float
    max_tokens: int
    placeholders: tuple[str, ...] = PAIR

    def text(self, question: Question) -> str:
        """What the judge reads."""
        texts = [[text] for text in (question.prompt, *question.answers)]
        return next(fill_template(self.template, *texts, placeholders=self.placeholders))


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How failures are met.

    Attributes:
        retries: how often a request that failed is sent again.
        backoff: seconds before the first of them; doubled for each further one.
        concurrency: requests at once.
        second_try: whether a reply without a verdict is asked for once more.
    """

    retries: int
    backoff: float
    concurrency: int
    second_try: bool


class _RetryError(Exception):
    """A failure that may pass; with what the server says about how long it takes."""

    def __init__(self, reason: str, *, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


class Judge:
    """Sends questions, several at once; each reply is delivered when it arrives.

    Args:
        client: without retries of its own.
        request: what is asked.
        reader: what the reply means.
        account: where calls are reserved and counted.
        prices: of tokens; ``None`` counts no money.
        patience: what is tried again.
        key: the secret, which no message shows; empty for none.
        pause: waits so many seconds; ``None`` waits unless another question has failed for good.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        *,
        request: Request,
        reader: Reader,
        account: Account,
        patience: Patience,
        prices: Prices | None = None,
        key: str = "",
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.client, self.request, self.reader, self.account = client, request, reader, account
        self.patience, self.prices, self._key = patience, prices, key
        self._given_up = threading.Event()
        self._pause = self._given_up.wait if pause is None else pause
        # Its own: the global generator belongs to the run's seed.
        self._jitter = random.Random()

    def answer(self, questions: Sequence[Question], deliver: Deliver) -> None:
        """Deliver a verdict on every question.

        Raises:
            UserError: for what asking again cannot mend, and for what it did not.
            BudgetError: before the call that the budget does not allow. Replies under way are delivered first.
        """
        self._given_up.clear()
        failures: list[Exception] = []

        def ask(n: int) -> None:
            if self._given_up.is_set():
                return
            try:
                deliver([(n, self._verdict(questions[n]))])
            except Exception as error:
                failures.append(error)
                self._given_up.set()

        with ThreadPoolExecutor(max_workers=min(self.patience.concurrency, len(questions))) as pool:
            try:
                list(pool.map(ask, range(len(questions))))
            finally:
                # An interrupt comes here before the others are done.
                self._given_up.set()
        if failures:
            # Those after it were given up because of it.
            raise failures[0]

    def _verdict(self, question: Question) -> Verdict:
        text = self.request.text(question)
        verdict = self._read(self._send_until_answered(text))
        if verdict.probability is None and self.patience.second_try:
            verdict = self._read(self._send_until_answered(text))
        return verdict

    def _read(self, completion: ChatCompletion) -> Verdict:
        choice = completion.choices[0]
        return Verdict(self.reader.read(choice), self._without_key(choice.message.content or ""))

    def _send_until_answered(self, text: str) -> ChatCompletion:
        for attempt in range(self.patience.retries + 1):
            try:
                return self._send(text, is_retry=attempt > 0)
            except _RetryError as error:
                failure = error
            if attempt < self.patience.retries:
                self._wait(attempt, failure)
        raise UserError(
            f"oracle: expected a reply from {self._where}, found none in {self.patience.retries + 1} tries (the last: "
            f"{failure.reason}); all verdicts so far are kept, run again when it answers"
        )

    def _wait(self, attempt: int, failure: _RetryError) -> None:
        if failure.seconds is not None and failure.seconds > _LONGEST_WAIT:
            raise UserError(
                f"oracle: {self._where} asks to wait {failure.seconds:,.0f} seconds ({failure.reason}); all verdicts "
                "so far are kept, run again then"
            )
        # Not all at once: those that failed together would fail together again.
        growing = self.patience.backoff * 2.0**attempt * self._jitter.uniform(0.5, 1.0)
        self._pause(min(_LONGEST_WAIT, max(growing, failure.seconds or 0.0)))
        if self._given_up.is_set():
            raise UserError("oracle: given up, because another question failed")

    def _send(self, text: str, *, is_retry: bool) -> ChatCompletion:
        """One request, reserved before and counted after it: what may have been billed counts in full."""
        most = self._most(text)
        self.account.reserve(most)
        actual, started = replace(most, retries=int(is_retry)), time.monotonic()
        try:
            completion = self.client.chat.completions.create(
                model=self.request.model,
                messages=[{"role": "user", "content": text}],
                temperature=self.request.temperature,
                max_tokens=self.request.max_tokens,
                **self.reader.request,
            )
            if not isinstance(completion, ChatCompletion) or not completion.choices:
                raise _RetryError("a reply of another form than a chat completion")
            actual = replace(self._cost(completion, most), retries=int(is_retry))
            return completion
        except openai.APIStatusError as error:
            actual = Figures(calls=1, retries=int(is_retry))
            raise self._of_status(error) from None
        except openai.APITimeoutError:
            raise _RetryError(f"no reply within {self.client.timeout} seconds") from None
        except openai.APIConnectionError as error:
            # The library below the client has had two names, and both call it so: nothing was sent.
            if type(error.__cause__).__name__ == "ConnectError":
                actual = Figures(retries=int(is_retry))
                raise _RetryError(f"it cannot be reached ({self._shown(error.__cause__)})") from None
            raise _RetryError(f"the connection was dropped ({self._shown(error.__cause__)})") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise _RetryError("a reply that is not JSON") from None
        finally:
            self.account.settle(most, replace(actual, seconds=time.monotonic() - started))

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        reason = f"{error.status_code}: {self._shown(error)}"
        if error.status_code in _RETRIED:
            return _RetryError(reason, seconds=_retry_after(error.response.headers.get("retry-after")))
        advice = {
            401: "check the key that api_key_env names",
            403: "check what the key of api_key_env may do",
            404: "check model and base_url",
        }.get(error.status_code, "it does not accept such requests: check model, verdict, temperature and max_tokens")
        return UserError(f"oracle: expected a reply from {self._where}, found {reason}; {advice}")

    def _most(self, text: str) -> Figures:
        return self._priced(len(text.encode()) + _CHAT_TOKENS, self.request.max_tokens)

    def _cost(self, completion: ChatCompletion, most: Figures) -> Figures:
        """What the server counted, or the upper bound where it does not count."""
        usage = completion.usage
        return most if usage is None else self._priced(usage.prompt_tokens, usage.completion_tokens)

    def _priced(self, prompt_tokens: int, completion_tokens: int) -> Figures:
        prices = self.prices or Prices(prompt=0.0, completion=0.0)
        money = (prompt_tokens * prices.prompt + completion_tokens * prices.completion) / 1e6
        return Figures(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, money=money)

    @property
    def _where(self) -> str:
        return f"the judge '{self.request.model}' at {self.client.base_url}"

    def _shown(self, error: BaseException | None) -> str:
        text = " ".join(self._without_key(str(error)).split())
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."

    def _without_key(self, text: str) -> str:
        # A server may repeat what it was sent.
        return text.replace(self._key, "***") if self._key else text


def connect(base_url: str, *, key: str, timeout: float) -> openai.OpenAI:
    """A client without retries of its own.

    Args:
        base_url: of the API, up to the version.
        key: the secret; empty for a server that needs none.
        timeout: seconds that a reply may take.
    """
    return openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=0)


def _retry_after(header: str | None) -> float | None:
    """Seconds, from seconds or a date."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
