"""Arena-Hard's files: judgements of both versions, battles, and the style of answers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.errors import UserError
from alignment.evaluation.arena import STYLE, Battle, Contest, Version
from alignment.evaluation.published import Record, check_distinct, read_records

STRONG = 3
BASELINES = {
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
    "arena-hard-v0.1": "gpt-4-0314",
}
"""The baseline of each category; v0.1 has one."""

_VERDICT = re.compile(r"\[\[([AB][<>=]{1,2}[AB])\]\]")
# Label -> (share that A wins, how often it counts). Labels of the one side are also written from the other.
_LABELS = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG),
    "A<<B": (0.0, STRONG),
    "A<B": (0.0, 1),
    "B=A": (0.5, 1),
    "B<A": (1.0, 1),
    "B<<A": (1.0, STRONG),
}


def read_contests(path: Path, *, version: Version, baseline: str | None = None) -> tuple[Contest, ...]:
    """Arena-Hard's judgements in JSON lines, or battles with ``model_a``, ``model_b`` and ``winner``.

    A judgement has ``question_id`` (v2.0: ``uid``), ``model`` and two ``games``, of which the second one shows the
    model first; a game has a ``score`` or, without one, the ``judgment``. The winner of a battle is ``model_a``,
    ``model_b`` or ``tie``; battles count once each.

    Args:
        path: the file.
        version: which games are dropped with others.
        baseline: of rows that do not say it; ``None`` for :data:`BASELINES`.

    Raises:
        UserError: if a model meets itself, a question comes twice, or nobody says what the baseline is.
    """
    records = read_records(path)
    if "winner" in records[0].values:
        return _read_battles(records, path, baseline)
    records[0].value("games")
    keys = [(record.name("model"), record.name("uid", "question_id")) for record in records]
    check_distinct(keys, records, "a model and a question")
    battles: dict[tuple[str, str, str], list[Battle]] = {}
    dropped: dict[tuple[str, str, str], int] = {}
    for record, (model, prompt) in zip(records, keys, strict=True):
        category = record.text("category") if "category" in record.values else f"arena-hard-{version}"
        opponent = _baseline(record, category, baseline)
        if opponent == model:
            raise UserError(f"{record.source}: expected a model other than the baseline, found {model}; remove the row")
        contest = (category, model, opponent)
        verdicts = _verdicts(record)
        if version == "v2.0" and None in verdicts:
            verdicts = (None, None)
        found = [Battle(prompt=prompt, win=verdict[0], count=verdict[1]) for verdict in verdicts if verdict is not None]
        battles.setdefault(contest, []).extend(found)
        dropped[contest] = dropped.get(contest, 0) + len(verdicts) - len(found)
    return _contests(battles, dropped, path)


def read_style(paths: Sequence[Path]) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(model, prompt) -> the counts of :data:`STYLE`, from Arena-Hard's answer files.

    Args:
        paths: files, or folders of ``.jsonl`` files.

    Raises:
        UserError: if an answer has no counts.
    """
    style: dict[tuple[str, str], NDArray[np.float64]] = {}
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    for file in files:
        for record in read_records(file):
            name = "conv_metadata" if "conv_metadata" in record.values else "metadata"
            counts = record.value(name)
            if not isinstance(counts, dict):
                raise UserError(f"{record.source}: expected counts in {name!r}, found none; add them to the answers")
            inner = Record(record.source, counts)
            answer = (record.name("model", "model_id"), record.name("uid", "question_id"))
            style[answer] = np.array([_count(inner, feature) for feature in STYLE])
    return style


def parse_verdict(judgment: str) -> str | None:
    """The label of a judgement in double brackets; ``None`` without one, and for several that differ.

    Example:
        >>> parse_verdict("My final verdict is [[A>>B]]."), parse_verdict("[[A>B]] or [[B>A]]"), parse_verdict("A")
        ('A>>B', None, None)
    """
    labels = set(_VERDICT.findall(judgment))
    return labels.pop() if len(labels) == 1 else None


def _read_battles(records: Sequence[Record], path: Path, baseline: str | None) -> tuple[Contest, ...]:
    pairs = [(record.text("model_a"), record.text("model_b")) for record in records]
    common = set.intersection(*map(set, pairs))
    if baseline is None and len(common) != 1:
        found = ", ".join(sorted(common)) or "none"
        raise UserError(f"{path}: expected one model that is in all battles, found {found}; name it by --baseline")
    opponent = baseline or common.pop()
    battles: dict[tuple[str, str, str], list[Battle]] = {}
    dropped: dict[tuple[str, str, str], int] = {}
    for record, pair in zip(records, pairs, strict=True):
        if pair.count(opponent) != 1:
            raise UserError(f"{record.source}: expected a battle against {opponent}, found {' and '.join(pair)}")
        model = pair[1 - pair.index(opponent)]
        shares = {"tie": 0.5, "model_a": float(model == pair[0]), "model_b": float(model == pair[1])}
        contest = ("all", model, opponent)
        battles.setdefault(contest, [])
        share = shares.get(str(record.value("winner")))
        if share is None:
            dropped[contest] = dropped.get(contest, 0) + 1
        else:
            battles[contest].append(Battle(prompt=record.name("question_id"), win=share))
    return _contests(battles, dropped, path)


def _contests(
    battles: Mapping[tuple[str, str, str], Sequence[Battle]], dropped: Mapping[tuple[str, str, str], int], path: Path
) -> tuple[Contest, ...]:
    for (_, model, _), found in battles.items():
        if not found:
            raise UserError(f"{path}: expected one verdict at least on {model}, found none; nothing can be scored")
    return tuple(
        Contest(
            model=contest[1],
            baseline=contest[2],
            category=contest[0],
            battles=tuple(found),
            num_dropped=dropped.get(contest, 0),
        )
        for contest, found in battles.items()
    )


def _baseline(record: Record, category: str, baseline: str | None) -> str:
    if baseline is not None:
        return baseline
    if "baseline" in record.values:
        return record.text("baseline")
    if category not in BASELINES:
        raise UserError(
            f"{record.source}: expected a column 'baseline' or one of the categories {', '.join(BASELINES)}, found "
            f"{category!r}; name the baseline by --baseline"
        )
    return BASELINES[category]


def _verdicts(record: Record) -> tuple[tuple[float, int] | None, ...]:
    """What the model won in each game and how often it counts; ``None`` for no verdict."""
    games = record.value("games")
    if not isinstance(games, list) or len(games) != 2:
        raise UserError(f"{record.source}: expected two games, one in each order, found {games!r:.60}; judge both")
    first, second = (_LABELS.get(_label(record, game)) for game in games)
    # The model is B in the first game, and A in the second.
    return None if first is None else (1.0 - first[0], first[1]), second


def _label(record: Record, game: Any) -> str:
    """What the judge said, which may be no label."""
    if game is None:
        return ""
    if not isinstance(game, dict) or not {"score", "judgment"} & game.keys():
        raise UserError(f"{record.source}: expected games with a 'score' or a 'judgment', found {game!r:.60}")
    if "score" in game:
        return str(game["score"])
    judgment = game["judgment"]
    return parse_verdict(str(judgment["answer"] if isinstance(judgment, dict) else judgment)) or ""


def _count(record: Record, feature: str) -> float:
    """A number, or the sum of numbers by kind, such as headers by level."""
    value = record.value(feature)
    if isinstance(value, dict):
        inner = Record(record.source, value)
        return sum(inner.number(name) for name in value)
    return record.number(feature)
