"""A small text game on a real causal language model: every answer can be enumerated, so every claim can be checked."""

from alignment.textgame.game import EnumeratedPolicy, TextGame
from alignment.textgame.oracle import AnswerOracle
from alignment.textgame.world import World, build_world

__all__ = ["AnswerOracle", "EnumeratedPolicy", "TextGame", "World", "build_world"]
