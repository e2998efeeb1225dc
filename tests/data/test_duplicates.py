"""Exact and near duplicates: what is one, what is not, and that nothing else is removed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.data import Comparison, OracleScores, Row, Turn, drop_duplicates, read_rows
from alignment.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pair(left: str, right: str, *, winner: int = 0, prompt: str = "Why?", source: str = "a:1", **rest: str) -> Row:
    return Row(
        prompt=(Turn("user", prompt),),
        responses=(left, right),
        comparisons=(Comparison(winner, 1 - winner),),
        source=source,
        **rest,
    )


def text(seed: int, length: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices(LETTERS, k=generator.randint(2, 8))) for _ in range(length))


def test_the_first_of_equal_rows_stays() -> None:
    first = pair("Red.", "Blue.")
    copies = [
        pair("red. ", "BLUE.", source="a:2"),
        pair("Blue.", "Red.", winner=1, source="a:3"),
        pair("Red.", "Blue.", prompt=" why?\n", source="a:4"),
    ]
    result = drop_duplicates([first, *copies])
    assert result.rows == (first,)
    assert result.removed == {"same as an earlier row": ("a:2 = a:1", "a:3 = a:1", "a:4 = a:1")}


@pytest.mark.parametrize(
    "other",
    [
        pair("Red.", "Blue.", winner=1),
        pair("Red.", "Blue.", annotator="b"),
        pair("Red.", "Blue.", group="g"),
        pair("Red.", "Green."),
        pair("Red.", "Blue.", prompt="Why not?"),
    ],
    ids=["another verdict", "another annotator", "another group", "another response", "another prompt"],
)
def test_what_is_no_duplicate(other: Row) -> None:
    assert len(drop_duplicates([pair("Red.", "Blue."), other]).rows) == 2


def test_other_scores_of_a_panel_are_another_verdict() -> None:
    """Whichever order the responses stand in."""
    first, same, other = (
        Row(prompt=(Turn("user", "Why?"),), responses=texts, panel=(OracleScores("kind", scores),), source=source)
        for texts, scores, source in (
            (("Red.", "Blue."), (1.0, 0.0), "a:1"),
            (("Blue.", "Red."), (0.0, 1.0), "a:2"),
            (("Red.", "Blue."), (0.0, 1.0), "a:3"),
        )
    )
    assert drop_duplicates([first, same, other]).rows == (first, other)


def test_one_word_in_sixty_makes_a_near_duplicate_and_all_of_its_rows_go() -> None:
    left, right = text(1), text(2)
    changed = left.replace(left.split()[30], "changed", 1)
    rows = [
        pair(left, right, prompt="Tell me something."),
        pair(changed, right, prompt="Tell me something.", source="b:1", annotator="x"),
        pair(changed, right, prompt="Tell me something.", winner=1, source="b:2", annotator="y"),
    ]
    result = drop_duplicates(rows, similarity=0.8)
    assert result.rows == (rows[0],)
    assert result.removed == {"nearly the same as an earlier row": ("b:1 = a:1", "b:2 = a:1")}
    assert len(drop_duplicates(rows, similarity=0.999).rows) == 3
    assert len(drop_duplicates(rows).rows) == 3


def test_the_bound_of_1_is_the_same_shingles() -> None:
    """ "hahah" and "ahaha" are all that a laugh says, however long it is; the last letter of a text is part of one."""
    laughs = [pair("ha" * 20, "ho" * 20), pair("ha" * 30, "ho" * 25, source="a:2")]
    assert drop_duplicates(laughs, similarity=1.0).rows == (laughs[0],)
    endings = [pair("Monday", "Friday"), pair("Mondax", "Fridax", source="a:2")]
    assert drop_duplicates(endings, similarity=1.0).rows == tuple(endings)


def test_other_answers_to_one_long_prompt_stay() -> None:
    rows = [pair(text(seed, 8), text(seed + 50, 8), prompt=text(0, 200), source=f"a:{seed}") for seed in range(1, 9)]
    assert drop_duplicates(rows, similarity=0.6).rows == tuple(rows)


def test_the_same_answers_to_another_prompt_stay() -> None:
    rows = [pair("Yes.", "No.", prompt=text(seed, 20), source=f"a:{seed}") for seed in range(8)]
    assert drop_duplicates(rows, similarity=0.6).rows == tuple(rows)


def test_near_copies_planted_among_many_are_found_and_no_others() -> None:
    """100 texts and a copy of each with two of sixty words changed: Jaccard about 0.85 to 0.9."""
    originals = [pair(text(seed), text(seed + 1000), source=f"a:{seed}") for seed in range(100)]
    copies = []
    for seed, row in enumerate(originals):
        words = row.responses[0].split()
        words[10], words[40] = "other", "words"
        copies.append(pair(" ".join(words), row.responses[1], source=f"b:{seed}"))
    result = drop_duplicates([*originals, *copies], similarity=0.75)
    assert set(originals) <= set(result.rows)
    (removed,) = result.removed.values()
    assert len(removed) >= 98, "banding may miss one or two that are close to the bound"
    assert all(line.split(" = ")[0][2:] == line.split(" = ")[1][2:] for line in removed)


def test_removing_twice_removes_nothing_more() -> None:
    rows = [pair(text(seed % 7), text(seed % 5 + 50), source=f"a:{seed}") for seed in range(40)]
    once = drop_duplicates(rows, similarity=0.8).rows
    assert drop_duplicates(once, similarity=0.8).rows == once
    assert len(once) == 35, "seven times five different pairs"


def test_a_similarity_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a similarity in \(0, 1\], found 80"):
        drop_duplicates([pair("a", "b")], similarity=80)


def test_the_real_pairs_hold_few(real_data: Callable[[str], Path]) -> None:
    rows = read_rows(real_data("preferences/llmbar_natural_gptinst.jsonl.gz"), columns=LLMBAR).rows
    assert len(rows) == 192
    assert drop_duplicates(rows).rows == rows


LLMBAR = {"prompt": "input", "responses": ["output_1", "output_2"], "label": "label"}
