"""The text game under addresses, so that a recipe can name what it needs of it: ``textgame://model``, ``textgame://pairs``.

A data set whose rows have several answers takes their number: ``textgame://lists?answers=4``.

One game serves a process: whoever names it meets the same world, model and preferences.
"""

from collections.abc import Mapping
from functools import cache

from alignment.data import ReadResult
from alignment.errors import UserError
from alignment.textgame.game import TextGame
from alignment.textgame.model import model_folder
from alignment.textgame.views import SEVERAL, VIEWS, answers_of_a_row, draw_rows, verdicts_of_a_row
from alignment.textgame.world import build_world

SCHEME = "textgame://"
MODEL = f"{SCHEME}model"
# Rows of a data set without a limit.
_ROWS = 3000
_SEED = 0


def is_address(name: str | None) -> bool:
    """Whether a name in a recipe means the text game."""
    return name is not None and name.startswith(SCHEME)


@cache
def shared_game() -> TextGame:
    """The game of this process; at first its model is supervised, which takes half a minute, then it is cached."""
    return TextGame.build(seed=_SEED)


def resolve_model(name: str) -> str:
    """The folder of the game's model for its address; any other name stays.

    Raises:
        UserError: for another address of the game.
    """
    if not is_address(name):
        return name
    if name != MODEL:
        raise UserError(f"policy.model: expected '{MODEL}', which is the only model of the text game, got '{name}'")
    text = shared_game()
    return str(model_folder(text.world, text.tokenizer, text.ref, seed=_SEED))


def read_address(path: str, limit: int | None) -> ReadResult:
    """The rows of a data set of the game.

    Args:
        path: ``textgame://`` and a key of :data:`~alignment.textgame.views.VIEWS`, and ``?answers=N`` where it may be.
        limit: rows; ``None`` for 3,000, of ``prompts`` for each question once.

    Raises:
        UserError: for another name.
    """
    name, answers = _parse(path)
    text = shared_game()
    count = limit or (len(text.world.questions) if name == "prompts" else _ROWS)
    rows = draw_rows(text, name, count, seed=_SEED, answers=answers)
    no_omissions: Mapping[str, tuple[str, ...]] = {}
    return ReadResult(rows=rows, skipped=no_omissions, dropped=no_omissions, formats=(name,), num_read=count)


def count_rows(path: str, limit: int | None) -> tuple[int, int]:
    """How many rows :func:`read_address` gives, and the verdicts in them; nothing is drawn.

    Raises:
        UserError: for another name.

    Example:
        >>> count_rows("textgame://comparisons", 10)
        (10, 1200)
    """
    name, answers = _parse(path)
    count = limit or (len(build_world().questions) if name == "prompts" else _ROWS)
    return count, count * verdicts_of_a_row(name, answers)


def count_answers(path: str) -> int:
    """How many answers each row of :func:`read_address` has.

    Raises:
        UserError: for another name.
    """
    return answers_of_a_row(*_parse(path))


def _parse(path: str) -> tuple[str, int | None]:
    """The view of an address, and how many answers its rows have where it says so."""
    name, mark, query = path.removeprefix(SCHEME).partition("?")
    if name not in VIEWS:
        raise UserError(f"data: expected one of {', '.join(SCHEME + view for view in VIEWS)}, got '{path}'")
    if not mark:
        return name, None
    key, _, number = query.partition("=")
    if key != "answers" or name not in SEVERAL or not number.isdecimal() or int(number) < 2:
        raise UserError(f"data: expected ?answers=N, at least 2, after {' or '.join(SEVERAL)} only, got '{path}'")
    return name, int(number)
