"""The data sets that the world gives: prompts, pairs, lists, labels, votes with names, scores of several oracles.

Answers are i.i.d. from the reference. What is decided is decided by one annotator, drawn from the crowd: the data say
what a crowd of people would say, with its noise. A verdict counts as a question to the oracle.

Shape letters: ``G`` answers of a row, ``N`` pairs of them; ``X``, ``A``, ``S`` as in the world.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from alignment.data import Comparison, OracleScores, Row, Turn
from alignment.textgame.game import TextGame

# Answers of a row where there are several.
_SEVERAL = 16

View = Callable[..., Row]
"""Game, number of the question, source of chance, and for :data:`SEVERAL` the number of answers -> a row."""


def prompt(text: TextGame, x: int, generator: torch.Generator) -> Row:
    """The question alone."""
    return _row(text, x, torch.empty(0, dtype=torch.long))


def demonstration(text: TextGame, x: int, generator: torch.Generator) -> Row:
    """An answer as people give it before any preference is learned."""
    return _row(text, x, torch.multinomial(text.world.habits_XA[x], 1, generator=generator))


def pair(text: TextGame, x: int, generator: torch.Generator) -> Row:
    """Two answers, one verdict."""
    drawn_G = _answers(text, x, 2, generator)
    return _row(text, x, drawn_G, comparisons=_verdicts(text, x, drawn_G, generator))


def comparisons(text: TextGame, x: int, generator: torch.Generator, answers: int = _SEVERAL) -> Row:
    """Several answers, each pair decided; of sixteen: 120 verdicts."""
    drawn_G = _answers(text, x, answers, generator)
    return _row(text, x, drawn_G, comparisons=_verdicts(text, x, drawn_G, generator))


def ranking(text: TextGame, x: int, generator: torch.Generator, answers: int = _SEVERAL) -> Row:
    """Several answers, each pair decided; a score is the share of its pairs that an answer won."""
    drawn_G = _answers(text, x, answers, generator)
    verdicts = _verdicts(text, x, drawn_G, generator)
    won = [sum(verdict.winner == g for verdict in verdicts) / (answers - 1) for g in range(answers)]
    return _row(text, x, drawn_G, comparisons=verdicts, scores=tuple(won))


def label(text: TextGame, x: int, generator: torch.Generator) -> Row:
    """One answer, one verdict: 1 if it beats another answer of the reference, else 0."""
    drawn_G = _answers(text, x, 2, generator)
    (verdict,) = _verdicts(text, x, drawn_G, generator)
    return _row(text, x, drawn_G[:1], scores=(float(verdict.winner == 0),))


def vote(text: TextGame, x: int, generator: torch.Generator) -> Row:
    """Two answers, one verdict, with the annotator's name and group."""
    drawn_G = _answers(text, x, 2, generator)
    annotators_N = _annotators(text, 1, generator)
    is_minority = int(annotators_N) == text.world.minority
    return _row(
        text,
        x,
        drawn_G,
        comparisons=_verdicts(text, x, drawn_G, generator, annotators_N),
        annotator="minority" if is_minority else f"school {int(annotators_N) + 1}",
        group="minority" if is_minority else "schools",
    )


def scored(text: TextGame, x: int, generator: torch.Generator, answers: int = _SEVERAL) -> Row:
    """Several answers, rated by each group of annotators: the probability of beating an answer of the reference."""
    drawn_G = _answers(text, x, answers, generator)
    panel = [
        OracleScores(name, tuple((prefs_XAA[x, drawn_G] @ text.ref_XA[x]).tolist()))
        for name, prefs_XAA in text.group_preferences.items()
    ]
    return _row(text, x, drawn_G, panel=tuple(panel))


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "prompts": prompt,
        "demonstrations": demonstration,
        "pairs": pair,
        "comparisons": comparisons,
        "lists": ranking,
        "labels": label,
        "votes": vote,
        "scores": scored,
    }
)

SEVERAL = ("comparisons", "lists", "scores")
"""Views whose rows have several answers."""


def draw_rows(text: TextGame, name: str, count: int, *, seed: int = 0, answers: int | None = None) -> tuple[Row, ...]:
    """A data set of the game.

    Args:
        text: the game.
        name: a key of :data:`VIEWS`.
        count: rows; the questions take turns.
        seed: of answers and verdicts.
        answers: of a row, for a view of :data:`SEVERAL`; ``None`` for sixteen.
    """
    view = VIEWS[name] if answers is None else partial(VIEWS[name], answers=answers)
    generator = torch.Generator().manual_seed(seed)
    return tuple(view(text, n % len(text.world.questions), generator) for n in range(count))


def verdicts_of_a_row(name: str, answers: int | None = None) -> int:
    """How often somebody was asked for a row of a view.

    Example:
        >>> verdicts_of_a_row("comparisons"), verdicts_of_a_row("lists", 4), verdicts_of_a_row("prompts")
        (120, 6, 0)
    """
    count = answers or _SEVERAL
    pairs = count * (count - 1) // 2
    # Two groups rate each answer.
    several = {"comparisons": pairs, "lists": pairs, "scores": 2 * count}
    return several.get(name, 0 if name in ("prompts", "demonstrations") else 1)


def answers_of_a_row(name: str, answers: int | None = None) -> int:
    """How many answers a row of a view has.

    Example:
        >>> answers_of_a_row("lists", 4), answers_of_a_row("votes"), answers_of_a_row("prompts")
        (4, 2, 0)
    """
    if name in SEVERAL:
        return answers or _SEVERAL
    return {"prompts": 0, "demonstrations": 1, "labels": 1}.get(name, 2)


def _row(text: TextGame, x: int, answers_G: Tensor, **feedback: Any) -> Row:
    world = text.world
    return Row(
        prompt=(Turn("user", world.questions[x]),),
        responses=tuple(world.answers[x][a] for a in answers_G.tolist()),
        source=f"textgame:{x + 1}",
        **feedback,
    )


def _answers(text: TextGame, x: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(text.ref_XA[x], count, replacement=True, generator=generator)


def _annotators(text: TextGame, count: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(text.world.weights_S, count, replacement=True, generator=generator)


def _verdicts(
    text: TextGame, x: int, drawn_G: Tensor, generator: torch.Generator, annotators_N: Tensor | None = None
) -> tuple[Comparison, ...]:
    """Every pair of answers is decided, by an annotator of its own unless they are given."""
    first_N, second_N = torch.triu_indices(len(drawn_G), len(drawn_G), offset=1)
    if annotators_N is None:
        annotators_N = _annotators(text, len(first_N), generator)
    wins_N = torch.bernoulli(
        text.world.prefers(annotators_N, x, drawn_G[first_N], drawn_G[second_N]), generator=generator
    )
    return tuple(
        Comparison(i, j) if wins else Comparison(j, i)
        for i, j, wins in zip(first_N.tolist(), second_N.tolist(), wins_N.tolist(), strict=True)
    )
