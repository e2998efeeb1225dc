"""Several sources in stated shares."""

import random
from collections.abc import Sequence
from typing import Literal

import datasets

from alignment.data.rows import Row
from alignment.errors import UserError

Stop = Literal["first_exhausted", "all_exhausted"]


def mix_rows(groups: Sequence[Sequence[Row]], weights: Sequence[float], *, stop: Stop, seed: int) -> tuple[Row, ...]:
    """Draw rows from the sources in proportion to the weights, each source in a shuffled order.

    ``datasets.interleave_datasets`` draws. With ``"first_exhausted"`` the mixture ends as soon as one source has run
    out, so rows of the others are left out; with ``"all_exhausted"`` it ends when each has been used up once, so the
    others start again and their rows come more than once.

    Args:
        groups: the rows of each source, none of them empty.
        weights: positive, one for each source; only their ratios count.
        stop: what happens when a source has run out.
        seed: of the draws.

    Raises:
        UserError: if a source is empty, or the numbers do not fit.
    """
    if len(groups) != len(weights) or not all(weight > 0.0 for weight in weights):
        raise UserError(f"expected one positive weight for each of {len(groups)} sources, found {list(weights)}")
    if not all(groups):
        raise UserError("expected rows in every source of a mixture, found an empty one; check what was removed")
    generator = random.Random(seed)
    orders = [generator.sample(range(len(group)), len(group)) for group in groups]
    drawn = datasets.interleave_datasets(
        [
            datasets.Dataset.from_dict({"group": [number] * len(order), "row": order})
            for number, order in enumerate(orders)
        ],
        probabilities=[weight / sum(weights) for weight in weights],
        seed=seed,
        stopping_strategy=stop,
    )
    return tuple(groups[group][row] for group, row in zip(list(drawn["group"]), list(drawn["row"]), strict=True))
