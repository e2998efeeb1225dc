"""What the data of a recipe say before they are trained on: how many rows, how long; or bounds of that."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignment.batches import EncodedRows, rows_to_encode
from alignment.config import Recipe, build_arguments
from alignment.data import EncodedRow, Row
from alignment.errors import UserError
from alignment.models import load_tokenizer
from alignment.preparation import encode_as_asked, prepare_data
from alignment.textgame import count_answers, count_rows, is_address
from alignment.types import Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Rows as a loss reads them.

    Attributes:
        rows: that are trained on; ``None`` where nobody knows.
        responses: of a prompt, at most.
        prompt: tokens of the longest prompt.
        response: tokens of the longest response.
        shared: tokens of a row with its prompt once, on average.
        dense: with its prompt once for each response.
        scored: tokens of its responses.
        verdicts: in all rows; ``None`` where nobody knows.
        is_counted: whether tokens are those of the data, not bounds from the recipe.
    """

    rows: int | None
    responses: int
    prompt: int
    response: int
    shared: float
    dense: float
    scored: float
    verdicts: int | None
    is_counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows of a recipe that are on this machine, and the tokenizer that is made of them or stands beside the model."""

    rows: tuple[Row, ...]
    tokenizer: PreTrainedTokenizerBase | None


def find_rows(recipe: Recipe) -> Found | None:
    """The training rows, where all data are files on this machine; ``None`` elsewhere.

    Raises:
        UserError: for files that cannot be read, and for a tiny model, whose vocabulary is made of them, without any.
    """
    data, policy = recipe.data, recipe.policy
    others = (data.evaluation, *(data.decontaminate.against if data.decontaminate else ()))
    sources = (*data.sources, *(source for source in others if source is not None))
    if not all(_is_file(path) for source in sources for path in source.path):
        if policy.tiny is not None:
            raise UserError(
                f"policy.tiny: its vocabulary is made of the data: expected them on this machine, found no "
                f"{', '.join(path for source in sources for path in source.path if not _is_file(path))}"
            )
        return None
    # Training will say it.
    rows = prepare_data(data, seed=recipe.seed, announce=lambda line: None).train
    has_tokenizer = policy.tiny is not None or (policy.model is not None and Path(policy.model).is_dir())
    return Found(rows=rows, tokenizer=load_tokenizer(policy, rows) if has_tokenizer else None)


def measure(recipe: Recipe, needs: Needs, found: Found | None, *, rows: int | None, responses: int | None) -> Lengths:
    """Counts and lengths.

    Args:
        recipe: whose data they are.
        needs: of its method.
        found: the rows that are here.
        rows: that are trained on, where they are not here.
        responses: of a prompt, likewise.
    """
    if needs.samples_in_batches or recipe.samples_in_rounds:
        return _of_prompts(recipe, needs, found, rows)
    encoded = _encoded(recipe, needs, found)
    return _counted(encoded) if encoded else _bounded(recipe, needs, found, rows, responses)


def _encoded(recipe: Recipe, needs: Needs, found: Found | None) -> tuple[EncodedRow, ...]:
    """The rows in the form in which the method reads them, where a tokenizer is here."""
    if found is None or found.tokenizer is None:
        return ()
    if recipe.samples_in_rounds:
        read = tuple(Row(prompt=row.prompt, source=row.source) for row in found.rows)
    else:
        read = rows_to_encode(found.rows, needs, build_arguments(recipe))
    return encode_as_asked(read, found.tokenizer, recipe.data)[0].rows


def _of_prompts(recipe: Recipe, needs: Needs, found: Found | None, rows: int | None) -> Lengths:
    """Answers are as long as they may be; a list of all responses is read as so many answers."""
    sampling, encoded = recipe.sampling, _encoded(recipe, needs, found)
    lengths = [len(item.prompt_ids) for item in encoded] or [recipe.data.max_prompt_length]
    count = len(encoded) or _count(recipe, found, rows)[0]
    answers = len(sampling.responses or ()) or sampling.num_completions
    if recipe.samples_in_rounds and recipe.schedule.pairs != "all":
        answers = 2
    prompt, scored = sum(lengths) / len(lengths), answers * sampling.max_new_tokens
    return Lengths(
        rows=count,
        responses=answers,
        prompt=max(lengths),
        response=sampling.max_new_tokens,
        shared=prompt + scored,
        dense=answers * prompt + scored,
        scored=scored,
        verdicts=None,
        is_counted=False,
    )


def _counted(encoded: tuple[EncodedRow, ...]) -> Lengths:
    count, (shared, dense) = len(encoded), EncodedRows(encoded).count_tokens()
    lengths = [len(ids) for item in encoded for ids in item.completion_ids]
    return Lengths(
        rows=count,
        responses=max(len(item.completion_ids) for item in encoded),
        prompt=max(len(item.prompt_ids) for item in encoded),
        response=max(lengths),
        shared=shared / count,
        dense=dense / count,
        scored=sum(lengths) / count,
        verdicts=sum(item.row.num_verdicts for item in encoded),
        is_counted=True,
    )


def _bounded(recipe: Recipe, needs: Needs, found: Found | None, rows: int | None, responses: int | None) -> Lengths:
    prompt, response = recipe.data.max_prompt_length, recipe.data.max_completion_length
    (count, verdicts), answers = _count(recipe, found, rows), _answers(recipe, found, responses)
    if needs.mismatched:
        # Single responses are read.
        count, answers = None if count is None else count * answers, 1
    return Lengths(
        rows=count,
        responses=answers,
        prompt=prompt,
        response=response,
        shared=prompt + answers * response,
        dense=answers * (prompt + response),
        scored=answers * response,
        verdicts=verdicts,
        is_counted=False,
    )


def _is_file(path: str) -> bool:
    return not is_address(path) and Path(path).exists()


def _count(recipe: Recipe, found: Found | None, rows: int | None) -> tuple[int | None, int | None]:
    """Rows that are trained on, and the verdicts in them; of the text game they are known."""
    if found is not None:
        return len(found.rows), sum(row.num_verdicts for row in found.rows)
    data = recipe.data
    drops_rows = any(block is not None for block in (data.filters, data.duplicates, data.decontaminate))
    is_game = all(is_address(source.path[0]) and source.weight is None for source in data.sources)
    if rows is not None or drops_rows or not is_game:
        return rows, None
    counts = [count_rows(source.path[0], source.limit) for source in data.sources]
    # The questions take turns, and a share of them is held out.
    kept = 1.0 if data.evaluation is not None else 1.0 - data.eval_fraction
    return round(kept * sum(count for count, _ in counts)), round(kept * sum(verdicts for _, verdicts in counts))


def _answers(recipe: Recipe, found: Found | None, asked: int | None) -> int:
    if found is not None:
        return max(len(row.responses) for row in found.rows)
    games = [count_answers(source.path[0]) for source in recipe.data.sources if is_address(source.path[0])]
    return asked or max(games, default=2)
