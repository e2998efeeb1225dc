"""What an engine is: prompts in, answers out, both as token ids, and a way to take new weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from alignment.seeds import seed_of

TokenIds = Sequence[int]
"""Tokens of one prompt or one answer."""

Answers = list[list[list[int]]]
"""Tokens of each answer to each prompt; the stop token belongs to the answer, one cut by length has none."""

# Servers store a seed in a signed integer, of 32 bits where they are narrow.
_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        max_new_tokens: longest answer.
        stop_token_ids: tokens that end an answer.
        pad_token_id: fills gaps, never part of an answer.
        top_k: keep the k most likely tokens; ``None`` for all.
    """

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    top_k: int | None = None


class Engine(Protocol):
    """Draws answers of a policy.

    Attributes:
        takes_weights: whether it samples from the module that it is given; a remote server has weights of its own.
    """

    takes_weights: ClassVar[bool]

    def answer(
        self,
        module: Any,
        prompts: Sequence[TokenIds],
        decoding: Decoding,
        *,
        num_completions: int,
        seeds: Sequence[int],
    ) -> Answers:
        """Independent answers to each prompt, as the module is now (a LoRA model without its adapter, say).

        Args:
            module: the policy; of transformers or peft, not wrapped for distribution.
            prompts: exactly these tokens are continued.
            decoding: how tokens are drawn.
            num_completions: answers to each prompt.
            seeds: one for each prompt. The same seed, weights and prompt give the same answers, whatever else is in the
                batch, but for continuous batches, where all seeds together decide, and for servers, whose affair it is.
        """
        ...

    def refresh(self) -> None:
        """Say that weights given before may have changed: the next answer takes them anew."""
        ...

    def close(self) -> None:
        """Free memory, connections and files."""
        ...


def request_seeds(seeds: Sequence[int], num_completions: int) -> list[int]:
    """A seed for every request, of each prompt as many as it gets answers."""
    return [seed_of(seed, number) % _SEEDS for seed in seeds for number in range(num_completions)]


def grouped(answers: Sequence[list[int]], num_completions: int) -> Answers:
    """Answers of all prompts in a row, as one list for each prompt."""
    return [list(answers[start : start + num_completions]) for start in range(0, len(answers), num_completions)]
