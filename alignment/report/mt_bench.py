"""The page of MT-Bench: grades, comparisons, turns, categories."""

from collections.abc import Iterator, Mapping, Sequence

from alignment.evaluation.mt_bench import Compared, Graded, PairwiseScore
from alignment.report.blocks import Bars, Block, Code, Estimate, Mark, Note, Page, Section, Table


def mt_bench_page(
    name: str,
    graded: Sequence[Graded],
    compared: Sequence[Compared],
    *,
    num_questions: int,
    judge: str,
    notes: Sequence[str],
    manifest: str,
) -> Page:
    """The page.

    Args:
        name: of the evaluation.
        graded: grades of each policy.
        compared: comparisons of each policy with each opponent.
        num_questions: asked in two turns each.
        judge: who judged.
        notes: what a reader of the figures must know.
        manifest: what the figures were made by.
    """
    sections = [
        Section(title="Grades", blocks=[*_grade_bars(graded), *grade_tables(graded)]),
        Section(title="Comparisons", blocks=[*_win_bars(compared), *win_tables(compared)]),
        Section(title="Notes", blocks=[Note(text=note) for note in notes]),
        Section(title="Made by", blocks=[Code(title="manifest.json", text=manifest, folded=True)]),
    ]
    return Page(
        title=name,
        kind="MT-Bench",
        lead=f"{num_questions} questions of two turns, judged by {judge}; intervals of 95 %, the unit is the question",
        sections=[section for section in sections if section.blocks],
    )


def grade_tables(graded: Sequence[Graded]) -> Iterator[Table]:
    """Grades by turn and by category; nothing without any."""
    if not graded:
        return
    scores = [found.score for found in graded]
    yield Table(
        title="Grades by turn",
        columns=["policy", "first turn", "second turn", "average", "graded", "dropped"],
        rows=[
            [
                score.model,
                _grade(score.turn_1),
                _grade(score.turn_2),
                f"{score.average:.2f} [{score.low:.2f}, {score.high:.2f}]",
                float(score.n_rated),
                float(score.n_dropped),
            ]
            for score in scores
        ],
        caption="Dropped: replies of the judge without a grade.",
    )
    yield Table(
        title="Grades by category",
        columns=["category", *(score.model for score in scores)],
        rows=[
            [name, *(_grade(found.categories[name].average) if name in found.categories else None for found in graded)]
            for name in _names([found.categories for found in graded])
        ],
    )


def win_tables(compared: Sequence[Compared]) -> Iterator[Table]:
    """Win rates by turn and by category; nothing without any."""
    if not compared:
        return
    yield Table(
        title="Win rates",
        columns=["policy", "opponent", "win rate, %", "first turn", "second turn", "wins", "losses", "ties", "dropped"],
        rows=[
            [
                found.score.model,
                found.opponent,
                f"{found.score.win_rate_adjusted:.1f} [{found.score.low:.1f}, {found.score.high:.1f}]",
                *(_rate(found.turns, turn) for turn in ("1", "2")),
                float(found.score.n_wins),
                float(found.score.n_losses),
                float(found.score.n_ties),
                float(found.score.n_dropped),
            ]
            for found in compared
        ],
        caption="A win is one in both orders, and a tie counts half. Dropped: an order has no verdict.",
    )
    yield Table(
        title="Win rates by category, %",
        columns=["category", *map(_meeting, compared)],
        rows=[
            [name, *(_rate(found.categories, name) for found in compared)]
            for name in _names([found.categories for found in compared])
        ],
    )


def _grade_bars(graded: Sequence[Graded]) -> Iterator[Block]:
    if graded:
        scores = [found.score for found in graded]
        yield Bars(
            title="Mean grade",
            groups=[(score.model, [Estimate(value=score.average, low=score.low, high=score.high)]) for score in scores],
            names=["mean grade"],
            caption="From 1 to 10, over all answers that have a grade.",
            end=10.0,
        )


def _win_bars(compared: Sequence[Compared]) -> Iterator[Block]:
    if compared:
        opponents = {found.opponent for found in compared}
        has_one = len(opponents) == 1
        yield Bars(
            title=f"Win rate against {opponents.pop()}" if has_one else "Win rate",
            groups=[(found.score.model if has_one else _meeting(found), [_share(found.score)]) for found in compared],
            names=["win rate"],
            caption="Wins and half the ties.",
            upright=[Mark(value=0.5, label="even")],
            end=1.0,
        )


def _share(score: PairwiseScore) -> Estimate:
    return Estimate(value=score.win_rate_adjusted / 100.0, low=score.low / 100.0, high=score.high / 100.0)


def _meeting(found: Compared) -> str:
    return f"{found.score.model} vs {found.opponent}"


def _names(parts: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for one in parts for name in one))


def _rate(parts: Mapping[str, PairwiseScore], name: str) -> str | None:
    return f"{parts[name].win_rate_adjusted:.1f}" if name in parts else None


def _grade(grade: float | None) -> str | None:
    return None if grade is None else f"{grade:.2f}"
