"""A model that a server knows by name: conversations go there, and texts come back."""

from collections.abc import Sequence
from typing import Any

from alignment.data import RAW_TEXT, Turn
from alignment.errors import UserError
from alignment.generation.engine import request_seeds
from alignment.generation.http import Connection, connect
from alignment.generation.options import ServerOptions


class ChatServer:
    """Nothing is known of the model here: the server applies its own chat template, and sends no tokens.

    Args:
        options: where it is, and what it is called there.

    Raises:
        UserError: if the environment variable of the key is not set.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._connection: Connection = connect(options, options.base_url)

    def answer(
        self,
        prompts: Sequence[Sequence[Turn]],
        *,
        temperature: float,
        max_new_tokens: int,
        num_completions: int,
        seeds: Sequence[int],
    ) -> list[list[str]]:
        """Independent answers to each prompt; what a seed is worth is the server's affair.

        Args:
            prompts: conversations, or a turn of raw text each, which is continued as it stands.
            temperature: of sampling.
            max_new_tokens: the longest answer.
            num_completions: answers to each.
            seeds: one for each prompt; every request has its own.

        Raises:
            UserError: if the server fails for good, or sends something else than text.
        """
        asked = [turns for turns in prompts for _ in range(num_completions)]
        bodies = [
            {
                "model": self._options.model,
                **_shown(turns),
                "temperature": temperature,
                "top_p": 1.0,
                "max_tokens": max_new_tokens,
                "seed": number,
            }
            for turns, number in zip(asked, request_seeds(seeds, num_completions), strict=True)
        ]
        texts = [self._text(choice) for choice in self._connection.complete(bodies)]
        return [texts[start : start + num_completions] for start in range(0, len(texts), num_completions)]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _text(self, choice: dict[str, Any]) -> str:
        message = choice.get("message", choice)
        text = message.get("content", message.get("text")) if isinstance(message, dict) else None
        if text is None and choice.get("finish_reason"):
            # A filter, or a model that had not come to its answer where it was cut.
            return ""
        if not isinstance(text, str):
            raise UserError(f"{self._options.base_url}: expected an answer with text, got {str(choice)[:200]}")
        return text


def _shown(turns: Sequence[Turn]) -> dict[str, Any]:
    if turns[0].role == RAW_TEXT:
        return {"prompt": turns[0].content}
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
