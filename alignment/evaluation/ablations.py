"""What the runs of an ablation say together: a row for each variant, every two compared, what was tuned, what failed.

Pure: it neither runs nor reads anything.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.special import stdtrit

from alignment.evaluation.intervals import LEVEL
from alignment.evaluation.seeds import Better, SeedComparison, SeedMean, compare_over_seeds, seed_mean

# Below so many seeds Student's quantile is far from the normal one.
_FEW_SEEDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        variant: what is compared.
        trial: the setting that was tried; empty where nothing is tuned.
        seed: of the run.
        is_tuning: whether it only serves the choice of a setting.
        folder: of the run.
        state: ``open``: not run yet; a failed one is tried again by the next call.
        figures: finite ones at the end, by name; of the average of the weights where the recipe keeps one.
        start: before training, by name.
        seconds: of training.
        oracle_calls: verdicts that were learned from.
        money: spent on oracles; ``None`` where none has a price.
        error: its last line, of a run that failed.
    """

    variant: str
    trial: str
    seed: int
    is_tuning: bool
    folder: str
    state: Literal["finished", "failed", "open"]
    figures: Mapping[str, float] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    oracle_calls: int | None = None
    money: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """As messages call it."""
        return ", ".join(part for part in (self.variant, self.trial, f"seed {self.seed}") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A setting of a variant on the tuning seeds; ``mean`` is ``None`` where no run of it has a figure."""

    variant: str
    trial: str
    mean: SeedMean | None
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant over its seeds.

    Attributes:
        variant: its name.
        trial: the setting that was chosen; empty where nothing is tuned.
        means: figure -> over seeds; ``None`` where no run has it.
        better_than: variants that it beats for real, by the first figure.
        num_finished: runs that count.
        num_seeds: runs that there should be.
        seconds: of a run, on average.
        oracle_calls: likewise.
        money: likewise.
    """

    variant: str
    trial: str
    means: Mapping[str, SeedMean | None]
    better_than: tuple[str, ...]
    num_finished: int
    num_seeds: int
    seconds: float | None
    oracle_calls: float | None
    money: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablated:
    """What an ablation found.

    Attributes:
        metrics: figure -> which end is better; the first one decides.
        start: of the first figure before training, on average; ``None`` if no run says it.
        rows: of the variants, the best first.
        comparisons: of every two variants, by the first figure.
        tried: settings on the tuning seeds.
        outcomes: of all runs.
        notes: what a reader of the figures must know.
    """

    metrics: Mapping[str, Better]
    start: float | None
    rows: tuple[Row, ...]
    comparisons: tuple[SeedComparison, ...]
    tried: tuple[Tried, ...]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The figure that decides."""
        return next(iter(self.metrics))

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Runs without a figure."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    def to_json(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        verdicts = [{**dataclasses.asdict(pair), "verdict": pair.verdict} for pair in self.comparisons]
        return {**dataclasses.asdict(self), "comparisons": verdicts}


def is_off(verdicts: int, budget: int, tolerance: float) -> bool:
    """Whether a number of verdicts differs from the budget by more than this part of it.

    Example:
        >>> is_off(90, 100, 0.1), is_off(89, 100, 0.1)
        (False, True)
    """
    return abs(verdicts - budget) > tolerance * budget


def choose(outcomes: Sequence[Outcome], metric: str, better: Better) -> tuple[Tried, ...]:
    """The best setting of each variant by its mean over tuning seeds; one that failed was tried as well, and loses.

    Args:
        outcomes: of the tuning seeds.
        metric: the figure that decides.
        better: which end of it is.
    """
    runs: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        runs.setdefault((outcome.variant, outcome.trial), []).append(outcome)
    # Without the seeds that failed a mean may flatter.
    means = {
        setting: seed_mean(values) if len(values := _values(own, metric)) == len(own) else None
        for setting, own in runs.items()
    }
    sign = 1.0 if better == "lower" else -1.0
    best: dict[str, str] = {}
    for (variant, trial), mean in sorted(means.items(), key=lambda item: _place(item[1], sign)):
        if mean is not None:
            best.setdefault(variant, trial)
    return tuple(
        Tried(variant=variant, trial=trial, mean=mean, is_chosen=best.get(variant) == trial)
        for (variant, trial), mean in means.items()
    )


def summarise(
    outcomes: Sequence[Outcome],
    *,
    variants: Sequence[str],
    metrics: Mapping[str, Better],
    seeds: Sequence[int],
    budget: int | None,
    tolerance: float,
) -> Ablated:
    """All tables of an ablation.

    Args:
        outcomes: of all runs; those of the comparison have each variant's chosen setting only.
        variants: what is compared.
        metrics: figure -> which end is better; the first one decides.
        seeds: of the comparison.
        budget: verdicts of a run; ``None`` for as many as the first finished run counted.
        tolerance: by which part of it a run may differ.
    """
    metric, better = next(iter(metrics.items()))
    reported = [outcome for outcome in outcomes if not outcome.is_tuning]
    own = {variant: [outcome for outcome in reported if outcome.variant == variant] for variant in variants}
    values = {
        variant: {outcome.seed: outcome.figures[metric] for outcome in runs if metric in outcome.figures}
        for variant, runs in own.items()
    }
    comparisons = compare_over_seeds(values, better)
    tried = choose([outcome for outcome in outcomes if outcome.is_tuning], metric, better)
    rows = [_row(variant, own[variant], tried, comparisons, metrics, len(seeds)) for variant in variants]
    sign = 1.0 if better == "lower" else -1.0
    starts = [outcome.start[metric] for outcome in reported if metric in outcome.start]
    return Ablated(
        metrics=dict(metrics),
        start=sum(starts) / len(starts) if starts else None,
        rows=tuple(sorted(rows, key=lambda row: _place(row.means[metric], sign))),
        comparisons=comparisons,
        tried=tried,
        outcomes=tuple(outcomes),
        notes=tuple(_notes(outcomes, tried, rows, len(seeds), budget, tolerance)),
    )


def _place(mean: SeedMean | None, sign: float) -> float:
    """By which rows and settings are sorted, the best first; without a figure last."""
    return math.inf if mean is None else sign * mean.mean


def _values(outcomes: Sequence[Outcome], metric: str) -> list[float]:
    return [outcome.figures[metric] for outcome in outcomes if metric in outcome.figures]


def _row(
    variant: str,
    runs: Sequence[Outcome],
    tried: Sequence[Tried],
    comparisons: Sequence[SeedComparison],
    metrics: Mapping[str, Better],
    num_seeds: int,
) -> Row:
    finished = [outcome for outcome in runs if outcome.state == "finished"]
    beaten = [
        pair.second if pair.better == pair.first else pair.first for pair in comparisons if pair.better == variant
    ]
    return Row(
        variant=variant,
        trial=next((item.trial for item in tried if item.variant == variant and item.is_chosen), ""),
        means={metric: seed_mean(_values(finished, metric)) for metric in metrics},
        better_than=tuple(beaten),
        num_finished=len(finished),
        num_seeds=num_seeds,
        seconds=_average([outcome.seconds for outcome in finished]),
        oracle_calls=_average([outcome.oracle_calls for outcome in finished]),
        money=_average([outcome.money for outcome in finished]),
    )


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _notes(
    outcomes: Sequence[Outcome],
    tried: Sequence[Tried],
    rows: Sequence[Row],
    num_seeds: int,
    budget: int | None,
    tolerance: float,
) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.state == "failed":
            yield f"{outcome.name} failed: {outcome.error}; {outcome.folder}/log.txt has the whole"
    num_open = sum(outcome.state == "open" for outcome in outcomes)
    if num_open:
        yield f"{num_open} runs have not ended yet"
    for row in rows:
        if row.num_finished < row.num_seeds and not num_open:
            said = "a mean without those that failed may flatter it" if row.num_finished else "nothing is known of it"
            yield f"{row.variant}: {row.num_finished} of {row.num_seeds} seeds; {said}"
    counted = [outcome for outcome in outcomes if outcome.oracle_calls is not None]
    expected = budget or next((outcome.oracle_calls for outcome in counted), None)
    for outcome in counted:
        assert outcome.oracle_calls is not None and expected is not None
        if is_off(outcome.oracle_calls, expected, tolerance):
            yield f"{outcome.name} learned from {outcome.oracle_calls:,} verdicts, not {expected:,}: another budget"
    if tried:
        num_tried = len(tried) // len({item.variant for item in tried})
        yield f"each variant at the best of {num_tried} settings by the tuning seeds, which are not reported"
    if num_seeds == 1:
        yield "one seed: no interval, and nothing can be told apart"
    elif num_seeds < _FEW_SEEDS:
        reach = float(stdtrit(num_seeds - 1, 1.0 - LEVEL / 2.0))
        yield (
            f"{num_seeds} seeds: an interval reaches {reach:.1f} standard errors to each side, and a small difference "
            "is not told apart from chance; more seeds narrow it"
        )
