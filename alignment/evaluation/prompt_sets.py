"""Prompts of an evaluation, with their categories, and files of answers to them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.data import PromptText, Row, prompt_text
from alignment.errors import UserError
from alignment.evaluation.alpaca import read_model_outputs
from alignment.evaluation.published import read_records


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A benchmark's prompts: how many, and the column of their category."""

    num_prompts: int
    category: str


SETS: Mapping[str, KnownSet] = {
    "alpaca_eval": KnownSet(805, "dataset"),
    "arena_hard_v0.1": KnownSet(500, "category"),
    "arena_hard_v2.0": KnownSet(750, "category"),
}
"""Name -> what is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """What is answered.

    Attributes:
        rows: the prompts, each once.
        categories: of each; empty where nothing says them.
        known: texts of the whole set, also of prompts beyond a limit.
        num_repeated: rows left out because their prompt was there already.
    """

    rows: tuple[Row, ...]
    categories: tuple[str, ...]
    known: frozenset[str]
    num_repeated: int

    @property
    def texts(self) -> tuple[PromptText, ...]:
        """The prompts as an oracle reads them."""
        return tuple(prompt_text(row) for row in self.rows)

    @property
    def digest(self) -> str:
        """A hash of the prompts in their order, with their roles."""
        turns = [[[turn.role, turn.content] for turn in row.prompt] for row in self.rows]
        return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def make_prompt_set(
    rows: Sequence[Row], *, name: str | None = None, categories: Mapping[str, str] | None = None, limit: int | None
) -> PromptSet:
    """The prompts of an evaluation.

    Args:
        rows: of the whole file.
        name: a key of :data:`SETS` that the file must be.
        categories: source of a row -> its category; ``None`` for none.
        limit: only the first so many.

    Raises:
        UserError: if the file is not the whole of the set.
    """
    texts = [str(prompt_text(row)) for row in rows]
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    distinct = [row for place, (row, text) in enumerate(zip(rows, texts, strict=True)) if first[text] == place]
    if name is not None and len(distinct) != SETS[name].num_prompts:
        raise UserError(
            f"prompts.set: expected the {SETS[name].num_prompts} prompts of {name}, found {len(distinct)}; give the "
            "whole file (prompts.limit takes some of it), or leave prompts.set out"
        )
    kept = tuple(distinct[:limit])
    return PromptSet(
        rows=kept,
        categories=() if categories is None else tuple(categories[row.source] for row in kept),
        known=frozenset(texts),
        num_repeated=len(rows) - len(distinct),
    )


def read_categories(path: Path, column: str) -> dict[str, str]:
    """The category of each row of a file, by its source.

    Raises:
        UserError: if the file has no such column, or a row no category.
    """
    return {record.source: record.name(column) for record in read_records(path, column)}


def read_outputs(path: Path, prompts: PromptSet) -> tuple[str, ...]:
    """The answers of a file, one to each prompt, in the order of the prompts.

    The whole set may be answered where only the first prompts are evaluated.

    Args:
        path: AlpacaEval's ``model_outputs.json``: ``instruction`` and ``output``.
        prompts: of the evaluation.

    Raises:
        UserError: if an instruction is of another set or comes twice, or a prompt has no answer.
    """
    answers = read_model_outputs(path)
    strange = [text for text in answers if text not in prompts.known]
    if strange:
        raise UserError(
            f"{answers[strange[0]].source}: expected answers to the prompts of the evaluation, found {len(strange)} to "
            f"others, first to {strange[0][:60]!r}; give the prompts that were answered"
        )
    missing = [text for text in prompts.texts if text not in answers]
    if missing:
        raise UserError(
            f"{path}: expected an answer to each of {len(prompts.rows)} prompts, found none to {len(missing)}, first "
            f"to {missing[0][:60]!r}; a rate over the others would be of another set"
        )
    return tuple(answers[text].text("output") for text in prompts.texts)
