"""A small text game on a real causal language model: every answer can be enumerated, so every claim can be checked."""

from alignment.textgame.addresses import (
    count_answers,
    count_rows,
    is_address,
    read_address,
    resolve_model,
    shared_game,
)
from alignment.textgame.exact import ExactFigures
from alignment.textgame.game import EnumeratedPolicy, TextGame
from alignment.textgame.model import untrained_model, word_tokenizer
from alignment.textgame.oracle import AnswerOracle
from alignment.textgame.views import VIEWS, draw_rows
from alignment.textgame.world import World, build_world

__all__ = [
    "VIEWS",
    "AnswerOracle",
    "EnumeratedPolicy",
    "ExactFigures",
    "TextGame",
    "World",
    "build_world",
    "count_answers",
    "count_rows",
    "draw_rows",
    "is_address",
    "read_address",
    "resolve_model",
    "shared_game",
    "untrained_model",
    "word_tokenizer",
]
