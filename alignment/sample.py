"""Answers of a trained model, for the eye or for a benchmark's file.

The random numbers are a hash of the seed and of the weights, as in an evaluation (:mod:`alignment.answering`): files of
different policies may be compared pair by pair, because none drew with the numbers of another.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment.config import Recipe
from alignment.data import RAW_TEXT, EncodedRow, Row, Turn, encode_rows, prompt_text, read_rows, stop_token_ids
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.policies import CausalLMPolicy
from alignment.preparation import read_source
from alignment.progress import Announce, Progress
from alignment.rounds import answered_chunks
from alignment.seeds import seeds_of
from alignment.trained import TrainedModel, run_data

_BATCH = 8
_NUM_SHOWN = 10
# Of a model of unknown origin: nothing says how long its answers are.
_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is answered: texts, a file, or by default the prompts that the run held out.

    Attributes:
        texts: each a prompt.
        file: of a shape that the readers know; a prompt that comes twice is answered once.
        role: what a prompt given as a string is: ``text``, or ``user`` for a turn of a conversation; ``None`` for what
            it was in the run's data, and for a model of unknown origin a turn where there is a chat template.
        limit: only the first so many; ``None`` for all, and for the first ten held-out ones.
    """

    texts: Sequence[str] = ()
    file: Path | None = None
    role: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A prompt with its answers.

    Attributes:
        prompt: as one text.
        answers: of the model.
        ref: of the reference, where they were asked for.
    """

    prompt: str
    answers: tuple[str, ...]
    ref: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what was not asked for."""
        tree: dict[str, Any] = {"prompt": self.prompt, "answers": list(self.answers)}
        return tree if self.ref is None else tree | {"ref": list(self.ref)}


def sample(
    model: TrainedModel,
    prompts: Prompts,
    *,
    num_completions: int,
    temperature: float | None,
    max_new_tokens: int | None,
    seed: int,
    against_ref: bool,
    device: torch.device | str,
    announce: Announce,
    progress: Progress,
) -> tuple[Answered, ...]:
    """Answers to prompts; the same weights and seed give the same, other weights draw independently.

    Args:
        model: who answers.
        prompts: what.
        num_completions: answers to each.
        temperature: 0 takes the likeliest token at each step; ``None`` for that of the recipe's evaluation, or 1.
        max_new_tokens: ``None`` for that of the recipe's evaluation, of its sampling, or of its data.
        seed: of the answers, together with the weights of who answers.
        against_ref: whether the reference answers as well.
        device: where the models go.
        announce: is told in a line what was left out.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if there are no prompts, or nothing says what the reference is.
    """
    if temperature is None:
        temperature = _recipe_temperature(model)
    if not math.isfinite(temperature):
        raise UserError(f"--temperature: expected a finite number, got {temperature}")
    if temperature == 0 and num_completions > 1:
        raise UserError(f"--num: expected 1 at temperature 0, which gives one answer, got {num_completions}")
    longest = max_new_tokens or _recipe_length(model)
    rows = _encode(model, _rows(model, prompts, announce), announce)

    def answers(module: Any, what: str) -> list[tuple[str, ...]]:
        policy = CausalLMPolicy(
            module.to(device),
            model.tokenizer,
            stop_token_ids=stop_token_ids(model.tokenizer),
            temperature=temperature,
            max_new_tokens=longest,
        )
        seeds = seeds_of(len(rows), seed, _digest(module))
        texts: list[tuple[str, ...]] = []
        progress(what, 0, len(rows))
        for chunk in answered_chunks(policy, rows, num_completions=num_completions, batch_size=_BATCH, seeds=seeds):
            texts += [item.row.responses for item in chunk]
            progress(what, len(texts), len(rows))
        return texts

    # One after the other, so that one model is in memory at a time.
    ours = answers(model.load(), "answers")
    theirs = answers(model.load_reference(), "answers of the reference") if against_ref else [None] * len(rows)
    return tuple(
        Answered(prompt=str(prompt_text(item.row)), answers=mine, ref=other)
        for item, mine, other in zip(rows, ours, theirs, strict=True)
    )


def model_outputs(answered: Sequence[Answered], generator: str) -> list[dict[str, str]]:
    """AlpacaEval's form of answers, one to each instruction.

    Args:
        answered: with one answer each.
        generator: what the leaderboard calls the model.
    """
    return [{"instruction": item.prompt, "output": item.answers[0], "generator": generator} for item in answered]


def _digest(module: torch.nn.Module) -> str:
    """Of a model's weights: what is named in two ways, or saved in two folders, has the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _recipe_temperature(model: TrainedModel) -> float:
    if isinstance(model.recipe, Recipe) and model.recipe.evaluation is not None:
        return model.recipe.evaluation.temperature
    # Not that of the recipe's sampler, which may explore: at 1 the answers are the model's own.
    return 1.0


def _recipe_length(model: TrainedModel) -> int:
    recipe = model.recipe
    if recipe is None:
        return _MAX_NEW_TOKENS
    return recipe.longest_answer if isinstance(recipe, Recipe) else recipe.data.max_completion_length


def _rows(model: TrainedModel, prompts: Prompts, announce: Announce) -> tuple[Row, ...]:
    if prompts.texts and prompts.file is not None:
        raise UserError("expected --prompt or --prompts, got both")
    if prompts.texts or prompts.file is not None:
        role = prompts.role or _role(model)
        if prompts.file is not None:
            result = read_rows(prompts.file, prompt_role="user" if role == "user" else "text")
            announce(f"{prompts.file}: {result.summary()}")
            return _distinct(result.rows)[: prompts.limit]
        if not all(text.strip() for text in prompts.texts):
            raise UserError("--prompt: expected text, got an empty prompt")
        return tuple(
            Row(prompt=(Turn(role, text),), source=f"--prompt {number}")
            for number, text in enumerate(prompts.texts[: prompts.limit], start=1)
        )
    if model.recipe is None:
        raise UserError(f"{model.source}: no recipe names held-out prompts; give --prompt or --prompts")
    held_out = _distinct(run_data(model).evaluation)
    if not held_out:
        raise UserError(f"{model.run}: the run holds out no prompts; give --prompt or --prompts")
    limit = _NUM_SHOWN if prompts.limit is None else prompts.limit
    if limit < len(held_out):
        announce(f"{limit} of {len(held_out):,} held-out prompts (--limit)")
    return held_out[:limit]


def _distinct(rows: Sequence[Row]) -> tuple[Row, ...]:
    distinct = {row.prompt: row for row in reversed(rows)}
    return tuple(distinct[prompt] for prompt in dict.fromkeys(row.prompt for row in rows))


def _role(model: TrainedModel) -> str:
    """What a string is in the run's data: read from its first row, because formats decide it as well as keys."""
    if model.recipe is None:
        return "user" if model.tokenizer.chat_template is not None else RAW_TEXT
    source = model.recipe.data.sources[0]
    try:
        first = read_source(source.model_copy(update={"limit": 1})).rows[0]
    except (UserError, OSError) as error:
        raise UserError(f"{error}; say what a prompt is with --role") from None
    return RAW_TEXT if first.prompt[0].role == RAW_TEXT else "user"


def _encode(model: TrainedModel, rows: Sequence[Row], announce: Announce) -> tuple[EncodedRow, ...]:
    bare = [Row(prompt=row.prompt, source=row.source) for row in rows]
    # What a model of unknown origin can read is its tokenizer's to say.
    longest = model.tokenizer.model_max_length if model.recipe is None else model.recipe.data.max_prompt_length
    result = encode_rows(bare, model.tokenizer, max_prompt_length=longest, max_completion_length=1)
    if result.skipped:
        announce(describe_skipped(result.skipped))
    return result.rows
