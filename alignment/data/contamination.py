"""Training prompts that hold an evaluation prompt: found by the share of its n-grams that they contain."""

import re
from collections import defaultdict
from collections.abc import Sequence

from alignment.data.duplicates import normalised
from alignment.data.rows import Kept, Row
from alignment.errors import UserError

# A word, or one character of a script that is written without spaces.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_TOKEN_OR_SYMBOL = re.compile(rf"{_TOKEN.pattern}|[^\w\s]")
# Marks of a sentence, which the same prompt has or lacks; not those of a number or a formula, such as 3.5 and n!=1.
_MARKS = re.compile(r"""['"‘’“”«»„]|[.,;:!?…¿¡。、](?![\d=+\-*/<>^%|&])""")


def drop_contaminated(rows: Sequence[Row], against: Sequence[Row], *, ngram: int = 8, overlap: float = 0.5) -> Kept:
    """Leave out rows whose prompt holds a prompt of an evaluation set.

    A prompt is what stands in its turns of the role user or text; replies and system prompts are not looked at. An
    evaluation prompt is held if more than ``overlap`` of its words lie in n-grams that the training prompt has too. One
    with fewer than ``ngram`` words is held if a whole turn, or the whole prompt, consists of the same words and symbols
    but for the marks of a sentence: C++ is not C#. One without words is held by the same text alone.

    Args:
        rows: what to train on.
        against: evaluation rows; only their prompts are read.
        ngram: length of the n-grams in words; one character counts as a word in Chinese, Japanese and Thai.
        overlap: in [0, 1).

    Returns:
        The rows that stay; for each other one ``"its source ~ the evaluation row's source (share)"``.

    Raises:
        UserError: if a number is out of its range.
    """
    if ngram < 1 or not 0.0 <= overlap < 1.0:
        raise UserError(f"expected ngram >= 1 and overlap in [0, 1), found {ngram} and {overlap}; 8 and 0.5 are usual")
    index = _Index(against, ngram)
    kept: list[Row] = []
    held: list[str] = []
    for row in rows:
        share, source = index.find(row)
        if share > overlap:
            held.append(f"{row.source} ~ {source} ({share:.0%})")
        else:
            kept.append(row)
    return Kept(rows=tuple(kept), removed={"prompt holds an evaluation prompt": tuple(held)} if held else {})


class _Index:
    """Evaluation prompts by their n-grams."""

    def __init__(self, rows: Sequence[Row], ngram: int) -> None:
        self.ngram = ngram
        self.sources: list[str] = []
        self.prompts: list[list[tuple[str, ...]]] = []
        self.sizes: list[int] = []
        self.holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.short: dict[tuple[str, ...], str] = {}
        for row in rows:
            text = " ".join(_turns(row))
            words = _words(text)
            if len(words) < ngram:
                self.short.setdefault(_whole(text), row.source)
                continue
            grams = _grams(words, ngram)
            for gram in dict.fromkeys(grams):
                self.holders[gram].append(len(self.prompts))
            self.prompts.append(grams)
            self.sizes.append(len(words))
            self.sources.append(row.source)

    def find(self, row: Row) -> tuple[float, str]:
        """The largest share of an evaluation prompt that the row's prompt holds, and that prompt's source."""
        turns = _turns(row)
        for text in (*turns, " ".join(turns)):
            if (source := self.short.get(_whole(text))) is not None:
                return 1.0, source
        shared = {gram for gram in _grams(_words(" ".join(turns)), self.ngram) if gram in self.holders}
        candidates = dict.fromkeys(number for gram in shared for number in self.holders[gram])
        shares = [(self._covered(number, shared), self.sources[number]) for number in candidates]
        return max(shares, key=lambda pair: pair[0], default=(0.0, ""))

    def _covered(self, number: int, shared: set[tuple[str, ...]]) -> float:
        covered: set[int] = set()
        for start, gram in enumerate(self.prompts[number]):
            if gram in shared:
                covered.update(range(start, start + self.ngram))
        return len(covered) / self.sizes[number]


def _turns(row: Row) -> list[str]:
    return [turn.content for turn in row.prompt if turn.role in ("user", "text")]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(normalised(text)))


def _whole(text: str) -> tuple[str, ...]:
    """What a short text says: its words and symbols."""
    plain = normalised(text)
    return tuple(_TOKEN_OR_SYMBOL.findall(_MARKS.sub(" ", plain))) if _TOKEN.search(plain) else (plain,)


def _grams(words: tuple[str, ...], ngram: int) -> list[tuple[str, ...]]:
    return [words[start : start + ngram] for start in range(len(words) - ngram + 1)]
