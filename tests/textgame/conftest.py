"""The world, and the game around a model with random weights: supervision takes half a minute."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.textgame import TextGame, World, build_world, shared_game
from alignment.textgame.game import encode_answers
from alignment.textgame.model import word_tokenizer
from alignment.tiny import tiny_model


@pytest.fixture(scope="session")
def world() -> World:
    return build_world()


@pytest.fixture(scope="session")
def text(world: World) -> TextGame:
    tokenizer = word_tokenizer(world)
    ref = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=64)
    return TextGame(world, tokenizer, ref, encode_answers(world, tokenizer))


@pytest.fixture
def addressed(text: TextGame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextGame]:
    """That game behind the addresses; its model goes to a cache of its own."""
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(TextGame, "build", lambda seed: text)
    shared_game.cache_clear()
    yield text
    shared_game.cache_clear()
