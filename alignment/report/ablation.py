"""What an ablation found, for people: tables for the terminal and for Markdown, a figure, and a page."""

from collections.abc import Iterator, Sequence

from alignment.evaluation.ablations import Ablated, Row
from alignment.evaluation.seeds import SeedMean
from alignment.report.blocks import (
    Block,
    Code,
    Estimate,
    Fact,
    Facts,
    Fold,
    Forest,
    Mark,
    Note,
    Page,
    Scatter,
    Section,
    Series,
    Table,
)

Text = tuple[list[str], list[list[str]]]


def variants_table(found: Ablated) -> Text:
    """Headings and a row for each variant, the best first; a column that no variant fills is left out."""
    rows = [_described(row, found) for row in found.rows]
    headings = [name for name in rows[0] if any(row[name] for row in rows)]
    return headings, [[row[name] or "–" for name in headings] for row in rows]


def comparisons_table(found: Ablated) -> Text:
    """Headings and a row for every two variants."""
    headings = ["first", "second", f"difference of {found.metric}", "p", "p, all pairs", "verdict"]
    return headings, [
        [
            pair.first,
            pair.second,
            _shown(pair.difference) or "–",
            f"{pair.p_value:.2g}",
            f"{pair.adjusted:.2g}",
            pair.verdict,
        ]
        for pair in found.comparisons
    ]


def tuning_table(found: Ablated) -> Text:
    """Headings and a row for each setting that was tried."""
    headings = ["variant", "setting", f"{found.metric}, tuning seeds", "chosen"]
    return headings, [
        [item.variant, item.trial, _shown(item.mean) or "failed", "yes" if item.is_chosen else ""]
        for item in found.tried
    ]


def markdown(found: Ablated) -> str:
    """All tables and notes as a page of Markdown."""
    parts = [_markdown_table(*variants_table(found)), _markdown_table(*comparisons_table(found))]
    if found.tried:
        parts.append(_markdown_table(*tuning_table(found)))
    parts.append("\n".join(f"- {note}" for note in _how_to_read(found)))
    return "\n".join(f"{part}\n" for part in parts if part)


def forest(found: Ablated) -> Forest:
    """Means with their intervals, and the runs behind them."""
    return Forest(
        title=f"{found.metric}, {found.metrics[found.metric]} is better",
        rows=[(row.variant, _estimate(row.means[found.metric]), _values(found, row)) for row in found.rows],
        caption="The mean over seeds with its 95 % interval; a ring is a run.",
        upright=[] if found.start is None else [Mark(value=found.start, label="before training")],
    )


def ablation_page(name: str, found: Ablated, *, recipe: str) -> Page:
    """The page.

    Args:
        name: of the ablation.
        found: what it found.
        recipe: as resolved.
    """
    variants, comparisons, runs = variants_table(found), comparisons_table(found), _runs_table(found)
    sections = [
        Section(title="Result", blocks=[*_overview(found), _table(variants, _HOW_TO_READ)]),
        Section(title="Which differences are real", blocks=[_table(comparisons, _HOW_TO_COMPARE)]),
        Section(title="Tuning", blocks=[_table(tuning_table(found), _HOW_TO_TUNE)] if found.tried else []),
        Section(title="Runs", blocks=[Fold(title=f"{len(runs[1])} runs", blocks=[_table(runs, "")])]),
        Section(title="Made by", blocks=[Code(title="ablation.yaml", text=recipe, folded=True)]),
    ]
    return Page(
        title=name,
        kind="Ablation",
        lead=f"{len(found.rows)} variants over {found.rows[0].num_seeds} seeds, by {found.metric}: "
        f"{found.metrics[found.metric]} is better",
        sections=[section for section in sections if section.blocks],
    )


_HOW_TO_READ = (
    "Mean over seeds with Student's 95 % interval, of each variant by itself. Better than: real differences, see below."
)
_HOW_TO_COMPARE = (
    "Paired by seed. The interval is that of the pair alone, 95 %; p of no difference; p for all pairs by Holm's "
    "method, and a difference is real where that is below .05."
)
_HOW_TO_TUNE = "As many settings for every variant, on seeds that are not reported; a setting that failed has lost."


def _how_to_read(found: Ablated) -> list[str]:
    return [_HOW_TO_READ, _HOW_TO_COMPARE, *([_HOW_TO_TUNE] if found.tried else []), *found.notes]


def _described(row: Row, found: Ablated) -> dict[str, str]:
    figures = {f"{metric} ({better} is better)": _shown(row.means[metric]) for metric, better in found.metrics.items()}
    return {
        "variant": row.variant,
        "setting": row.trial,
        **figures,
        "better than": ", ".join(row.better_than),
        "seeds": f"{row.num_finished} of {row.num_seeds}",
        "verdicts": "" if row.oracle_calls is None else f"{row.oracle_calls:,.0f}",
        "seconds": "" if row.seconds is None else f"{row.seconds:,.0f}",
        "money": "" if row.money is None else f"{row.money:.4f}",
    }


def _shown(mean: SeedMean | None) -> str:
    return "" if mean is None else mean.describe()


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    # A name may hold what divides cells.
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _table(text: Text, caption: str) -> Table:
    return Table(title="", columns=text[0], rows=text[1], caption=caption)


def _values(found: Ablated, row: Row) -> list[float]:
    """Of each run of a variant."""
    runs = [outcome for outcome in found.outcomes if outcome.variant == row.variant and not outcome.is_tuning]
    return [value for outcome in runs if (value := outcome.figures.get(found.metric)) is not None]


def _overview(found: Ablated) -> Iterator[Block]:
    best = found.rows[0]
    mean = best.means[found.metric]
    facts = []
    if mean is not None:
        interval = mean.describe().partition(" ")[2]
        facts.append(Fact(label=f"{best.variant}, the best mean", value=f"{mean.mean:.3g}", note=interval))
    real = sum(pair.better is not None for pair in found.comparisons)
    facts.append(Fact(label="real differences", value=f"{real} of {len(found.comparisons)}"))
    finished = [outcome for outcome in found.outcomes if outcome.state == "finished"]
    calls = sum(outcome.oracle_calls or 0 for outcome in finished)
    facts.append(
        Fact(label="verdicts of all runs", value=f"{calls:,}", note="tuning among them" if found.tried else "")
    )
    facts.append(Fact(label="runs", value=f"{len(finished)} of {len(found.outcomes)}", note="ended with a figure"))
    yield Facts(facts=facts)
    yield from (Note(text=note, kind="warning" if " failed: " in note else "note") for note in found.notes)
    yield forest(found)
    series = []
    for row in found.rows:
        runs = [outcome for outcome in found.outcomes if outcome.variant == row.variant and not outcome.is_tuning]
        points = [
            (outcome.seconds, value)
            for outcome in runs
            if outcome.seconds is not None and (value := outcome.figures.get(found.metric)) is not None
        ]
        if points:
            series.append(Series(name=row.variant, points=sorted(points)))
    if series:
        yield Scatter(
            title="What a run took",
            x="seconds of training",
            y=found.metric,
            series=series,
            caption="A sign is a run. Seconds are those of this machine, of as many runs at a time as were asked for.",
        )


def _runs_table(found: Ablated) -> Text:
    headings = ["run", "for", "state", *found.metrics, "verdicts", "seconds", "folder"]
    return headings, [
        [
            outcome.name,
            "tuning" if outcome.is_tuning else "comparison",
            f"failed: {outcome.error}" if outcome.state == "failed" else outcome.state,
            *("–" if (value := outcome.figures.get(metric)) is None else f"{value:.4g}" for metric in found.metrics),
            "–" if outcome.oracle_calls is None else f"{outcome.oracle_calls:,}",
            "–" if outcome.seconds is None else f"{outcome.seconds:,.0f}",
            outcome.folder,
        ]
        for outcome in found.outcomes
    ]


def _estimate(mean: SeedMean | None) -> Estimate | None:
    return None if mean is None else Estimate(value=mean.mean, low=mean.low, high=mean.high)
