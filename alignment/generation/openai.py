"""Answers of any OpenAI-compatible server, as text: their tokens are those that the tokenizer gives the text."""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.generation.engine import Answers, Decoding, TokenIds, grouped, request_seeds
from alignment.generation.http import Connection, connect
from alignment.generation.options import ServerOptions


class OpenAIEngine:
    """A server with weights of its own; the module that is asked is not read.

    A token of the answer is what the tokenizer makes of the server's text, which need not be what the server drew. So
    it serves answers of a fixed model, and never a step that samples the policy in training. A seed is sent along; the
    server decides what it does with it.

    Args:
        options: of a recipe.
        tokenizer: of the policy.
    """

    takes_weights: ClassVar[bool] = False

    def __init__(self, options: ServerOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        self._options, self._tokenizer = options, tokenizer
        self._connection: Connection = connect(options, options.base_url)

    def answer(
        self,
        module: Any,
        prompts: Sequence[TokenIds],
        decoding: Decoding,
        *,
        num_completions: int,
        seeds: Sequence[int],
    ) -> Answers:
        """See :class:`~alignment.generation.Engine`; the server's completions of each prompt's text.

        Raises:
            UserError: if a prompt's text would be read as other tokens, the server fails for good, or the decoding
                asks for what such servers do not offer.
        """
        if decoding.top_k is not None:
            raise UserError("sampling.top_k: the interface of OpenAI has none; set it to null")
        texts = [self._text(prompt) for prompt in prompts for _ in range(num_completions)]
        bodies = [
            {
                "model": self._options.model,
                "prompt": text,
                "temperature": decoding.temperature,
                "top_p": 1.0,
                "max_tokens": decoding.max_new_tokens,
                "seed": number,
            }
            for text, number in zip(texts, request_seeds(seeds, num_completions), strict=True)
        ]
        choices = self._connection.complete(bodies)
        return grouped([self._tokens(choice, decoding) for choice in choices], num_completions)

    def refresh(self) -> None:
        """Nothing to do: the server keeps its weights."""

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _text(self, prompt: TokenIds) -> str:
        """The prompt's text; a server that encodes it as our tokenizer does reads these very tokens."""
        text = str(self._tokenizer.decode(list(prompt), skip_special_tokens=False))
        candidates = [text]
        if self._tokenizer.bos_token is not None:
            # Many tokenizers put the first token there themselves.
            candidates.append(text.removeprefix(str(self._tokenizer.bos_token)))
        for candidate in candidates:
            if list(self._tokenizer(candidate)["input_ids"]) == list(prompt):
                return candidate
        raise UserError(
            f"sampling.engine: the prompt {text[:80]!r} would be read as other tokens by a server that takes text; use "
            "'vllm', which takes tokens"
        )

    def _tokens(self, choice: dict[str, Any], decoding: Decoding) -> list[int]:
        text, reason = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise UserError(
                f"{self._options.base_url}: expected a text that ended with 'stop' or 'length', got {str(choice)[:200]}"
            )
        tokens = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if reason == "length":
            # Encoded again it may be longer than what was drawn.
            tokens = tokens[: decoding.max_new_tokens]
            if not tokens:
                raise UserError(f"{self._options.base_url}: the answer was cut by length and holds no text")
            return tokens
        # The last one is the chat template's own end of a turn, where there is one.
        return [*tokens, decoding.stop_token_ids[-1]]
