"""Rows that say the same twice: equal up to case and white space, or nearly equal by their character shingles."""

import unicodedata
from collections.abc import Sequence

import xxhash
from datasketch import MinHash, MinHashLSH

from alignment.data.rows import Kept, Row
from alignment.errors import UserError

_SHINGLE = 5
_PERMUTATIONS = 128
# The index may propose too many, never too few if that can be helped: each proposal is checked exactly.
_FALSE_POSITIVE, _FALSE_NEGATIVE = 0.1, 0.9
# Above it the bands would be too few.
_HIGHEST_THRESHOLD = 0.95


def normalised(text: str) -> str:
    """A text without what does not make it another one: form of its characters (NFKC), case, runs of white space.

    Example:
        >>> normalised("Ｗhat  IS\\nthis?")
        'what is this?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_key(row: Row) -> tuple[str, tuple[str, ...]]:
    """The normalised prompt, and the normalised responses in an order of their own."""
    prompt = "\n".join(normalised(turn.content) for turn in row.prompt)
    return prompt, tuple(sorted(normalised(text) for text in row.responses))


def drop_duplicates(rows: Sequence[Row], *, similarity: float | None = None) -> Kept:
    """Keep the first of rows that say the same.

    Exact duplicates have the same normalised prompt and responses, annotator, group and feedback. Two people who say
    the same of one pair are no duplicates, and neither are contrary verdicts: both are information.

    Near duplicates have prompts and responses whose sets of 5-character shingles have a Jaccard index of at least
    ``similarity``, each by itself: two answers to one long prompt stay. All rows of the later content go, whoever
    compared there. Candidates are found by MinHash (128 permutations, banded), so a near duplicate close to the bound
    may be missed; a row that is removed is always within it.

    Args:
        rows: any.
        similarity: in (0, 1]; ``None`` for exact duplicates only.

    Returns:
        The rows that stay; for each other one ``"its source = the source of what stays"``.

    Raises:
        UserError: if the similarity is not in (0, 1].
    """
    if similarity is not None and not 0.0 < similarity <= 1.0:
        raise UserError(f"expected a similarity in (0, 1], found {similarity}; 0.8 is usual")
    removed: dict[str, list[str]] = {}
    firsts: dict[object, Row] = {}
    for row in rows:
        first = firsts.setdefault((content_key(row), _verdict(row)), row)
        if first is not row:
            removed.setdefault("same as an earlier row", []).append(f"{row.source} = {first.source}")
    kept = tuple(firsts.values())
    if similarity is not None:
        kept = _drop_near(kept, similarity, removed)
    return Kept(rows=kept, removed={reason: tuple(sources) for reason, sources in removed.items()})


def _verdict(row: Row) -> tuple[object, ...]:
    texts = [normalised(text) for text in row.responses]
    comparisons = frozenset(
        (texts[comparison.winner], texts[comparison.loser], comparison.probability) for comparison in row.comparisons
    )
    scores = None if row.scores is None else tuple(sorted(zip(texts, row.scores, strict=True)))
    panel = tuple((judge.oracle, *sorted(zip(texts, judge.scores, strict=True))) for judge in row.panel)
    return comparisons, scores, panel, row.annotator, row.group


def _drop_near(rows: tuple[Row, ...], similarity: float, removed: dict[str, list[str]]) -> tuple[Row, ...]:
    threshold = min(similarity, _HIGHEST_THRESHOLD)
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(_FALSE_POSITIVE, _FALSE_NEGATIVE))
    sources: list[str] = []
    contents: list[tuple[str, tuple[str, ...]]] = []
    twins: dict[tuple[str, tuple[str, ...]], int | None] = {}
    kept = []
    for row in rows:
        content = content_key(row)
        if content not in twins:
            sketch = _sketch(content)
            near = [i for i in sorted(index.query(sketch)) if _are_near(contents[i], content, similarity)]
            twins[content] = near[0] if near else None
            if not near:
                index.insert(len(contents), sketch)
                contents.append(content)
                sources.append(row.source)
        twin = twins[content]
        if twin is None:
            kept.append(row)
        else:
            removed.setdefault("nearly the same as an earlier row", []).append(f"{row.source} = {sources[twin]}")
    return tuple(kept)


def _sketch(content: tuple[str, tuple[str, ...]]) -> MinHash:
    prompt, responses = content
    shingles = set().union(*(_shingles(text) for text in responses or (prompt,)))
    sketch = MinHash(num_perm=_PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch


def _are_near(first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]], similarity: float) -> bool:
    if len(first[1]) != len(second[1]):
        return False
    return all(
        _jaccard(set().union(*map(_shingles, own)), set().union(*map(_shingles, other))) >= similarity
        for own, other in (((first[0],), (second[0],)), (first[1], second[1]))
    )


def _shingles(text: str) -> set[str]:
    return {text[start : start + _SHINGLE] for start in range(max(len(text) - _SHINGLE + 1, 1))}


def _jaccard(first: set[str], second: set[str]) -> float:
    union = len(first | second)
    return len(first & second) / union if union else 1.0
