"""The text game under addresses, so that a recipe can name what it needs of it: ``textgame://model``, ``textgame://pairs``.

One game serves a process: whoever names it meets the same world, model and preferences.
"""

from collections.abc import Mapping
from functools import cache

from alignment.data import ReadResult
from alignment.errors import UserError
from alignment.textgame.game import TextGame
from alignment.textgame.model import model_folder
from alignment.textgame.views import VIEWS, draw_rows

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
        path: ``textgame://`` and a key of :data:`~alignment.textgame.views.VIEWS`.
        limit: rows; ``None`` for 3,000, of ``prompts`` for each question once.

    Raises:
        UserError: for another name.
    """
    name = path.removeprefix(SCHEME)
    if name not in VIEWS:
        raise UserError(f"data: expected one of {', '.join(SCHEME + view for view in VIEWS)}, got '{path}'")
    text = shared_game()
    count = limit or (len(text.world.questions) if name == "prompts" else _ROWS)
    rows = draw_rows(text, name, count, seed=_SEED)
    no_omissions: Mapping[str, tuple[str, ...]] = {}
    return ReadResult(rows=rows, skipped=no_omissions, dropped=no_omissions, formats=(name,), num_read=count)
