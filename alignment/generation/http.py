"""One connection to an OpenAI-compatible server: requests at once, retries with back-off, errors that help."""

import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alignment.errors import UserError
from alignment.generation.options import ServerOptions, VLLMOptions


def connect(options: VLLMOptions | ServerOptions, base_url: str) -> "Connection":
    """Open a connection; nothing is sent yet.

    Raises:
        UserError: if the environment variable of the key is not set.
    """
    return Connection(
        base_url,
        key=read_key(options),
        concurrency=options.concurrency,
        retries=options.retries,
        timeout=options.timeout,
    )


def read_key(options: VLLMOptions | ServerOptions) -> str:
    """The key of a server.

    Raises:
        UserError: if its environment variable is not set.
    """
    if options.api_key_env is None:
        return "none"
    key = os.environ.get(options.api_key_env, "")
    if not key:
        raise UserError(f"api_key_env: expected a key in the environment variable {options.api_key_env}, found none")
    return key


class Connection:
    """Sends requests for completions.

    The client waits longer before each further try, and as long as a server asks for, after a lost connection, a
    timeout, 408, 409, 429 and 5xx.

    Args:
        base_url: with ``/v1``.
        key: of the server.
        concurrency: requests at once.
        retries: further tries of a failed request.
        timeout: seconds for one try.
    """

    def __init__(self, base_url: str, *, key: str, concurrency: int, retries: int, timeout: float) -> None:
        self._openai: Any = importlib.import_module("openai")
        self._url, self._retries = base_url, retries
        self._client = self._openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=timeout)
        self._workers = ThreadPoolExecutor(max_workers=concurrency)

    def complete(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The first choice of each request, in their order.

        Args:
            bodies: of chat completions where they hold ``messages``, else of completions.

        Raises:
            UserError: for the first request that failed for good; those that have not begun are not sent.
        """
        futures = [self._workers.submit(self._complete_one, body) for body in bodies]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _complete_one(self, body: dict[str, Any]) -> dict[str, Any]:
        for _ in range(self._retries + 1):
            reply = self._post("/chat/completions" if "messages" in body else "/completions", body)
            choices = reply.get("choices") if isinstance(reply, dict) else None
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                return choices[0]
        raise UserError(
            f"{self._url}: expected a reply with choices, got {str(reply)[:200]!r} {self._retries + 1} times; is it an "
            "OpenAI-compatible server?"
        )

    def first_model(self) -> str:
        """The name of the first model that the server lists."""
        try:
            models = self._client.models.list().data
        except self._openai.OpenAIError as error:
            raise self._failure(error) from None
        if not models:
            raise UserError(f"{self._url}: expected a server with a model, found none")
        return str(models[0].id)

    def tell(self, url: str, body: dict[str, Any], *, must: str) -> None:
        """Post an instruction.

        Args:
            url: absolute.
            body: JSON.
            must: what the user must do if the server does not know the instruction.
        """
        try:
            self._client.post(url, body=body, cast_to=str)
        except self._openai.APIStatusError as error:
            raise UserError(f"{url}: the server answered {error.status_code} ({str(error)[:200]}); {must}") from None
        except self._openai.OpenAIError as error:
            raise self._failure(error) from None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return self._client.post(path, body=body, cast_to=object)
        except self._openai.OpenAIError as error:
            raise self._failure(error) from None
        except ValueError:
            # A reply that says it is JSON and is not.
            return None

    def _failure(self, error: Exception) -> UserError:
        return UserError(
            f"{self._url}: no answer after {self._retries + 1} tries ({type(error).__name__}: {str(error)[:200]}); is "
            "the server running, and does it know the model?"
        )

    def close(self) -> None:
        """End the threads and the connection."""
        self._workers.shutdown(cancel_futures=True)
        self._client.close()
