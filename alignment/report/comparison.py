"""Runs side by side: a row each, for the terminal, for JSON and for the page."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.report.blocks import Estimate
from alignment.report.runs import Metrics, Run, Track, win_rate, worst_rate
from alignment.report.scales import number


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """What a policy reached and what it took; ``None`` where the run does not say.

    Attributes:
        run: the run's name, with the player's.
        method: its name.
        ended: whether the run did.
        gap_start: exact duality gap at the start, regularised by the recipe's tau.
        gap_end: at the end.
        win_rate: against the reference at the end, in [0, 1].
        win_rate_low: lower end of its 95 % interval.
        win_rate_high: upper end.
        exact_win_rate: the same by the exact probabilities.
        worst_group: who gains least from the policy, a group of annotators or a member of the panel.
        worst_win_rate: and how much, in [0, 1].
        kl_to_ref: nats; exact where it is known exactly.
        oracle_calls: of the whole run, over all players.
        money: likewise, in the currency of the recipe's prices.
        seconds: likewise.
    """

    run: str
    method: str | None
    ended: bool
    gap_start: float | None
    gap_end: float | None
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    exact_win_rate: float | None
    worst_group: str | None
    worst_win_rate: float | None
    kl_to_ref: float | None
    oracle_calls: int | None
    money: float | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


def compare(runs: Sequence[Run]) -> list[ComparisonRow]:
    """A row for each run and each of its players."""
    return [_row(run, track) for run in runs for track in run.tracks]


def columns(rows: Sequence[ComparisonRow]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people; a column that no row fills is left out."""
    cells = [_cells(row) for row in rows]
    headings = [name for name in cells[0] if any(row[name] for row in cells)]
    return headings, [[row[name] or "–" for name in headings] for row in cells]


def _row(run: Run, track: Track) -> ComparisonRow:
    after = track.after
    measured = win_rate(after)
    worst_group, worst = worst_rate(after) or (None, None)
    exact_kl = _finite(after, "exact_kl_to_ref")
    return ComparisonRow(
        run=run.label(track),
        method=run.method,
        ended=run.has_ended,
        gap_start=_finite(track.before, "exact_gap"),
        gap_end=_finite(after, "exact_gap"),
        win_rate=None if measured is None else measured.value,
        win_rate_low=None if measured is None else measured.low,
        win_rate_high=None if measured is None else measured.high,
        exact_win_rate=_finite(after, "exact_win_rate"),
        worst_group=worst_group,
        worst_win_rate=None if worst is None else worst.value,
        kl_to_ref=_finite(after, "kl_to_ref") if exact_kl is None else exact_kl,
        oracle_calls=run.oracle_calls,
        money=run.money,
        seconds=run.seconds,
    )


def _finite(metrics: Metrics, name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _cells(row: ComparisonRow) -> dict[str, str]:
    return {
        "run": row.run if row.ended else f"{row.run} (not ended)",
        "method": row.method or "",
        "gap": _gap(row.gap_start, row.gap_end),
        "win rate (95 %)": ""
        if row.win_rate is None
        else _rate(Estimate(value=row.win_rate, low=row.win_rate_low, high=row.win_rate_high)),
        "exact": "" if row.exact_win_rate is None else f"{row.exact_win_rate:.3f}",
        "worst group": "" if row.worst_win_rate is None else f"{row.worst_win_rate:.3f} {row.worst_group}",
        "KL": "" if row.kl_to_ref is None else f"{row.kl_to_ref:.3f}",
        "verdicts": "" if row.oracle_calls is None else f"{row.oracle_calls:,}",
        "money": "" if row.money is None else f"{row.money:.4f}",
        "seconds": "" if row.seconds is None else f"{row.seconds:,.0f}",
    }


def _gap(start: float | None, end: float | None) -> str:
    """From where to where, in three digits."""
    if end is None:
        return ""
    return number(float(f"{end:.3g}")) if start is None else f"{start:.3g} → {end:.3g}"


def _rate(rate: Estimate) -> str:
    """With its interval."""
    if rate.low is None or rate.high is None:
        return f"{rate.value:.3f}"
    return f"{rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})"
