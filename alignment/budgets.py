"""What a recipe will ask of its oracle, before anything is spent."""

from alignment.config import Recipe
from alignment.rounds import questions_of_a_prompt
from alignment.textgame import count_rows, is_address
from alignment.types import Needs


def planned_verdicts(recipe: Recipe, *, num_processes: int = 1) -> int | None:
    """How many verdicts a run will learn from: ``oracle_calls`` of its ``summary.json``.

    Evaluations ask as well, and are not counted. A policy that collapses may ask less: nobody is asked about answers
    that are all alike.

    Args:
        recipe: a checked one.
        num_processes: of the launch; each has a batch of its own.

    Returns:
        The number, or ``None`` where only the data tell: files, filters, epochs.
    """
    needs, sampling = recipe.build_method().needs, recipe.sampling
    if recipe.samples_in_rounds:
        rows = _count_rows(recipe)
        rounds = 1 if recipe.schedule.prompts == "split" else recipe.schedule.rounds
        each = questions_of_a_prompt(recipe.schedule.pairs, sampling.num_completions)
        return None if rows is None else len(recipe.by_player()) * rounds * rows[0] * each
    if not needs.samples_in_batches:
        rows = _count_rows(recipe)
        return None if rows is None else rows[1]
    max_steps = recipe.training.get("max_steps", -1)
    if max_steps <= 0 or sampling.engine == "enumerate":
        return None
    batch = recipe.training.get("per_device_train_batch_size", 8) * recipe.training.get(
        "gradient_accumulation_steps", 1
    )
    prompts = max_steps * needs.stages * batch * num_processes
    return int(prompts * questions_of_a_rollout(recipe, needs))


def questions_of_a_rollout(recipe: Recipe, needs: Needs) -> int:
    """How often the oracle, or a panel's members together, are asked about the answers to one prompt of a batch."""
    own = recipe.sampling.num_completions
    if needs.opponent in ("none", "group"):
        return own * (own - 1) // 2
    num_oracles = len(recipe.oracle["members"]) if needs.num_oracles == "many" and recipe.oracle is not None else 1
    return own * recipe.sampling.opponent.num_completions * num_oracles


def _count_rows(recipe: Recipe) -> tuple[int, int] | None:
    """Rows of the training data, and the verdicts in them; ``None`` where they must be read to be counted."""
    data = recipe.data
    drops_rows = any(block is not None for block in (data.filters, data.duplicates, data.decontaminate))
    is_known = all(source.weight is None and is_address(source.path[0]) for source in data.sources)
    if drops_rows or data.evaluation is None or not is_known:
        return None
    counts = [count_rows(source.path[0], source.limit) for source in data.sources]
    return sum(rows for rows, _ in counts), sum(verdicts for _, verdicts in counts)
